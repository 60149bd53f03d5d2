"""The log-probabilities of an answer, in whatever form a server or a client tells them, as tokens."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from confcascade.types import ThoughtToken, Token

__all__ = ["LEAST_LISTED", "TokenReader", "are_none", "whole_tokens"]

LEAST_LISTED = 2  # alternatives asked for: one alone is the token itself, beside which a certain one looks like none

_MAPPINGS = (dict, Mapping)  # what comes first is found first
_Decoder = codecs.getincrementaldecoder("utf-8")
_NUMBERS, _BYTES = (float, int), (list, bytes)  # `isinstance` takes three times as long with a union
_LEAST = -9999.0  # nats
_NONE = -9998.0  # nats: at most so much is told of an alternative that has no log-probability
_ROUNDING = 0.01  # nats by which a log-probability may exceed 0


class TokenReader:
    """Reads the tokens of one answer, whole or in pieces, so that their texts add up to it.

    Where a character takes several tokens, its text comes with the last of them.  End-of-text entries, which have no
    text or no bytes, are left out.

    Args:
        top_logprobs: How many alternatives at each position are wanted, too.

    Attributes:
        problem: Why what was told so far is no log-probability; None if it is one. An answer with a problem has no
            tokens to judge.
    """

    def __init__(self, top_logprobs: int = 20) -> None:
        self._no_number = False
        self._certain: bool | None = None  # whether all were 0 or none, beside no alternative that has a probability
        self._zero = False
        self._top_logprobs = top_logprobs
        self._decoder = _Decoder("replace")
        self._within = False  # whether it has the first bytes of a character

    def read(self, logprobs: Any) -> tuple[Token, ...] | None:
        """The next tokens; None if there are none, or they are told in another form.

        Args:
            logprobs: Mappings or objects, ``{"content": [{token, logprob, bytes, top_logprobs}]}`` (OpenAI, vLLM,
                SGLang, llama.cpp's server, Fireworks, TGI), with those of the thoughts in a list of their own,
                ``reasoning_content`` (DeepSeek), only the list (Ollama), or ``{"tokens": [...], "token_logprobs":
                [...], "top_logprobs": [{}]}`` (legacy completions: Together, llama-cpp-python).
        """
        apart = None if isinstance(logprobs, list) else _get(logprobs, "reasoning_content")
        thoughts = self._read(apart, ThoughtToken) if isinstance(apart, list) else None
        answer = self._read(_answer_entries(logprobs), Token)
        if self._no_number or (thoughts is None and answer is None):
            return None
        return (*(thoughts or ()), *(answer or ()))

    def _read(self, entries: Any, kind: type[Token]) -> tuple[Token, ...] | None:
        if not isinstance(entries, list):
            return None
        tokens = []
        certain, others = self._certain, bool(self._top_logprobs)
        top: tuple[tuple[str, float], ...] = ()
        for entry in entries:
            told = entry if type(entry) is dict else _fields(entry)
            text: Any = told.get("token")
            logprob: Any = told.get("logprob")
            usual = type(logprob) is float and _LEAST <= logprob <= 0  # nearly always
            if not (isinstance(text, str) and (usual or (isinstance(logprob, _NUMBERS) and self._is_one(logprob)))):
                return None
            if certain is not False:
                certain = self._certain = (logprob == 0 or logprob <= _NONE) and _stands_alone(text, told)
                self._zero = self._zero or logprob == 0
            spelling = told.get("bytes")
            if text and spelling != []:
                if spelling is not None:
                    text = self._spelled(text, spelling)
                if others:
                    top = self._alternatives(told.get("top_logprobs"))
                tokens.append(kind(text, logprob if usual else _clamped(logprob), top))
        return tuple(tokens)

    @property
    def problem(self) -> str | None:
        if self._no_number:
            return "a log-probability from the server is invalid (not a number, infinite, or above 0)"
        # as DeepSeek V3.2 does; gpt-4o-mini tells exactly 0, too, where it is sure, but beside real alternatives
        if self._certain and self._zero:
            return "every log-probability from the server is exactly 0 or -9999, with no real alternative: it has none"
        return None

    def _is_one(self, logprob: float) -> bool:
        if not logprob <= _ROUNDING:  # of NaN no comparison is true
            self._no_number = True
        return not self._no_number

    def _alternatives(self, told: Any) -> tuple[tuple[str, float], ...]:
        others: list[tuple[str, float]] = []
        for other in map(_fields, told[: self._top_logprobs] if isinstance(told, list) else ()):
            text: Any = other.get("token")
            logprob: Any = other.get("logprob")
            if _is_told(text, logprob) and self._is_one(logprob):
                others.append((text, _clamped(logprob)))
        return tuple(others)

    def _spelled(self, text: str, spelling: Any) -> str:
        """What an entry adds to the answer; of an incomplete character, `text` is an escape such as ``\\xf0``."""
        if type(spelling) is not list and not isinstance(spelling, _BYTES):
            return text
        try:
            told = bytes(spelling)
            if not self._within:
                return told.decode()  # nearly always: whole characters
        except UnicodeDecodeError:
            pass
        except (TypeError, ValueError):  # no bytes
            return text
        spelled = self._decoder.decode(told)
        self._within = self._decoder.getstate()[0] != b""
        return spelled


def whole_tokens(logprobs: Any, top_logprobs: int) -> tuple[tuple[Token, ...] | None, str | None]:
    """The tokens of a whole answer, and why there are none, if what is told is no log-probability."""
    reader = TokenReader(top_logprobs)
    tokens = reader.read(logprobs)
    return (None, reader.problem) if reader.problem else (tokens, None)


def are_none(tokens: Sequence[Token]) -> bool:
    """Whether no token has a log-probability: each is told as 0 or as one that stands for none, and one as that."""
    values = {token.logprob for token in tokens}
    return bool(values) and min(values) <= _NONE and all(value == 0 or value <= _NONE for value in values)


def _answer_entries(logprobs: Any) -> Any:
    if isinstance(logprobs, list):
        return logprobs
    legacy = _get(logprobs, "token_logprobs")
    return _get(logprobs, "content") if legacy is None else _legacy_entries(logprobs, legacy)


def _stands_alone(text: str, entry: Mapping[str, Any]) -> bool:
    """Whether no alternative of an entry has a probability; of one that lists only itself, that is not known."""
    told = entry.get("top_logprobs")
    others = list(map(_fields, told if isinstance(told, list) else ()))
    if not others:
        return True
    apart = [other.get("logprob") for other in others if other.get("token") != text]
    return bool(apart) and all(isinstance(each, float | int) and each <= _NONE for each in apart)


def _legacy_entries(logprobs: Any, values: Sequence[Any]) -> list[dict[str, Any]]:
    texts, tops = _get(logprobs, "tokens") or (), _get(logprobs, "top_logprobs") or ()
    return [
        {
            "token": text,
            "logprob": value,
            "top_logprobs": [
                {"token": other, "logprob": its} for other, its in (top.items() if isinstance(top, Mapping) else ())
            ],
        }
        for text, value, top in zip_longest(texts, values, tops[: len(texts)])
    ]


def _is_told(text: Any, logprob: Any) -> bool:
    return isinstance(text, str) and isinstance(logprob, _NUMBERS)


def _clamped(logprob: float) -> float:
    """Rounding may exceed 0; vLLM writes -9999 where there is none, others -inf, of which no mean could be taken."""
    return float(logprob) if _LEAST <= logprob <= 0 else min(0.0, max(float(logprob), _LEAST))


def _fields(entry: Any) -> Mapping[str, Any]:
    """Of a mapping or an object; empty if it is neither."""
    return entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})


def _get(thing: Any, key: str) -> Any:
    return thing.get(key) if isinstance(thing, _MAPPINGS) else getattr(thing, key, None)
