from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confcascade import (
    Cascade,
    CascadeExhaustedError,
    CascadeModel,
    ConfigurationError,
    KnowledgeProbe,
    Message,
    MissingExtraError,
    ModelError,
    Outcome,
    Prices,
    Request,
    Stage,
    TokenProbability,
    Usage,
    trace,
)
from confcascade.errors import SignalUnavailableError
from confcascade.extending import Chunk, Response, Signal, build_stages
from confcascade.signals.knowledge_probe import ProbeCard
from confcascade.stage import FittedStages
from confcascade.testing import Reply, ScriptedModel

SMALL, MIDDLE, LARGE = (ScriptedModel(name) for name in ("small", "middle", "large"))
SILENT = ScriptedModel("silent", logprobs=False)
SEEN = ScriptedModel("seen", hidden_size=2)


def probe(model: str = "seen", size: int = 2) -> KnowledgeProbe:
    card = ProbeCard(model, f"scripted-{model}", 2, size, (1, 1, 1), 0.5, (0.5, 0.5), 0.25, 1, 0)
    ones = np.ones(size, np.float32)
    return KnowledgeProbe(card, {"mean": ones, "scale": ones, "weight.0": ones[:, None], "bias.0": ones[:1]})


def judged(*signals: Any, model: Any = SMALL, **thresholds: Any) -> list[Stage]:
    return [Stage(model, signals, thresholds), Stage(LARGE)]


