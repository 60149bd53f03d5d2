"""The few calls by which a stage shows what it can do, as a flow: it asks, and whoever plays it calls the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confcascade.answers import parted
from confcascade.asks import Answer, Ask, Flow, Generate, Prefill, Session, Verdict, ask
from confcascade.attempts import Bill, billed
from confcascade.decoding import asked_with
from confcascade.errors import ConfigurationError, SignalUnavailableError, kept_of, status_of
from confcascade.flow import answer_layers, begun_for, prefill_for, read_for
from confcascade.signals import Evidence, OneThreshold, passes, threshold_of
from confcascade.stage import Stage
from confcascade.tools import CUT
from confcascade.types import Message, Prefilled, Request, Response, Token, Tool, Usage

__all__ = ["BEGUN", "Call", "Judged", "Probe", "Probed", "thinks"]

_FEW = 16  # tokens, of an answer of three words
_STATING = 96  # where a signal lets the model state its confidence, too
_THINKING = 2048  # of a model behind an API that thinks, where its stage sets no limit
_CALLING = 64  # of a tool call
_LISTED = 20  # alternatives, the most that OpenAI lists

BEGUN = "Red,"  # with what an answer is begun that the model is to continue
_COLOUR = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
_NOTE = {"name": "note_colour", "description": "Notes a colour.", "parameters": _COLOUR}
# in OpenAI's form, too, which frameworks take as a tool of their own
_TOOL = Tool("note_colour", _COLOUR, "Notes a colour.", native={"type": "function", "function": _NOTE})


@dataclass(frozen=True)
class Call:
    """One call, and what came of it.

    Attributes:
        request: What was asked.
        response: The answer, its tokens parted; None if there is none.
        prefilled: Of a pass over the prompt.
        error: Instead.
        usage: Tokens paid for, as far as they are known.
        seconds: From the call to its answer.
    """

    request: Request
    response: Response | None = None
    prefilled: Prefilled | None = None
    error: Exception | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What a signal made of the answer.

    Attributes:
        value: In the signal's own space; None if it could not be scored.
        threshold: That it must reach; None where the stage has none.
        unavailable: Why it could not be scored.
    """

    value: float | None = None
    threshold: OneThreshold | None = None
    unavailable: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the answer is kept, as far as this signal goes; None without a threshold."""
        if self.threshold is None:
            return None
        return self.threshold == "always" if self.value is None else passes(self.value, self.threshold)


@dataclass
class Probed:
    """What came of the calls.

    Attributes:
        calls: In their order: of "prefill", "whole", "thinking", "streamed", "cut", "continued", "tools" and
            "choices" those that were made.
        scores: Of the stage's signals, by name; without those that judge only the steps of an answer.
        learned: What its server was found to refuse, beyond what was known before: "temperature", say.
        in_pieces: Whether a cascade streams its drafts, whole or not, since its signals may decide before they end.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    scores: dict[str, Judged] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    in_pieces: bool = False
    further: Bill = field(default_factory=Bill)  # what signals asked further

    @property
    def ended(self) -> Call:
        """The call for a whole answer, of a model that thinks the one that came to its end."""
        longer = self.calls.get("thinking")
        return self.calls["whole"] if longer is None or longer.response is None else longer

    @property
    def answer(self) -> Response | None:
        """The whole answer, of a model that thinks the one that came to its end."""
        return self.ended.response

    @property
    def judged(self) -> Response | None:
        """The answer that a cascade judges: the streamed one where drafts are always streamed."""
        return self.calls["streamed"].response if self.in_pieces else self.answer

    @property
    def usage(self) -> Usage:
        """Of all calls."""
        return sum((call.usage for call in self.calls.values()), self.further.usage)

    @property
    def seconds(self) -> float:
        """Of all calls."""
        return self.further.busy_s + sum(call.seconds for call in self.calls.values())


