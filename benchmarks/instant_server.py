"""A server of OpenAI's chat API that answers at once, in a process of its own: what is left is the client's work.

``python benchmarks/instant_server.py`` prints its port.  Every answer is the same sixteen tokens, with
log-probabilities if they are asked for; ``GET /asked`` tells how often each model was asked.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = [" word"] * 16
ASKED: Counter[str] = Counter()


def _logprobs(tokens: list[str]) -> dict[str, Any]:
    told = [{"token": token, "logprob": -0.01, "bytes": list(token.encode())} for token in tokens]
    return {"content": [{**each, "top_logprobs": [each]} for each in told], "refusal": None}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 20, "completion_tokens": len(TOKENS), "total_tokens": 20 + len(TOKENS)}


def whole(asked: dict[str, Any]) -> str:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "".join(TOKENS), "refusal": None},
        "logprobs": _logprobs(TOKENS) if asked.get("logprobs") else None,
    }
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
    return json.dumps({**head, "choices": [choice], "usage": _usage()})


def streamed(asked: dict[str, Any]) -> str:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
    events: list[dict[str, Any]] = [
        {
            "index": 0,
            "delta": {"content": token},
            "logprobs": _logprobs([token]) if asked.get("logprobs") else None,
            "finish_reason": None,
        }
        for token in TOKENS
    ]
    chunks = [{**head, "choices": [event]} for event in events]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": _usage()})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: two would wait for each other's acknowledgement

    def do_GET(self) -> None:
        self._send("application/json", json.dumps(ASKED))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ASKED[asked["model"]] += 1
        if asked.get("stream"):
            self._send("text/event-stream", streamed(asked))
        else:
            self._send("application/json", whole(asked))

    def _send(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may go as they like
            super().handle_error(request, client_address)


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
