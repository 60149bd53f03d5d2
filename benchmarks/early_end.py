"""What a draft that is ended early costs, against one that is waited for, over the clients of both frameworks.

A small model is unsure from its first token on. With `TokenProbability(aggregate="min")` its stream is left there; with
`aggregate="mean"` it is read to its end. The server writes a whole draft at once, so all that can be saved is the
reading; what must not happen is that leaving costs more. It also counts the streams whose client went away before
their end, that is, whose connection was closed at once and not when Python's collector found it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Annotated, Any

import typer
from confcascade import Stage, TokenProbability
from rich.console import Console
from rich.progress import track

PIECES = 200  # of a draft
COUNTS: Any = multiprocessing.Array("i", 2)  # streams begun, and those of which the client went away


def count(which: int) -> None:
    with COUNTS.get_lock():
        COUNTS[which] += 1


class Server(ThreadingHTTPServer):
    """OpenAI's chat completions: "small" streams an unsure draft, "large" answers."""

    daemon_threads = True

    def __init__(self, pause_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pause_s = pause_s


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        entry = {"token": "a ", "logprob": math.log(0.2), "bytes": None, "top_logprobs": []}
        told = {"content": [entry]} if body.get("logprobs") else None
        common = {"id": "x", "created": 0, "model": body["model"]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
            choice["logprobs"] = told
            self._send("application/json", {**common, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        count(0)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        choice = {"index": 0, "delta": {"content": "a "}, "logprobs": told}
        piece = f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n".encode()
        try:
            for _ in range(PIECES):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(self.server.pause_s)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            count(1)

    def _send(self, kind: str, what: Any) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(told: Connection, pause_s: float) -> None:
    """Serve until the process is ended; `told` gets the port."""
    with Server(pause_s) as server:
        told.send(server.server_port)
        server.serve_forever()


@contextmanager
def server(pause_s: float) -> Iterator[str]:
    """The address of a server in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs, pause_s), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()


# ---------------------------------------------------------------------- the contenders


def llamaindex(url: str, aggregate: Any) -> Callable[[], Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    from llamaindex_confcascade import ConfidenceCascadeLLM

    def llm(name: str) -> Any:
        return OpenAILike(model=name, api_base=url, api_key="none", is_chat_model=True, max_retries=0)

    stage = Stage(llm("small"), [TokenProbability(aggregate=aggregate)], {"p_t": 0.8})
    cascade, messages = ConfidenceCascadeLLM(stages=[stage, Stage(llm("large"))]), [ChatMessage("q")]
    return lambda: cascade.chat(messages)


def langchain(url: str, aggregate: Any) -> Callable[[], Any]:
    from langchain_openai import ChatOpenAI

    from langchain_confcascade import ConfidenceCascadeLLM

    def llm(name: str) -> Any:
        return ChatOpenAI(model=name, base_url=url, api_key="none", max_retries=0)

    stage = Stage(llm("small"), [TokenProbability(aggregate=aggregate)], {"p_t": 0.8})
    cascade = ConfidenceCascadeLLM(stages=[stage, Stage(llm("large"))])
    return lambda: cascade.invoke("q")


FRAMEWORKS = {"LlamaIndex, OpenAILike": llamaindex, "LangChain, ChatOpenAI": langchain}


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Of one call, over `calls`."""
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begun) / calls


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every contender takes, interleaved.")] = 12,
    calls: Annotated[int, typer.Option(min=1, help="Calls of a turn.")] = 5,
    pause_ms: Annotated[float, typer.Option(min=0, help="What the server waits after each piece of a draft.")] = 0.0,
) -> None:
    """Measure drafts that are ended early against whole ones.

    Example (a minute):

        python benchmarks/early_end.py
    """
    with server(pause_ms / 1e3) as url:
        contenders = {
            (framework, aggregate): make(url, aggregate)
            for framework, make in FRAMEWORKS.items()
            for aggregate in ("mean", "min")
        }
        spent: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
        left: dict[tuple[str, str], int] = dict.fromkeys(contenders, 0)
        begun: dict[tuple[str, str], int] = dict.fromkeys(contenders, 0)
        for call in contenders.values():
            call()
        for _ in track(range(rounds), "Measuring", console=Console(stderr=True)):
            for key, call in contenders.items():
                before = list(COUNTS)
                spent[key].append(seconds(call, calls))
                time.sleep(0.3)  # for the server to see that a client went away
                begun[key] += COUNTS[0] - before[0]
                left[key] += COUNTS[1] - before[1]
    print("| | whole draft | ended early | | closed at the server |")
    print("|---|---:|---:|---:|---:|")
    for framework in FRAMEWORKS:
        whole, early = (spent[framework, aggregate] for aggregate in ("mean", "min"))
        ratio = statistics.median(b / a for a, b in zip(whole, early, strict=True))
        print(
            f"| {framework} | {1e3 * statistics.median(whole):.1f} ms | {1e3 * statistics.median(early):.1f} ms "
            f"| ×{ratio:.2f} | {left[framework, 'min']} of {begun[framework, 'min']} |"
        )


if __name__ == "__main__":
    typer.run(main)
