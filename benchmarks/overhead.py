"""How an accepted call is compared with the direct one: blocks of calls in turns, their ratios, and the tables of them.

Contenders take turns, block by block (A B C, A B C, ...), and a ratio compares blocks of one turn: what else the
machine does meets all of them alike.  CPU time is that of the whole process, all threads; collection of garbage takes
place between blocks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

__all__ = [
    "ANSWER",
    "DIRECT",
    "LARGE",
    "ROOT",
    "SMALL",
    "Clock",
    "Measure",
    "Models",
    "Row",
    "Spent",
    "cell",
    "entry",
    "environment",
    "import_cost",
    "machine",
    "measured",
    "report",
    "server",
    "tables",
]

ROOT = Path(__file__).resolve().parents[1]
SERVER = ROOT / "benchmarks" / "instant_server.py"
DIRECT = "small model"
SMALL, LARGE = "gpt-4o-mini", "gpt-4o"  # names that peers know prices of
ANSWER = [" word"] * 16
WORDS = "the old town lies near a quiet river and many people walk there on warm days".split()
IMPORTED = ("numpy", "torch", "sklearn")


def entry(token: str) -> dict[str, Any]:
    """A token's log-probability, as OpenAI tells it."""
    said = {"token": token, "logprob": -0.01, "bytes": list(token.encode())}
    return {**said, "top_logprobs": [said]}


@contextmanager
def server() -> Iterator[tuple[str, Callable[[], Mapping[str, int]]]]:
    """A server in a process of its own that answers at once: its address, and how often each model was asked."""
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

        def asked() -> Mapping[str, int]:
            with urlopen(f"{url}/asked") as answer:
                return dict(json.load(answer))

        try:
            yield url, asked
        finally:
            process.terminate()


# ---------------------------------------------------------------------- the measures