WRONG: dict[str, tuple[Callable[[], Any], list[str]]] = {
    # what is built, and what the error must say: what was given, the rule, the way out
    "neither models nor stages": (lambda: build_stages(), ["`models`", "`stages`", "Got neither"]),
    "models and stages": (
        lambda: build_stages(models=[SMALL], stages=[Stage(LARGE)]),
        ["either `models`", "or `stages`", "Got both"],
    ),
    "no models": (lambda: build_stages(models=[]), ["at least one stage", "empty"]),
    "no stages": (lambda: Cascade([]), ["at least one stage", "empty"]),
    "stages is one stage": (lambda: Cascade(Stage(SMALL)), ["`stages` must be a list", "Got Stage"]),  # type: ignore[arg-type]
    "models is a string": (lambda: build_stages(models="openai:gpt-4o"), ["`models` must be a list", "Got str"]),
    "bare models as stages": (lambda: Cascade([SMALL, LARGE]), ["Stage objects", "ScriptedModel", "`models`"]),  # type: ignore[list-item]
    "stages with a threshold": (
        lambda: build_stages(stages=judged(TokenProbability(), p_t=0.5), threshold=0.9),
        ["With `stages`", "drop `threshold`"],
    ),
    "stages with signals": (
        lambda: build_stages(stages=judged(TokenProbability(), p_t=0.5), signals=[TokenProbability()]),
        ["With `stages`", "drop", "`signals`"],
    ),
    "unknown provider": (lambda: build_stages(models=["mistral:large"]), ['"openai:NAME"', 'Got "mistral:large"']),
    "no provider": (lambda: build_stages(models=["gpt-4o"]), ['"local:FOLDER_OR_NAME"', 'Got "gpt-4o"', "object"]),
    "provider without a name": (lambda: build_stages(models=["openai:"]), ['"openai:NAME"', 'Got "openai:"']),
    "not a model": (lambda: Cascade([Stage(object())]), ["LanguageModel", "Got object", "langchain_confcascade"]),
    "threshold missing": (lambda: build_stages(models=[SMALL, LARGE]), ["`threshold` is missing", "0.9", "p_t"]),
    "no threshold for a signal": (
        lambda: Cascade(judged(TokenProbability())),
        ["Stage 'small'", "one threshold for each", "['p_t']", "{'p_t': 0.9}", "Got []"],
    ),
    "threshold of another signal": (
        lambda: Cascade(judged(TokenProbability(), p_ik=0.5)),
        ["['p_t']", "{'p_t': 0.9}", "Got ['p_ik']"],
    ),
    "threshold too many": (
        lambda: build_stages(models=[SMALL, LARGE], threshold={"p_t": 0.5, "p_ik": 0.5}),
        ["['p_t']", "Got ['p_t', 'p_ik']"],
    ),
    "thresholds not a mapping": (
        lambda: Cascade([Stage(SMALL, [TokenProbability()], 0.9), Stage(LARGE)]),  # type: ignore[arg-type]
        ["a mapping such as {'p_t': 0.9}", "Got 0.9"],
    ),
    "one number for two signals": (
        lambda: build_stages(models=[SEEN, LARGE], signals=[probe(), TokenProbability()], threshold=0.9),
        ["['p_ik', 'p_t']", "mapping such as {'p_ik': 0.9, 'p_t': 0.9}", "Got 0.9"],
    ),
    "signals empty": (
        lambda: build_stages(models=[SMALL, LARGE], signals=[], threshold=0.9),
        ["`signals` is empty", "TokenProbability()"],
    ),
    "signals is one signal": (
        lambda: build_stages(models=[SMALL, LARGE], signals=TokenProbability(), threshold=0.9),  # type: ignore[arg-type]
        ["`signals` must be a list", "Got TokenProbability"],
    ),
    "a stage's signals are one signal": (
        lambda: Cascade([Stage(SMALL, TokenProbability(), {"p_t": 0.9}), Stage(LARGE)]),  # type: ignore[arg-type]
        ["Stage 'small'".lower(), "list of signals", "[TokenProbability()]"],
    ),
    "a class for a signal": (
        lambda: Cascade(judged(TokenProbability, p_t=0.9)),
        ["'small'", "[TokenProbability()]", "<class"],
    ),
    "signals of one name": (
        lambda: Cascade(judged(TokenProbability(), TokenProbability(aggregate="min"), p_t=0.9)),
        ["'small'", "different names", "`name`", "['p_t', 'p_t']"],
    ),
    "no log-probabilities": (
        lambda: build_stages(models=[SILENT, LARGE], threshold=0.9),
        ["TokenProbability needs log-probabilities", "'silent'", "put this one last"],
    ),
    "no hidden states": (
        lambda: Cascade(judged(probe(), p_ik=0.5)),
        ["KnowledgeProbe reads hidden states", "'small'", "TransformersModel"],
    ),
    "a probe of another model": (
        lambda: Cascade(judged(probe("other"), model=SEEN, p_ik=0.5)),
        ["'other'", "scripted-other", "'seen'", "scripted-seen", "confcascade train-probe"],
    ),
    "a probe of another size": (
        lambda: Cascade(judged(probe("seen", 3), model=SEEN, p_ik=0.5)),
        ["3 dimensions", "2 dimensions", "confcascade train-probe"],
    ),
    "no signal in the middle": (
        lambda: Cascade([*judged(TokenProbability(), p_t=0.5)[:1], Stage(MIDDLE), Stage(LARGE)]),
        ["Stage 'middle' has no signal", "TokenProbability()"],
    ),
    "on_error": (lambda: Cascade([Stage(LARGE)], on_error="skip"), ['"escalate" or "raise"', "'skip'"]),  # type: ignore[arg-type]
    "on_exhausted": (lambda: Cascade([Stage(LARGE)], on_exhausted="worst"), ['"best" or "raise"', "'worst'"]),  # type: ignore[arg-type]
    "no messages": (lambda: Cascade([Stage(LARGE)]).run([]), ["at least one message", "empty"]),
    "a batch of one string": (lambda: Cascade([Stage(LARGE)]).run_batch("2+2?"), ["`queries`", "Got one str", "`run`"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_when_it_is_built(case: str):
    """Every mistake is one line that names what was given, the rule, and the way out; nothing waits for a prompt."""
    build, said = WRONG[case]

    with pytest.raises(ConfigurationError) as raised:
        build()

    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in said:
        assert part in message


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf, True, "0.9", "Always", None, [0.9]], ids=repr)
def test_a_threshold_outside_its_signals_space_is_refused(wrong: Any):
    """Thresholds are numbers in the signal's own space, or one of two words."""
    with pytest.raises(ConfigurationError) as raised:
        Cascade(judged(TokenProbability(), p_t=wrong))

    assert "'p_t' must be a number in [0, 1]" in str(raised.value)
    assert f"Got {wrong!r}" in str(raised.value)


@pytest.mark.parametrize("right", [0, 0.0, 0.5, 1, 1.0, np.float64(0.5), "always", "never"], ids=repr)
def test_a_threshold_of_its_signals_space_is_taken(right: Any):
    """Both ends of the space belong to it."""
    assert Cascade(judged(TokenProbability(), p_t=right)).stages[0].thresholds == {"p_t": right}


@pytest.mark.parametrize(
    ("model", "module", "extra"), [("openai:gpt-4o", "openai", "openai"), ("local:qwen", "torch", "local")]
)
def test_a_missing_extra_is_named(monkeypatch, model: str, module: str, extra: str):
    """A model string whose package is not installed says which command installs it."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError) as raised:
        build_stages(models=[model])

    assert f'pip install "confcascade[{extra}]"' in str(raised.value)


def test_models_with_a_threshold_become_stages():
    """Every model but the last gets P(T) and the threshold; the last always answers."""
    stages = build_stages(models=[SMALL, MIDDLE, LARGE], threshold=0.7)

    assert [stage.model for stage in stages] == [SMALL, MIDDLE, LARGE]
    assert [[signal.name for signal in stage.signals] for stage in stages] == [["p_t"], ["p_t"], []]
    assert [dict(stage.thresholds) for stage in stages] == [{"p_t": 0.7}, {"p_t": 0.7}, {}]


def test_one_model_needs_no_threshold():
    """A cascade of one is that model; a threshold would have nothing to decide."""
    assert build_stages(models=[SILENT]) == (Stage(SILENT),)


def test_signals_can_be_chosen():
    """With several signals, thresholds are given by name; the caller's list and mapping stay as they were."""
    signals: list[Signal] = [probe(), TokenProbability()]
    threshold = {"p_ik": 0.5, "p_t": "always"}

    stages = build_stages(models=[SEEN, LARGE], signals=signals, threshold=threshold)  # type: ignore[arg-type]

    assert list(stages[0].signals) == signals
    assert stages[0].thresholds == threshold
    assert (len(signals), threshold) == (2, {"p_ik": 0.5, "p_t": "always"})


def test_models_are_wrapped():
    """An integration turns its framework's models into language models."""
    wrapped = build_stages(models=[object()], wrap=lambda _: LARGE)

    assert wrapped == (Stage(LARGE),)


def test_the_callers_stages_are_not_changed(monkeypatch):
    """A stage whose model was a string keeps the string; the cascade has its own."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    stage = Stage("openai:gpt-4o", prices=Prices(1, 2))

    cascade = Cascade([stage])

    assert stage.model == "openai:gpt-4o"
    assert (cascade.stages[0].model.name, cascade.stages[0].prices) == ("gpt-4o", Prices(1, 2))


def test_parameters_reach_every_stage():
    """Fields of a request are keyword arguments of every driver, and are the same for all stages."""
    small = ScriptedModel("small", {"q": ("a b c d", 0.1)})
    large = ScriptedModel("large", {"q": "e f g h"})
    cascade = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(large)])

    assert cascade.run("q", max_tokens=2, stop=("x",)).text == "e f"
    asked = Request((Message("user", "q"),), max_tokens=2, stop=("x",))
    assert [call[0].request for call in small.calls + large.calls] == [asked, asked]


def test_a_request_is_taken_as_it_is():
    """A `Request` of the caller's own goes through, native messages and all; parameters beside it are applied."""
    model = ScriptedModel("m", {"q": "a b c d"})
    request = Request((Message("user", "q"),), native=object(), max_tokens=3)
    cascade = Cascade([Stage(model)])

    assert cascade.run(request).text == "a b c"
    assert model.calls[0][0].request is request
    assert cascade.run(request, max_tokens=1).text == "a"
    assert request.max_tokens == 3


def test_a_record_names_its_policy():
    """Every record carries the id of the cascade that made it, and so does the cascade's repr."""
    cascade = Cascade(judged(TokenProbability(), p_t=0.5))

    assert cascade.run("q").record.policy_id == cascade.policy_id
    assert repr(cascade) == f"Cascade(small -> large, policy_id='{cascade.policy_id}')"


def test_equal_cascades_have_equal_ids():
    """Built twice, from models or from stages, it is the same policy; another threshold, signal or model is not."""

    def id_of(**changes: Any) -> str:
        settings = {"models": [SMALL, LARGE], "threshold": 0.5, **changes}
        return Cascade(build_stages(**settings)).policy_id

    assert id_of() == id_of() == Cascade(judged(TokenProbability(), p_t=0.5)).policy_id
    different = {
        id_of(),
        id_of(threshold=0.6),
        id_of(signals=[TokenProbability(aggregate="min")]),
        id_of(models=[MIDDLE, LARGE]),
        id_of(models=[SMALL, MIDDLE]),
        id_of(models=[SMALL, MIDDLE, LARGE]),
    }
    assert len(different) == 6


def test_policies_of_errors():
    """`on_error` and `on_exhausted` reach the flow of every query."""
    down = ScriptedModel("down", {"q": Reply("", error=TimeoutError("60 s"))})
    stages = [Stage(down, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large", {"q": "4"}))]

    assert Cascade(stages).run("q").text == "4"
    with pytest.raises(TimeoutError, match="60 s"):
        Cascade(stages, on_error="raise").run("q")


def test_an_outcome_is_its_text():
    """The text of the answer is at hand, and the answer itself below it."""
    outcome = Cascade([Stage(ScriptedModel("m", {"q": "4"}))]).run("q")

    assert isinstance(outcome, Outcome)
    assert outcome.text == outcome.response.text == "4"


@pytest.mark.parametrize("counted", [True, False])
def test_a_fitted_policy_shows_early_what_its_promise_counted(counted):
    """One that counts a draft that was cut off as not kept holds it back; thresholds of one's own show it at once."""
    small, large = ScriptedModel("small", {"q": ("one two three", 0.99)}), ScriptedModel("large", {"q": "large says"})
    stages = [Stage(small, [TokenProbability(aggregate="first")], {"p_t": 0.9}), Stage(large)]
    policy = SimpleNamespace(check_mode=lambda *, stepwise: None, shows_early=counted)
    fitted = FittedStages.of(policy, stages)

    def shown(cascade):
        return "".join(item.text for item in cascade.stream("q", max_tokens=2) if isinstance(item, Chunk))

    assert shown(Cascade(stages)) == Cascade(stages).run("q", max_tokens=2).text == "one two"
    said = "one two" if counted else "large says"
    assert shown(Cascade(fitted)) == Cascade(fitted).run("q", max_tokens=2).text == said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SignalUnavailableError("forgotten"), "p_t: forgotten"),
        (KeyError("a fault"), "shown before it was scored (KeyError)"),
    ],
)
def test_what_was_shown_stands_whatever_its_score_becomes(error, reason):
    """A signal that breaks its word, and finds no score in the end, cannot withdraw what it has released."""

    class Forgetful(TokenProbability):
        def score(self, evidence):
            if evidence.response is not None:
                raise error
            return super().score(evidence)

    small, large = ScriptedModel("small", {"q": ("one two three", 0.99)}), ScriptedModel("large", {"q": "large says"})
    cascade = Cascade([Stage(small, [Forgetful(aggregate="first")], {"p_t": 0.9}), Stage(large)])
    *chunks, outcome = cascade.stream("q")

    assert "".join(chunk.text for chunk in chunks) == outcome.text == "one two three"
    assert outcome.record.attempts[0].reason == reason
    assert cascade.run("q").text == outcome.text


