"""A model made of two: the first plans, the second answers by the plan."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confcascade import Cascade, PlannedModel, Stage, TokenProbability
from confcascade.asks import Generate, LanguageModel, Prefill, Session
from confcascade.cost import Architecture, Prices, forward_flops
from confcascade.errors import CascadeExhaustedError, ConfigurationError, ModelError
from confcascade.models.planned import EXECUTE_PROMPT, PLAN_PROMPT
from confcascade.testing import Reply, ScriptedModel, check_model, same_record
from confcascade.types import Cost, Message, OutputSchema, Prefilled, Request, Response, Tool, ToolCall, Usage

SMALL, LARGE = Architecture(1_000, 2, 16), Architecture(30_000, 4, 64)
QUESTION = Request((Message("user", "9 squared?"),))


def scripted(name: str, plan: str = "9 times 9", answer: Any = ("81 it is", 0.8), **options: Any) -> ScriptedModel:
    """Plans where it is asked for a plan, and answers where it is not."""
    return ScriptedModel(
        name, lambda request: plan if "Do not answer yet" in request.messages[-1].content else answer, **options
    )


def planned(planner: LanguageModel, executor: LanguageModel, **options: Any) -> PlannedModel:
    return PlannedModel(planner, executor, **options)


def answer(model: PlannedModel, request: Request = QUESTION, **ask: Any) -> Response:
    (response,) = model.generate([Generate(model, request, **ask)])
    assert isinstance(response, Response)
    return response


def asked(model: ScriptedModel) -> list[Generate]:
    """All that it was asked to generate."""
    return [ask for call in model.calls for ask in call if isinstance(ask, Generate)]


# ---------------------------------------------------------------------- who is asked what


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"logprobs": False}], ids=str)
def test_it_keeps_the_contract(options: dict[str, Any]):
    """Whole, streamed, asynchronously: the same answer, obeying its watch."""
    check_model(planned(scripted("large", **options), scripted("small", **options)), QUESTION)
    check_model(planned(scripted("large", plan=""), scripted("small", **options)), QUESTION)


def test_the_executor_answers_by_the_plan():
    """The plan stands in the executor's question, and its answer and tokens are the answer's."""
    large, small = scripted("large"), scripted("small")
    response = answer(planned(large, small))

    assert asked(large)[0].request.messages == (Message("user", PLAN_PROMPT.format(question="9 squared?")),)
    by_plan = EXECUTE_PROMPT.format(question="9 squared?", plan="9 times 9")
    assert asked(small)[0].request.messages == (Message("user", by_plan),)
    assert response.text == "81 it is" == "".join(token.text for token in response.tokens or ())
    assert (response.thoughts, response.thought_tokens, response.finish_reason) == ("9 times 9", (), "stop")


def test_texts_are_not_read_as_templates():
    """Braces of a question or a plan are theirs, also where they look like a place in the prompt."""
    small = scripted("small")
    question = Request((Message("user", "What is {plan} in {}?"),))
    answer(planned(scripted("large", plan="see {question}"), small), question)

    filled = EXECUTE_PROMPT.replace("{question}", "What is {PLAN} in {}?").replace("{plan}", "see {question}")
    assert asked(small)[0].request.messages[0].content == filled.replace("{PLAN}", "{plan}")


def test_a_conversation_keeps_its_order():
    """The prompts take the place of the user's last message, wherever it stands; after a tool's result, say."""
    large, small = ScriptedModel("large", lambda _: "look again"), scripted("small")
    called = Message("assistant", "", tool_calls=(ToolCall("look", {}, id="1"),))
    messages = (Message("system", "s"), Message("user", "q"), called, Message("tool", "r", tool_call_id="1"))
    answer(planned(large, small), Request(messages))

    for ask, prompt in ((asked(large)[0], PLAN_PROMPT), (asked(small)[0], EXECUTE_PROMPT)):
        first, question, *rest = ask.request.messages
        assert (first, *rest) == (messages[0], *messages[2:])
        assert question == Message("user", prompt.format(question="q", plan="look again"))
    answer(planned(large, small), Request((Message("system", "only this"),)))
    assert "only this" in asked(small)[-1].request.messages[0].content


def test_only_the_answer_is_formed_by_the_request():
    """Tools, stop strings, length and watch are the executor's; the planner is given only options of sampling."""
    large, small = scripted("large"), scripted("small", tools=True)
    tool = Tool("look", "", {"type": "object", "properties": {}})
    request = replace(
        QUESTION,
        tools=(tool,),
        stop=("!",),
        max_tokens=7,
        temperature=0.5,
        options={"seed": 1, "response_format": {"type": "json_object"}},
        native=object(),
    )
    model = planned(large, small, plan_tokens=5)
    answer(model, request, top_logprobs=3, live=True, final=True)

    (plan,), (execution,) = asked(large), asked(small)
    assert plan == Generate(
        large,
        Request(plan.request.messages, max_tokens=5, temperature=0.5, options={"seed": 1}),
        logprobs=False,
    )
    changed = replace(request, messages=execution.request.messages, native=None)
    assert execution == Generate(small, changed, top_logprobs=3, live=True, final=True)
    assert model.capability.tools
    assert not planned(small, large).capability.tools


