"""What an accepted call costs through LangChain, over calling the small model directly.

Every contender has the same small model, whose answer it accepts, so whatever it takes beyond the direct call is its
own.  The small model does what any client of an API does except for the network: it writes the request as JSON, reads
an answer with log-probabilities in the shape of `ChatOpenAI`, and makes a message of it.  That takes tens of
microseconds where a real client takes a millisecond, so the ratios here are as large as they can get.  With
``--client openai`` it is `ChatOpenAI` itself, and a server in another process that answers at once.

Contenders take turns, block by block (A B C, A B C, ...), and a ratio compares blocks of one turn: what else the
machine does meets all of them alike.  CPU time is that of the whole process, all threads; collection of garbage takes
place between blocks.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.request import urlopen

import typer
from confcascade import Stage, TokenProbability
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import SecretStr
from rich.console import Console
from rich.progress import track

from langchain_confcascade import ConfidenceCascadeLLM

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / ".cache" / "peers"  # a virtual environment
SERVER = ROOT / "benchmarks" / "instant_server.py"
CASCADEFLOW = "cascadeflow==1.2.0"
ClientName: TypeAlias = Literal["instant", "openai"]
SMALL, LARGE = "gpt-4o-mini", "gpt-4o"  # names that peers know prices of
THRESHOLD = 0.7
WORDS = "the old town lies near a quiet river and many people walk there on warm days".split()
ANSWER = [" word"] * 16
IMPORTED = ("numpy", "torch", "sklearn")
CHAT_MODEL = "; ".join(  # langchain_core.language_models alone loads next to nothing until it is used
    [
        "from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun",
        "from langchain_core.language_models import BaseChatModel",
        "from langchain_core.messages import AIMessage, AIMessageChunk",
        "from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult",
    ]
)

# ---------------------------------------------------------------------- the models


def _entry(token: str) -> dict[str, Any]:
    said = {"token": token, "logprob": -0.01, "bytes": list(token.encode())}
    return {**said, "top_logprobs": [said]}


USAGE = {"input_tokens": 20, "output_tokens": len(ANSWER), "total_tokens": 20 + len(ANSWER)}
BODY = json.dumps({"content": "".join(ANSWER), "logprobs": [_entry(token) for token in ANSWER], "usage": USAGE})
EVENTS = [json.dumps({"content": token, "logprobs": [_entry(token)]}) for token in ANSWER]


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


@dataclass(frozen=True)
class Models:
    """Where the small and the large model of every contender come from.

    Attributes:
        make: A model of that name, which is to tell its log-probabilities.
        asked: How often each model was asked so far.
    """

    make: Callable[[str, bool], BaseChatModel]
    asked: Callable[[], Mapping[str, int]]


@contextmanager
def models_of(client: ClientName) -> Iterator[Models]:
    """Models of that client, and where it needs one, their server."""
    if client == "instant":
        yield Models(lambda name, _: Client(model=name), lambda: dict(ASKED))
        return
    from langchain_openai import ChatOpenAI

    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"

        at: dict[str, Any] = {"base_url": url, "api_key": SecretStr("none")}

        def asked() -> Mapping[str, int]:
            with urlopen(f"{url}/asked") as answer:
                return dict(json.load(answer))

        try:
            yield Models(lambda name, told: ChatOpenAI(model=name, logprobs=told or None, **at), asked)
        finally:
            server.terminate()


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


DIRECT = "small model"
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


@dataclass(frozen=True)
class Spent:
    """Of one block: seconds per call, CPU and wall."""

    cpu_s: float
    wall_s: float


class Clock:
    """Seconds spent inside ``with``, added up."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._cpu
        self.wall_s += time.perf_counter() - self._wall

    def per(self, calls: int) -> Spent:
        return Spent(self.cpu_s / calls, self.wall_s / calls)


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


Measure = Callable[[asyncio.Runner, Runnable[Any, Any], str, int], Spent]
MEASURES: dict[str, tuple[Measure, int]] = {  # with the calls of a block
    "invoke": (_invoke, 100),
    "ainvoke": (_ainvoke, 100),
    "batch of 1,000": (_batch, 1000),
    "100 concurrent": (_concurrent, 100),
    "first streamed token": (_first_streamed, 20),
    "whole stream": (_whole_stream, 20),
}


@dataclass(frozen=True)
class Row:
    """One contender in one measure.

    Attributes:
        calls: In a block; fewer than the measure's own if these would take too long.
        accepted: Share of the calls that the small model answered. A contender that asks the large model is not
            comparable.
        cpu_us: Microseconds of CPU per call, the median over the blocks.
        wall_us: The same by the clock on the wall.
        cpu_ratio: Lower quartile, median and upper quartile of the ratios to the direct call in the same turn.
        wall_ratio: The same by the clock on the wall.
    """

    measure: str
    words: int
    contender: str
    calls: int
    accepted: float
    cpu_us: float
    wall_us: float
    cpu_ratio: tuple[float, float, float]
    wall_ratio: tuple[float, float, float]