# ---------------------------------------------------------------------- however a query ends


class Told:
    """What a cascade's hook was given."""

    def __init__(self):
        self.ended = []

    def __call__(self, request, ended):
        self.ended.append((request.messages[0].content, ended.record.ended, len(ended.responses)))


def telling(large, **options):
    told = Told()
    small = ScriptedModel("small", {"easy": ("3", 0.99), "hard": ("one two three four", 0.1)})
    stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(large)]
    return Cascade(stages, on_ended=told, **options), told


DOWN = ScriptedModel("large", {"hard": Reply("", error=TimeoutError("of sk-secret"))})


@pytest.mark.parametrize("way", ["run", "arun", "stream", "astream", "run_batch", "arun_batch", "batching"])
def test_every_query_leaves_one_record_however_it_ends(way):
    asked, told = telling(DOWN)
    calls = {
        "run": lambda q: asked.run(q),
        "arun": lambda q: asyncio.run(asked.arun(q)),
        "stream": lambda q: list(asked.stream(q)),
        "astream": lambda q: asyncio.run(drained(asked.astream(q))),
        "run_batch": lambda q: asked.run_batch([q]),
        "arun_batch": lambda q: asyncio.run(asked.arun_batch([q])),
        "batching": lambda q: asked.batching().run(q),
    }
    with trace() as t:
        calls[way]("easy")
        with pytest.raises(TimeoutError) as raised:
            calls[way]("hard")

    assert isinstance(raised.value, CascadeExhaustedError)
    assert told.ended == [("easy", "answered", 1), ("hard", "failed", 2)]
    assert [record.ended for record in t.records] == ["answered", "failed"]
    assert t.answered == t.records[:1]
    failed = t.records[1]
    assert (failed.stage, failed.answered_by, failed.cost_answering_stage.tokens) == (None, None, 0)
    assert failed.usage.output_tokens == 4  # the draft was paid for
    assert "sk-secret" not in json.dumps(failed.as_dict())


