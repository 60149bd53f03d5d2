"""What an accepted call costs through LangChain, over calling the small model directly.

Every contender has the same small model, whose answer it accepts, so whatever it takes beyond the direct call is its
own.  The small model does what any client of an API does except for the network: it writes the request as JSON, reads
an answer with log-probabilities in the shape of `ChatOpenAI`, and makes a message of it.  That takes tens of
microseconds where a real client takes a millisecond, so the ratios here are as large as they can get.  With
``--client openai`` it is `ChatOpenAI` itself, and a server in another process that answers at once.

How it is measured: `overhead`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from confcascade import Stage, TokenProbability
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from overhead import (
    ANSWER,
    DIRECT,
    LARGE,
    ROOT,
    SMALL,
    Clock,
    Measure,
    Models,
    Row,
    Spent,
    entry,
    environment,
    import_cost,
    machine,
    measured,
    report,
    server,
)
from pydantic import SecretStr
from rich.console import Console
from rich.progress import track

from langchain_confcascade import ConfidenceCascadeLLM

PEERS = ROOT / "benchmarks" / ".cache" / "peers"  # a virtual environment
CASCADEFLOW = "cascadeflow==1.2.0"
ClientName: TypeAlias = Literal["instant", "openai"]
THRESHOLD = 0.7
CHAT_MODEL = "; ".join(  # langchain_core.language_models alone loads next to nothing until it is used
    [
        "from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun",
        "from langchain_core.language_models import BaseChatModel",
        "from langchain_core.messages import AIMessage, AIMessageChunk",
        "from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult",
    ]
)

# ---------------------------------------------------------------------- the models


USAGE = {"input_tokens": 20, "output_tokens": len(ANSWER), "total_tokens": 20 + len(ANSWER)}
BODY = json.dumps({"content": "".join(ANSWER), "logprobs": [entry(token) for token in ANSWER], "usage": USAGE})
EVENTS = [json.dumps({"content": token, "logprobs": [entry(token)]}) for token in ANSWER]


ASKED: Counter[str] = Counter()  # how often each model


class Client(BaseChatModel):
    """An API's client whose server answers at once."""

    model: str
    logprobs: bool = True

    @property
    def _llm_type(self) -> str:
        return "client"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model, "logprobs": self.logprobs}

    def _request(self, messages: Sequence[BaseMessage]) -> None:
        ASKED[self.model] += 1
        json.dumps({"model": self.model, "messages": [{"role": m.type, "content": m.content} for m in messages]})

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self._request(messages)
        body = json.loads(BODY)
        message = AIMessage(
            content=body["content"],
            usage_metadata=body["usage"],
            response_metadata={"model_name": self.model},
        )
        info = {"finish_reason": "stop", "logprobs": {"content": body["logprobs"], "refusal": None}}
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        await asyncio.sleep(0)  # as any call over a network does, let others run
        return self._generate(messages)

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._request(messages)
        for event in EVENTS:
            part = json.loads(event)
            logprobs = {"content": part["logprobs"], "refusal": None}
            message = AIMessageChunk(content=part["content"])
            yield ChatGenerationChunk(message=message, generation_info={"logprobs": logprobs})
        end = {"finish_reason": "stop", "model_name": self.model}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", response_metadata=end, usage_metadata=USAGE))


@contextmanager
def models_of(client: ClientName) -> Iterator[Models]:
    """Models of that client, and where it needs one, their server."""
    if client == "instant":
        yield Models(lambda name, _: Client(model=name), lambda: dict(ASKED))
        return
    from langchain_openai import ChatOpenAI

    with server() as (url, asked):
        at: dict[str, Any] = {"base_url": url, "api_key": SecretStr("none")}
        yield Models(lambda name, told: ChatOpenAI(model=name, logprobs=told or None, **at), asked)


