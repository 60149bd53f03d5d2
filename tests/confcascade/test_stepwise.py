"""Answers that two models write in turn: by hand, and through every driver alike."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from confcascade import (
    Cascade,
    CascadeExhaustedError,
    ConfigurationError,
    Stage,
    StreamBrokenError,
    TokenProbability,
    trace,
)
from confcascade.asks import Answer, Capability, Chunk, Generate, Left, Prefill
from confcascade.attempts import Outcome, Unanswered
from confcascade.cascade_model import CascadeModel
from confcascade.cost import Architecture, extension_flops, token_flops
from confcascade.decoding import Decoding
from confcascade.errors import SignalUnavailableError
from confcascade.models.base import InThreads
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.glimpse import Glimpse
from confcascade.stepwise import Steps
from confcascade.stepwise_cascade import StepwiseCascade, cascade_of
from confcascade.testing import ScriptedModel, check_model, same_record
from confcascade.types import Message, OutputSchema, Request, Response, Token, Tool, Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMALL = "One.\n\nTwo?\n\nThree.\n\nFour."
LARGE = "ONE.\n\nTWO.\n\nTHREE.\n\nFOUR."


class Scribe(InThreads):
    """Writes its own text, a word a token, from as many steps on as have been written; sure of words without "?"."""

    def __init__(
        self,
        name: str,
        text: str,
        *,
        fails: int | None = None,
        after: int = 0,
        ends: str = "stop",
        delay_s: float = 0.0,
        **capability: Any,
    ) -> None:
        self._name = name
        self.text = text
        self.fails = fails  # from which step on
        self.after = after  # so many words of it
        self.ends = ends
        self.delay_s = delay_s
        self.asks: list[Generate] = []
        self._capability = Capability(**{"logprobs": True, "continues": True, **capability})
        self.architecture = Architecture(parameters=len(name), layers=1, hidden_size=2)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return self._capability

    def prefill(self, asks: Sequence[Prefill]) -> list[Any]:
        raise NotImplementedError

    def generate(self, asks: Sequence[Generate]) -> list[Any]:
        answers: list[Any] = []
        for ask in asks:
            try:
                answers.append(list(self.stream(ask))[-1])
            except Exception as error:
                answers.append(error)
        return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        self.asks.append(ask)
        until = ask.until or "\n\n"
        steps = self.text.split(until)
        at = ask.request.written.count(until)
        rest = until.join(steps[at:])
        text = rest
        if ask.until and at < len(steps) - 1:
            text = steps[at] + until
        tokens = [Token(word, -2.0 if "?" in word else -0.01, max_logit=9.0) for word in _words(text)]
        reason = "step" if text != rest else self.ends
        if ask.request.max_tokens is not None and len(tokens) >= ask.request.max_tokens:
            tokens, reason = tokens[: ask.request.max_tokens], "length"
        for i, token in enumerate(tokens):
            if self.delay_s:
                time.sleep(self.delay_s)
            if self.fails is not None and at >= self.fails and i >= self.after:
                raise ConnectionError("out of order")
            yield Chunk(token.text, (token,), released=ask.live)
        if self.fails is not None and at >= self.fails:
            raise ConnectionError("out of order")
        read = sum(len(_words(m.content)) for m in ask.request.messages) + len(_words(ask.request.written))
        said = "".join(token.text for token in tokens)
        yield Response(said, tuple(tokens), Usage(read, len(tokens)), reason)


def _words(text: str) -> list[str]:
    """Words with the blanks behind them."""
    words: list[str] = []
    for letter in text:
        if words and (letter in "\n " or words[-1][-1] not in "\n "):
            words[-1] += letter
        else:
            words.append(letter)
    return words


class Gate(Signal):
    """Lets the small model write those steps that are named, counted from 0."""

    phase = "pre"
    name = "gate"

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def check(self, model: Any) -> None:
        pass

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(1.0 if evidence.request.written.count("\n\n") in self.steps else 0.0)

    def identity(self) -> dict[str, Any]:
        return {"type": "gate", "steps": list(self.steps)}


def scribes(
    *signals: Signal,
    small: Scribe | None = None,
    large: Scribe | None = None,
    threshold: Any = 0.5,
    **others: Any,
) -> StepwiseCascade:
    signals = signals or (TokenProbability(),)
    thresholds = {signal.name: threshold for signal in signals}
    first, last = small or Scribe("small", SMALL), large or Scribe("large", LARGE)
    return StepwiseCascade([Stage(first, list(signals), thresholds), Stage(last)], **others)


def written(outcome: Outcome) -> str:
    """By whom, and what was thrown away."""
    return " ".join(f"{step.author[0]}{'' if step.kept else '-'}" for step in outcome.record.steps)


# ---------------------------------------------------------------------- who writes


def test_the_large_model_writes_what_the_small_one_is_not_sure_of():
    """Judged after it was written: thrown away, written anew, and gone on from."""
    cascade = scribes()
    outcome = cascade.run("Q")

    assert outcome.text == "One.\n\nTWO.\n\nThree.\n\nFour."
    assert written(outcome) == "s s- l s s"
    assert [(step.index, step.kept) for step in outcome.record.steps] == [
        (0, True), (1, False), (1, True), (2, True), (3, True),
    ]  # fmt: skip
    assert [attempt.decision for attempt in outcome.record.attempts] == ["accept", "escalate"]
    assert outcome.record.answered_by == "small"
    assert outcome.stage == 0
    assert "p_t 0.135 < 0.5" in outcome.record.steps[1].reason
    assert outcome.response.tokens is not None
    assert "".join(token.text for token in outcome.response.tokens) == outcome.text


def test_before_a_step_a_gate_decides():
    """And what it lets through is not judged again."""
    outcome = scribes(Gate(0, 3)).run("Q")

    assert outcome.text == "One.\n\nTWO.\n\nTHREE.\n\nFour."
    assert written(outcome) == "s l l s"


def test_all_signals_must_pass():
    """A gate spares the step, a judge throws it away."""
    outcome = scribes(Gate(0, 1, 3), TokenProbability()).run("Q")
    assert written(outcome) == "s s- l l s"
    assert set(outcome.record.steps[0].scores) == {"gate", "p_t"}
    assert set(outcome.record.steps[3].scores) == {"gate"}


@pytest.mark.parametrize(
    ("threshold", "text", "calls"), [("always", SMALL, (1, 0)), ("never", LARGE, (0, 1)), (0.0, SMALL, (4, 0))]
)
def test_thresholds_at_the_ends(threshold: Any, text: str, calls: tuple[int, int]):
    """One model writes, and the other is not asked."""
    cascade = scribes(threshold=threshold)
    outcome = cascade.run("Q")
    assert outcome.text == text
    assert tuple(len(stage.model.asks) for stage in cascade.stages) == calls
    assert len(outcome.record.attempts) == 1


def test_the_large_model_ends_the_answer_if_it_is_to():
    """The small one's last step is written anew."""
    outcome = scribes(steps=Steps(final="large")).run("Q")
    assert outcome.text == "One.\n\nTWO.\n\nThree.\n\nFOUR."
    assert written(outcome) == "s s- l s s- l"
    assert outcome.record.answered_by == "large"
    always = scribes(threshold="always", steps=Steps(final="large")).run("Q")
    assert always.text == "One.\n\nTwo?\n\nThree.\n\nFOUR."