def test_all_plans_come_first():
    """Plans go out in one call, answers in the next, neither larger than the model's batches."""
    large, small = scripted("large", batch_size=2), scripted("small", batch_size=4)
    model = planned(large, small)
    assert model.capability.batch_size == 4

    responses = model.generate([Generate(model, QUESTION)] * 4)
    assert [len(call) for call in large.calls] == [2, 2]
    assert [len(call) for call in small.calls] == [4]
    assert responses == asyncio.run(model.agenerate([Generate(model, QUESTION)] * 4))


class _Meeting(ScriptedModel):
    """Answers once three calls are under way."""

    def __init__(self, name: str) -> None:
        super().__init__(name, lambda _: "9 times 9")
        self._barrier = threading.Barrier(3, timeout=10)

    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self._barrier.wait()
        return super().generate(asks)


def test_a_batch_asks_an_api_side_by_side():
    """A local batch with plans from an API: its calls are single, and none waits for another."""
    large, small = _Meeting("large"), scripted("small", batch_size=3)
    model = planned(large, small)
    capability = model.capability
    assert (capability.batch_size, capability.local, capability.prefill) == (3, True, False)

    texts = [r.text for r in model.generate([Generate(model, QUESTION)] * 3) if isinstance(r, Response)]
    assert texts == ["81 it is"] * 3
    assert [len(call) for call in large.calls] == [1, 1, 1]
    assert not planned(ScriptedModel("a"), ScriptedModel("b")).capability.local  # both behind an API


def test_a_stream_shows_the_executors_answer():
    """Its text is the executor's, piece by piece; the plan is told as thoughts, and released with the answer."""
    model = planned(scripted("large"), scripted("small"))
    for live in (False, True):
        plan, *chunks, response = model.stream(Generate(model, QUESTION, live=live))
        assert (plan.text, plan.thoughts, plan.released) == ("", "9 times 9", live)
        assert [(chunk.text, chunk.thoughts) for chunk in chunks] == [("81", ""), (" it", ""), (" is", "")]
        assert response == answer(model, live=live)


def test_it_is_asked_from_the_beginning():
    """What was read or written before cannot be gone on from, and nothing can be read before it has planned."""
    model = planned(scripted("large"), scripted("small"))
    asks = [
        Generate(model, QUESTION, prefilled=Prefilled(Usage())),
        Generate(model, QUESTION, session=Session()),
        Generate(model, QUESTION, until="\n\n"),
        Generate(model, replace(QUESTION, written="So far")),
    ]
    for ask in asks:
        for call in (lambda ask=ask: model.generate([ask]), lambda ask=ask: list(model.stream(ask))):
            with pytest.raises(ModelError, match="Ask 'small' itself"):
                call()
    with pytest.raises(ModelError, match="does not prefill"):
        model.prefill([Prefill(model, QUESTION)])
    assert not model.capability.prefill
    assert not model.capability.continues


# ---------------------------------------------------------------------- plans that are none


