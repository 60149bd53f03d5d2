"""Where an accepted call's time goes, by step and by room, in both frameworks; and what entering a stage costs.

The first table is of clocks around the steps of whole calls, without a profiler: medians over calls of what each step
takes without those within it.  Every clock adds about half a microsecond.  The second counts the seconds that the
profiler sees in each function for the room that it is of; what is of none (builtins, the standard library) counts for
whoever called it.  Profiling makes small functions look dearer than they are, so look at the shares;
`langchain_overhead.py` and `llamaindex_overhead.py` measure ratios.  The third is of CPU time without a profiler:
blocks in turns, medians and quartiles.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from typing import Annotated, Any
from unittest.mock import patch

import langchain_overhead as langchain
import llamaindex_overhead as llamaindex
import typer
from langchain_core.messages import HumanMessage
from overhead import LARGE, SMALL

PROMPT = "word " * 16
# by what stands in a file's path
ROOMS = {
    "the client": ("benchmarks/",),
    "the framework": ("langchain_core/", "langsmith/", "uuid_utils/", "llama_index", "wrapt/", "banks/"),
    "pydantic": ("pydantic/",),
    "integration": ("langchain_confcascade/", "llamaindex_confcascade/"),
    "core": ("core/confcascade/",),
}

Call = Callable[[], Any]


def calls() -> dict[str, tuple[Call, Call]]:
    """One call of the small model and one of the cascade, by what is asked of them."""
    direct, cascade = langchain.Client(model=SMALL), langchain._confcascade(*map(_lc, (SMALL, LARGE)))
    config = langchain._callbacks()
    plain, ours = llamaindex.Client(model=SMALL), llamaindex._confcascade(*map(_li, (SMALL, LARGE)))
    messages = llamaindex._asked(plain, PROMPT)
    llamaindex._asked(ours, PROMPT)
    return {
        "LangChain, invoke": (lambda: direct.invoke(PROMPT, config), lambda: cascade.invoke(PROMPT, config)),
        "LangChain, stream": (
            lambda: list(direct.stream(PROMPT, config)),
            lambda: list(cascade.stream(PROMPT, config)),
        ),
        "LlamaIndex, chat": (lambda: plain.chat(messages), lambda: ours.chat(messages)),
        "LlamaIndex, stream_chat": (
            lambda: list(plain.stream_chat(messages)),
            lambda: list(ours.stream_chat(messages)),
        ),
    }


# the functions at which the steps of a whole call begin, outermost first: module, class or "", function, step
STEPS = {
    "LlamaIndex, chat": (
        ("llamaindex_confcascade.llm", "ConfidenceCascadeLLM", "metadata", "metadata for LlamaIndex's events"),
        ("llamaindex_confcascade.llm", "ConfidenceCascadeLLM", "_request", "messages to a request"),
        ("confcascade.cascade", "Cascade", "run", "flow, drivers, signal, record"),
        ("llamaindex_confcascade.model", "LlamaIndexModel", "answer", "a stage's call: gate, ways, parameters, copies"),
        ("llamaindex_overhead", "Client", "_request", "the client"),
        ("llamaindex_overhead", "Client", "_response", "the client"),
        ("llamaindex_confcascade.model", "", "response_from", "what it answered to a response"),
        ("llamaindex_confcascade.reading", "", "whole_tokens", "log-probabilities to tokens"),
        ("llamaindex_confcascade.llm", "", "response_of", "outcome to the framework's answer"),
    ),
    "LangChain, invoke": (
        ("langchain_confcascade.chat_model", "", "request_from", "messages to a request"),
        ("confcascade.cascade", "Cascade", "run", "flow, drivers, signal, record"),
        ("langchain_confcascade.model", "LangChainModel", "answer", "a stage's call: gate, ways, parameters, copies"),
        ("langchain_overhead", "Client", "_generate", "the client"),
        ("langchain_confcascade.model", "", "response_from", "what it answered to a response"),
        ("langchain_confcascade.convert", "", "whole_tokens", "log-probabilities to tokens"),
        ("langchain_confcascade.chat_model", "", "_result", "outcome to the framework's answer"),
        ("langchain_confcascade.runs", "CascadeRun", "report", "the attempt's run, told to handlers"),
    ),
}
AROUND = "the framework, around it all"


def by_step(call: Call, kind: str, count: int) -> dict[str, float]:
    """Microseconds of each step of a call, without those of the steps within it: medians over calls."""
    spent: dict[str, float] = defaultdict(float)
    within = [0.0]

    def timed(function: Any, step: str) -> Any:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            within.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                spent[step] += whole - within.pop()
                within[-1] += whole

        return run

    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as patches:
        for module, kind_of, name, step in STEPS[kind]:
            owner = getattr(import_module(module), kind_of) if kind_of else import_module(module)
            its = vars(owner)[name]
            clocked = property(timed(its.fget, step)) if isinstance(its, property) else timed(its, step)
            patches.enter_context(patch.object(owner, name, clocked))
        clocked_call = timed(call, AROUND)
        for turn in range(count + 100):
            spent.clear()
            clocked_call()
            for step, seconds in spent.items() if turn >= 100 else ():
                found[step].append(seconds * 1e6)
    return {step: statistics.median(times) for step, times in found.items()}


def _lc(name: str) -> Any:
    return langchain.Client(model=name)


def _li(name: str) -> Any:
    return llamaindex.Client(model=name)


def by_room(call: Call, count: int) -> dict[str, float]:
    """Microseconds a call by room, as profiled."""
    for _ in range(100):
        call()
    profile = cProfile.Profile(time.process_time)
    with profile:
        for _ in range(count):
            call()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # function: counts, times, callers
    known: dict[Any, dict[str, float]] = {}

    def rooms(function: Any, above: frozenset[Any]) -> dict[str, float]:
        """Its room; of a function that is of none, the shares of its callers' rooms."""
        if (room := _room(function[0])) is not None:
            return {room: 1.0}
        if function in known or function in above:
            return known.get(function, {})
        told = {caller: times[2] for caller, times in stats[function][4].items()}
        shares: dict[str, float] = defaultdict(float)
        for caller, spent in told.items():
            for name, share in rooms(caller, above | {function}).items():
                shares[name] += share * (spent / (sum(told.values()) or 1.0))
        known[function] = dict(shares)
        return known[function]

    found: dict[str, float] = defaultdict(float)
    for function, (_, _, own, _, _) in stats.items():
        for name, share in rooms(function, frozenset()).items():
            found[name] += own * share / count * 1e6
    return dict(found)


