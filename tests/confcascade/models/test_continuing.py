"""How an answer is continued, by servers that are played here; llama.cpp's own is asked in `test_openai_served`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from confcascade import ConfigurationError, Message, ModelError, OpenAICompatibleModel, Request, Tool
from confcascade.asks import Generate, Session
from confcascade.extending import Response
from confcascade.models.continuing import Overlap, rest_of
from confcascade.testing import check_model
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpserver import HTTPServer
from werkzeug import Request as Received
from werkzeug import Response as Sent

ANSWER = ["Two", " plus", " two", ".\n\n", "It", " is", " 4", ".", "\n", "\nSo", " 4", "."]
TEXT = "".join(ANSWER)
REQUEST = Request((Message("user", "2+2?"),))


class Server:
    """Writes one answer, and continues it in one of the forms; what is continued otherwise begins anew."""

    def __init__(self, httpserver: HTTPServer, form: str) -> None:
        self.url = httpserver.url_for("/v1")
        self.form = form
        self.repeats = False
        self.trims = False
        self.thinks_apart = False
        self.verbose = True
        self.bodies: list[dict[str, Any]] = []
        self.rendered: list[dict[str, Any]] = []
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(self.chat)
        httpserver.expect_request("/v1/completions").respond_with_handler(self.complete)
        httpserver.expect_request("/apply-template").respond_with_handler(self.render)

    def render(self, received: Received) -> Sent:
        self.rendered.append(received.get_json())
        asked = self.rendered[-1]["messages"][-1]["content"]
        return self.json({"prompt": f"<user>{asked}<assistant>"} if self.form == "llama.cpp" else {"error": "no"})

    def complete(self, received: Received) -> Sent:
        body = received.get_json()
        return self.sent(body, body["prompt"].partition("<assistant>")[2])

    def chat(self, received: Received) -> Sent:
        body = received.get_json()
        last = body["messages"][-1]
        begun = last["role"] == "assistant" and {
            "continue_final_message": body.get("continue_final_message") and body["add_generation_prompt"] is False,
            "prefix": last.get("prefix"),
            "trailing": True,
        }.get(self.form)
        return self.sent(body, last["content"] if begun else "")

    def sent(self, body: dict[str, Any], written: str) -> Sent:
        self.bodies.append(body)
        begun = len(written.rstrip() if self.trims else written)
        pieces, at = [], 0
        for piece in ANSWER:
            at += len(piece)
            if at > begun:
                pieces.append(piece[max(0, begun - at + len(piece)) :])
        if self.repeats and written:
            pieces = [written[:3], written[3:], *pieces]
        word = ""
        for stop in body.get("stop", []):
            if stop in "".join(pieces):
                pieces, word = ["".join(pieces).partition(stop)[0]], stop
        usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
        if body.get("stream"):
            return Sent(self.events(body, pieces, word, usage), content_type="text/event-stream")
        text = "".join(pieces)
        told = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        return self.json({**ENVELOPE, "choices": [{**CHOICE, **told, "finish_reason": "stop"}], "usage": usage})

    def events(self, body: dict[str, Any], pieces: list[str], word: str, usage: Any) -> Iterator[str]:
        each = (body.get("stream_options") or {}).get("continuous_usage_stats")
        for i, piece in enumerate(pieces):
            part = {"content": piece} | ({"reasoning_content": "Hm."} if self.thinks_apart else {})
            told = {"text": piece} if "prompt" in body else {"delta": part}
            so_far = {"prompt_tokens": 9, "completion_tokens": i + 1, "total_tokens": 10 + i} if each else None
            yield self.event(choices=[{**CHOICE, **told}], usage=so_far)
        end: dict[str, Any] = {"text": ""} if "prompt" in body else {"delta": {}}
        more = {"__verbose": {"stopping_word": word}} if body.get("verbose") and self.verbose else {}
        yield self.event(choices=[{**CHOICE, **end, "finish_reason": "stop"}], usage=None, **more)
        yield self.event(choices=[], usage=usage)
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(**fields: Any) -> str:
        return f"data: {json.dumps({**ENVELOPE, **fields})}\n\n"

    @staticmethod
    def json(body: Any) -> Sent:
        return Sent(json.dumps(body), content_type="application/json")


ENVELOPE = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
CHOICE = {"index": 0, "finish_reason": None, "logprobs": None}
FORMS = ("llama.cpp", "continue_final_message", "prefix", "trailing")


@pytest.fixture
def served(httpserver: HTTPServer) -> Callable[..., tuple[OpenAICompatibleModel, Server]]:
    def serve(form: str, continues: Any = None, **options: Any) -> tuple[OpenAICompatibleModel, Server]:
        httpserver.clear()
        server = Server(httpserver, form)
        more = {"base_url": server.url, "api_key": "none", "max_retries": 0}
        return OpenAICompatibleModel("m", continues=continues or form, **more, **options), server

    return serve


def streamed(model: OpenAICompatibleModel, ask: Generate) -> Response:
    *chunks, response = model.stream(ask)
    assert "".join(chunk.text for chunk in chunks) == response.text  # type: ignore[union-attr]
    return response  # type: ignore[return-value]


async def astreamed(model: OpenAICompatibleModel, ask: Generate) -> Response:
    return [item async for item in model.astream(ask)][-1]  # type: ignore[return-value]


WAYS: dict[str, Callable[[OpenAICompatibleModel, Generate], Response]] = {
    "generate": lambda model, ask: model.generate([ask])[0],  # type: ignore[dict-item, return-value]
    "stream": streamed,
    "agenerate": lambda model, ask: asyncio.run(model.agenerate([ask]))[0],  # type: ignore[dict-item, return-value]
    "astream": lambda model, ask: asyncio.run(astreamed(model, ask)),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_form = pytest.mark.parametrize("form", FORMS)


def in_steps(model: OpenAICompatibleModel, way: str = "generate", until: str = "\n\n") -> list[Response]:
    written, steps = "", []
    while not steps or (steps[-1].finish_reason == "step" and len(steps) < 6):
        steps.append(WAYS[way](model, Generate(model, replace(REQUEST, written=written), logprobs=False, until=until)))
        written += steps[-1].text
    return steps


@every_form
@every_way
def test_steps_add_up_to_the_answer(served: Any, form: str, way: str):
    """Each ends behind the delimiter, wherever pieces of the stream divide it, and the last by itself."""
    model, _ = served(form)

    steps = in_steps(model, way)

    assert [step.finish_reason for step in steps] == ["step", "step", "stop"]
    assert steps[0].text == "Two plus two.\n\n"
    assert "".join(step.text for step in steps) == TEXT


@every_form
@every_way
def test_the_rest_is_what_follows(served: Any, form: str, way: str):
    """Without a delimiter, all of it; nothing of what was written is in the response."""
    model, _ = served(form)

    rest = WAYS[way](model, Generate(model, replace(REQUEST, written=TEXT[:17]), logprobs=False))

    assert (TEXT[:17] + rest.text, rest.finish_reason) == (TEXT, "stop")


@every_form
def test_it_keeps_the_contract(served: Any, form: str):
    model, _ = served(form)

    check_model(model, REQUEST)


def test_each_form_is_sent_as_its_servers_take_it(served: Any):
    """As their documentation has it; what was written comes as it is, blanks at its end included."""
    request = replace(REQUEST, written="Two plus two.\n\n", stop=("END",), max_tokens=7)
    sent = {}
    for form in FORMS:
        model, server = served(form, options={"top_k": 3})
        model.generate([Generate(model, request, until="\n\n", top_logprobs=2)])
        (sent[form],) = server.bodies
    message = {"role": "assistant", "content": "Two plus two.\n\n"}

    assert sent["trailing"]["messages"][1:] == [message]
    assert sent["prefix"]["messages"][1:] == [message | {"prefix": True}]
    vllm = sent["continue_final_message"]
    assert (vllm["messages"][1:], vllm["top_k"]) == ([message], 3)
    assert (vllm["continue_final_message"], vllm["add_generation_prompt"]) == (True, False)
    assert vllm["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert [sent[form]["stop"] for form in FORMS] == [["END", "\n\n"], ["END"], ["END"], ["END"]]
    assert server.rendered == []
    assert sent["llama.cpp"] == {
        "model": "m",
        "prompt": "<user>2+2?<assistant>Two plus two.\n\n",
        "max_tokens": 7,
        "stop": ["END", "\n\n"],
        "logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 3,
        "verbose": True,
    }


def test_nothing_is_sent_otherwise_where_nothing_is_continued(served: Any):
    """A plain question to a model that can continue is asked as one to a model that cannot."""
    for form in FORMS:
        model, server = served(form)
        model.generate([Generate(model, REQUEST, logprobs=False)])
        assert {k: v for k, v in server.bodies[0].items() if v} == {
            "model": "m",
            "messages": [{"role": "user", "content": "2+2?"}],
        }


def test_arguments_of_the_template_reach_the_prompt(served: Any):
    """llama.cpp's server renders it apart, with the thinking switched off, say."""
    model, server = served("llama.cpp", options={"chat_template_kwargs": {"enable_thinking": False}})

    model.generate([Generate(model, replace(REQUEST, written="Two"))])

    assert server.rendered[0]["chat_template_kwargs"] == {"enable_thinking": False}