def test_after_so_many_steps_the_large_model_writes_the_rest():
    """As one."""
    outcome = scribes(steps=Steps(max_steps=2)).run("Q")
    assert outcome.text == "One.\n\nTWO.\n\nTHREE.\n\nFOUR."
    assert written(outcome) == "s s- l l"


@pytest.mark.parametrize(
    ("small", "text", "reason"),
    [
        ("", "ONE.\n\n", "empty answer"),
        ("One.\n\nOne.\n\nOne.", "One.\n\nTWO.\n\nOne.", "repeats"),
    ],
)
def test_unusable_steps_are_not_kept(small: str, text: str, reason: str):
    """However sure the model is of them."""
    outcome = scribes(small=Scribe("small", small)).run("Q")
    assert outcome.text == text
    assert any(reason in step.reason for step in outcome.record.steps if not step.kept)


@pytest.mark.parametrize("most", range(1, 9))
def test_an_answer_has_as_many_tokens_as_it_may(most: int):
    """Over all its steps, also if one ends exactly there."""
    outcome = scribes(Gate(0, 2)).run("Q", max_tokens=most)
    assert len(outcome.response.tokens or ()) == min(most, 4)
    assert outcome.response.finish_reason == ("length" if most <= 4 else "stop")


LONG = " ".join(["more?"] * 20)