def test_without_a_plan_the_question_is_asked_alone():
    """An empty plan, or one that never came to its end of thinking, is left out, not announced."""
    for plan in ("", " \n", "<think> 9 times"):
        small = scripted("small")
        response = answer(planned(ScriptedModel("large", lambda _, plan=plan: plan), small))
        assert asked(small)[0].request.messages == QUESTION.messages
        assert (response.text, response.thoughts) == ("81 it is", "")


def test_a_plan_that_was_cut_off_is_used_as_it_stands():
    """Its limit is its own, not the answer's."""
    small = scripted("small")
    response = answer(planned(scripted("large", plan="one two three"), small, plan_tokens=2))
    assert response.thoughts == "one two"
    assert asked(small)[0].request.messages[0].content.endswith("one two")
    assert asked(small)[0].request.max_tokens is None


def test_an_error_of_either_is_its_error():
    """A failed plan is not answered without; of a batch, only the queries that failed fail."""
    error = ValueError("no")
    large = ScriptedModel("large", lambda r: Reply("p", error=error if "bad" in r.messages[-1].content else None))
    small = scripted("small", batch_size=2)
    model = planned(large, small)
    bad = Generate(model, Request((Message("user", "bad"),)))
    failed, answered = model.generate([bad, Generate(model, QUESTION)])
    assert failed is error
    assert isinstance(answered, Response)
    assert len(asked(small)) == 1
    assert model.generate([bad]) == [error]
    for items in (model.stream(bad),):
        with pytest.raises(ValueError, match="no"):
            list(items)


def test_a_plan_is_paid_for_where_the_answer_failed():
    """By the record of the attempt, whole and streamed."""
    error = ValueError("no")
    small = scripted("small", answer=Reply("81", error=error))
    large = scripted("large", architecture=LARGE)
    plan = Usage(len(PLAN_PROMPT.format(question="9 squared?").split()) + 1, 3)
    ended: list[Any] = []
    cascade = Cascade([Stage(planned(large, small))], on_ended=lambda _, outcome: ended.append(outcome))
    for drain in (cascade.run, lambda q: list(cascade.stream(q)), lambda q: asyncio.run(cascade.arun(q))):
        with pytest.raises(ValueError, match="no"):
            drain("9 squared?")
        assert ended.pop().record.usage == plan

    breaking = scripted("small", answer=Reply("81 it is", error=error, after=2))
    broken = Cascade([Stage(planned(large, breaking))], on_ended=lambda _, outcome: ended.append(outcome))
    with pytest.raises(ValueError, match="no"):
        list(broken.stream("9 squared?"))
    usage = ended[0].record.usage
    assert usage.output_tokens == plan.output_tokens + 2
    assert usage.input_tokens > plan.input_tokens