async def drained(items):
    return [item async for item in items]


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_stream_that_is_left_leaves_a_record_of_what_was_paid(way):
    asked, told = telling(ScriptedModel("large", {"hard": "a b c d e f"}))

    async def left():
        async with aclosing(asked.astream("hard")) as items:
            async for _ in items:
                return

    with trace() as t:
        if way == "astream":
            asyncio.run(left())
        else:
            items = asked.stream("hard")
            next(items)
            items.close()

    (record,) = t.records
    assert told.ended == [("hard", "left", 2)]
    assert [(attempt.model, attempt.decision) for attempt in record.attempts] == [
        ("small", "escalate"),
        ("large", "left"),
    ]
    assert record.attempts[1].usage.estimated
    assert 0 < record.attempts[1].usage.output_tokens < 6
    assert record.ended == "left"


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_a_cascade_that_is_left_as_a_stage_is_charged_its_drafts(way):
    inner, _ = telling(ScriptedModel("large", {"hard": "a b c d e f"}))
    asked = Cascade([Stage(CascadeModel(inner))])

    async def left():
        async with aclosing(asked.astream("hard")) as items:
            async for _ in items:
                return

    with trace() as t:
        if way == "astream":
            asyncio.run(left())
        else:
            items = asked.stream("hard")
            next(items)
            items.close()

    with trace() as alone:
        items = inner.stream("hard")
        next(items)
        items.close()
    draft, _ = alone.records[0].attempts
    (attempt,) = t.records[0].attempts
    assert attempt.usage.input_tokens > draft.usage.input_tokens > 0
    assert draft.usage.output_tokens < attempt.usage.output_tokens < draft.usage.output_tokens + 6


