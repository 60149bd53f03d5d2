"""A key, a prompt and an answer that are planted in a server's errors get into no record, log or error of ours."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("openai")

from confcascade import Cascade, ModelError, OpenAICompatibleModel, Stage, TokenProbability, trace
from confcascade.testing import ScriptedModel
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

KEY, PROMPT, ANSWER = "sk-planted-key-0123456789", "planted prompt", "planted answer"
PLANTED = f"{KEY} {PROMPT} {ANSWER}"
ENVELOPE = {"id": "1", "created": 0, "model": "m"}


def told(status: int, **fields: Any) -> Sent:
    error = {"message": PLANTED, "type": PLANTED, "sent": [PLANTED], **fields}
    return Sent(json.dumps({"error": error}), status, content_type="application/json")


def whole(choices: list[Any]) -> Sent:
    return Sent(
        json.dumps({**ENVELOPE, "object": "chat.completion", "choices": choices}), content_type="application/json"
    )


def events(*data: str) -> Sent:
    return Sent("".join(f"data: {each}\n\n" for each in data), content_type="text/event-stream")


def piece(finish: str | None = None) -> str:
    choice = {"index": 0, "finish_reason": finish, "delta": {"role": "assistant", "content": ANSWER}}
    return json.dumps({**ENVELOPE, "object": "chat.completion.chunk", "choices": [choice]})


def message(**fields: Any) -> list[Any]:
    told = {"role": "assistant", "content": ANSWER, **fields}
    return [{"index": 0, "finish_reason": "stop", "message": told}]


def refusing(*names: str) -> Callable[[dict[str, Any]], Sent]:
    """Refuses what is named, one after the other, and answers then."""

    def answer(body: dict[str, Any]) -> Sent:
        if name := next((name for name in names if name in body), None):
            return told(400, message=f"{name} is not supported: {PLANTED}", param=name, code="unsupported_parameter")
        return events(piece("stop"), "[DONE]") if body.get("stream") else whole(message())

    return answer


# by what goes wrong: what the server answers to a whole call, or to any
FAILURES: dict[str, Callable[[dict[str, Any]], Sent]] = {
    "a wrong key": lambda body: told(401, code="invalid_api_key"),
    "a prompt that is quoted": lambda body: told(400, param=PLANTED, code=PLANTED),
    "a prompt that is too long": lambda body: told(400, code="context_length_exceeded", param="messages"),
    "a proxy that shows what it was sent": lambda body: told(403),
    "an unknown model": lambda body: told(404),
    "too many requests": lambda body: told(429, code="rate_limit_exceeded"),
    "a page of a broken server": lambda body: Sent(f"<html>{PLANTED}", 500),
    "a web page": lambda body: Sent(f"<html>{PLANTED}"),
    "plain text": lambda body: Sent(PLANTED, content_type="text/plain"),
    "JSON of another form": lambda body: Sent(json.dumps([PLANTED]), content_type="application/json"),
    "no JSON": lambda body: Sent(f'{{"choices": {PLANTED}', content_type="application/json"),
    "no choice": lambda body: whole([]),
    "an error in the stream": lambda body: events(piece(), json.dumps({"error": {"message": PLANTED}})),
    "a stream that is no JSON": lambda body: events(piece(), f"{{{PLANTED}"),
    "a stream that is cut": lambda body: events(piece()),
}
REFUSALS: dict[str, Callable[[dict[str, Any]], Sent]] = {
    "log-probabilities": refusing("logprobs", "stream_options"),
    "a temperature": refusing("temperature"),
    "a limit": refusing("max_tokens"),
    "more alternatives": lambda body: (
        told(400, message=f"top_logprobs must be <= 5; {PLANTED}")
        if body.get("top_logprobs", 0) > 5
        else refusing()(body)
    ),
}


@pytest.fixture(scope="module")
def threaded() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def model(threaded: HTTPServer) -> Callable[[Callable[[dict[str, Any]], Sent]], OpenAICompatibleModel]:
    def make(answer: Callable[[dict[str, Any]], Sent]) -> OpenAICompatibleModel:
        def respond(received: Received) -> Sent:
            return answer(received.get_json())

        threaded.clear()
        threaded.expect_request("/v1/chat/completions").respond_with_handler(respond)
        url = threaded.url_for("/v1")
        return OpenAICompatibleModel("m", base_url=url, api_key=KEY, max_retries=0, timeout_s=5)

    return make


def clean(*shown: Any) -> None:
    for text in map(str, shown):
        assert not [planted for planted in (KEY, PROMPT, ANSWER) if planted in text], text


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() + str(record.args) for record in caplog.records]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_small_model_that_fails(model, caplog, failure: str, streamed: bool):
    """The query escalates; why is told by the kind of the error."""
    caplog.set_level(logging.INFO)
    small = model(FAILURES[failure])
    signal = TokenProbability(aggregate="min")  # watches, and so is streamed, where it may end the draft
    cascade = Cascade([Stage(small, [signal], {"p_t": 0.5}), Stage(ScriptedModel("large"))])

    with trace() as t:
        outcome = [*cascade.stream(PROMPT)][-1] if streamed else cascade.run(PROMPT)

    record = outcome.record
    assert record.answered_by == "large"
    assert record.attempts[0].error or record.attempts[0].reason
    clean(json.dumps(record.as_dict()), repr(record), *map(repr, t.records), *logged(caplog))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_last_model_that_fails(model, caplog, failure: str, streamed: bool):
    """Our own errors hold none of it; a provider's come as they are, but for the key."""
    caplog.set_level(logging.INFO)
    cascade = Cascade([Stage(model(FAILURES[failure]))])
    raised = None
    try:
        _ = [*cascade.stream(PROMPT)] if streamed else cascade.run(PROMPT)
    except Exception as error:
        raised = error

    if raised is None:  # what breaks streams only
        assert failure in ("an error in the stream", "a stream that is no JSON", "a stream that is cut")
    else:
        assert KEY not in "".join(traceback.format_exception(raised)) + repr(vars(raised))
    if type(raised).__module__.startswith("confcascade"):
        clean(raised, repr(raised))
    clean(*logged(caplog))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_model_that_refuses_a_parameter(model, caplog, refusal: str, streamed: bool):
    """What is refused is named in logs and reasons, by status, code and parameter."""
    caplog.set_level(logging.INFO)
    small = model(REFUSALS[refusal])
    cascade = Cascade([Stage(small, [TokenProbability("AB")], {"p_t": 0.5}), Stage(ScriptedModel("large"))])
    given = {"max_tokens": 9, "temperature": 0}

    outcome = [*cascade.stream(PROMPT, **given)][-1] if streamed else cascade.run(PROMPT, **given)

    assert outcome.record.answered_by == "large"
    clean(json.dumps(outcome.record.as_dict()), *logged(caplog))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", f"http://{KEY}@127.0.0.1:9/v1"])
def test_a_server_that_is_not_there(caplog, url: str):
    """Nor does an address with a key in it."""
    caplog.set_level(logging.INFO)
    small = OpenAICompatibleModel("m", base_url=url, api_key=KEY, max_retries=0, timeout_s=5)
    outcome = Cascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(ScriptedModel("large"))]).run(PROMPT)

    clean(json.dumps(outcome.record.as_dict()), *logged(caplog))


def test_an_error_of_ours_that_is_no_answer(model):
    """`ModelError` says what kind of thing came."""
    for failure in ("a web page", "plain text", "JSON of another form", "no choice"):
        with pytest.raises(ModelError) as raised:
            Cascade([Stage(model(FAILURES[failure]))], on_error="raise").run(PROMPT)
        clean(*traceback.format_exception_only(raised.value))