def _room(path: str) -> str | None:
    return next((room for room, parts in ROOMS.items() if any(part in path for part in parts)), None)


def ways_in() -> dict[str, tuple[Call, ...]]:
    """How a stage can be entered, from the public method to the one that its class writes."""
    from llamaindex_confcascade.bare import bare
    from llamaindex_confcascade.gate import muted

    chat, asked, silent = _lc(SMALL), [HumanMessage(PROMPT)], {"callbacks": []}
    llm = _li(SMALL)
    messages = llamaindex._asked(llm, PROMPT)
    heard = muted(lambda: llm.chat(messages))
    return {
        "LangChain: `invoke` without handlers, `_generate_with_cache`, `_generate`": (
            lambda: chat.invoke(asked, silent),
            lambda: chat._generate_with_cache(list(asked)),
            lambda: chat._generate(list(asked)),
        ),
        "LangChain: `stream` without handlers, `_stream`": (
            lambda: list(chat.stream(asked, silent)),
            lambda: list(chat._stream(list(asked))),
        ),
        "LlamaIndex: `chat` that nobody hears, beneath LlamaIndex's decorators": (
            heard,
            lambda: bare(llm, "chat")(messages),
        ),
    }


def spent(tried: tuple[Call, ...], turns: int, count: int) -> list[list[float]]:
    """Microseconds of CPU a call, by way and turn; the ways take turns."""
    found: list[list[float]] = [[] for _ in tried]
    gc.collect()
    gc.disable()
    for turn in range(turns + 1):
        for times, call in zip(found, tried, strict=True):
            began = time.process_time()
            for _ in range(count):
                call()
            if turn:  # the first warms up
                times.append((time.process_time() - began) / count * 1e6)
        gc.collect()
    gc.enable()
    return found


def main(
    count: Annotated[int, typer.Option(min=1, help="Calls that are profiled, of each kind.")] = 500,
    turns: Annotated[int, typer.Option(min=2, help="Turns of the ways in.")] = 15,
) -> None:
    """Print where the time of an accepted call goes, by step and by room, and what the ways into a stage's model cost.

    Example (a minute):

        python benchmarks/wrapper_profile.py
    """
    asked = calls()
    steps = {kind: by_step(asked[kind][1], kind, 5 * count) for kind in STEPS}
    print("| step of an accepted call, µs | " + " | ".join(steps) + " |\n|---|" + "---:|" * len(steps))
    for step in dict.fromkeys([AROUND, *(each[-1] for kind in STEPS.values() for each in kind)]):
        print(
            f"| {step} | " + " | ".join(f"{told[step]:.0f}" if step in told else "" for told in steps.values()) + " |"
        )
    print("| all | " + " | ".join(f"{sum(told.values()):.0f}" for told in steps.values()) + " |\n")
    names = [*ROOMS]
    print("| profiled, µs a call | | " + " | ".join(names) + " |\n|---|---|" + "---:|" * len(names))
    for kind, pair in asked.items():
        for who, call in zip(("small model", "confcascade"), pair, strict=True):
            found = by_room(call, count)
            print(f"| {kind} | {who} | " + " | ".join(f"{found.get(name, 0.0):,.0f}" for name in names) + " |")
    print("\n| ways into a stage's model | µs of CPU a call (quartiles) |\n|---|---|")
    for kind, tried in ways_in().items():
        told = [statistics.quantiles(times, n=4) for times in spent(tried, turns, 100)]
        print(f"| {kind} | " + ", ".join(f"{q[1]:.0f} ({q[0]:.0f}–{q[2]:.0f})" for q in told) + " |")


if __name__ == "__main__":
    typer.run(main)