@dataclass(frozen=True)
class Spent:
    """Of one block: seconds per call, CPU and wall."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Models:
    """Where the small and the large model of every contender come from.

    Attributes:
        make: A model of that name, which is to tell its log-probabilities.
        asked: How often each model was asked so far.
    """

    make: Callable[[str, bool], Any]
    asked: Callable[[], Mapping[str, int]]


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


Measure = Callable[[asyncio.Runner, Any, str, int], Spent]  # of a contender, a prompt, and the calls of a block


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


def measured(
    contenders: Mapping[str, Any],
    measures: Mapping[str, tuple[Measure, int]],
    asked: Callable[[], Mapping[str, int]],
    words: int,
    repeats: int,
    slowest_s: float = 1.0,
) -> Iterator[list[Row]]:
    """The rows of each measure, for prompts of so many words.

    Args:
        contenders: By name; each over models called `SMALL` and `LARGE`. One is the `DIRECT` call.
        measures: With the calls of a block.
        asked: How often each model was asked so far.
        words: Of the prompt.
        repeats: Turns.
        slowest_s: Most seconds of a block.
    """
    prompt = " ".join(islice(cycle(WORDS), words))
    for measure, (measure_block, wanted) in measures.items():
        turns: dict[str, list[Spent]] = {name: [] for name in contenders}
        calls = {}
        with asyncio.Runner() as runner:
            for name, contender in contenders.items():  # warm up
                once = measure_block(runner, contender, prompt, 3)
                calls[name] = max(1, min(wanted, int(slowest_s / once.cpu_s)))
            counted: dict[str, Counter[str]] = {name: Counter() for name in contenders}
            gc.collect()
            gc.freeze()
            gc.disable()
            for _ in range(repeats):
                for name, contender in contenders.items():
                    counted[name].subtract(asked())
                    turns[name].append(measure_block(runner, contender, prompt, calls[name]))
                    counted[name].update(asked())
                    gc.collect()
            gc.enable()
            gc.unfreeze()
        yield [
            Row(
                measure=measure,
                words=words,
                contender=name,
                calls=calls[name],
                accepted=_share(counted[name][SMALL], counted[name][LARGE]),
                cpu_us=statistics.median(spent.cpu_s for spent in turns[name]) * 1e6,
                wall_us=statistics.median(spent.wall_s for spent in turns[name]) * 1e6,
                cpu_ratio=_ratio([spent.cpu_s for spent in turns[name]], [spent.cpu_s for spent in turns[DIRECT]]),
                wall_ratio=_ratio([spent.wall_s for spent in turns[name]], [spent.wall_s for spent in turns[DIRECT]]),
            )
            for name in contenders
        ]


def _share(small: int, large: int) -> float:
    return 1.0 if large == 0 else max(0.0, 1.0 - large / max(small, large))


def _ratio(own: Sequence[float], direct: Sequence[float]) -> tuple[float, float, float]:
    ratios = [a / b for a, b in zip(own, direct, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return low, middle, high


# ---------------------------------------------------------------------- imports


def import_cost(module: str, after: str, repeats: int) -> dict[str, Any]:
    """Seconds of CPU to import `module` once the code `after` has run, each time in a fresh interpreter.

    All byte code is there, as in anything that was installed or has run once.
    """
    code = (
        f"import json, sys, time; t = time.process_time(); {after}; first = time.process_time() - t; "
        f"before = set(sys.modules); t = time.process_time(); import {module}; extra = time.process_time() - t; "
        f"print(json.dumps([first, extra, [name for name in {IMPORTED!r} if name in set(sys.modules) - before]]))"
    )

    def run() -> Any:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment())
        return json.loads(done.stdout)

    run()  # writes the byte code
    runs = [run() for _ in range(repeats)]
    return {
        "module": module,
        "framework_s": statistics.median(first for first, _, _ in runs),
        "extra_s": statistics.median(extra for _, extra, _ in runs),
        "extra_least_s": min(extra for _, extra, _ in runs),
        "loaded": runs[0][2],
    }


def environment() -> dict[str, str]:
    """This environment, in which the project's own folders are imported from; without tracing to LangSmith."""
    paths = [str(ROOT / "core"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    off = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **off}


# ---------------------------------------------------------------------- the report


def machine(framework: str, **told: Any) -> dict[str, Any]:
    """Where and when it was measured, with the version of the framework's distribution; before it."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "framework": f"{framework} {version(framework)}",
        "load": os.getloadavg()[0],
        **told,
    }


def report(rows: Sequence[Row], imports: dict[str, Any], machine: dict[str, Any], after: str) -> str:
    """The tables, under what they were measured on.

    Args:
        rows: Of all measures.
        imports: What `import_cost` found.
        machine: What `machine` said before the measurements.
        after: What was imported before, in words.
    """
    loaded = ", ".join(imports["loaded"]) or f"none of {', '.join(IMPORTED)}"
    return "\n\n".join(
        [
            f"{machine['date']}, {machine['cores']} cores, load {machine['load']:.1f} to {os.getloadavg()[0]:.1f}, "
            f"Python {machine['python']}, {machine['framework']}; "
            f"medians (and quartiles) of {machine['repeats']} turns; client: {machine['client']}.",
            tables(rows, "CPU"),
            tables(rows, "wall"),
            f"`import {imports['module']}` takes {imports['extra_s']:.3f} s of CPU "
            f"(at least {imports['extra_least_s']:.3f} s) "
            f"after {after} ({imports['framework_s']:.2f} s); it loads {loaded}.",
        ]
    )


def tables(rows: Sequence[Row], clock: str) -> str:
    """Ratios to the direct call, one line a measure and length, one column a contender."""
    names = [name for name in dict.fromkeys(row.contender for row in rows) if name != DIRECT]
    lines = [
        f"| {clock} | words | {DIRECT} | " + " | ".join(names) + " |",
        "|---|---:|---:|" + "---:|" * len(names),
    ]
    for measure, words in dict.fromkeys((row.measure, row.words) for row in rows):
        found = {row.contender: row for row in rows if (row.measure, row.words) == (measure, words)}
        direct = found[DIRECT].cpu_us if clock == "CPU" else found[DIRECT].wall_us
        cells = [cell(found[name], clock) for name in names]
        lines.append(f"| {measure} | {words:,} | {direct:,.0f} us | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: Row, clock: str) -> str:
    """A ratio with its quartiles, marked if the contender asked the large model."""
    low, middle, high = row.cpu_ratio if clock == "CPU" else row.wall_ratio
    digits = 2 if middle < 10 else 0
    text = f"×{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
    return text if row.accepted == 1.0 else f"{text}, accepted {row.accepted:.0%}"