@pytest.mark.parametrize(
    ("first", "most", "final", "who", "reads"),
    [
        ("One is it.\n\n", 5, "author", "s s", 0),  # 2 tokens are left, and a step takes 3: cut, whoever writes
        ("One is it.\n\n", 5, "large", "s s", 0),  # nor is it the answer's end
        ("One is it.\n\n", 6, "author", "s s- l", 1),  # the larger one may come to an end in 3
        ("One is it.\n\n", 23, "author", "s s- l", 1),
        ("", 5, "author", "s- l s", 1),  # it has all that there is
    ],
)
def test_a_cut_step_is_written_anew_only_where_another_may_end(first: str, most: int, final: Any, who: str, reads: int):
    """Otherwise the answer is cut off in any case, and the larger model is not made to read it for nothing."""
    large = Scribe("large", "ONE.\n\nTWO.")
    outcome = scribes(small=Scribe("small", first + LONG), large=large, steps=Steps(final=final)).run(
        "Q", max_tokens=most
    )
    assert written(outcome) == who
    assert len(large.asks) == reads
    assert outcome.response.finish_reason == ("stop" if reads else "length")
    if not reads:
        assert outcome.text == first + "more? more? "
        step = outcome.record.steps[-1]
        assert step.reason == "the answer is cut off here: 2 of its tokens were left, fewer than a step takes"


def test_a_whole_step_at_the_limit_is_judged_by_its_score():
    """It was not cut off: nothing is left for another."""
    outcome = scribes(small=Scribe("small", "One.\n\nSure it is.\n\nFour.")).run("Q", max_tokens=4)
    assert (outcome.text, written(outcome)) == ("One.\n\nSure it is.\n\n", "s s")
    assert (outcome.response.finish_reason, outcome.record.steps[1].reason) == ("length", "p_t 0.99 >= 0.5")


def test_a_cut_step_is_written_anew_by_a_model_that_may_write_more():
    """The limit of the smaller model's own stage, or of its server, is not the larger one's."""
    limit = Decoding(max_tokens=5)
    small = Stage(Scribe("small", "One is it.\n\n" + LONG), [TokenProbability()], {"p_t": 0.5}, decoding=limit)
    cascade = StepwiseCascade([small, Stage(Scribe("large", "ONE.\n\nTWO."))])
    assert written(cascade.run("Q")) == "s s- l"


def test_one_stage_and_other_thresholds_can_be_asked_for():
    """By the query, as of any cascade."""
    cascade = scribes()
    assert cascade.run("Q", stage="small").text == SMALL
    assert cascade.run("Q", stage=1).text == LARGE
    assert cascade.run("Q", threshold=0.0).text == SMALL
    assert cascade.run("Q", threshold={"p_t": "never"}).text == LARGE
    ids = {cascade.run("Q", **how).record.policy_id for how in ({}, {"stage": 1}, {"threshold": 0.0})}
    assert len(ids) == 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"tools": (Tool("look", "Looks.", {"type": "object"}),)},
        {"output": OutputSchema("answer", {"type": "object"})},
        {"media": True},
    ],
)
def test_what_can_only_be_judged_whole_goes_to_the_large_model(parameters: dict[str, Any]):
    """Tools, structured output and images."""
    large = Scribe("large", "{}", tools=True, structured=True, media=True)
    cascade = scribes(large=large)
    outcome = cascade.run("Q", **parameters)
    assert outcome.record.answered_by == "large"
    assert outcome.text == "{}"
    assert not cascade.stages[0].model.asks
    assert large.asks[0].until == ""
    assert large.asks[0].request.written == ""