@every_way
def test_what_a_server_repeats_is_taken_away(served: Any, way: str):
    """Mistral's response begins with all that was written; in pieces, it is known only after some of them."""
    model, server = served("prefix")
    server.repeats = True

    assert "".join(step.text for step in in_steps(model, way)) == TEXT


@every_way
def test_blanks_that_a_server_trims_are_not_written_twice(served: Any, way: str):
    """A template that trims the last message lets the model write the blank line again, which would be a step."""
    model, server = served("continue_final_message")
    server.trims = True

    assert [step.text for step in in_steps(model, way)] == ["Two plus two.\n\n", "It is 4.\n\n", "So 4."]


def test_the_usage_is_what_the_server_reports(served: Any):
    """Of a stream that is left, only some report it as they go; else it is estimated, what was written included."""
    usage = {}
    for form in FORMS:
        model, _ = served(form)
        steps = in_steps(model)
        usage[form] = [step.usage for step in steps]

    assert [each.estimated for each in usage["llama.cpp"]] == [False] * 3
    assert [each.output_tokens for each in usage["continue_final_message"]] == [4, 6, 3]
    assert [each.estimated for each in usage["continue_final_message"]] == [False] * 3
    assert [each.estimated for each in usage["trailing"]] == [True, True, False]
    assert [each.input_tokens for each in usage["trailing"]] == [1, 5, 9]


