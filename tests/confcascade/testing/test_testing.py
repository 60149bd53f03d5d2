from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from confcascade import ConfigurationError, Message, ModelError, OutputSchema, Request, Usage
from confcascade.asks import Generate, Prefill, Session
from confcascade.extending import Chunk, Prefilled, Response, Token
from confcascade.testing import Reply, ScriptedModel, check_model, same_record

REQUEST = Request((Message("user", "q"),))


@pytest.mark.parametrize(
    "model",
    [
        ScriptedModel("api", {"q": ("one two three", 0.5)}),
        ScriptedModel(
            "local", {"q": Reply("one two three", [0.1, 0.2, 1.0], hidden=(1, 2))}, hidden_size=2, batch_size=4
        ),
        ScriptedModel("silent", {"q": "one"}, logprobs=False),
        ScriptedModel("continues", {"q": ("One two.\n\nThree.\n\nFour.", 0.5)}, continues=True),
        ScriptedModel("reads", {"q": Reply("One two.\n\nThree.", hidden=(1, 2))}, hidden_size=2, continues=True),
        ScriptedModel("mute", {"q": "One two.\n\nThree."}, logprobs=False, continues=True),
        ScriptedModel("uncertain", {"q": Reply("one", None)}, logprobs=None),
    ],
    ids=lambda model: model.name,
)
def test_the_scripted_model_keeps_the_contract(model: ScriptedModel):
    """What stands in for real models behaves like them, with and without hidden states and log-probabilities."""
    check_model(model, REQUEST)

    assert model.open_caches == 0


async def test_models_can_be_checked_inside_an_event_loop():
    """`check_model` can be called from an asynchronous test as well."""
    check_model(ScriptedModel("m", {"q": "one"}), REQUEST)


class Answers(ScriptedModel):
    """Changes every response."""

    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        for item in super()._stream(ask):
            yield self.changed(ask, item)

    def changed(self, ask: Generate, item: Any) -> Any:
        raise NotImplementedError


class StreamsOtherwise(ScriptedModel):
    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        yield from [Chunk("else"), Response("else", usage=Usage(2, 1))]


class NeverEnds(ScriptedModel):
    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        yield Chunk("one")


class ReleasesUnasked(Answers):
    def changed(self, ask: Generate, item: Any) -> Any:
        return replace(item, released=True) if isinstance(item, Chunk) else item


class LosesChunks(Answers):
    def changed(self, ask: Generate, item: Any) -> Any:
        return Chunk("") if isinstance(item, Chunk) else item


class TooLikely(Answers):
    def changed(self, ask: Generate, item: Any) -> Any:
        return replace(item, tokens=(Token("one", 0.1),)) if isinstance(item, Response) else item


class OtherTokens(Answers):
    def changed(self, ask: Generate, item: Any) -> Any:
        return replace(item, tokens=(Token("two", -0.1),)) if isinstance(item, Response) else item


class KeepsTokens(Answers):
    def changed(self, ask: Generate, item: Any) -> Any:
        return replace(item, tokens=None) if isinstance(item, Response) else item


class NeverAborts(ScriptedModel):
    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return super()._stream(replace(ask, watch=None))


class OtherAsynchronously(ScriptedModel):
    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        return [Response("else", usage=Usage(2, 1)) for _ in asks]


class RaisesOneByOne(ScriptedModel):
    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        return [ModelError("down") for _ in asks]


class WrongSize(ScriptedModel):
    def prefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        return [replace(found, hidden_states={4: found.hidden_states[4][:1]}) for found in super().prefill(asks)]  # type: ignore[union-attr, type-var]


class CountsThePromptTwice(ScriptedModel):
    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        return [
            answer.replace(usage=answer.usage + answer.usage) if ask.prefilled else answer  # type: ignore[union-attr]
            for ask, answer in zip(asks, super().generate(asks), strict=True)
        ]