PAID = [
    Usage(len(PLAN_PROMPT.format(question="9 squared?").split()) + 1, 3),  # of the plan
    -(-len(EXECUTE_PROMPT.format(question="9 squared?", plan="9 times 9")) // 4),  # what the executor reads, about
]


def test_a_plan_is_paid_for_where_the_stream_was_left():
    """With what the executor has read, the plan in it, and the tokens that have come."""
    ended: list[Any] = []
    model = planned(scripted("large"), scripted("small"))
    cascade = Cascade([Stage(model)], on_ended=lambda _, outcome: ended.append(outcome))
    with closing(cascade.stream("9 squared?")) as items:
        assert [next(items).text for _ in range(2)] == ["", "81"]  # the plan comes as thoughts
    (attempt,) = ended[0].record.attempts
    assert (attempt.decision, attempt.usage.estimated) == ("left", True)
    assert attempt.usage.output_tokens == PAID[0].output_tokens + 1
    assert attempt.usage.input_tokens == PAID[0].input_tokens + PAID[1]


class _Slow(ScriptedModel):
    """Never answers."""

    asked = 0

    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self.asked += len(asks)
        await asyncio.sleep(60)
        return []


@pytest.mark.parametrize("way", ["one", "batch", "two plans"])
def test_a_plan_is_paid_for_where_the_call_was_cancelled(way: str):
    """While the executor was answering, which had read the plan."""
    ended: list[Any] = []
    large, small = scripted("large"), _Slow("small")
    model = planned(large, planned(large, small) if way == "two plans" else small)
    cascade = Cascade([Stage(model)], on_ended=lambda _, outcome: ended.append(outcome))

    async def cancelled() -> None:
        query = cascade.arun_batch(["9 squared?"]) if way == "batch" else cascade.arun("9 squared?")
        task = asyncio.ensure_future(query)
        while not small.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    usage = ended[0].record.usage
    if way == "two plans":
        assert usage.output_tokens == 2 * PAID[0].output_tokens
        assert usage.input_tokens > 2 * PAID[0].input_tokens + PAID[1]
    else:
        assert usage == Usage(PAID[0].input_tokens + PAID[1], PAID[0].output_tokens, estimated=True)


# ---------------------------------------------------------------------- what it costs


def test_both_are_paid_for_by_their_own_sizes_and_prices():
    """FLOPs and dollars are sums over the two calls, and in the record of the cascade."""
    prices = {"large": Prices(10, 30), "small": Prices(1, 3)}
    large, small = scripted("large", architecture=LARGE), scripted("small", architecture=SMALL)
    model = planned(large, small, prices=prices)
    response = answer(model)
    usages = [
        answered.usage
        for each in (large, small)
        for answered in each.generate(asked(each))
        if isinstance(answered, Response)
    ]
    flops = forward_flops(LARGE, usages[0]) + forward_flops(SMALL, usages[1])
    usd = prices["large"].of(usages[0]) + prices["small"].of(usages[1])

    assert response.usage == usages[0] + usages[1]
    assert response.cost == Cost(flops, response.usage.total_tokens, usd)
    assert model.architecture is None
    assert planned(small, small).architecture == SMALL

    (attempt,) = Cascade([Stage(model)]).run("9 squared?").record.attempts
    assert (attempt.cost.flops, attempt.cost.usd, attempt.cost.tokens) == (flops, usd, response.usage.total_tokens)
    assert attempt.cost.seconds > 0


def test_prices_of_the_stage_hold_for_both_where_it_has_none():
    """One price for all tokens: right for one model that does both, and a bound where it is the dearer's."""
    stage = Stage(planned(scripted("large"), scripted("small")), prices=Prices(1, 1))
    (attempt,) = Cascade([stage]).run("9 squared?").record.attempts
    assert attempt.cost.usd == pytest.approx(attempt.usage.total_tokens / 1e6)
    assert attempt.cost.flops is None  # unknown sizes


def test_a_planned_model_can_be_made_of_another():
    """The costs that an inner one tells are its own."""
    large, small = scripted("large", architecture=LARGE), scripted("small", architecture=SMALL)
    inner = planned(large, small)
    outer = planned(small, inner)
    assert outer.name == "small+large+small"
    response = answer(outer)
    alone = answer(inner).cost
    assert response.cost is not None
    assert alone is not None
    assert (response.cost.flops or 0) > (alone.flops or 0) > 0
    assert response.thoughts == "9 times 9\n\n9 times 9"


# ---------------------------------------------------------------------- what it is made of


def test_its_fingerprint_is_of_all_that_it_is_made_of():
    """Other models, prompts or limits answer otherwise, so a policy of them does not hold."""
    large, small = scripted("large"), scripted("small")
    made = [
        planned(large, small),
        planned(small, large),
        planned(small, small),
        planned(large, small, plan_prompt="Plan: {question}"),
        planned(large, small, execute_prompt="{question} {plan}"),
        planned(large, small, plan_tokens=9),
    ]
    assert len({model.fingerprint for model in made}) == len(made)
    assert planned(large, small, name="x", prices={"small": Prices(1, 1)}).fingerprint == made[0].fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"plan_prompt": "Plan!"}, r"`plan_prompt` must have a place for \{question\}"),
        ({"execute_prompt": "{question}"}, r"`execute_prompt` must have a place for \{plan\}"),
        ({"plan_tokens": 0}, "`plan_tokens` must be at least 1"),
        ({"prices": {"smal": Prices(1, 1)}}, "`prices` names 'smal'"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], told: str):
    """When it is made, not at the first question."""
    with pytest.raises(ConfigurationError, match=told):
        PlannedModel(scripted("large"), scripted("small"), **options)


