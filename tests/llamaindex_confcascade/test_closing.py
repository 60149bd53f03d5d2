"""A stream that is left is closed at its server at once, and leaves nothing open for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from confcascade import Stage, TokenProbability
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.llm import LLM
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.closing import close

MESSAGES = [ChatMessage("q")]
PIECES = 400


class Server(ThreadingHTTPServer):
    """OpenAI's chat completions, streamed slowly; counts how its streams end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.left = 0  # streams whose client went away
        self.whole = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def llm(self, name: str, cls: type[OpenAI] = OpenAI) -> OpenAI:
        more: dict[str, Any] = {"is_chat_model": True} if cls is OpenAILike else {}
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return cls(model=name, api_base=url, api_key="sk-secret", max_retries=0, **more)

    def wait_for_left(self, n: int) -> int:
        """How many were left, once there are `n`, or after two seconds."""
        end = time.monotonic() + 2
        while self.left < n and time.monotonic() < end:
            time.sleep(0.005)
        return self.left


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sure = body["model"] == "gpt-4o"
        entry = {"token": "a ", "logprob": math.log(0.99 if sure else 0.2), "bytes": None, "top_logprobs": []}
        common = {"id": "x", "created": 0, "model": body["model"]}
        told = {"content": [entry]} if body.get("logprobs") else None
        if not body.get("stream"):
            message = {"role": "assistant", "content": "a "}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": told}
            whole = json.dumps({**common, "object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        choice = {"index": 0, "delta": {"content": "a "}, "logprobs": told}
        piece = json.dumps({**common, "object": "chat.completion.chunk", "choices": [choice]})
        try:
            for _ in range(PIECES):
                self.wfile.write(f"data: {piece}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.01)
        except OSError:
            self.server.left += 1
        else:
            self.server.whole += 1


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.shutdown()


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Whatever is closed was closed by name."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Delegating(LLM):
    """No class of OpenAI's, yet a stream of openai's client lies beneath it."""

    inner: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="delegating", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.inner.chat(messages, **kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return (response for response in self.inner.stream_chat(messages, **kwargs))

    achat = astream_chat = complete = stream_complete = acomplete = astream_complete = chat


def unsure(server: Server, kind: str) -> LLM:
    if kind == "delegating":
        return Delegating(inner=server.llm("gpt-4o-mini"))
    return server.llm("gpt-4o-mini", OpenAI if kind == "OpenAI" else OpenAILike)


def judging_early(small: LLM, server: Server) -> ConfidenceCascadeLLM:
    stage = Stage(small, [TokenProbability(aggregate="min")], {"p_t": 0.8})
    return ConfidenceCascadeLLM(stages=[stage, Stage(server.llm("gpt-4o"))])


def open_responses() -> list[Any]:
    """Of all streams of openai's client that are still alive."""
    streams = [each for each in gc.get_objects() if isinstance(each, openai.Stream | openai.AsyncStream)]
    return [stream for stream in streams if not stream.response.is_closed]


@pytest.mark.parametrize("kind", ["OpenAI", "OpenAILike"])
def test_a_draft_that_is_ended_early_is_closed_at_its_server(kind: str, server: Server, no_collection: None) -> None:
    llm = judging_early(unsure(server, kind), server)

    answers = [llm.chat(MESSAGES) for _ in range(3)]

    assert [answer.additional_kwargs["confcascade"]["answered_by"] for answer in answers] == ["gpt-4o"] * 3
    assert open_responses() == []
    assert (server.wait_for_left(3), server.whole) == (3, 0)


async def test_so_is_an_asynchronous_one(server: Server, no_collection: None) -> None:
    llm = judging_early(unsure(server, "OpenAI"), server)

    await asyncio.gather(*(llm.achat(MESSAGES) for _ in range(3)))

    assert open_responses() == []
    assert (await asyncio.to_thread(server.wait_for_left, 3), server.whole) == (3, 0)


@pytest.mark.parametrize("kind", ["OpenAI", "OpenAILike", "delegating"])
def test_a_stream_that_its_reader_leaves_is_closed_at_its_server(
    kind: str, server: Server, no_collection: None
) -> None:
    """Also where an LLM that is none of OpenAI's asks one that is."""
    llm = ConfidenceCascadeLLM(models=[unsure(server, kind)])

    pieces = llm.stream_chat(MESSAGES)
    next(pieces)
    pieces.close()

    assert open_responses() == []
    assert (server.wait_for_left(1), server.whole) == (1, 0)


async def test_so_is_an_asynchronous_stream(server: Server, no_collection: None) -> None:
    pieces: Any = await ConfidenceCascadeLLM(models=[unsure(server, "OpenAI")]).astream_chat(MESSAGES)
    await anext(pieces)
    await pieces.aclose()  # LlamaIndex's own wrapper lets go of ours, which the loop then closes

    assert (await asyncio.to_thread(server.wait_for_left, 1), server.whole) == (1, 0)
    assert open_responses() == []


def test_collecting_within_the_connection_pool_waits_for_nothing(server: Server, no_collection: None) -> None:
    """The collector may come by in a thread that holds the pool's lock: an open response would wait for it for ever."""
    small = unsure(server, "OpenAI")
    judging_early(small, server).chat(MESSAGES)
    pool: Any = small._get_client()._client._transport._pool  # type: ignore[attr-defined]

    def collect() -> None:
        with pool._optional_thread_lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_what_a_stream_does_not_read_stays_open(tmp_path: Any) -> None:
    """Neither a file in a closure nor another's generator is closed with it."""
    path = tmp_path / "log"
    others = iter("abc")
    with path.open("w") as log:

        def pieces() -> Iterator[str]:
            for each in others:
                log.write(each)
                yield each

        items = pieces()
        next(items)
        close(items)
        close(iter("any iterator"))
        assert not log.closed
        assert next(others) == "b"
