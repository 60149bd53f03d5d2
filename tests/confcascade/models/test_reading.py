"""What vLLM tells of a prompt, by a server that answers in the form of its `protocol.py`; no real one was asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from confcascade import (
    ConfigurationError,
    Lookback,
    Message,
    ModelError,
    OpenAICompatibleModel,
    Prices,
    Request,
    Stage,
    StepMixture,
    Steps,
    StepwiseCascade,
    step_confidences,
)
from confcascade.asks import Generate, Prefill, Session
from confcascade.extending import Prefilled
from confcascade.models.reading import _covering
from confcascade.testing import ScriptedModel
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

REQUEST = Request((Message("user", "2+2?"),))
STEP = "Two plus two.\n\n"
SURE, UNSURE = -0.1, -3.0


class VLLM:
    """Continues a last message of the assistant by one step at a time, and tells what it makes of its prompt.

    It is unsure of every word with an "?" in it.
    """

    def __init__(self, httpserver: HTTPServer, steps: Sequence[str]) -> None:
        self.url = httpserver.url_for("/v1")
        self.steps = list(steps)
        self.bodies: list[dict[str, Any]] = []
        self.ids: dict[str, int] = {}
        self.paid: list[tuple[int, int]] = []  # of the prompt, and of what was written
        self.change: Callable[[dict[str, Any]], Any] = lambda sent: None
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(self.chat)

    def chat(self, received: Received) -> Sent:
        body = received.get_json()
        self.bodies.append(body)
        last = body["messages"][-1]
        begun = last["role"] == "assistant" and body["continue_final_message"] and not body["add_generation_prompt"]
        prompt = ["<user>", "2", "+2?", "<assistant>", *self.tokens(last["content"] if begun else "")]
        if body.get("prompt_logprobs") is not None:
            assert not body.get("stream")  # vLLM refuses both
            return self.told(prompt, body)
        pieces = self.tokens(self.steps.pop(0) if self.steps else " It is 4.")
        return Sent(self.events(pieces, len(prompt), body), content_type="text/event-stream")

    @staticmethod
    def tokens(text: str) -> list[str]:
        return re.findall(r" ?[^\s.]+|\.?\s+|\.", text)

    def told(self, prompt: list[str], body: dict[str, Any]) -> Sent:
        assert body["max_tokens"] == 1
        self.paid.append((len(prompt), 1))
        ids = [self.ids.setdefault(token, len(self.ids) + 100) for token in prompt]
        told: list[Any] = [None]
        for token, number in zip(prompt[1:], ids[1:], strict=True):
            best = UNSURE if "?" in token else SURE
            entries = {str(number): {"logprob": best - 5, "rank": 2, "decoded_token": token}}
            told.append(entries | {"7": {"logprob": best, "rank": 1, "decoded_token": " best"}})
        message = {"role": "assistant", "content": " x", "reasoning": None}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        sent = {**ENVELOPE, "choices": [choice], "usage": usage, "prompt_logprobs": told}
        sent["prompt_token_ids"] = ids if body.get("return_token_ids") else None
        self.change(sent)
        return Sent(json.dumps(sent), content_type="application/json")

    def events(self, pieces: list[str], prompt: int, body: dict[str, Any]) -> Any:
        self.paid.append((prompt, len(pieces)))
        for i, piece in enumerate(pieces):
            logprob = UNSURE if "?" in piece else SURE
            entry = {"token": piece, "logprob": logprob, "bytes": list(piece.encode()), "top_logprobs": []}
            told = {"content": [entry]} if body.get("logprobs") else None
            usage = {"prompt_tokens": prompt, "completion_tokens": i + 1, "total_tokens": prompt + i + 1}
            yield self.event(
                [{"index": 0, "delta": {"content": piece}, "logprobs": told, "finish_reason": None}], usage
            )
        yield self.event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], usage)
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(choices: list[Any], usage: Any) -> str:
        return f"data: {json.dumps({**ENVELOPE, 'choices': choices, 'usage': usage})}\n\n"


ENVELOPE = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}


@pytest.fixture
def vllm(httpserver: HTTPServer) -> Callable[..., tuple[OpenAICompatibleModel, VLLM]]:
    def serve(*steps: str, **settings: Any) -> tuple[OpenAICompatibleModel, VLLM]:
        server = VLLM(httpserver, steps)
        dialect = {"continues": "continue_final_message", "reads": "prompt_logprobs"}
        model = OpenAICompatibleModel(
            "m", base_url=server.url, api_key="none", max_retries=0, **{**dialect, **settings}
        )
        return model, server

    return serve


WAYS: dict[str, Callable[[OpenAICompatibleModel, Prefill], Prefilled]] = {
    "prefill": lambda model, ask: model.prefill([ask])[0],  # type: ignore[dict-item, return-value]
    "aprefill": lambda model, ask: asyncio.run(model.aprefill([ask]))[0],  # type: ignore[dict-item, return-value]
}
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_what_was_written_is_read(vllm: Any, way: str):
    """Token by token, with the most probable one in the place of each; and it is paid for as the server reports."""
    model, server = vllm()
    request = replace(REQUEST, written=STEP, max_tokens=50, stop=("END",))

    read = WAYS[way](model, Prefill(model, request, tokens=True, following=True, session=Session()))

    assert [token.text for token in read.tokens] == ["Two", " plus", " two", ".\n\n"]
    assert {(token.logprob, token.top[0]) for token in read.tokens} == {(SURE - 5, (" best", SURE))}
    assert (read.usage.input_tokens, read.usage.output_tokens, read.usage.estimated) == (8, 1, False)
    (body,) = server.bodies
    assert body["messages"][1:] == [{"role": "assistant", "content": STEP}]
    assert {key: body[key] for key in ("max_tokens", "prompt_logprobs", "return_token_ids")} == {
        "max_tokens": 1,
        "prompt_logprobs": 1,
        "return_token_ids": True,
    }
    assert "stop" not in body
    assert "logprobs" not in body


@every_way
def test_what_is_known_is_not_told_again(vllm: Any, way: str):
    """Only what came since: behind its own piece, or in the place of one that was thrown away, or behind the last."""
    model, _ = vllm("One.\n\n", "Thrown away.\n\n")
    session = Session()

    def read(written: str) -> str:
        asked = replace(REQUEST, written=written)
        tokens = WAYS[way](model, Prefill(model, asked, tokens=True, session=session)).tokens
        return "".join(token.text for token in tokens)

    def write(written: str, logprobs: bool = True) -> None:
        asked = replace(REQUEST, written=written)
        model.generate([Generate(model, asked, logprobs=logprobs, until="\n\n", session=session)])

    write("")
    assert read("One.\n\nTwo.\n\n") == "Two.\n\n"
    assert read("One.\n\nTwo.\n\nThree.\n\n") == "Three.\n\n"
    write("One.\n\nTwo.\n\nThree.\n\n")
    assert read("One.\n\nTwo.\n\nThree.\n\nThree and a half.\n\n") == "Three and a half.\n\n"


def test_its_own_piece_is_read_where_it_told_nothing_of_it(vllm: Any):
    """Without log-probabilities, as where its server refuses them in streams, it would be judged by nothing."""
    model, _ = vllm("One.\n\n")
    session = Session()
    model.generate([Generate(model, REQUEST, logprobs=False, until="\n\n", session=session)])

    (told,) = model.prefill([Prefill(model, replace(REQUEST, written="One.\n\n"), tokens=True, session=session)])

    assert "".join(token.text for token in told.tokens) == "One.\n\n"


@every_way
def test_nothing_is_asked_where_nothing_can_be_told(vllm: Any, way: str):
    """Before the first step, and of what is expected next; hidden states are refused as ever."""
    model, server = vllm()

    for ask in (Prefill(model, REQUEST, tokens=True), Prefill(model, replace(REQUEST, written="Two"), following=True)):
        assert WAYS[way](model, ask).usage.total_tokens == 0
    with pytest.raises(ModelError, match="hidden states cannot be seen"):
        WAYS[way](model, Prefill(model, REQUEST, layers=(1,), tokens=True))
    assert server.bodies == []
    assert (model.capability.reads, model.capability.prefill, model.capability.local) == (True, False, False)
    assert not vllm(reads=None)[0].capability.reads


def lacks(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda sent: sent.pop(key)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lacks("prompt_logprobs"), "tells no log-probabilities of the prompt.*for vLLM"),
        (lacks("prompt_token_ids"), "of a version that has `return_token_ids`"),
        (lambda sent: sent["prompt_logprobs"].pop(), "tells no log-probabilities of the prompt"),
        (lambda sent: sent["prompt_logprobs"].__setitem__(5, None), "missing or invalid"),
        (lambda sent: sent["prompt_logprobs"].__setitem__(5, {"7": {"logprob": -1.0}}), "missing or invalid"),
        (lambda sent: sent["prompt_logprobs"][5]["7"].__setitem__("logprob", 0.5), "missing or invalid"),
        (lambda sent: sent["prompt_logprobs"][5]["7"].pop("logprob"), "missing or invalid"),
        (lambda sent: (sent["prompt_logprobs"].pop(), sent["prompt_token_ids"].pop()), "template change"),
    ],
)
def test_what_is_told_otherwise_is_no_evidence(vllm: Any, change: Any, why: str):
    """The error says what is wrong; the call is charged."""
    model, server = vllm()
    server.change = change

    ask = Prefill(model, replace(REQUEST, written="Two plus two"), tokens=True)
    with pytest.raises(ModelError, match=why):
        model.prefill([ask])

    assert ask.progress.paid is not None
    assert ask.progress.paid.total_tokens == 8


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"reads": "echo"}, r"`reads` of model 'm' must be \"prompt_logprobs\".*'echo'"),
        ({"continues": "llama.cpp"}, r"goes with `continues=\"continue_final_message\"`. Got 'llama.cpp'"),
        ({"continues": None}, "Got None"),
    ],
)
def test_other_servers_are_not_asked(vllm: Any, settings: dict[str, Any], why: str):
    """Only the form that is documented."""
    with pytest.raises(ConfigurationError, match=why):
        vllm(**settings)


@given(st.lists(st.sampled_from(["a", "b", " ", "\n", "ab", "é"]), max_size=6), st.integers(0, 6))
def test_the_tokens_of_a_text_are_found_from_its_end(tokens: list[str], begun: int):
    """Whatever came before; blanks neither tell nor hide anything."""
    text = "".join(tokens[begun:])
    count = _covering(["<begin>", *tokens], text)

    assert count is not None
    assert "".join("".join(["<begin>", *tokens][len(tokens) + 1 - count :]).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("tokens", "text", "count"),
    [
        (["Hi", "\ufffd", "\ufffd"], "é", 2),  # a character of two tokens
        (["Hi", "a\ufffd", "\ufffd", "b"], "aéb", 3),
        (["Hi", "", "é", "b"], "éb", 2),
        (["Hi.", "Two", "plus"], " Two plus", 2),  # blanks that SentencePiece hides
        (["Hi", "e. Two"], "Two", 1),  # one that begins before the text
        (["Hi", "\ufffd"], "Two", None),
        (["zz", "b", "\ufffd"], "XbY", None),  # it stands for one place only
        (["Hi"], "Two", None),
    ],
)
def test_broken_characters_and_hidden_blanks(tokens: list[str], text: str, count: int | None):
    assert _covering(tokens, text) == count


# ---------------------------------------------------------------------- with the signal

MIXTURE = StepMixture((0.5, 0.5), (-2.0, -0.1), (0.5, 0.2), 500, -100.0, quantity="max_logprob")


def cascade(small: OpenAICompatibleModel, *large: str) -> StepwiseCascade:
    stage = Stage(small, [Lookback(MIXTURE)], {"lookback": 0.5}, prices=Prices(input_usd=1.0, output_usd=10.0))
    writer = ScriptedModel("large", {"2+2?": "".join(large)}, continues=True)
    return StepwiseCascade([stage, Stage(writer, prices=Prices(input_usd=0.0, output_usd=0.0))], steps=Steps("\n\n"))


@pytest.mark.parametrize("way", ["run", "arun", "stream", "astream"])
def test_a_served_model_judges_what_the_large_one_wrote(vllm: Any, way: str):
    """By reading it, which is charged; what it wrote itself it has the log-probabilities of."""
    model, server = vllm("It is sure.\n\n", "And? Unsure?\n\n")
    large = ["Two plus.\n\n", "It is sure.\n\n", "And? Unsure?\n\n", "Hm? What?\n\n", "So 4."]

    outcome = played(cascade(model, *large), way)

    assert outcome.text == "".join(large)
    steps = sorted((s for a in outcome.record.attempts for s in a.steps), key=lambda step: step.index)
    details = [step.scores["lookback"].details for step in steps]
    assert "before the first step" in details[0]["unavailable"]
    assert [step.author for step in steps] == ["large", "m", "m", "large", "large"]
    assert [each["step_confidence"] for each in details[1:]] == pytest.approx([confidence(step) for step in large[:-1]])
    assert {each["quantity"] for each in details[1:]} == {"max_logprob"}
    assert ["prompt_logprobs" in body for body in server.bodies] == [True, False, False, True]
    small = outcome.record.attempts[0]
    assert (small.usage.input_tokens, small.usage.output_tokens) == tuple(map(sum, zip(*server.paid, strict=True)))
    assert not small.usage.estimated
    assert small.cost.usd == pytest.approx((small.usage.input_tokens + 10 * small.usage.output_tokens) / 1e6)


def test_a_server_that_does_not_tell_is_out(vllm: Any):
    """The large model writes on; the record says why, and what the reading has cost."""
    model, server = vllm()
    server.change = lacks("prompt_logprobs")

    outcome = cascade(model, "Two plus.\n\n", "So 4.").run("2+2?")

    small, large = outcome.record.attempts
    assert (small.decision, len(large.steps), outcome.text) == ("fail", 2, "Two plus.\n\nSo 4.")
    assert small.error is not None
    assert "tells no log-probabilities of the prompt" in small.error
    assert small.usage.total_tokens == 8


def test_a_mixture_of_its_own_steps(vllm: Any):
    """Is fitted on log-probabilities that it told when it wrote them."""
    model, _ = vllm("It is sure.\n\n", "And? Unsure?\n\n", "So 4.")

    found = step_confidences(model, ["2+2?"], quantity="max_logprob")

    assert found == pytest.approx([SURE, confidence("And? Unsure?\n\n"), SURE])


def confidence(step: str) -> float:
    told = [UNSURE if "?" in token else SURE for token in VLLM.tokens(step)]
    return sum(told) / len(told)


def played(cascade: StepwiseCascade, way: str) -> Any:
    if way == "run":
        return cascade.run("2+2?")
    if way == "arun":
        return asyncio.run(cascade.arun("2+2?"))
    if way == "stream":
        return list(cascade.stream("2+2?"))[-1]

    async def all_of() -> Any:
        return [item async for item in cascade.astream("2+2?")][-1]

    return asyncio.run(all_of())