@every_way
@pytest.mark.parametrize("asked", [{"written": "Two"}, {"until": "\n\n"}])
def test_a_model_that_cannot_continue_says_so(served: Any, way: str, asked: dict[str, str]):
    """It does not begin anew, nor run on; the error names the ways out."""
    _, server = served("trailing")
    model = OpenAICompatibleModel("gpt", base_url=server.url, api_key="none")
    ask = Generate(model, replace(REQUEST, written=asked.get("written", "")), until=asked.get("until", ""))

    assert not model.capability.continues
    with pytest.raises(ConfigurationError, match=r"'gpt' cannot continue.*continues=\.\.\..*vLLM.*Mistral"):
        WAYS[way](model, ask)
    assert server.bodies == []


def test_a_server_of_another_kind_is_found_out(served: Any):
    """One that renders no prompts, or does not say where it stopped."""
    model, server = served("trailing", continues="llama.cpp")
    with pytest.raises(ModelError, match=r'renders no prompt.*continues="trailing"'):
        model.generate([Generate(model, replace(REQUEST, written="Two"))])
    model, server = served("llama.cpp")
    server.verbose = False
    with pytest.raises(ModelError, match=r'does not say.*continues="trailing"'):
        model.generate([Generate(model, REQUEST, until="\n\n")])


def test_thoughts_apart_cannot_be_continued(served: Any):
    """With them, the text so far would lack its beginning."""
    model, server = served("trailing")
    server.thinks_apart = True

    with pytest.raises(ModelError, match=r"thoughts apart.*reasoning parser.*enable_thinking"):
        model.generate([Generate(model, REQUEST, until="\n\n", session=Session())])


def test_tools_are_not_called_in_the_midst_of_a_text(served: Any):
    model, _ = served("llama.cpp")
    request = replace(REQUEST, tools=(Tool("f", "", {"type": "object"}),))

    with pytest.raises(ModelError, match="cannot be given tools"):
        model.generate([Generate(model, request, until="\n\n")])


def test_another_form_is_refused():
    with pytest.raises(ConfigurationError, match=r"`continues` of model 'm' must be one of llama.cpp.*'vllm'"):
        OpenAICompatibleModel("m", base_url="http://127.0.0.1:1/v1", continues="vllm")  # type: ignore[arg-type]


@given(st.text("ab\n ", max_size=6), st.text("ab\n ", max_size=6), st.integers(1, 3))
def test_an_overlap_is_the_same_however_it_comes(written: str, text: str, size: int):
    """Pieces of any size; and what is repeated whole leaves just the rest."""

    def told(text: str, size: int, repeated: bool) -> str:
        overlap = Overlap(written, repeated=repeated)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        return "".join([*map(overlap.add, pieces), overlap.add("", last=True)])

    for repeated in (True, False):
        assert told(text, size, repeated) == told(text, 99, repeated)
    assert told(written + text, size, True) == text
    assert told(text, size, False).lstrip() == text.lstrip()


@given(st.text("ab#", max_size=6), st.sampled_from(["##", "#", "ab", "aab"]))
def test_a_delimiter_is_put_back_where_it_was_cut(text: str, until: str):
    """Whether a server cut all of it, or sent its first characters before it knew."""
    whole = text + until
    cut = whole[: whole.find(until)]

    assert cut + rest_of(cut, until) == cut + until
    assert (cut + until[:1]) + rest_of(cut + until[:1], until) in (cut + until, cut + until[:1] + until)