class BeginsAnew(ScriptedModel):
    def _rest(self, reply: Reply, ask: Generate) -> Any:
        return super()._rest(reply, replace(ask, request=replace(ask.request, written="")))


class RunsOn(ScriptedModel):
    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return super()._stream(replace(ask, until=""))


class StepsAreStreamedWhole(ScriptedModel):
    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return super().stream(replace(ask, until=""))


@pytest.mark.parametrize(
    ("broken", "said"),
    [(BeginsAnew, "was continued with"), (RunsOn, "did not end a step"), (StepsAreStreamedWhole, "was streamed as")],
)
def test_a_model_that_continues_wrongly_is_found(broken: type[ScriptedModel], said: str):
    """What was written is not written again, and a step ends behind its delimiter in every way of asking."""
    with pytest.raises(AssertionError, match=said):
        check_model(broken("broken", {"q": "one two three four"}, continues=True), REQUEST)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (StreamsOtherwise, "stream answered"),
        (NeverEnds, "must be the Response"),
        (ReleasesUnasked, "released without leave"),
        (LosesChunks, "do not add up to the answer"),
        (TooLikely, "log-probability is positive"),
        (OtherTokens, "tokens do not add up"),
        (KeepsTokens, "tokens are missing"),
        (NeverAborts, "must end the answer"),
        (OtherAsynchronously, "asynchronously it answered"),
        (RaisesOneByOne, "must answer with a Response"),
        (WrongSize, "shape"),
        (CountsThePromptTwice, "generation from a prefill differs"),
    ],
)
def test_a_broken_model_is_found(broken: type[ScriptedModel], said: str):
    """`check_model` fails on every way of breaking the contract, and says which it was."""
    model = broken("broken", {"q": Reply("one", hidden=(1, 2))}, hidden_size=2, batch_size=2)

    with pytest.raises(AssertionError, match=said):
        check_model(model, REQUEST)


def test_what_lacks_a_method_is_no_model():
    """`check_model` begins with the protocol itself."""
    with pytest.raises(AssertionError, match="lacks a method"):
        check_model(object(), REQUEST)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the scripted model


def said(model: ScriptedModel, query: str = "q", **more: Any) -> Response:
    (response,) = model.generate([Generate(model, Request((Message("user", query),), **more))])
    assert isinstance(response, Response)
    return response


def test_a_script_may_be_short():
    """A text, a pair with a probability, a reply or a function of the request: all say the same."""
    for script in (
        {"q": "one two"},
        {"q": ("one two", 0.99)},
        {"q": Reply("one two", [0.99, 0.99])},
        lambda request: "one two" if request.messages[-1].content == "q" else "",
    ):
        response = said(ScriptedModel("m", script))
        assert response.text == "one two"
        assert [token.text for token in response.tokens or ()] == ["one", " two"]
        assert [math.exp(token.logprob) for token in response.tokens or ()] == pytest.approx([0.99, 0.99])


def test_what_is_not_in_the_script_names_the_model():
    """An unscripted query shows who was asked what."""
    assert said(ScriptedModel("m", {"q": "one"}), "r").text == "m: r"


def test_answers_are_cut_at_their_limit():
    """`max_tokens` ends an answer, which says so."""
    response = said(ScriptedModel("m", {"q": "one two three"}), max_tokens=2)

    assert (response.text, response.finish_reason, response.usage.output_tokens) == ("one two", "length", 2)


def test_structured_output_is_judged():
    """As a real model's adapter judges it; the same text without a schema is an answer like any other."""
    model = ScriptedModel("m", {"q": '{"x": "one"}'}, structured=True)
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}

    assert model.capability.structured
    problem = said(model, output=OutputSchema("X", schema)).problem
    assert problem == "the structured output does not fit: 'x' must be of type integer"
    assert said(model).problem is None


