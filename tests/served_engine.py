"""SGLang and vLLM as their sources document them, over a bundled model in this process; no real server was asked."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from confcascade import Message, Request
from confcascade.asks import Generate, Prefill
from confcascade.models.bundled import bundled_model
from pytest_httpserver import HTTPServer
from safetensors.torch import save_file
from werkzeug import Request as Received
from werkzeug import Response as Sent

__all__ = ["ServedEngine", "normed"]


def normed(states: np.ndarray) -> np.ndarray:
    """What the final norm of the small bundled model makes of last-block states of shape (..., hidden_size)."""
    with torch.inference_mode():
        return bundled_model("small").model.model.norm(torch.from_numpy(np.asarray(states))).numpy()


class ServedEngine:
    """The small bundled model behind ``/v1/chat/completions``; streams hold no hidden states, and name no file.

    - "sglang" (``entrypoints/openai/protocol.py`` and ``utils.py`` at v0.5.17): ``return_hidden_states: "last"`` puts
      the last block's state at the position that was computed last, behind the final norm, into the choice.
    - "vllm" (``example_hidden_states_connector.py`` at 015a95c8): every answer names a file that is then written, under
      a lock, with the states of the prompt's tokens before any norm.

    Attributes:
        decoded: Tokens written for each call, in the order of the calls.
        bodies: Of the calls.
        change: Applied to each answer before it is sent.
        dtype: Of vLLM's files.
    """

    def __init__(self, httpserver: HTTPServer, engine: str, folder: Path, layers: Sequence[int] = (3, 2)) -> None:
        self.model = bundled_model("small")
        self.engine, self.folder, self.layers = engine, folder, tuple(layers)
        self.url = httpserver.url_for("/v1")
        self.bodies: list[dict[str, Any]] = []
        self.decoded: list[int] = []
        self.change: Callable[[dict[str, Any]], Any] = lambda sent: None
        self.refuse: Callable[[dict[str, Any]], Sent | None] = lambda body: None
        self.dtype = torch.float32
        self.writing_s = 0.0
        self._writers: list[Thread] = []
        self._lock = Lock()
        httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self.chat)

    def settle(self) -> None:
        """Wait until all files are written."""
        for writer in self._writers:
            writer.join()

    def chat(self, received: Received) -> Sent:
        body = received.get_json()
        with self._lock:
            return self._chat(body)

    def _chat(self, body: dict[str, Any]) -> Sent:
        self.bodies.append(body)
        if (refused := self.refuse(body)) is not None:
            self.decoded.append(0)
            return refused
        messages = tuple(Message(each["role"], each["content"]) for each in body["messages"])
        request = Request(messages, max_tokens=body.get("max_tokens", 64), temperature=0)
        blocks = self.model.capability.layers
        (read,) = self.model.prefill([Prefill(self.model, request, layers=tuple(range(1, blocks + 1)))])
        read.close()
        (answer,) = self.model.generate([Generate(self.model, request)])
        self.decoded.append(answer.usage.output_tokens)
        usage = {"prompt_tokens": read.usage.input_tokens, "completion_tokens": answer.usage.output_tokens}
        usage |= {"total_tokens": sum(usage.values()), "prompt_tokens_details": {"cached_tokens": 0}}
        logprobs = None
        if body.get("logprobs"):
            entries = [
                {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob, "top_logprobs": []}
                for token in answer.tokens
            ]
            logprobs = {"content": entries}
        message = {"role": "assistant", "content": answer.text, "reasoning_content": None, "tool_calls": None}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}
        sent = {"id": f"chatcmpl-{len(self.bodies)}", "object": "chat.completion", "created": 0, "model": "small"}
        sent |= {"choices": [choice], "usage": usage}
        if self.engine == "sglang":
            choice["matched_stop"] = None
            if body.get("return_hidden_states") == "last":
                assert answer.usage.output_tokens == 1, "of a longer answer it is another position's"
                choice["hidden_states"] = normed(read.hidden_states[blocks]).tolist()
        else:
            assert "return_hidden_states" not in body
            path = self.folder / f"{sent['id']}.safetensors"
            sent |= {"prompt_logprobs": None, "prompt_token_ids": None}
            sent["kv_transfer_params"] = {"hidden_states_path": str(path)}
            self._write(path, usage["prompt_tokens"], [read.hidden_states[layer] for layer in self.layers])
        if body.get("stream"):
            return Sent(self._events(sent, answer.text), content_type="text/event-stream")
        self.change(sent)
        return Sent(json.dumps(sent), content_type="application/json")

    @staticmethod
    def _events(sent: dict[str, Any], text: str) -> Any:
        (whole,) = sent["choices"]
        pieces = [({"content": text}, whole["logprobs"], None), ({}, None, whole["finish_reason"])]
        for delta, logprobs, finish in pieces:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            event = {"id": sent["id"], "object": "chat.completion.chunk", "created": 0, "model": "small"}
            yield f"data: {json.dumps({**event, 'choices': [choice]})}\n\n"
        yield f"data: {json.dumps({**event, 'choices': [], 'usage': sent['usage']})}\n\n"
        yield "data: [DONE]\n\n"

    def _write(self, path: Path, tokens: int, last: list[np.ndarray]) -> None:
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        states = torch.randn(tokens, len(last), len(last[0]), generator=torch.Generator().manual_seed(0))
        states[-1] = torch.from_numpy(np.stack(last))
        tensors = {"hidden_states": states.to(self.dtype), "token_ids": torch.arange(tokens)}

        def write() -> None:
            time.sleep(self.writing_s)
            save_file(tensors, path)
            os.close(lock)

        self._writers.append(Thread(target=write))
        self._writers[-1].start()