def test_what_cannot_be_is_refused_when_it_is_built():
    """With what to do instead."""
    good = Stage(Scribe("small", ""), [Gate(0)], {"gate": 0.5}), Stage(Scribe("large", ""))
    scripted = ScriptedModel("large")
    for wrong, said in (
        (lambda: StepwiseCascade([*good[:1], good[0], good[1]]), "small and a large"),
        (lambda: StepwiseCascade([good[0], Stage(scripted)]), "cannot go on"),
        (lambda: StepwiseCascade(good, on_cut="keep"), "on_cut"),
        (lambda: StepwiseCascade(good, audit=0.5), "audit"),
        (lambda: StepwiseCascade(good, steps=3), "Steps"),
        (lambda: Steps(""), "delimiter"),
        (lambda: Steps(max_steps=0), "max_steps"),
        (lambda: Steps(final="small"), "final"),
        (lambda: cascade_of("other", stages=good), "mode"),
        (lambda: cascade_of(steps=Steps(), stages=good), "steps"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            wrong()
    assert isinstance(cascade_of("stepwise", stages=good, steps=Steps("\n")), StepwiseCascade)


# ---------------------------------------------------------------------- what fails


@pytest.mark.parametrize("after", [0, 1])
def test_a_small_model_that_fails_is_asked_no_more(after: int):
    """The large one writes the rest, as one; of a step that was not judged and is shown, the stream has broken."""
    cascade = scribes(small=Scribe("small", SMALL, fails=2, after=after))
    outcome = cascade.run("Q")
    assert outcome.text == "One.\n\nTWO.\n\nTHREE.\n\nFOUR."
    assert [attempt.decision for attempt in outcome.record.attempts] == ["fail", "accept"]
    assert outcome.record.attempts[0].error == "ConnectionError"
    assert "small failed" in outcome.record.steps[-1].reason
    with pytest.raises(ConnectionError, match="out of order"):
        scribes(small=Scribe("small", SMALL, fails=2), on_error="raise").run("Q")


def test_a_large_model_that_fails():
    """An error with every attempt, or the small one's rest, flagged."""
    ended: list[Any] = []
    cascade = scribes(large=Scribe("large", LARGE, fails=1), on_ended=lambda request, end: ended.append(end))
    with trace() as t, pytest.raises(CascadeExhaustedError) as caught:
        cascade.run("Q")
    assert isinstance(caught.value, ConnectionError)
    (record,) = t.records
    assert record.ended == "failed"
    assert [attempt.decision for attempt in record.attempts] == ["escalate", "fail"]
    assert isinstance(ended[0], Unanswered)
    assert ended[0].record == record
    assert record.usage.output_tokens == 2  # a step that was kept, and one thrown away

    best = scribes(large=Scribe("large", LARGE, fails=1), on_exhausted="best").run("Q")
    assert best.text == SMALL
    assert best.record.degraded
    assert best.record.answered_by == "small"


def test_both_fail():
    """There is no answer, whatever was to be done."""
    for how in ({}, {"on_exhausted": "best"}):
        cascade = scribes(small=Scribe("small", SMALL, fails=1), large=Scribe("large", LARGE, fails=1), **how)
        with pytest.raises(CascadeExhaustedError):
            cascade.run("Q")


def test_a_stream_that_breaks_in_the_midst_of_a_step():
    """What is shown cannot be taken back: an error, with who failed in the record."""
    for broken, cascade in (
        ("small", scribes(Gate(0, 1, 2, 3), small=Scribe("small", "One.\n\nTwo is it", fails=1, after=2))),
        ("large", scribes(large=Scribe("large", "ONE.\n\nTWO IS IT", fails=1, after=2), on_exhausted="best")),
    ):
        shown = ""
        with trace() as t:
            items = cascade.stream("Q")
            while True:
                try:
                    shown += next(items).text
                except StreamBrokenError:
                    break
        assert shown.startswith("One.\n\n")
        assert len(shown) > 8
        (record,) = t.records
        assert [a.model for a in record.attempts if a.decision == "fail"] == [broken]


@pytest.mark.parametrize("many", [False, True])
def test_a_stream_that_is_left_has_a_record(many: bool):
    """With what was paid for."""
    cascade = scribes()

    async def leave() -> None:
        items = cascade.astream("Q")
        async for _ in items:
            break
        await items.aclose()

    with trace() as t:
        if many:
            asyncio.run(leave())
        else:
            for _ in cascade.stream("Q"):
                break
    gc.collect()
    (record,) = t.records
    assert record.ended == "left"
    assert record.attempts[-1].decision == "left"
    assert record.usage.output_tokens >= 1


def test_a_cancelled_call_has_a_record():
    """Also while a model is being asked in a thread."""
    cascade = scribes(small=Scribe("small", SMALL, delay_s=0.05))

    async def main() -> None:
        call = asyncio.ensure_future(cascade.arun("Q"))
        await asyncio.sleep(0.08)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with trace() as t:
        asyncio.run(main())
    assert [record.ended for record in t.records] == ["left"]


# ---------------------------------------------------------------------- what is shown


THINKS = "<think>\nHm?\n\nAh.\n</think>\n\nIt is 4.\n\nSure."


def test_thoughts_are_shown_apart():
    """Though they end in another step, by another model, than they began in."""
    large = Scribe("large", THINKS.replace("Hm?", "Hm!"))
    for cascade in (scribes(small=Scribe("small", THINKS), large=large), scribes(Gate(0, 2), large=large)):
        *chunks, outcome = scribes(small=Scribe("small", THINKS), large=large).stream("Q")
        assert "".join(chunk.text for chunk in chunks) == outcome.text == "It is 4.\n\nSure."
        assert "".join(chunk.thoughts for chunk in chunks) == outcome.response.thoughts
        assert outcome.response.thoughts.strip() == "Hm!\n\nAh."
        assert all(chunk.released for chunk in chunks)
        del cascade


def test_only_what_stands_is_shown():
    """A step that may be thrown away is shown when it is kept; what a gate lets through, word by word."""
    pieces = [item.text for item in scribes(Gate(0, 1, 2, 3), small=Scribe("small", "a b c\n\nd e")).stream("Q")][:-1]
    assert pieces == ["a ", "b ", "c\n\n", "d ", "e"]
    for cascade in (scribes(), scribes(steps=Steps(final="large")), scribes(Gate(1))):
        *chunks, outcome = cascade.stream("Q")
        assert "".join(chunk.text for chunk in chunks) == outcome.text
        assert tuple(token for chunk in chunks for token in chunk.tokens) == outcome.response.tokens


def test_an_answer_that_was_begun_is_gone_on_with():
    """Its beginning is the caller's, and is not said again."""
    *chunks, outcome = scribes().stream(Request(Message.parse("Q"), written="Zero.\n\n"))
    assert outcome.text == "TWO.\n\nThree.\n\nFour." == "".join(chunk.text for chunk in chunks)


# ---------------------------------------------------------------------- costs and notices


def test_notices_say_nothing_false(caplog: Any):
    """Of cascades that work as they should, nothing is said, however often they are asked."""
    with caplog.at_level(logging.WARNING, logger="confcascade"):
        for cascade in (
            scribes(),
            scribes(Gate(0)),
            scribes(Gate(3)),
            scribes(threshold="always"),
            scribes(threshold="always", steps=Steps(final="large")),
            scribes(threshold="never"),
        ):
            cascade.run_batch(["Q"] * 40)
    assert not caplog.records


def test_of_an_api_each_call_is_charged_as_it_bills():
    """It keeps nothing: what it read is read again, unless it says that it was cached."""
    outcome = scribes().run("Q")
    small, large = outcome.record.attempts
    assert outcome.record.usage == small.usage + large.usage == outcome.response.usage
    assert (small.usage.input_tokens, small.usage.output_tokens) == (1 + 2 + 3 + 4, 4)
    expected = sum(token_flops(Architecture(5, 1, 2), read + 1) for read in (1, 2, 3, 4))
    assert small.cost.flops == pytest.approx(expected)
    assert outcome.record.cost.flops == pytest.approx(small.cost.flops + large.cost.flops)
    kept = outcome.record.cost_answering_stage.flops
    assert kept == pytest.approx(outcome.record.cost.flops - token_flops(Architecture(5, 1, 2), 3))


def test_a_flow_can_be_played_by_hand():
    """It asks, is answered, and can be left."""
    cascade = scribes()
    flow = cascade.flow(Request(Message.parse("Q"), max_tokens=50))
    (first,) = next(flow)
    assert (first.model.name, first.until, first.request.written, first.live) == ("small", "\n\n", "", False)
    step = Response("Is it?\n\n", (Token("Is it?\n\n", -3.0),), Usage(1, 4), "step")
    (second,) = flow.send((Answer(step, elapsed_s=1.0, busy_s=1.0),))
    assert (second.model.name, second.request.written, second.request.max_tokens, second.live) == (
        "large",
        "",
        50,
        True,
    )
    (third,) = flow.send((Answer(Response("It is.\n\n", None, Usage(1, 3), "step"), elapsed_s=2.0, busy_s=2.0),))
    assert (third.model.name, third.request.written, third.request.max_tokens) == ("small", "It is.\n\n", 47)
    assert third.session is first.session is not second.session
    with trace() as t, pytest.raises(Left):
        flow.throw(Left((Answer(Response("So", None, Usage(2, 1), "aborted"), elapsed_s=1.0, busy_s=0.5),)))
    assert t.records == []  # the trace was not open when it was asked


# ---------------------------------------------------------------------- with models that read


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade.demo.world import World
from confcascade.models.bundled import bundled_model

torch.set_num_threads(1)


class MaxLogit(Signal):
    """The mean greatest logit of the last step, as the small model sees it; first, of what it expects next."""

    name = "lookback"
    space = (-math.inf, math.inf)
    phase = "pre"
    following = True
    between_steps = True

    def check(self, model: Any) -> None:
        pass

    def score(self, evidence: Evidence) -> Measurement:
        seen = [token.max_logit for token in evidence.tokens or () if token.max_logit is not None]
        if seen:
            return Measurement(sum(seen) / len(seen))
        if evidence.prefilled is None or evidence.prefilled.following is None:
            raise SignalUnavailableError("nothing was read")
        return Measurement(evidence.prefilled.following.max_logit or 0.0)

    def identity(self) -> dict[str, Any]:
        return {"type": "max logit"}


@cache
def models() -> tuple[Any, Any, Any]:
    return tuple(bundled_model(size) for size in ("small", "medium", "large"))


@cache
def sums() -> list[str]:
    asked = World().questions("test", tasks=("sums",), per_task=40)
    return [question.prompt for question in asked if question.prompt.count(", ") >= 2][:4]


SIGNALS: dict[str, Any] = {
    "lookback": (MaxLogit, (5.0, 30.0)),
    "glimpse": (Glimpse, (0.3, 1.0)),
    "draft": (lambda: TokenProbability(name="draft"), (0.5, 1.0)),
}


def bundled(thresholds: dict[str, Any], *, large: int = 2, **others: Any) -> StepwiseCascade:
    signals = [SIGNALS[name][0]() for name in thresholds]
    others.setdefault("steps", Steps("\n"))
    return StepwiseCascade([Stage(models()[0], signals, thresholds), Stage(models()[large])], **others)


@pytest.mark.parametrize("name", SIGNALS)
def test_one_model_by_itself_is_that_model(name: str):
    """Token for token: where nothing is judged, and where each step is and all of them pass, or none does."""
    small, _, large = models()
    for prompt in sums()[:2]:
        for model, thresholds in ((small, ("always", -1e9)), (large, ("never", 1e9))):
            (whole,) = model.generate([Generate(model, Request(Message.parse(prompt), max_tokens=64))])
            for threshold in thresholds:
                if name != "lookback" and not isinstance(threshold, str):
                    threshold = min(max(threshold, 0.0), 1.0)
                outcome = bundled({name: threshold}).run(prompt, max_tokens=64)
                if any(step.author != model.name for step in outcome.record.steps if step.kept):
                    assert threshold == 1.0  # which the small model can reach, if it is certain
                    continue
                assert outcome.text == whole.text
                assert [t.text for t in outcome.response.tokens] == [t.text for t in whole.tokens]
                assert [t.logprob for t in outcome.response.tokens] == pytest.approx(
                    [t.logprob for t in whole.tokens], abs=1e-3
                )


@st.composite
def some_thresholds(draw: Any) -> dict[str, float]:
    names = draw(st.lists(st.sampled_from(sorted(SIGNALS)), min_size=1, max_size=2, unique=True))
    return {name: draw(st.floats(*SIGNALS[name][1])) for name in names}


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    thresholds=some_thresholds(),
    large=st.sampled_from([1, 2]),
    steps=st.sampled_from([Steps("\n"), Steps(" "), Steps("\n", max_steps=2), Steps("\n", final="large")]),
    most=st.sampled_from([64, 9]),
)
def test_every_driver_decides_and_writes_alike(thresholds: Any, large: int, steps: Steps, most: int):
    """Alone and in a batch, at once or not, whole or as it comes."""
    cascade = bundled(thresholds, large=large, steps=steps)
    prompts = sums()
    alone = [cascade.run(prompt, max_tokens=most) for prompt in prompts]

    async def asynchronously() -> list[Any]:
        one = [await cascade.arun(prompt, max_tokens=most) for prompt in prompts[:2]]
        return [
            [*one, *alone[2:]],
            await cascade.arun_batch(prompts, max_tokens=most),
            [[item async for item in cascade.astream(prompt, max_tokens=most)] for prompt in prompts[:2]],
        ]

    one, batch, streams = asyncio.run(asynchronously())
    streams += [list(cascade.stream(prompt, max_tokens=most)) for prompt in prompts[2:]]
    for *chunks, outcome in streams:
        assert "".join(chunk.text for chunk in chunks) == outcome.text
        assert all(chunk.released for chunk in chunks)
    for outcomes in (one, batch, cascade.run_batch(prompts, max_tokens=most), [items[-1] for items in streams]):
        for found, expected in zip(outcomes, alone, strict=True):
            if any(
                abs(score.value - score.threshold) < 1e-4
                for step in expected.record.steps
                for score in step.scores.values()
            ):
                continue
            assert found.text == expected.text
            assert same_record(found.record.as_dict(), expected.record.as_dict(), 1e-3)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(thresholds=some_thresholds())
def test_costs_add_up(thresholds: Any):
    """Prompt and answer once for each model that read them, and what was thrown away."""
    for prompt in sums()[:2]:
        outcome = bundled(thresholds).run(prompt, max_tokens=64)
        record, steps = outcome.record, outcome.record.steps
        assert record.cost_answering_stage.flops <= record.cost.flops * (1 + 1e-9)
        assert [step.index for step in steps if step.kept] == list(range(sum(step.kept for step in steps)))
        assert sum(step.tokens for step in steps) == record.usage.output_tokens
        assert all(step.reason for step in steps)
        for attempt in record.attempts:
            model = next(each for each in models() if each.name == attempt.model)
            thrown = sum(step.tokens for step in attempt.steps if not step.kept)
            own = sum(step.tokens for step in attempt.steps)
            prompt_tokens = len(model._prompts.encode(model.render(Request(Message.parse(prompt)))))
            others = attempt.usage.input_tokens - prompt_tokens
            assert 0 <= others <= sum(s.tokens for s in steps if s.kept and s.author != attempt.model) + 2
            read = attempt.usage.total_tokens
            least = token_flops(model.architecture, read - thrown)
            most = least + thrown * extension_flops(model.architecture, read, 1)
            assert least * (1 - 1e-9) <= attempt.cost.flops <= most * (1 + 1e-9)
            assert own == attempt.usage.output_tokens


def test_sessions_are_freed_however_a_flow_ends(monkeypatch: Any):
    """Answered, failed, left or cancelled, alone or in a batch: no KV cache outlives its query."""
    from confcascade.models.local import sessions

    refs: list[Any] = []
    real = sessions.Sessions._taken

    def taken(self: Any, cache: Any, mask: Any, row: int) -> Any:
        found = real(self, cache, mask, row)
        refs.extend(weakref.ref(side) for pair in found for side in pair)
        return found

    monkeypatch.setattr(sessions.Sessions, "_taken", taken)
    cascade, prompts = bundled({"glimpse": 0.9, "draft": 0.9}), sums()

    def none_left() -> None:
        for _ in range(50):
            gc.collect()
            if not any(ref() is not None for ref in refs):
                break
            time.sleep(0.05)
        assert refs
        assert not any(ref() is not None for ref in refs)
        refs.clear()

    outcome = cascade.run(prompts[0])
    none_left()
    outcomes = cascade.run_batch(prompts)
    none_left()
    items = cascade.stream(prompts[0])
    next(items)
    items.close()
    none_left()

    async def cancelled() -> None:
        call = asyncio.ensure_future(cascade.arun_batch(prompts))
        while not refs:
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(cancelled())
    none_left()
    monkeypatch.setattr(
        models()[2]._runner._sessions, "_decoded", lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))
    )
    with pytest.raises(CascadeExhaustedError):
        bundled({"draft": 1.0}).run(prompts[0])
    none_left()
    del outcome, outcomes