class Listener(BaseCallbackHandler):
    """A handler that does next to nothing, so that what is measured is the work of calling it."""

    def __init__(self) -> None:
        self.events = 0

    def _count(self, *_: Any, **__: Any) -> None:
        self.events += 1

    on_chat_model_start = on_llm_end = on_llm_error = on_llm_new_token = _count
    on_chain_start = on_chain_end = on_chain_error = _count


# ---------------------------------------------------------------------- the contenders


def _lambda(small: BaseChatModel, large: BaseChatModel) -> Runnable[Any, Any]:
    """What one would write by hand: keep the small model's answer if its mean log-probability is high enough."""

    def accepted(message: Any) -> bool:
        entries = message.response_metadata["logprobs"]["content"]
        return math.exp(sum(entry["logprob"] for entry in entries) / len(entries)) >= THRESHOLD

    def call(prompt: Any, config: RunnableConfig) -> Any:
        answer = small.invoke(prompt, config)
        return answer if accepted(answer) else large.invoke(prompt, config)

    async def acall(prompt: Any, config: RunnableConfig) -> Any:
        answer = await small.ainvoke(prompt, config)
        return answer if accepted(answer) else await large.ainvoke(prompt, config)

    return RunnableLambda(call, acall)


def _confcascade(small: BaseChatModel, large: BaseChatModel) -> Runnable[Any, Any]:
    return ConfidenceCascadeLLM(models=[small, large], threshold=THRESHOLD)


def _first_token(small: BaseChatModel, large: BaseChatModel) -> Runnable[Any, Any]:
    signal = TokenProbability(aggregate="first")
    return ConfidenceCascadeLLM(stages=[Stage(small, [signal], {"p_t": THRESHOLD}), Stage(large)])


def _cascadeflow(small: BaseChatModel, large: BaseChatModel, **options: Any) -> Runnable[Any, Any]:
    from cascadeflow.integrations.langchain import CascadeFlow

    return CascadeFlow(drafter=small, verifier=large, quality_threshold=THRESHOLD, **options)


CONTENDERS: dict[str, Callable[[BaseChatModel, BaseChatModel], Runnable[Any, Any]]] = {
    DIRECT: lambda small, _: small,
    "confcascade": _confcascade,
    "confcascade, aggregate='first'": _first_token,
    "with_fallbacks": lambda small, large: small.with_fallbacks([large]),
    "RunnableLambda": _lambda,
    "cascadeflow": _cascadeflow,
    "cascadeflow, no pre-router": lambda small, large: _cascadeflow(small, large, enable_pre_router=False),
}

# who needs log-probabilities and does not ask for them; the direct call is the plain one, without
NEED_LOGPROBS = {"RunnableLambda", "cascadeflow", "cascadeflow, no pre-router"}

# ---------------------------------------------------------------------- the measures


