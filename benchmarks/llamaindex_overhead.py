"""What an accepted call costs through LlamaIndex, over calling the small model directly.

Every contender has the same small model, whose answer it accepts, so whatever it takes beyond the direct call is its
own.  The small model does what any client of an API does except for the network: it writes the request as JSON, reads
an answer with log-probabilities in the shape of `OpenAI`, and makes a response of it, under LlamaIndex's decorators.
That takes tens of microseconds where a real client takes a millisecond, so the ratios here are as large as they can
get.  With ``--client openai`` it is `OpenAI` itself, and a server in another process that answers at once.

How it is measured: `overhead`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from confcascade import Stage, TokenProbability
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.llm import LLM
from overhead import (
    ANSWER,
    DIRECT,
    LARGE,
    SMALL,
    Clock,
    Measure,
    Models,
    Row,
    Spent,
    entry,
    import_cost,
    machine,
    measured,
    report,
    server,
)
from rich.console import Console
from rich.progress import track

from llamaindex_confcascade import ConfidenceCascadeLLM
from llamaindex_confcascade.bare import bare

ClientName: TypeAlias = Literal["instant", "openai"]
THRESHOLD = 0.7
FRAMEWORK = "; ".join(  # what an LLM of one's own imports
    [
        "from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata",
        "from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback",
        "from llama_index.core.llms.llm import LLM",
    ]
)

# ---------------------------------------------------------------------- the models

USAGE = {"prompt_tokens": 20, "completion_tokens": len(ANSWER), "total_tokens": 20 + len(ANSWER)}
BODY = json.dumps({"content": "".join(ANSWER), "logprobs": [entry(token) for token in ANSWER], "usage": USAGE})
EVENTS = [json.dumps({"content": token, "logprobs": [entry(token)]}) for token in ANSWER]
END = json.dumps({"content": "", "usage": USAGE})

ASKED: Counter[str] = Counter()  # how often each model


class Client(LLM):
    """An API's client whose server answers at once."""

    model: str
    logprobs: bool | None = None

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_chat_model=True)

    def _request(self, messages: Sequence[ChatMessage]) -> None:
        ASKED[self.model] += 1
        told = [{"role": message.role.value, "content": message.content} for message in messages]
        json.dumps({"model": self.model, "messages": told})

    def _response(self, written: str, content: str, delta: str | None = None) -> ChatResponse:
        body = json.loads(written)
        choice = {"logprobs": {"content": body.get("logprobs")}, "finish_reason": None if delta else "stop"}
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=content or body["content"]),
            raw={"choices": [choice], "usage": body.get("usage")},
            delta=delta,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        self._request(messages)
        return self._response(BODY, "")

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        await asyncio.sleep(0)  # as any call over a network does, let others run
        self._request(messages)
        return self._response(BODY, "")

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponseGen:
        return self._responses(messages)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponseAsyncGen:
        async def responses() -> ChatResponseAsyncGen:
            for response in self._responses(messages):
                await asyncio.sleep(0)
                yield response

        return responses()

    def _responses(self, messages: Sequence[ChatMessage]) -> ChatResponseGen:
        self._request(messages)
        content = ""
        for token, written in zip(ANSWER, EVENTS, strict=True):
            content += token
            yield self._response(written, content, token)
        yield self._response(END, content, "")

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError  # not measured

    stream_complete = acomplete = astream_complete = complete


@contextmanager
def models_of(client: ClientName) -> Iterator[Models]:
    """Models of that client, and where it needs one, their server."""
    if client == "instant":
        yield Models(lambda name, _: Client(model=name), lambda: dict(ASKED))
        return
    from llama_index.llms.openai import OpenAI

    def make(name: str, told: bool) -> LLM:
        # LlamaIndex's class refuses names it does not know; the server is asked for another
        more: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if told else {}
        return OpenAI(model="gpt-4o-mini", additional_kwargs={"model": name}, api_base=url, api_key="none", **more)

    with server() as (url, asked):
        yield Models(make, asked)


