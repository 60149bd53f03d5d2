"""What an audit costs a call that is not audited, beside the same call without an audit.

    python benchmarks/audit_overhead.py

The same cascade over models that answer at once, in blocks that take turns; CPU time of the process, all threads. The
last line has the work of the audits in it, which happens in a thread beside: of one query in fifty, as by default.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from confcascade import Audit, Cascade, Request, Stage, TokenProbability, Usage
from confcascade.asks import Capability, Chunk
from confcascade.extending import Generate, Response, Token
from confcascade.types import Message

RESPONSE = Response(" word" * 16, tuple(Token(" word", -0.01) for _ in range(16)), Usage(20, 16))
REQUEST = Request((Message("user", "the old town lies near a quiet river"),))


class Instant:
    """Gives the same answer to everything, at once."""

    capability = Capability(logprobs=True)
    architecture = None

    def __init__(self, name: str) -> None:
        self.name = name

    def generate(self, asks: list[Generate]) -> list[Response]:
        return [RESPONSE] * len(asks)

    prefill = generate  # never asked

    async def agenerate(self, asks: list[Generate]) -> list[Response]:
        return self.generate(asks)

    aprefill = agenerate

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        yield RESPONSE

    astream = stream  # never asked


def cascade(folder: Path, rate: float) -> Cascade:
    stages = [Stage(Instant("small"), [TokenProbability()], {"p_t": 0.9}), Stage(Instant("large"))]
    if not rate:
        return Cascade(stages)
    return Cascade(stages, audit=Audit(rate=rate, state=folder / f"{rate}.sqlite", queue=1_000_000))


def cpu_s(asked: Cascade, calls: int) -> float:
    """Of one block, per call."""
    gc.collect()
    begun = time.process_time()
    for _ in range(calls):
        asked.run(REQUEST)
    if asked.auditor is not None:
        asked.auditor.wait()  # what the thread does is counted
    return (time.process_time() - begun) / calls


def measured(rates: list[float], calls: int, repeats: int) -> dict[float, list[float]]:
    """CPU seconds a call by rate, a value for each turn."""
    spent: dict[float, list[float]] = {rate: [] for rate in rates}
    with TemporaryDirectory() as folder:
        asked = {rate: cascade(Path(folder), rate) for rate in rates}
        for turn in range(repeats + 1):
            for rate in rates:
                taken = cpu_s(asked[rate], calls)
                if turn:  # the first warms up
                    spent[rate].append(taken)
    return spent


def main(
    calls: Annotated[int, typer.Option(min=1, help="in a block")] = 3_000,
    repeats: Annotated[int, typer.Option(min=2, help="turns")] = 15,
) -> None:
    rates = [0.0, 1e-9, 0.02]
    spent = measured(rates, calls, repeats)
    print("| audit | CPU a call | beside none |\n|---|---:|---:|")
    for rate, name in zip(rates, ("none", "none drawn", "0.02, with the audits' own work"), strict=True):
        ratios = [taken / none for taken, none in zip(spent[rate], spent[0.0], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        told = f"×{quartiles[1]:.3f} ({quartiles[0]:.3f}–{quartiles[2]:.3f})"
        print(f"| {name} | {statistics.median(spent[rate]) * 1e6:.1f} us | {told} |")


if __name__ == "__main__":
    typer.run(main)