def _invoke(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    del runner
    clock, config = Clock(), _callbacks()
    with clock:
        for _ in range(calls):
            llm.invoke(prompt, config)
    return clock.per(calls)


def _ainvoke(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    clock, config = Clock(), _callbacks()

    async def block() -> None:
        with clock:
            for _ in range(calls):
                await llm.ainvoke(prompt, config)

    runner.run(block())
    return clock.per(calls)


def _batch(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    del runner
    clock, config = Clock(), _callbacks()
    with clock:
        llm.batch([prompt] * calls, config)
    return clock.per(calls)


def _concurrent(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    clock, config = Clock(), _callbacks()

    async def block() -> None:
        with clock:
            await asyncio.gather(*(llm.ainvoke(prompt, config) for _ in range(calls)))

    runner.run(block())
    return clock.per(calls)


def _first_streamed(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    """To the first chunk with text; the rest of the stream is read off the clock."""
    del runner
    clock, config = Clock(), _callbacks()
    for _ in range(calls):
        with clock:
            chunks = llm.stream(prompt, config)
            while not next(chunks).content:
                pass
        for _ in chunks:
            pass
    return clock.per(calls)


def _whole_stream(runner: asyncio.Runner, llm: Runnable[Any, Any], prompt: str, calls: int) -> Spent:
    del runner
    clock, config = Clock(), _callbacks()
    with clock:
        for _ in range(calls):
            for _ in llm.stream(prompt, config):
                pass
    return clock.per(calls)


def _callbacks() -> RunnableConfig:
    return {"callbacks": [Listener(), UsageMetadataCallbackHandler()]}


MEASURES: dict[str, tuple[Measure, int]] = {  # with the calls of a block
    "invoke": (_invoke, 100),
    "ainvoke": (_ainvoke, 100),
    "batch of 1,000": (_batch, 1000),
    "100 concurrent": (_concurrent, 100),
    "first streamed token": (_first_streamed, 20),
    "whole stream": (_whole_stream, 20),
}


def contenders(models: Models) -> dict[str, Runnable[Any, Any]]:
    """Those that are installed, each over models of its own."""
    return {
        name: CONTENDERS[name](*(models.make(size, name in NEED_LOGPROBS) for size in (SMALL, LARGE)))
        for name in installed()
    }


def installed() -> list[str]:
    """The names of those that can be measured."""
    present = importlib.util.find_spec("cascadeflow") is not None
    return [name for name in CONTENDERS if present or not name.startswith("cascadeflow")]


# ---------------------------------------------------------------------- peers


def _run_with_peers() -> None:
    """Install the peers beside this project, then begin anew under their Python."""
    python = PEERS / "bin" / "python"
    needed = [CASCADEFLOW, f"langchain-core=={version('langchain-core')}", f"pydantic=={version('pydantic')}"]
    needed += [f"langchain-openai=={version('langchain-openai')}", f"openai=={version('openai')}", "typer", "rich"]
    done = PEERS / "installed.txt"
    if not done.exists() or done.read_text() != "\n".join(needed):
        Console(stderr=True).print(f"Installing {CASCADEFLOW} into {PEERS.relative_to(ROOT)} (once)")
        venv.create(PEERS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *needed], check=True)
        done.write_text("\n".join(needed))
    os.execve(python, [str(python), __file__, *(arg for arg in sys.argv[1:] if arg != "--peers")], environment())


def main(
    peers: Annotated[
        bool, typer.Option("--peers", help=f"Also measure {CASCADEFLOW}, installed for this into benchmarks/.cache.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write every figure as JSON.", dir_okay=False)] = None,
    words: Annotated[list[int] | None, typer.Option(min=1, help="Prompt length; repeat for several.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that every contender takes in every measure.")] = 15,
    client: Annotated[
        ClientName, typer.Option(help="The small model: one that costs next to nothing, or ChatOpenAI and a server.")
    ] = "instant",
) -> None:
    """Measure what an accepted call costs over calling the small model directly, with callbacks on.

    Prints tables of ratios: ×1.30 means 30 % more time than the small model alone takes, which here answers at once.
    Of a model that takes a second, the same work is a fraction of a per cent.

    Example, the whole comparison (about ten minutes):

        python benchmarks/langchain_overhead.py --peers --out overhead.json

    the same over the client that people use:

        python benchmarks/langchain_overhead.py --peers --client openai

    or one length, without other projects (half a minute):

        python benchmarks/langchain_overhead.py --words 16 --repeats 5
    """
    if peers:
        _run_with_peers()
    lengths = words or [16, 1000, 4000]
    found = machine("langchain-core", repeats=repeats, client=client)
    rows: list[Row] = []
    with models_of(client) as models:
        llms = contenders(models)
        steps = (each for length in lengths for each in measured(llms, MEASURES, models.asked, length, repeats))
        for batch in track(steps, "Measuring", total=len(lengths) * len(MEASURES), console=Console(stderr=True)):
            rows += batch
    imports = import_cost("langchain_confcascade", CHAT_MODEL, repeats)
    rows.sort(key=lambda row: list(MEASURES).index(row.measure))
    print(report(rows, imports, found, "what any chat model needs of langchain_core"))
    if out is not None:
        whole = {"machine": found, "rows": [asdict(row) for row in rows], "imports": imports}
        out.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    typer.run(main)