# ---------------------------------------------------------------------- as a model


def test_a_cascade_is_a_model():
    """It keeps a model's contract."""
    check_model(CascadeModel(bundled({"glimpse": 0.9})), Request(Message.parse(sums()[0]), max_tokens=32))
    check_model(CascadeModel(scribes()), Request(Message.parse("Q")))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_cascade_is_a_stage_of_a_larger_one(threshold: float):
    """What it cost and who wrote what stands in the outer record, alone, in a batch and in a stream."""
    inner = CascadeModel(scribes(), name="both")
    largest = Scribe("largest", "IT IS.")
    outer = Cascade([Stage(inner, [TokenProbability()], {"p_t": threshold}), Stage(largest)])

    with trace() as t:
        alone = outer.run("Q")
    assert len(t.records) == 1
    own = scribes().run("Q")
    first = alone.record.attempts[0]
    assert first.usage == own.record.usage
    assert first.cost.flops == pytest.approx(own.record.cost.flops)
    assert [(s.author, s.kept) for s in first.steps] == [(s.author, s.kept) for s in own.record.steps]
    assert alone.text == (own.text if threshold == 0.0 else "IT IS.")
    *chunks, streamed = outer.stream("Q")
    assert "".join(chunk.text for chunk in chunks) == streamed.text == alone.text
    for found in (streamed, *outer.run_batch(["Q", "Q"])):
        assert found.text == alone.text
        assert same_record(found.record.as_dict(), alone.record.as_dict())