def test_log_probabilities_are_told_only_if_asked_for():
    """A flow that forgets to ask for log-probabilities or alternatives gets none, as from a real model."""
    model = ScriptedModel("m", {"q": Reply("A", labels={"A": 0.5, "B": 0.25})})
    plain, top, none = model.generate(
        [Generate(model, REQUEST), Generate(model, REQUEST, top_logprobs=1), Generate(model, REQUEST, logprobs=False)]
    )

    assert plain.tokens[0].top == ()  # type: ignore[union-attr, index]
    assert top.tokens[0].top == (("A", math.log(0.5)),)  # type: ignore[union-attr, index]
    assert none.tokens is None  # type: ignore[union-attr]


def test_a_closed_prefill_cannot_be_continued():
    """A driver that frees a KV cache too early is found out; one that frees it too late, by `open_caches`."""
    model = ScriptedModel("m", {"q": "one"}, hidden_size=2, batch_size=2)
    (prefilled,) = model.prefill([Prefill(model, REQUEST)])
    assert isinstance(prefilled, Prefilled)
    assert (model.open_caches, model.most_open_caches) == (1, 1)

    prefilled.close()
    prefilled.close()
    (answer,) = model.generate([Generate(model, REQUEST, prefilled=prefilled)])

    assert isinstance(answer, ModelError)
    assert (model.open_caches, model.most_open_caches) == (0, 1)


def test_a_scripted_error_is_raised_where_it_was_scripted():
    """An error comes after as many words as the script says; other asks of the call are answered."""
    error = ModelError("cut")
    model = ScriptedModel("m", {"q": Reply("one two three", error=error, after=2)}, batch_size=2)

    failed, fine = model.generate([Generate(model, REQUEST), Generate(model, Request((Message("user", "r"),)))])
    assert failed is error
    assert isinstance(fine, Response)

    stream = model.stream(Generate(model, REQUEST))
    assert [next(stream).text for _ in range(2)] == ["one", " two"]
    with pytest.raises(ModelError):
        next(stream)


async def test_a_delay_does_not_block_the_event_loop():
    """A scripted delay is slept in the event loop's own way."""
    model = ScriptedModel("m", {"q": Reply("one", delay_s=0.05)})

    answers = await asyncio.wait_for(
        asyncio.gather(*(model.agenerate([Generate(model, REQUEST)]) for _ in range(20))), 0.9
    )

    assert len(answers) == 20


# ---------------------------------------------------------------------- answers written in turn


def begun(model: ScriptedModel, written: str, **more: Any) -> Response:
    (response,) = model.generate([Generate(model, replace(REQUEST, written=written), **more)])
    assert isinstance(response, Response)
    return response


SCRIPT = "One.\n\nTwo.\n\nThree."


@pytest.mark.parametrize(
    ("written", "follows", "reason"),
    [
        ("", "One.\n\n", "step"),
        ("One.\n\n", "Two.\n\n", "step"),
        ("One.\n\nTw", "o.\n\n", "step"),
        ("Uno.\n\n", "Two.\n\n", "step"),
        ("Uno.\n\nDos.\n\n", "Three.", "stop"),
        (SCRIPT, "", "stop"),
    ],
)
def test_it_goes_on_behind_what_was_written(written: str, follows: str, reason: str):
    """By itself or by another model: then with its own step of that number."""
    response = begun(ScriptedModel("m", {"q": SCRIPT}, continues=True), written, until="\n\n")

    assert (response.text, response.finish_reason) == (follows, reason)
    assert "".join(token.text for token in response.tokens or ()) == follows


def test_a_function_may_decide_what_follows():
    """It sees what was written."""
    model = ScriptedModel("m", lambda request: f"{len(request.written)} so far.\n\nMore.", continues=True)

    assert begun(model, "Uno.\n\n", until="\n\n").text == "6 so far.\n\n"