class Listener(BaseCallbackHandler):
    """A handler that does next to nothing, so that what is measured is the work of calling it."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.events = 0

    def on_event_start(self, event_type: CBEventType, *_: Any, **__: Any) -> str:
        self.events += 1
        return ""

    def on_event_end(self, *_: Any, **__: Any) -> None:
        self.events += 1

    def start_trace(self, *_: Any, **__: Any) -> None:
        pass

    def end_trace(self, *_: Any, **__: Any) -> None:
        pass


# ---------------------------------------------------------------------- the contenders


class ByHand:
    """What one would write: keep the small model's answer if its mean log-probability is high enough."""

    def __init__(self, small: LLM, large: LLM) -> None:
        self.small, self.large = small, large

    @staticmethod
    def _is_accepted(response: ChatResponse) -> bool:
        choice = response.raw["choices"][0] if isinstance(response.raw, dict) else response.raw.choices[0]
        logprobs = choice["logprobs"]["content"] if isinstance(choice, dict) else choice.logprobs.content
        told = [each["logprob"] if isinstance(each, dict) else each.logprob for each in logprobs]
        return math.exp(sum(told) / len(told)) >= THRESHOLD

    def chat(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        answer = self.small.chat(messages)
        return answer if self._is_accepted(answer) else self.large.chat(messages)

    async def achat(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        answer = await self.small.achat(messages)
        return answer if self._is_accepted(answer) else await self.large.achat(messages)

    def stream_chat(self, messages: Sequence[ChatMessage]) -> Iterator[ChatResponse]:
        answer = self.chat(messages)
        answer.delta = answer.message.content
        yield answer

    @property
    def callback_manager(self) -> CallbackManager:
        return self.small.callback_manager

    @callback_manager.setter
    def callback_manager(self, manager: CallbackManager) -> None:
        self.small.callback_manager = manager


class Nothing(LLM):
    """The floor: an LLM that hands on what another answers, which it asks beneath LlamaIndex's decorators.

    They run for it instead, as they do for the cascade.
    """

    _inner: LLM = PrivateAttr()

    def __init__(self, small: LLM, _: LLM) -> None:
        super().__init__()
        self._inner = small

    @property
    def metadata(self) -> LLMMetadata:
        return self._inner.metadata

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return bare(self._inner, "chat")(messages, **kwargs)  # type: ignore[no-any-return]

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await bare(self._inner, "achat")(messages, **kwargs)  # type: ignore[no-any-return]

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return bare(self._inner, "stream_chat")(messages, **kwargs)  # type: ignore[no-any-return]

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError  # not measured

    acomplete = stream_complete = astream_complete = astream_chat = complete


def _confcascade(small: LLM, large: LLM) -> Any:
    return ConfidenceCascadeLLM(models=[small, large], threshold=THRESHOLD)


def _first_token(small: LLM, large: LLM) -> Any:
    signal = TokenProbability(aggregate="first")
    return ConfidenceCascadeLLM(stages=[Stage(small, [signal], {"p_t": THRESHOLD}), Stage(large)])


CONTENDERS: dict[str, Callable[[LLM, LLM], Any]] = {
    DIRECT: lambda small, _: small,
    "confcascade": _confcascade,
    "confcascade, aggregate='first'": _first_token,
    "a wrapper that does nothing": Nothing,
    "by hand": ByHand,
}


def contenders(models: Models) -> dict[str, Any]:
    """Each over models of its own; who needs log-probabilities and does not ask for them has models that tell them."""
    return {
        name: make(*(models.make(size, name == "by hand") for size in (SMALL, LARGE)))
        for name, make in CONTENDERS.items()
    }


# ---------------------------------------------------------------------- the measures


def _asked(llm: Any, prompt: str) -> list[ChatMessage]:
    """The messages; and callbacks to the outermost LLM, as `Settings` give them."""
    llm.callback_manager = CallbackManager([Listener(), TokenCountingHandler(tokenizer=str.split)])
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


def _chat(runner: asyncio.Runner, llm: Any, prompt: str, calls: int) -> Spent:
    del runner
    clock, messages = Clock(), _asked(llm, prompt)
    with clock:
        for _ in range(calls):
            llm.chat(messages)
    return clock.per(calls)


def _achat(runner: asyncio.Runner, llm: Any, prompt: str, calls: int) -> Spent:
    clock, messages = Clock(), _asked(llm, prompt)

    async def block() -> None:
        with clock:
            for _ in range(calls):
                await llm.achat(messages)

    runner.run(block())
    return clock.per(calls)


def _concurrent(runner: asyncio.Runner, llm: Any, prompt: str, calls: int) -> Spent:
    clock, messages = Clock(), _asked(llm, prompt)

    async def block() -> None:
        with clock:
            await asyncio.gather(*(llm.achat(messages) for _ in range(calls)))

    runner.run(block())
    return clock.per(calls)


def _first_streamed(runner: asyncio.Runner, llm: Any, prompt: str, calls: int) -> Spent:
    """To the first item with text; the rest of the stream is read off the clock."""
    del runner
    clock, messages = Clock(), _asked(llm, prompt)
    for _ in range(calls):
        with clock:
            items = llm.stream_chat(messages)
            while not next(items).delta:
                pass
        for _ in items:
            pass
    return clock.per(calls)


def _whole_stream(runner: asyncio.Runner, llm: Any, prompt: str, calls: int) -> Spent:
    del runner
    clock, messages = Clock(), _asked(llm, prompt)
    with clock:
        for _ in range(calls):
            for _ in llm.stream_chat(messages):
                pass
    return clock.per(calls)


MEASURES: dict[str, tuple[Measure, int]] = {  # with the calls of a block
    "chat": (_chat, 100),
    "achat": (_achat, 100),
    "100 concurrent": (_concurrent, 100),
    "first streamed token": (_first_streamed, 20),
    "whole stream": (_whole_stream, 20),
}

# ---------------------------------------------------------------------- the report


def main(
    out: Annotated[Path | None, typer.Option(help="Write every figure as JSON.", dir_okay=False)] = None,
    words: Annotated[list[int] | None, typer.Option(min=1, help="Prompt length; repeat for several.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that every contender takes in every measure.")] = 15,
    client: Annotated[
        ClientName, typer.Option(help="The small model: one that costs next to nothing, or OpenAI and a server.")
    ] = "instant",
) -> None:
    """Measure what an accepted call costs over calling the small model directly, with callbacks on.

    Prints tables of ratios: ×1.30 means 30 % more time than the small model alone takes, which here answers at once.
    Of a model that takes a second, the same work is a fraction of a per cent.

    Example, the whole comparison (about five minutes):

        python benchmarks/llamaindex_overhead.py --out overhead.json

    the same over the client that people use:

        python benchmarks/llamaindex_overhead.py --client openai

    or one length (half a minute):

        python benchmarks/llamaindex_overhead.py --words 16 --repeats 5
    """
    lengths = words or [16, 1000, 4000]
    found = machine("llama-index-core", repeats=repeats, client=client)
    rows: list[Row] = []
    with models_of(client) as models:
        llms = contenders(models)
        steps = (each for length in lengths for each in measured(llms, MEASURES, models.asked, length, repeats))
        for batch in track(steps, "Measuring", total=len(lengths) * len(MEASURES), console=Console(stderr=True)):
            rows += batch
    imports = import_cost("llamaindex_confcascade", FRAMEWORK, repeats)
    rows.sort(key=lambda row: list(MEASURES).index(row.measure))
    print(report(rows, imports, found, "what any LLM needs of llama_index.core"))
    if out is not None:
        whole = {"machine": found, "rows": [asdict(row) for row in rows], "imports": imports}
        out.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    typer.run(main)