def thinks(response: Response) -> bool:
    """Whether a model has thought before it answered, as far as that can be seen."""
    return bool(response.thoughts) or response.usage.output_details.get("reasoning", 0) > 0


def _hold(tokens: Sequence[Token]) -> Verdict:
    """A watch that decides nothing: it only lets the answer be streamed."""
    del tokens
    return "hold"


class Probe:
    """Asks a stage what shows what it can do; nothing more once it does not answer at all.

    Args:
        stage: With its model, its signals and its decoding.
        messages: A question of the user's, asked with the stage's own limit; None for one of three words.
        last: Whether it is the last of its cascade, where nothing judges.
        on_call: Called before each call with its name (as of `Probed.calls`), or that of the signal which judges.

    Attributes:
        stage: As given.
        own_question: Whether it is asked a question of the user's.
    """

    def __init__(
        self,
        stage: Stage,
        messages: Sequence[Message] | None,
        *,
        last: bool = False,
        on_call: Callable[[str], None] | None = None,
    ) -> None:
        self.stage = stage
        self.own_question = messages is not None
        self._on_call = on_call
        self._probed = Probed(in_pieces=not last and stage.wants.early and stage.check is None)
        own = asked_with(stage.model, stage.decoding, {}).get("max_tokens")
        few = _STATING if any(signal.rewords for signal in stage.signals) else _FEW
        self._limit = own if messages is not None else min(few, own or few)
        # a model in this process has a limit of its own; a server's may be 32,000 tokens
        self._longest = own or (None if stage.model.capability.local else _THINKING)
        told = _question(stage) if messages is None else messages
        self._request = stage.decoding.applied(Request(tuple(told), max_tokens=self._limit))
        self._asked = begun_for(stage.model, stage.signals, self._request)

    def flow(self) -> Flow[Probed]:
        """Play it with `confcascade.drivers.run` or ``arun``."""
        known = _refused(self.stage)
        probed = yield from self._calls()
        probed.learned = _refused(self.stage) - known
        return probed

    def _calls(self) -> Flow[Probed]:
        model, probed, listed = self.stage.model, self._probed, self._listed
        told = model.capability.logprobs is not False
        # as a cascade asks, for the same score; how many alternatives there can be, the answer of one token shows
        wanted: dict[str, Any] = {"logprobs": told, "top_logprobs": self.stage.wants.top_logprobs}
        states = answer_layers(model, self.stage.wants.after)
        prefilled: Prefilled | None = None
        if (first := self._prefill()) is not None:
            prefilled = (yield from self._call("prefill", first)).prefilled
        whole = yield from self._call(
            "whole", Generate(model, self._asked, prefilled=prefilled, layers=states, **wanted)
        )
        if whole.error is not None and status_of(whole.error) == 400 and not self.own_question:
            # to OpenAI's reasoning models, thoughts that use up a limit are a bad request
            self._asked = replace(self._asked, max_tokens=self._longest)
            whole = yield from self._call("whole", Generate(model, self._asked, layers=states, **wanted))
        if whole.response is None:
            return probed
        longer = replace(self._asked, max_tokens=self._longest)
        thinking = whole.response.finish_reason in CUT and (thinks(whole.response) or not whole.response.answer.strip())
        if thinking:
            yield from self._call("thinking", Generate(model, longer, layers=states, **wanted))
        streamed = longer if thinking and probed.in_pieces else self._asked
        yield from self._call("streamed", Generate(model, streamed, watch=_hold, **wanted))
        yield from self._judge(prefilled)
        one = replace(self._asked, max_tokens=1)
        cut = yield from self._call("cut", Generate(model, one, logprobs=told, top_logprobs=listed))
        if model.capability.continues:
            begun = replace(self._asked, begun="", written=BEGUN)
            yield from self._call("continued", Generate(model, begun, logprobs=False, session=Session()))
        limited = self._asked if cut.response is None else one  # a server may take no limit so small
        if model.capability.tools:
            most = _CALLING if cut.response is not None else limited.max_tokens
            calling = Request((Message("user", "Note the colour blue."),), most, tools=(_TOOL,), tool_choice="required")
            yield from self._call("tools", Generate(model, self.stage.decoding.applied(calling), **wanted))
        if hasattr(whole.response.native, "choices"):
            several = replace(limited, options={**limited.options, "n": 2})
            yield from self._call("choices", Generate(model, several, logprobs=False))
        return probed

    @property
    def _listed(self) -> int:
        """As many alternatives as the stage's signals want, or else as there can be."""
        return self.stage.wants.top_logprobs or min(_LISTED, self.stage.model.capability.top_logprobs)

    def _prefill(self) -> Prefill | None:
        """A pass over the prompt that shows whatever the model can show of it; None if it can make none."""
        model, can = self.stage.model, self.stage.model.capability
        if not (can.prefill or can.engine):
            return None
        wanted = prefill_for(model, self.stage.signals, self._asked) or Prefill(model, self._asked)
        if wanted.layers or not can.layers:
            return wanted
        return replace(wanted, layers=can.served_layers or (can.layers,))

    def _tell(self, what: str) -> None:
        if self._on_call is not None:
            self._on_call(what)

    def _call(self, name: str, asking: Ask) -> Flow[Call]:
        self._tell(name)
        answer: Answer[Any] = yield from ask(asking)
        made = Call(asking.request, error=answer.error, usage=answer.usage or Usage(), seconds=answer.elapsed_s)
        if isinstance(answer.value, Prefilled):
            read = answer.value  # an answer that goes on from it counts the prompt, too
            made = replace(made, prefilled=read, usage=read.usage if read.apart else made.usage)
        elif answer.value is not None:
            told = answer.value if name == "tools" else read_for(self.stage.signals, self._request, answer.value)
            made = replace(made, response=parted(asking.request, told), usage=answer.value.usage)
        self._probed.calls[name] = made
        return made

    def _judge(self, prefilled: Prefilled | None) -> Flow[None]:
        """The scores of the answer, by the stage's own signals; what they ask further is charged."""
        stage, response = self.stage, self._probed.judged
        for signal in stage.signals:
            if signal.between_steps:
                continue
            threshold = stage.thresholds.get(signal.name)
            evidence = Evidence(self._request, prefilled, model=stage.model)
            if signal.phase == "post":
                if response is None:  # no stream came, and drafts are streamed
                    continue
                evidence = Evidence(self._request, prefilled, response.tokens, response, stage.model)
            try:
                self._tell(signal.name)
                measured = yield from billed(signal.judge(evidence), stage, self._probed.further)
            except ConfigurationError:
                raise
            except SignalUnavailableError as error:
                judged = Judged(None, _least(threshold), str(error))
            except Exception as error:  # of a model that it asked
                judged = Judged(None, _least(threshold), kept_of(error))
            else:
                own = None if threshold is None else threshold_of(threshold, measured.details.get("label"))
                judged = Judged(measured.value, own)
            self._probed.scores[signal.name] = judged


def _refused(stage: Stage) -> frozenset[str]:
    """What its model's server is known to refuse, where the model knows."""
    refused: frozenset[str] = getattr(stage.model, "refused", frozenset())
    return refused


def _least(threshold: Any) -> OneThreshold | None:
    return "never" if isinstance(threshold, Mapping) else threshold


def _question(stage: Stage) -> Iterator[Message]:
    """Three words to answer, or one of the labels that the stage's signals judge."""
    labels = next((signal.labels for signal in stage.signals if signal.labels), ())
    prefix = next((signal.prefix for signal in stage.signals if signal.prefix), None)
    if not labels:
        yield Message("user", "Name three colours, with commas between them. Say nothing else.")
        return
    begun = f' Begin with "{prefix}".' if prefix else ""
    told = f"Which of these comes last in the alphabet: {', '.join(labels)}? Answer with it, and say nothing else."
    yield Message("user", told + begun)