def measured(models: Models, words: int, repeats: int, slowest_s: float = 1.0) -> Iterator[list[Row]]:
    """The rows of each measure, for prompts of so many words."""
    prompt = " ".join(islice(cycle(WORDS), words))
    llms = {
        name: CONTENDERS[name](*(models.make(size, name in NEED_LOGPROBS) for size in (SMALL, LARGE)))
        for name in _installed()
    }
    for measure, (measure_block, wanted) in MEASURES.items():
        turns: dict[str, list[Spent]] = {name: [] for name in llms}
        calls = {}
        with asyncio.Runner() as runner:
            for name, llm in llms.items():  # warm up
                once = measure_block(runner, llm, prompt, 3)
                calls[name] = max(1, min(wanted, int(slowest_s / once.cpu_s)))
            asked: dict[str, Counter[str]] = {name: Counter() for name in llms}
            gc.collect()
            gc.freeze()
            gc.disable()
            for _ in range(repeats):
                for name, llm in llms.items():
                    asked[name].subtract(models.asked())
                    turns[name].append(measure_block(runner, llm, prompt, calls[name]))
                    asked[name].update(models.asked())
                    gc.collect()
            gc.enable()
            gc.unfreeze()
        yield [
            Row(
                measure=measure,
                words=words,
                contender=name,
                calls=calls[name],
                accepted=_share(asked[name][SMALL], asked[name][LARGE]),
                cpu_us=statistics.median(spent.cpu_s for spent in turns[name]) * 1e6,
                wall_us=statistics.median(spent.wall_s for spent in turns[name]) * 1e6,
                cpu_ratio=_ratio([spent.cpu_s for spent in turns[name]], [spent.cpu_s for spent in turns[DIRECT]]),
                wall_ratio=_ratio([spent.wall_s for spent in turns[name]], [spent.wall_s for spent in turns[DIRECT]]),
            )
            for name in llms
        ]


def _installed() -> list[str]:
    present = importlib.util.find_spec("cascadeflow") is not None
    return [name for name in CONTENDERS if present or not name.startswith("cascadeflow")]


def _share(small: int, large: int) -> float:
    return 1.0 if large == 0 else max(0.0, 1.0 - large / max(small, large))


def _ratio(own: Sequence[float], direct: Sequence[float]) -> tuple[float, float, float]:
    ratios = [a / b for a, b in zip(own, direct, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return low, middle, high


# ---------------------------------------------------------------------- imports


def import_cost(repeats: int) -> dict[str, Any]:
    """Seconds of CPU to import the integration after what any chat model imports, each time in a fresh interpreter.

    All byte code is there, as in anything that was installed or has run once.
    """
    code = (
        f"import json, sys, time; t = time.process_time(); {CHAT_MODEL}; first = time.process_time() - t; "
        "t = time.process_time(); import langchain_confcascade; extra = time.process_time() - t; "
        f"print(json.dumps([first, extra, [name for name in {IMPORTED!r} if name in sys.modules]]))"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=_env())  # writes the byte code
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=_env()).stdout)
        for _ in range(repeats)
    ]
    return {
        "chat_model_s": statistics.median(first for first, _, _ in runs),
        "extra_s": statistics.median(extra for _, extra, _ in runs),
        "extra_least_s": min(extra for _, extra, _ in runs),
        "loaded": runs[0][2],
    }


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
    os.execve(python, [str(python), __file__, *(arg for arg in sys.argv[1:] if arg != "--peers")], _env())


def _env() -> dict[str, str]:
    """This environment, in which the project's own folders are imported from; without tracing to LangSmith."""
    paths = [str(ROOT / "core"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    off = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **off}


# ---------------------------------------------------------------------- the report


def _tables(rows: Sequence[Row], clock: str) -> str:
    """Ratios to the direct call, one line a measure and length, one column a contender."""
    names = [name for name in dict.fromkeys(row.contender for row in rows) if name != DIRECT]
    lines = [
        f"| {clock} | words | {DIRECT} | " + " | ".join(names) + " |",
        "|---|---:|---:|" + "---:|" * len(names),
    ]
    for measure, words in dict.fromkeys((row.measure, row.words) for row in rows):
        found = {row.contender: row for row in rows if (row.measure, row.words) == (measure, words)}
        direct = found[DIRECT].cpu_us if clock == "CPU" else found[DIRECT].wall_us
        cells = [_cell(found[name], clock) for name in names]
        lines.append(f"| {measure} | {words:,} | {direct:,.0f} us | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, clock: str) -> str:
    low, middle, high = row.cpu_ratio if clock == "CPU" else row.wall_ratio
    digits = 2 if middle < 10 else 0
    text = f"×{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
    return text if row.accepted == 1.0 else f"{text}, accepted {row.accepted:.0%}"


def _report(rows: Sequence[Row], imports: dict[str, Any], machine: dict[str, Any]) -> str:
    loaded = ", ".join(imports["loaded"]) or f"none of {', '.join(IMPORTED)}"
    return "\n\n".join(
        [
            f"{machine['date']}, {machine['cores']} cores, load {machine['load_before']:.1f} to "
            f"{machine['load_after']:.1f}, Python {machine['python']}, langchain-core {machine['langchain-core']}; "
            f"medians (and quartiles) of {machine['repeats']} turns; client: {machine['client']}.",
            _tables(rows, "CPU"),
            _tables(rows, "wall"),
            f"`import langchain_confcascade` takes {imports['extra_s']:.3f} s of CPU (at least "
            f"{imports['extra_least_s']:.3f} s) after the parts of langchain_core that any chat model needs "
            f"({imports['chat_model_s']:.2f} s); "
            f"it loads {loaded}.",
        ]
    )


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
    machine: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "langchain-core": version("langchain-core"),
        "repeats": repeats,
        "client": client,
        "load_before": os.getloadavg()[0],
    }
    console = Console(stderr=True)
    rows: list[Row] = []
    with models_of(client) as models:
        steps = (batch for length in lengths for batch in measured(models, length, repeats))
        for batch in track(steps, "Measuring", total=len(lengths) * len(MEASURES), console=console):
            rows += batch
    imports = import_cost(repeats)
    machine["load_after"] = os.getloadavg()[0]
    rows.sort(key=lambda row: list(MEASURES).index(row.measure))
    print(_report(rows, imports, machine))
    if out is not None:
        found = {"machine": machine, "rows": [asdict(row) for row in rows], "imports": imports}
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
