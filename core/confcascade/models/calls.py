"""The parameters of one call to an API, and what of them its server may refuse."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from confcascade.asks import Generate
from confcascade.errors import kept_of
from confcascade.types import Response

__all__ = ["OF_ONE_CALL", "CallParameters", "Refusals", "is_openais"]

_log = logging.getLogger("confcascade")

_SURE = 2  # refusals of a kind of call after which it is not asked for again; one that names it counts for two
_FORGOTTEN_S = 600.0  # until it is: a server may be started anew
_MOST = 256  # kinds of calls that are remembered
# options that say who asks, or which draw is wanted: of another value in each call, and of no kind
OF_ONE_CALL = {"user", "seed", "safety_identifier", "prompt_cache_key", "metadata"}
# what gateways and servers answer to a parameter that they do not take; 501: not implemented, 502: by a proxy
_STATUSES = (400, 403, 404, 422, 500, 501, 502)
_UNNAMED = (400, 422, 501)  # those of them that mean a parameter where the text names none
# what the caller asks for: of these the value may be at fault, and then the error is the caller's
_OF_THE_CALLER = {"max_tokens", "temperature"}
# how servers say that the parameter is at fault: a model does not take it, or only its default
_UNSUPPORTED = re.compile(
    r"unsupported|not support|n't support|deprecated|\bonly\b.*?(?:support|allow|accept)"
    # or it is not known at all, or not beside another one
    r"|unrecogni[sz]ed|unknown (?:\w+ )?(?:field|parameter|argument|name|key|property)"
    r"|unexpected (?:keyword|field|parameter|argument|property)|extra_forbidden|extra (?:inputs|fields)|not permitted"
    r"|(?:may|must|can|could)(?: ?not|'t) (?:both )?be (?:both )?(?:set|specified|used|given|provided)\b"
    r"(?! (?:to|above|below|over|outside|beyond|greater|less|higher|lower|larger|smaller)\b)",
    re.I | re.S,
)
# how servers say that they list fewer alternatives than were asked for
_LIMIT = (
    r"logprobs.*?(?:max(?:imum)?\b|at most|between|must be|less than|no more than|<=|≤)[^\d]*(\d+)(?:\D{1,8}(\d+))?"
)


@dataclass
class _Refused:
    times: int = 0
    at: float = 0.0
    why: str = ""


class Refusals:
    """What a server has refused, by the kind of call: of a streamed one with tools nothing follows for others.

    Args:
        model: Name of the model, for the log.
        words: By what is added to calls, the words by which an error refuses it. An error about "max_tokens" or
            "temperature" must also say that the parameter is unsupported: else it is about the value.
        unsupported: What of it is known to be refused in every kind of call.

    Attributes:
        most_alternatives: How many log-probabilities of alternatives the server lists at most; None if it has not said.
    """

    def __init__(self, model: str, words: Mapping[str, tuple[str, ...]], *, unsupported: Collection[str] = ()) -> None:
        self._model = model
        self._words = words
        self._unsupported = frozenset(unsupported)
        self._known: dict[tuple[str, Hashable], _Refused] = {}
        self._logged: dict[tuple[str, Hashable], None] = {}
        self.most_alternatives: int | None = None

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._known or self._unsupported)

    @property
    def surely(self) -> frozenset[str]:
        """What is not asked for, in some kind of call at least."""
        return self._unsupported | {what for (what, _), known in self._known.items() if known.times >= _SURE}

    def why(self, what: str, kind: Hashable) -> str | None:
        """Why `what` is not to be asked for in calls of this kind; None if it may be."""
        if what in self._unsupported:
            return "it is configured as unsupported"
        known = self._known.get((what, kind))
        if known is None or known.times < _SURE or time.monotonic() - known.at > _FORGOTTEN_S:
            return None
        return known.why

    def _mentioned(self, error: Exception) -> set[str]:
        """What an error is about by its words: a parameter, or its value."""
        told = f"{error} {getattr(error, 'param', None)}"
        return {name for name, words in self._words.items() if any(word in told for word in words)}

    def named(self, error: Exception) -> set[str]:
        """What an error refuses by its words."""
        return {name for name in self._mentioned(error) if name not in _OF_THE_CALLER or _unsupported(error, name)}

    def refused(self, error: Exception, added: Mapping[str, Any]) -> set[str]:
        """What of `added` an error refuses: what it names, or log-probabilities, where it names nothing at all."""
        status, named = getattr(error, "status_code", None), self.named(error)
        if named or status not in _UNNAMED:
            return named & added.keys() if status is None or status in _STATUSES else set()
        # another parameter, the value of one, or the length of the prompt is at fault
        code, param = getattr(error, "code", None), getattr(error, "param", None)
        elsewhere = param or code not in (None, "", status, str(status)) or "context" in str(error).lower()
        elsewhere = elsewhere or self._mentioned(error)
        return set() if elsewhere else {"logprobs"} & added.keys()

    def lists_fewer(self, error: Exception, asked: Mapping[str, Any]) -> bool:
        """Whether an error says that fewer alternatives are listed than were asked for; it is remembered how many."""
        told = re.search(_LIMIT, str(error)) if getattr(error, "status_code", None) in _STATUSES else None
        most = 0 if told is None else int(told[2] or told[1])
        fewer: bool = 1 <= most < asked.get("top_logprobs", 0)
        if fewer:
            self.most_alternatives = most
        return fewer

    def note(self, what: str, kind: Hashable, error: Exception) -> None:
        """It was refused in a call of this kind, which was answered without it."""
        known = self._known.setdefault((what, kind), _Refused())
        if len(self._known) > _MOST:
            self._known.pop(next(iter(self._known)), None)
        known.why = kept_of(error)
        known.times += _SURE if what in self.named(error) else 1
        known.at = time.monotonic()

    def log(self, what: str, kind: Hashable, *, shown: str = "", instead: Collection[str] = ()) -> None:
        """Log what is left out of calls of this kind, or replaced, the first time that it is.

        Args:
            what: Is left out.
            kind: Of the calls.
            shown: What it is called in the log; by default `what`.
            instead: The parameters in its place: then nothing is lost, and the level is INFO, not WARNING.
        """
        if (what, kind) in self._logged:
            return
        self._logged[what, kind] = None
        if len(self._logged) > _MOST:
            self._logged.pop(next(iter(self._logged)), None)
        known = self._known.get((what, kind))
        why = self.why(what, kind) if known is None else known.why
        _log.log(
            logging.INFO if instead else logging.WARNING,
            "Model '%s' refuses %s in one kind of call (%s) and is asked %s. Logged once per kind of call.",
            self._model,
            shown or what,
            why,
            f"with {', '.join(instead)} instead" if instead else "without",
        )

    def taken(self, what: str, kind: Hashable) -> None:
        """It was taken in such a call."""
        self._known.pop((what, kind), None)


class CallParameters:
    """The parameters of a call: those that the caller gives, and those that are added until a server refuses them.

    Attributes:
        ask: What is asked.
        is_answered: Whether an answer has begun to come.

    Args:
        ask: What is asked.
        given: What the caller wants.
        added: What is added, by what it is for ("logprobs", say).
        refusals: Of the model.
        streamed: Whether the answer comes in pieces.
        asked: What the caller wants and may have to do without, by what it is for ("temperature", say). That it is
            left out is logged.
        instead: What takes the place of some of `asked`, by what it is for: the same under a name that newer models
            take, say.
    """

    def __init__(
        self,
        ask: Generate,
        given: Mapping[str, Any],
        added: Mapping[str, Mapping[str, Any]],
        refusals: Refusals,
        *,
        streamed: bool,
        asked: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        instead: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self._streamed = streamed
        self._given = dict(given)
        self._asked, self._instead = asked, instead
        self._refusals = refusals
        self.ask = ask
        self._held = streamed and not (ask.live or ask.until or ask.request.written)
        self.is_answered = False
        self._refused: dict[str, Exception] = {}
        wanted = {**added, **asked}
        self._known: dict[str, str] = {}
        if refusals.any:
            self._known = {name: why for name in wanted if (why := refusals.why(name, self._kind_of(name))) is not None}
        self._added = {name: dict(value) for name, value in wanted.items() if name not in self._known}
        if refusals.most_alternatives is not None:
            self._limit()

    @cached_property
    def _kind(self) -> Hashable:
        """Of the call."""
        request = self.ask.request
        options = frozenset((key, _shown(value)) for key, value in request.options.items() if key not in OF_ONE_CALL)
        tools = frozenset(tool.parameters is None for tool in request.tools)  # a provider's own are another endpoint's
        return self._streamed, tools, request.output is not None, options

    def _kind_of(self, name: str) -> Hashable:
        """For which calls a refusal holds: of what nothing can replace, for those with this value."""
        by_value = name in self._asked and name not in self._instead
        return (self._kind, *map(_shown, self._asked[name].values())) if by_value else self._kind

    def _limit(self) -> None:
        """Ask for no more alternatives than the server lists."""
        most, asked = self._refusals.most_alternatives, self._added.get("logprobs", {})
        if most is not None and most < asked.get("top_logprobs", 0):
            asked["top_logprobs"] = most

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the next try."""
        told = self._given.copy()
        for each in self._added.values():
            told.update(each)
        for name, other in self._instead.items():
            if name in self._asked and name not in self._added:
                told.update(other)
        return told

    @property
    def whole(self) -> bool:
        """Whether the answer should rather come whole: a draft that is held back need not be streamed, and it may be
        only streamed calls that are refused."""
        return self._held and ("logprobs" in self._refused or "logprobs" in self._known)

    def explained(self, response: Response) -> Response:
        """An answer that has no log-probabilities because they were refused says so."""
        why = self._known.get("logprobs")
        if (error := self._refused.get("logprobs")) is not None:
            why = kept_of(error)
        if response.tokens is not None or response.unscored is not None or why is None:
            return response
        return response.replace(unscored=f"the server refuses log-probabilities in this kind of call ({why})")

    def retry_without(self, error: Exception) -> None:
        """Drop what `error` refuses, or ask for fewer alternatives, if it is their number.

        Raises:
            Exception: It, if that is nothing of ours, or part of an answer has come.
        """
        if not self.is_answered and self._refusals.lists_fewer(error, self._added.get("logprobs", {})):
            self._limit()
            return
        refused = set() if self.is_answered else self._refusals.refused(error, self._added)
        if not refused:
            raise error
        for name in refused:
            del self._added[name]
            self._refused[name] = error

    def answered(self) -> None:
        """Remember what was refused, for without it there is an answer, and what was taken."""
        if not self.is_answered:
            self.is_answered = True
            self._note()
            if self._refusals.any:
                for name in self._added:
                    self._refusals.taken(name, self._kind_of(name))

    def came_whole(self, response: Response) -> Response:
        """The answer to a call that took the place of this one (`whole`): what this one was refused is remembered.

        Had that failed, too, perhaps the question would have been at fault, and not what was added.
        """
        self._note()
        return response

    def _note(self) -> None:
        for name, error in self._refused.items():
            self._refusals.note(name, self._kind_of(name), error)
        for name in (*self._refused, *(self._known.keys() & self._asked.keys() if self._known else ())):
            shown = ", ".join(f"{key}={value!r}" for key, value in self._asked.get(name, {}).items())
            instead = self._instead.get(name, {})
            self._refusals.log(name, self._kind_of(name), shown="" if instead else shown, instead=list(instead))


def _unsupported(error: Exception, name: str) -> bool:
    """Whether an error says that the model does not take this parameter, or only one value of it."""
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    if param and name not in str(param):
        return False
    return code in ("unsupported_parameter", "unsupported_value") or _UNSUPPORTED.search(str(error)) is not None


def _shown(value: Any) -> Hashable:
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def is_openais(url: str | None) -> bool:
    """Whether a client's address is OpenAI's or Azure's own, whose API has no further parameters; None is OpenAI's.

    >>> is_openais(None), is_openais("https://me.openai.azure.com/v1"), is_openais("https://not-openai.com/v1")
    (True, True, False)
    """
    host = urlsplit(url).hostname if url else None
    return host is None or f".{host}".endswith((".openai.com", ".openai.azure.com"))