@pytest.mark.parametrize("way", ["arun", "arun_batch", "batching"])
async def test_a_cancelled_call_leaves_a_record(way):
    begun = asyncio.Event()

    class Slow(ScriptedModel):
        async def agenerate(self, asks):
            begun.set()
            await asyncio.sleep(60)

    asked, told = telling(Slow("large"))
    calls = {"arun": asked.arun, "arun_batch": lambda q: asked.arun_batch([q]), "batching": asked.batching().arun}
    with trace() as t:
        task = asyncio.create_task(calls[way]("hard"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert told.ended == [("hard", "left", 2)]
    assert [attempt.decision for attempt in t.records[0].attempts] == ["escalate", "left"]
    assert t.records[0].attempts[1].usage.estimated
    assert t.records[0].attempts[1].latency_s > 0


def test_a_stage_alone_raises_its_own_error():
    with pytest.raises(TimeoutError) as raised:
        Cascade([Stage(DOWN)]).run("hard")

    assert type(raised.value) is TimeoutError


def test_a_stream_of_a_stage_alone_breaks_with_its_own_error():
    class Breaking(ScriptedModel):
        def stream(self, ask):
            yield Chunk("4", released=True)
            raise ConnectionResetError

    items = Cascade([Stage(Breaking("m"))]).stream("q")
    assert next(items).text == "4"
    with pytest.raises(ConnectionResetError) as raised:
        next(items)
    assert type(raised.value) is ConnectionResetError


def test_the_thoughts_of_the_last_stage_are_shown_as_they_come():
    class Thinking(ScriptedModel):
        def stream(self, ask):
            yield Chunk("", released=ask.live, native="hm")
            yield Chunk("4", released=ask.live)
            yield Response("4")

    small = Stage(ScriptedModel("small", {"q": ("3", 0.1)}), [TokenProbability()], {"p_t": 0.9})
    items = Cascade([small, Stage(Thinking("large"))]).stream("q")

    assert [next(items).native, next(items).text] == ["hm", "4"]


class Inner(ScriptedModel):
    """A model that is a cascade of its own, whose last stage fails."""

    def __init__(self):
        super().__init__("inner")
        self.cascade = telling(DOWN)[0]

    def generate(self, asks):
        return [self.cascade.run(ask.request).response for ask in asks]

    def stream(self, ask):
        yield self.generate([ask])[0]


@pytest.mark.parametrize("way", ["run", "stream"])
def test_what_an_inner_cascade_paid_before_it_failed_is_on_the_bill(way):
    large = ScriptedModel("large", {"hard": "4"})
    stages = [Stage(Inner(), [TokenProbability()], {"p_t": 0.9}), Stage(large)]
    with trace() as t:
        _ = Cascade(stages).run("hard") if way == "run" else list(Cascade(stages).stream("hard"))

    (record,) = t.records
    assert [attempt.decision for attempt in record.attempts] == ["fail", "accept"]
    assert record.attempts[0].usage.output_tokens == 4  # of its small model's draft


@pytest.mark.parametrize("way", ["run", "stream"])
def test_the_error_of_an_inner_cascade_is_the_providers_too(way):
    small = Stage(ScriptedModel("small", {"hard": ("3", 0.1)}), [TokenProbability()], {"p_t": 0.9})
    asked = Cascade([small, Stage(Inner())])

    with pytest.raises(TimeoutError) as raised:
        _ = asked.run("hard") if way == "run" else list(asked.stream("hard"))

    assert isinstance(raised.value, CascadeExhaustedError)
    assert isinstance(raised.value.__cause__, CascadeExhaustedError)


def test_a_stream_that_breaks_is_billed_for_what_had_come():
    class Breaking(ScriptedModel):
        def stream(self, ask):
            for word in "a b c d e f g h".split():
                yield Chunk(f"{word} ", released=ask.live)
            raise ConnectionResetError

    small = Stage(ScriptedModel("small", {"q": ("3", 0.1)}), [TokenProbability()], {"p_t": 0.9})
    with trace() as t, pytest.raises(ConnectionResetError):
        list(Cascade([small, Stage(Breaking("large"))]).stream("q"))

    assert t.records[0].attempts[1].usage == Usage(1, 4, estimated=True)  # sixteen characters


def test_a_call_that_times_out_is_billed_for_its_prompt_and_a_refused_one_for_nothing():
    for error, paid in ((TimeoutError(), Usage(1, 0, estimated=True)), (PermissionError(), Usage())):
        asked = Cascade([Stage(ScriptedModel("m", {"q": Reply("", error=error)}))])
        with trace() as t, pytest.raises(type(error)):
            asked.run("q")
        assert t.records[0].usage == paid


def test_a_model_that_raises_stop_iteration_fails_like_any_other():
    class ExhaustedModel(ScriptedModel):
        def generate(self, asks):
            raise StopIteration

    small = ExhaustedModel("small")
    stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(ScriptedModel("large", {"q": "4"}))]

    assert Cascade(stages).run("q").text == "4"
    with pytest.raises(ModelError, match="StopIteration"):
        Cascade([Stage(small)]).run("q")


# ---------------------------------------------------------------------- per call


def test_one_call_can_name_its_stage():
    asked, _ = telling(ScriptedModel("large", {"easy": "4"}))

    for stage in ("large", 1, -1):
        outcome = asked.run("easy", stage=stage)
        assert (outcome.text, outcome.stage, len(outcome.record.attempts)) == ("4", 1, 1)
        assert outcome.record.policy_id != asked.policy_id
    first = asked.run("hard", stage="small")
    assert (first.stage, first.record.attempts[0].decision) == (0, "accept")
    for wrong in ("medium", 2, True, 0.5):
        with pytest.raises(ConfigurationError, match=r"`stage` must name one of \['small', 'large'\]"):
            asked.run("easy", stage=wrong)


def test_a_name_that_two_stages_have_is_no_name_of_one():
    twice = Cascade([Stage(LARGE, [TokenProbability()], {"p_t": 0.9}), Stage(LARGE)])

    assert twice.run("q", stage=1).stage == 1
    with pytest.raises(ConfigurationError, match="give its index"):
        twice.run("q", stage="large")


def test_one_call_can_change_thresholds():
    asked, _ = telling(ScriptedModel("large", {"easy": "4"}))

    assert asked.run("easy").stage == 0
    assert asked.run("easy", threshold="never").stage == asked.run("easy", threshold=1.0).stage == 1
    assert asked.run("hard", threshold={"p_t": 0.05}).stage == 0
    assert asked.run("easy", threshold="never").record.attempts[0].scores["p_t"].threshold == "never"
    same = Cascade([replace(asked.stages[0], thresholds={"p_t": 0.05}), asked.stages[1]])
    assert asked.run("hard", threshold=0.05).record.policy_id == same.policy_id
    with pytest.raises(ConfigurationError, match="p_ik"):
        asked.run("easy", threshold={"p_ik": 0.5})
    for wrong in (90, [0.5], {"p_t": None}, "sometimes"):
        with pytest.raises(ConfigurationError, match="threshold"):
            asked.run("easy", threshold=wrong)


def test_always_needs_no_log_probabilities():
    """Of a model that returns none every usable answer is kept, which is where a migration begins."""
    silent = ScriptedModel("silent", {"q": "3"}, logprobs=False)
    asked = Cascade([Stage(silent, [TokenProbability()], {"p_t": "always"}), Stage(LARGE)])

    assert asked.run("q").stage == 0
    with pytest.raises(ConfigurationError, match="needs log-probabilities"):
        Cascade([Stage(silent, [TokenProbability()], {"p_t": 0.5}), Stage(LARGE)])