def test_parts_are_core_models():
    """A string is loaded, once if both are the same; what is no model is refused by name."""
    pytest.importorskip("torch")
    model = PlannedModel("bundled:small", "bundled:small")
    assert model.planner is model.executor
    with pytest.raises(ConfigurationError, match=r"`executor` must be a LanguageModel.*Got int"):
        PlannedModel("bundled:small", 3)  # type: ignore[arg-type]


def test_structured_output_is_the_executors():
    """One that cannot be asked for an object is asked in words, as any stage."""
    small = scripted("small", answer='{"n": 81}', structured=True)
    model = planned(scripted("large"), small)
    assert model.capability.structured
    schema = OutputSchema("N", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    response = answer(model, replace(QUESTION, output=schema))
    assert (response.text, response.problem) == ('{"n": 81}', None)


# ---------------------------------------------------------------------- plan escalation


def escalating(small: LanguageModel, large: LanguageModel, threshold: float = 0.9, **options: Any) -> Cascade:
    judged = [TokenProbability()], {"p_t": threshold}
    return Cascade(
        [
            Stage(planned(small, small, **options), *judged),
            Stage(planned(large, small, **options), *judged),
            Stage(planned(large, large, **options)),
        ]
    )


def by_plan(request: Request) -> Any:
    """Sure if the plan is the large model's, and the question is not hard."""
    text = request.messages[-1].content
    if "Do not answer yet" in text:
        return "weak plan"
    return ("81", 0.95) if "strong" in text and "hard" not in text else ("80", 0.5)


def test_the_plan_is_escalated_before_the_answer():
    """The small model is asked again with the large one's plan; only if that does not do, the large one answers."""
    small = ScriptedModel("small", by_plan, architecture=SMALL)
    large = scripted("large", plan="strong plan", answer=("81!", 0.99), architecture=LARGE)
    cascade = escalating(small, large)

    easy, hard = cascade.run("easy"), cascade.run("hard")
    assert (easy.text, easy.record.answered_by, len(easy.record.attempts)) == ("81", "large+small", 2)
    assert (hard.text, hard.record.answered_by, len(hard.record.attempts)) == ("81!", "large+large", 3)
    assert hard.record.cost.flops == pytest.approx(sum(each.cost.flops or 0 for each in hard.record.attempts))

    questions = ["easy", "hard", "easy"]
    alike = [cascade.run(question).record.as_dict() for question in questions]

    async def asynchronously() -> list[Any]:
        outcomes = [item async for item in cascade.astream("hard")]
        return [outcomes[-1], *(await cascade.arun_batch(questions))]

    (streamed, *batched) = asyncio.run(asynchronously())
    assert same_record(streamed.record.as_dict(), alike[1])
    *_, last = cascade.stream("easy")
    assert same_record(last.record.as_dict(), alike[0])
    for found in (batched, cascade.run_batch(questions)):
        assert all(same_record(each.record.as_dict(), one) for each, one in zip(found, alike, strict=True))


def test_a_policy_that_was_collected_costs_what_it_costs_live(tmp_path: Path):
    """Rows carry the FLOPs of both models, through Parquet, too; replay and playback bill them as the live cascade."""
    from confcascade import Example, collect
    from confcascade.bench.recording import PlaybackModel, read_columns, read_rows
    from confcascade.bench.recording.parquet import write_parquet
    from confcascade.bench.replay import PolicyStage, replay

    small = ScriptedModel("small", by_plan, architecture=SMALL)
    large = scripted("large", plan="strong plan", answer=("81!", 0.99), architecture=LARGE)
    cascade = escalating(small, large)
    questions = ["easy one", "hard one", "hard two", "easy two"]
    examples = [Example(question=question, references=("81",), id=question) for question in questions]
    path = tmp_path / "rec.jsonl"
    collect(examples, cascade.stages, path, prompt="plain", grader="contains")
    write_parquet(read_rows(path), tmp_path / "rec.parquet")

    live = [cascade.run(question).record for question in questions]
    policy = [PolicyStage(stage.model.name, stage.thresholds) for stage in cascade.stages]
    sizes = {"small+small": SMALL, "large+large": LARGE}
    for recorded in (path, tmp_path / "rec.parquet"):
        columns = read_columns(recorded)
        played = replay(columns, policy, architectures=sizes)
        alike = [live[questions.index(question)].cost for question in columns.questions]
        assert played.cost.flops.tolist() == pytest.approx([cost.flops for cost in alike])
        assert played.cost.tokens.tolist() == [cost.tokens for cost in alike]
    rows = list(read_rows(path))
    assert {row.thoughts for row in rows} == {"(not kept)"}  # a plan is kept where thoughts are
    models = [PlaybackModel(name, rows) for name in ("small+small", "large+small", "large+large")]
    again = Cascade([replace(stage, model=model) for stage, model in zip(cascade.stages, models, strict=True)])
    for question, record in zip(questions, live, strict=True):
        assert again.run(question).record.cost.flops == pytest.approx(record.cost.flops)


def test_a_draft_that_ends_early_is_charged_alike_in_replays(tmp_path: Path):
    """Tokens as live, the plan's included; FLOPs as if it had been finished: whose part was saved is not recorded."""
    from confcascade import Example, collect
    from confcascade.bench.recording import PlaybackModel, read_columns, read_rows
    from confcascade.bench.replay import PolicyStage, replay

    small = scripted("small", answer=Reply("80 or so it seems", [0.9, 0.2, 0.9, 0.9, 0.9]), architecture=SMALL)
    large = scripted("large", architecture=LARGE)
    first = Stage(planned(large, small), [TokenProbability(aggregate="min")], {"p_t": 0.8})
    cascade = Cascade([first, Stage(large)])
    path = tmp_path / "rec.jsonl"
    collect(
        [Example(question="q", references=("81",), id="q")], cascade.stages, path, prompt="plain", grader="contains"
    )

    live = cascade.run("q").record
    assert live.attempts[0].aborted
    played = replay(
        read_columns(path),
        [PolicyStage("large+small", {"p_t": 0.8}), PolicyStage("large")],
        architectures={"large": LARGE},
    )
    assert played.cost.tokens[0] == live.cost.tokens
    assert played.cost.flops[0] >= (live.cost.flops or 0)
    rows = list(read_rows(path))
    models = [PlaybackModel(name, rows) for name in ("large+small", "large")]
    again = Cascade([replace(s, model=m) for s, m in zip(cascade.stages, models, strict=True)]).run("q").record
    assert again.cost.tokens == live.cost.tokens


def test_the_bundled_models_plan_and_answer():
    """Over real weights: the contract, and a cascade that decides alike one by one, in a batch and streamed."""
    pytest.importorskip("torch")
    from confcascade.demo import bundled_model

    small, large = bundled_model("small"), bundled_model("large")
    prompts = {"plan_prompt": "{question}", "execute_prompt": "{question}\n{plan}", "plan_tokens": 8}
    check_model(planned(large, small, **prompts), Request((Message("user", "What is 12 + 7?"),), max_tokens=12))

    cascade = escalating(small, large, 0.9, **prompts)
    questions = ["What is 12 + 7?", "How does Nebros Krurer earn a living?", "What is 3 + 4?"]
    alone = [cascade.run(question) for question in questions]
    for found in (cascade.run_batch(questions), [list(cascade.stream(question))[-1] for question in questions]):
        for one, other in zip(alone, found, strict=True):
            assert one.text == other.text
            assert same_record(one.record.as_dict(), other.record.as_dict(), 1e-3)
    assert all(outcome.record.cost.flops for outcome in alone)


def test_the_last_stage_fails_as_it_would_alone():
    """Its error is the executor's own."""
    error = ValueError("no")
    small = ScriptedModel("small", by_plan)
    large = scripted("large", plan="p", answer=Reply("x", error=error))
    with pytest.raises(CascadeExhaustedError) as raised:
        escalating(small, large).run("hard")
    assert isinstance(raised.value, ValueError)