def test_it_refuses_what_it_cannot_continue():
    """A flow that forgets to ask for the capability is found out."""
    model = ScriptedModel("m", {"q": SCRIPT})

    for ask in (Generate(model, replace(REQUEST, written="One.")), Generate(model, REQUEST, until="\n\n")):
        (refused,) = model.generate([ask])
        assert isinstance(refused, ConfigurationError)


def test_in_a_session_nothing_is_read_twice():
    """Only words that are new to this model are paid for, and a step that was thrown away is forgotten."""
    model = ScriptedModel("m", {"q": Reply(SCRIPT, hidden=(1,))}, hidden_size=1, continues=True)
    session = Session()
    usage = [
        begun(model, written, session=session, until="\n\n").usage.input_tokens
        for written in ("", "One.\n\n", "One.\n\nDos y.\n\n", "One.\n\nDos y.\n\nThree.")
    ]
    alone = begun(model, "One.\n\nDos y.\n\n", until="\n\n").usage.input_tokens

    assert usage == [2, 0, 2, 0]
    assert alone == 5
    assert model.open_caches == 1
    session.close()
    assert model.open_caches == 0


def test_what_was_written_is_seen_by_the_script():
    """Probabilities and logits by word, of what was newly read and of what is expected next."""
    reply = Reply(SCRIPT, [0.5, 0.25, 0.125], hidden=(1,), max_logit=[9.0, 8.0, 7.0], entropy=1.5)
    model = ScriptedModel("m", {"q": reply}, hidden_size=1, continues=True)
    session = Session()
    found = []
    for written in ("", "Uno.\n\n", "Uno.\n\nTwo.\n\n"):
        request = replace(REQUEST, written=written)
        (prefilled,) = model.prefill([Prefill(model, request, session=session, tokens=True, following=True)])
        assert isinstance(prefilled, Prefilled)
        found.append(prefilled)

    assert [each.usage.input_tokens for each in found] == [2, 1, 1]
    assert [[(token.text, token.max_logit) for token in each.tokens] for each in found] == [
        [],
        [("Uno.\n\n", 9.0)],
        [("Two.\n\n", 8.0)],
    ]
    assert [math.exp(found[i].tokens[0].logprob) for i in (1, 2)] == pytest.approx([0.5, 0.25])
    assert [(each.following.entropy, each.following.max_logit) for each in found if each.following] == [
        (1.5, 9.0),
        (1.5, 8.0),
        (1.5, 7.0),
    ]


# ---------------------------------------------------------------------- same_record


RECORD = {
    "stage": 1,
    "attempts": [{"model": "m", "value": 0.5, "latency_s": 1.0, "reason": "p_t 0.5"}],
    "cost": {"seconds": 1},
}


def test_records_are_the_same_but_for_their_times():
    """Measured times and the wording of reasons are left out; scores may differ in their last digits."""
    other = {"stage": 1, "attempts": ({"model": "m", "value": 0.50001, "latency_s": 9.0},), "cost": {"seconds": 7}}

    assert same_record(RECORD, other)
    assert same_record(RECORD, RECORD, tolerance=0.0)


@pytest.mark.parametrize(
    "other",
    [
        {**RECORD, "stage": 2},
        {**RECORD, "more": None},
        {**RECORD, "attempts": []},
        {**RECORD, "attempts": RECORD["attempts"] * 2},  # type: ignore[operator]
        {**RECORD, "attempts": [{**RECORD["attempts"][0], "model": "n"}]},  # type: ignore[index]
        {**RECORD, "attempts": [{**RECORD["attempts"][0], "value": 0.51}]},  # type: ignore[index]
        {**RECORD, "attempts": [{**RECORD["attempts"][0], "value": None}]},  # type: ignore[index]
        {"stage": 1},
        None,
    ],
    ids=range(9),
)
def test_records_that_differ_are_not_the_same(other: Any):
    """Anything else that differs, on either side, is a difference."""
    assert not same_record(RECORD, other)
    assert not same_record(other, RECORD)
