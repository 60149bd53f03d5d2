"""After how many audits a broken promise is seen, and how often an alarm is false.

    python benchmarks/audit_drift.py
    python benchmarks/audit_drift.py --data DIR

Streams of drawn queries whose truth is known, a thousand for each line: quiet ones, and ones whose accuracy falls by
five points at a known time. With `--data`, streams of recorded answers of Llama-3.1 8B and 70B to MMLU, too: the
promise is certified on one half of the questions and audited on the other, on which the 8B begins, at a known time, to
give some of its answers to other questions. Prints Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.audit.sequential import stakes, waiting
from confcascade.bench.recording import Columns
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.guarantee import Equivalence, Promise, examine
from numpy.typing import NDArray

Array = NDArray[np.float64]

FALSE_ALARMS = 0.05
FALL = 0.05  # of accuracy, in points
KEPT = 0.6  # share of queries that a smaller model answers
GAINED = 0.02  # share of queries on which the cascade is right and the largest model wrong
RATE = 0.02  # of queries that are drawn
BOUNDS = (0.01, 0.02, 0.05)
QUIET_TIMES = (200, 1_000, 5_000)
QUIET_PART = 0.7  # of the bound that the quiet rate is, but where it is the whole
AFTER = 4_000  # drawn queries that are looked at after the fall
FILE, SMALL, LARGE = "mmlu_test_even_logits.csv.gz", "llama-3.1-8b-instruct", "llama-3.1-70b-instruct"


def evidence(losses: Array, bound: float, lowest: float = 0.0, *, restarts: bool = True) -> Iterator[Array]:
    """`SequentialTest.observe` for many streams at once: e-values after each observation.

    Args:
        losses: Shape (streams, n).
        bound: See `SequentialTest`.
        lowest: See `SequentialTest`.
        restarts: Begin at all times; else the whole wealth at the first, as the plain product does.

    Yields:
        Shape (streams,).
    """
    staked = np.array(stakes(bound, lowest))
    wealth = np.zeros((len(losses), len(staked)))
    with np.errstate(over="ignore"):  # beyond any float is beyond any threshold
        for t, loss in enumerate(np.ascontiguousarray(losses.T, dtype=np.float64)):
            begun = waiting(t) - waiting(t + 1) if restarts else float(t == 0)
            wealth = (wealth + begun / len(staked)) * (1 + staked * (loss[:, None] - bound))
            yield wealth.sum(axis=1) + (waiting(t + 1) if restarts else 0.0)


def alarms(losses: Array, bound: float, lowest: float = 0.0, *, restarts: bool = True) -> NDArray[np.int64]:
    """At which observation, from 0, each stream raises an alarm; -1 if it does not."""
    at = np.full(len(losses), -1)
    for t, e in enumerate(evidence(losses, bound, lowest, restarts=restarts)):
        at[(at < 0) & (e >= 1 / FALSE_ALARMS)] = t
    return at


def disagreements(rng: np.random.Generator, streams: int, quiet: int, after: int, rate: float) -> Array:
    """1 where a drawn query is kept and answered otherwise than by the largest model; the rate rises by the fall."""
    rates = np.where(np.arange(quiet + after) < quiet, rate, rate + FALL)
    return (rng.random((streams, quiet + after)) < rates).astype(float)


def net_losses(rng: np.random.Generator, streams: int, quiet: int, after: int, rate: float) -> Array:
    """1 where the cascade is wrong and the largest model right, -1 the other way round; `rate` is their mean."""
    lost = np.where(np.arange(quiet + after) < quiet, rate, rate + FALL) + GAINED
    u = rng.random((streams, quiet + after))
    return (u < lost).astype(float) - (u >= 1 - GAINED)


WORLDS = {"disagreement": (disagreements, 0.0), "accuracy, all labelled": (net_losses, -1.0)}


def quiet_table(streams: int, length: int, seed: int = 0) -> list[str]:
    """False alarms where the promise is just kept: the share of streams that ever raise one."""
    lines = [
        f"| test | promised | false alarms in {length:,} drawn, promise just kept | at {QUIET_PART:.0%} of it |",
        "|---|---:|---:|---:|",
    ]
    for name, (world, lowest) in WORLDS.items():
        for bound in BOUNDS:
            rng = np.random.default_rng(seed)
            shares = [
                np.mean(alarms(world(rng, streams, length, 0, part * bound), bound, lowest) >= 0)
                for part in (1.0, QUIET_PART)
            ]
            lines.append(f"| {name} | {bound:.0%} | {shares[0]:.1%} | {shares[1]:.1%} |")
    return lines


def drift_table(streams: int, seed: int = 1) -> list[str]:
    """How long a fall of five points goes unseen."""
    lines = [
        "| test | promised | quiet before | false | drawn after the fall: median | 95% | audits: median | 95% | "
        "plain product: median |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (world, lowest) in WORLDS.items():
        for bound in BOUNDS:
            for quiet in QUIET_TIMES:
                losses = world(np.random.default_rng(seed), streams, quiet, AFTER, QUIET_PART * bound)
                at = alarms(losses, bound, lowest)
                plain = alarms(losses, bound, lowest, restarts=False)
                waits = delays(at, quiet)
                early = np.mean((at >= 0) & (at < quiet))
                row = [name, f"{bound:.0%}", f"{quiet:,}", f"{early:.1%}", *within(waits), *within(waits, KEPT)]
                row.append(within(delays(plain, quiet))[0])
                lines.append(f"| {' | '.join(row)} |")
    return lines


def delays(at: NDArray[np.int64], quiet: int) -> Array:
    """Observations from the change to the alarm, of the streams without an earlier one; inf for none in sight."""
    later = at[(at < 0) | (at >= quiet)]
    return np.where(later < 0, np.inf, later - quiet + 1.0)


def within(waits: Array, share: float = 1.0) -> list[str]:
    """By when half of the streams, and 95%, had their alarm, in this share of the drawn queries."""
    values = [float(np.quantile(waits, q, method="higher")) for q in (0.5, 0.95)]
    return [f"{share * value:,.0f}" if np.isfinite(value) else f"over {share * AFTER:,.0f}" for value in values]


def recorded_table(data: Path, streams: int, seed: int = 2) -> list[str]:
    """The same on recorded answers: a promise of agreement, certified on half of the questions, audited on the rest."""
    rows_read = [row for row in read_choice_logits(data / FILE) if row.model in (SMALL, LARGE)]
    columns = Columns.of(rows_read).complete()
    said = {(row.question, row.model): row.answer for row in rows_read}
    answers = np.array([[said[question, model] for model in (SMALL, LARGE)] for question in columns.questions])
    right_letter = {row.question: row.reference for row in rows_read}
    letters = np.array([right_letter[question] for question in columns.questions])
    p_t = columns.signal(SMALL, "p_t").values
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(columns))
    certified, audited = np.array_split(shuffled, 2)
    lines = [
        "| threshold | kept | certified: differ at most | truth: differ | accuracy falls by | differ then | false | "
        "drawn after the fall: median | 95% | audits: median | 95% |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for threshold in (0.8, 0.9, 0.95):
        kept = p_t >= threshold
        differs = kept & (answers[:, 0] != answers[:, 1])
        promise = Promise(None, equivalence=Equivalence("choice"))
        bound = examine(differs[certified].astype(float), 1.0, promise, "harms").bound
        # what the small model says then: its answer to another question, with the probability that costs five points
        other = answers[rng.permutation(len(columns)), 0]
        other_right = other == letters
        lost = np.mean((kept & (answers[:, 0] == letters))[audited]) - np.mean((kept & other_right)[audited])
        share = FALL / lost
        rows = audited[rng.integers(len(audited), size=(streams, 2_000 + AFTER))]
        fallen = (np.arange(2_000 + AFTER) >= 2_000) & (rng.random(rows.shape) < share)
        losses = np.where(fallen, (kept & (other != answers[:, 1]))[rows], differs[rows]).astype(float)
        at = alarms(losses, bound)
        waits = delays(at, 2_000)
        differ_then = (1 - share) * differs[audited].mean() + share * (kept & (other != answers[:, 1]))[audited].mean()
        row = [f"{threshold:g}", f"{kept[audited].mean():.1%}", f"{bound:.2%}", f"{differs[audited].mean():.2%}"]
        row += [f"{share * lost:.1%}", f"{differ_then:.2%}", f"{np.mean((at >= 0) & (at < 2_000)):.1%}"]
        row += [*within(waits), *within(waits, float(kept[audited].mean()))]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main(
    data: Annotated[Path | None, typer.Option(help=f"folder of {FILE}", exists=True, file_okay=False)] = None,
    streams: Annotated[int, typer.Option(min=10, help="for each line")] = 1000,
    length: Annotated[int, typer.Option(min=100, help="drawn queries of a quiet stream")] = 10_000,
) -> None:
    if data is not None and not (data / FILE).exists():
        raise typer.BadParameter(f"'{data}' has no {FILE}.", param_hint="--data")
    begun = time.perf_counter()
    tables = [quiet_table(streams, length), drift_table(streams)]
    if data is not None:
        tables.append(recorded_table(data, streams))
    for lines in tables:
        print("\n".join(lines), end="\n\n")
    print(f"{streams:,} streams a line, {time.perf_counter() - begun:.0f} s. Audits: {KEPT:.0%} of the drawn are kept,")
    print(f"but for the recorded; at a rate of {RATE:.0%}, {1 / RATE:.0f} times as many queries as drawn are answered.")


if __name__ == "__main__":
    typer.run(main)
