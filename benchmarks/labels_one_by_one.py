"""Labels bought one by one until a target is certified, beside a sample of fixed size: Llama-3.1 8B -> 70B on MMLU.

    python benchmarks/labels_one_by_one.py --data DIR --write docs/design/labels-one-by-one.md

DIR holds ``mmlu_test_even_logits.csv.gz`` (see `mmlu_llama31.py`). The 7,032 recorded questions are the traffic, so
that every policy's true loss and saving are known; recordings are drawn from it with replacement. No model runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.bench.labelling.buying import worth
from confcascade.bench.labelling.task import GRID_SHARE, LEVELS
from confcascade.bench.recording import Columns
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.guarantee import (
    Equivalence,
    Promise,
    examples_needed,
    harm_bound,
    score_p_value,
    sequential_bets,
)
from confcascade.guarantee.sequential_bets import Bets
from numpy.typing import NDArray

SMALL, LARGE = "llama-3.1-8b-instruct", "llama-3.1-70b-instruct"
COST = 8 / 70  # of the small model, in the large one's
FILE = "mmlu_test_even_logits.csv.gz"
TARGETS, SIZES = (0.01, 0.02, 0.05), (3500, 1000)
WAYS_DRAWS = 200  # recordings on which bets are compared, at most
WITHIN = (0.25, 0.5, 0.75)  # of the target: policies whose certificate is waited for, by their true loss
Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """The traffic.

    Attributes:
        score: P(T) of the small model.
        loss: Of keeping its answer.
        needs: Whether a label is needed where its answer is kept: it is another letter than the large model's.
        cuts: Thresholds, the highest first.
        risk: True loss of each.
        saved: True saving.
        discordance: Share of the questions on which each loses or gains.
        open: Share of the questions on which each needs a label.
    """

    score: Array
    loss: Array
    needs: NDArray[np.bool_]
    cuts: Array
    risk: Array
    saved: Array
    discordance: Array
    open: Array

    @classmethod
    def read(cls, path: Path, *, agreement: bool = False) -> World:
        """Of accuracy, or of agreement with the large model, which is asked wherever an answer is kept."""
        columns = Columns.of(row for row in read_choice_logits(path) if row.model in (SMALL, LARGE)).complete()
        answers = {row.key: row.answer for row in read_choice_logits(path)}
        differs = np.array([answers[q, SMALL] != answers[q, LARGE] for q in columns.questions])
        small, large = (columns.grades[:, columns.index(model)] for model in (SMALL, LARGE))
        loss, needs = (differs.astype(float), np.ones_like(differs)) if agreement else (large - small, differs)
        score = columns.signal(SMALL, "p_t").values
        cuts = np.unique(np.quantile(score, LEVELS))[::-1]
        kept = score >= cuts[:, None]
        lost = kept * loss
        return cls(
            score,
            loss,
            needs,
            cuts,
            lost.mean(axis=1),
            kept.mean(axis=1) - COST,
            np.abs(lost).mean(axis=1),
            (kept & needs).mean(axis=1),
        )

    @property
    def agreement(self) -> bool:
        """Whether it is the large model that labels."""
        return bool(self.needs.all())

    def useful(self) -> World:
        """Without thresholds that save nothing."""
        some = self.saved > 0
        told = {name: getattr(self, name)[some] for name in ("cuts", "risk", "saved", "discordance", "open")}
        return World(self.score, self.loss, self.needs, **told)


@dataclass(frozen=True)
class Walks:
    """Many recordings, each labelled in its drawn order.

    Attributes:
        depth: Questions read until each policy was certified; 0 if it never was, or one before it was not; shape
            (recordings, policies).
        labels: Labels bought by then, those of all policies before it included; likewise.
        asked: Labels bought by then if answers that agree needed one, too; likewise.
        stopped: How many policies were certified when it did not pay to go on, shape (recordings,).
        spent: Labels bought by then, likewise.
    """

    depth: NDArray[np.intp]
    labels: NDArray[np.intp]
    asked: NDArray[np.intp]
    stopped: NDArray[np.intp]
    spent: NDArray[np.intp]


Crossing = Callable[[Array, NDArray[np.bool_], Array, float], NDArray[np.intp]]


def crossing(
    losses: Array, needs: NDArray[np.bool_], spread: Array, drop: float, bets: type[Bets] = Bets
) -> NDArray[np.intp]:
    """Questions read until the goal was reached, 0 where it never was, shape (recordings,).

    Args:
        losses: Shape (recordings, questions).
        needs: Whether a label is needed, likewise.
        spread: As of `Bets`, shape (recordings,).
        drop: The target.
        bets: Which.
    """
    delta = Promise(drop).delta
    gamblers = bets(spread, questions=losses.shape[1], drop=drop, delta=delta)
    won = gamblers.take(losses) >= gamblers.goal
    return np.where(won.any(axis=1), won.argmax(axis=1) + 1, 0)


def walks(world: World, n: int, draws: int, drop: float, crosses: Crossing = crossing) -> Walks:
    """As `SequentialPath` and `buy` do it, all labels known beforehand (a test compares them)."""
    rng = np.random.default_rng(n)
    rows = rng.integers(len(world.score), size=(draws, n))
    aside = round(n * GRID_SHARE / (1 - GRID_SHARE))  # the questions that set the thresholds
    score, loss, needs = world.score[rows], world.loss[rows], world.needs[rows]
    shape = draws, len(world.cuts)
    depth, labels, asked = (np.zeros(shape, dtype=np.intp) for _ in range(3))
    known, needed = np.zeros(rows.shape, dtype=bool), np.zeros(rows.shape, dtype=bool)
    stopped, spent = np.full(draws, -1), np.zeros(draws, dtype=np.intp)
    alive, best = np.ones(draws, dtype=bool), np.zeros(draws)
    for i, cut in enumerate(world.cuts):
        mine = (score >= cut) & needs
        spread = (rng.binomial(aside, world.open[i], size=draws) + 1) / (aside + 2)
        if world.agreement:
            spread = np.minimum(spread, drop)
        read = crosses(np.where(mine, loss, 0.0), mine, spread, drop)
        within = np.arange(n) < np.where(read > 0, read, n)[:, None]
        bought, more = known.sum(axis=1), (mine & within & ~known).sum(axis=1)
        for draw in np.flatnonzero(alive & (stopped < 0)):
            allowed = worth(best[draw], world.saved[i], bought[draw]) if best[draw] else np.inf
            if more[draw] > allowed or not read[draw]:
                stopped[draw], spent[draw] = i, bought[draw] + min(more[draw], allowed + 1)
        alive &= read > 0
        if not alive.any():
            break
        known |= mine & within & alive[:, None]
        needed |= (score >= cut) & within & alive[:, None]
        depth[alive, i], labels[alive, i], asked[alive, i] = (
            each[alive] for each in (read, known.sum(axis=1), needed.sum(axis=1))
        )
        best[alive] = np.maximum(best[alive], world.saved[i])
    spent[stopped < 0] = known.sum(axis=1)[stopped < 0]
    stopped[stopped < 0] = len(world.cuts)
    return Walks(depth, labels, asked, stopped, spent)


def reached(values: NDArray[np.intp], certified: NDArray[np.bool_], share: float = 0.8) -> str:
    """By how many so many of the recordings are certified."""
    level = float(np.quantile(np.where(certified, values, np.inf), share, method="higher"))
    return f"{level:,.0f}" if np.isfinite(level) else "never"


def waiting(world: World, found: Walks, drop: float) -> list[str]:
    """Rows: for policies of some true loss, the planner's number and the labels bought."""
    lines = []
    for part in WITHIN:
        i = int(np.flatnonzero(world.risk <= part * drop)[-1])
        promise = Promise(drop, equivalence=Equivalence("choice") if world.agreement else None)
        n = examples_needed(promise, discordance=world.discordance[i], net_loss=world.risk[i])
        depth = found.depth[:, i]
        lines.append(
            f"| {100 * drop:g} | {100 * world.risk[i]:.2f} | {world.saved[i]:.1%} | "
            f"{'never' if n is None else f'{n:,}'} | {reached(depth, depth > 0)} | "
            f"{reached(found.asked[:, i], depth > 0)} | {reached(found.labels[:, i], depth > 0)} | "
            f"{reached(found.labels[:, i], depth > 0, 0.5)} | {(depth > 0).mean():.0%} |"
        )
    return lines


def gained(world: World, certified: NDArray[np.intp], drop: float) -> tuple[float, int, float]:
    """Mean true saving, how many recordings certify a policy that breaks the target, and the share with nothing."""
    saved = np.array([world.saved[:k].max(initial=0.0) for k in certified])
    broken = sum(bool((world.risk[:k] > drop).any()) for k in certified)
    return float(saved.mean()), broken, float((certified == 0).mean())


def stopping(world: World, found: Walks, drop: float, n: int) -> str:
    """A row: what it comes to where it stops by itself, and where it goes on to the last question."""
    saved, broken, nothing = gained(world, found.stopped, drop)
    all_saved, all_broken, _ = gained(world, (found.depth > 0).sum(axis=1), drop)
    hindsight = world.saved[world.risk <= drop].max()
    return (
        f"| {100 * drop:g} | {n:,} | {np.median(found.spent):,.0f} | {saved:.1%} | {nothing:.1%} | {broken} | "
        f"{all_saved:.1%} | {all_broken} | {hindsight:.1%} |"
    )


class OneStake(Bets):
    """The stake that suits the number of questions, from the first to the last."""

    def _stake(self) -> Array:
        return np.minimum(0.99, np.sqrt(2 * self.goal / (self._questions * self._spread)))


class Mixed(Bets):
    """Twelve stakes, each with a part of the capital."""

    GRID = np.geomspace(0.05, 0.99, 12)

    def take(self, losses: Array) -> Array:
        log = np.log(np.sqrt(self.GRID) / np.sqrt(self.GRID).sum())
        told = np.full(losses.shape, -np.inf)
        for stake, begin in zip(self.GRID, log, strict=True):
            told = np.logaddexp(told, begin + np.cumsum(np.log1p(stake * (self.drop - losses)), axis=1))
        return told


class Part(Bets):
    """As shipped, with another part of the fastest stake."""

    PART = 0.0

    def _stake(self) -> Array:
        kept, sequential_bets._PART = sequential_bets._PART, self.PART
        try:
            return super()._stake()
        finally:
            sequential_bets._PART = kept


class Whole(Part):
    """With the whole of it."""

    PART = 1.0


def conditional(losses: Array, needs: NDArray[np.bool_], spread: Array, drop: float) -> NDArray[np.intp]:
    """Bets on the questions that need a label alone; a tenth of delta bounds what share of the traffic they are."""
    n, delta = losses.shape[1], Promise(drop).delta
    found = np.zeros(len(losses), dtype=np.intp)
    for i, mine in enumerate(needs):
        at = np.flatnonzero(mine)
        within = drop / harm_bound(len(at), n, delta / 10)
        if within >= 1:
            found[i] = 1
        elif len(at):
            bets = Bets([1.0], questions=len(at), drop=within, delta=0.9 * delta)
            won = bets.take(losses[i : i + 1, at])[0] >= bets.goal
            found[i] = at[won.argmax()] + 1 if won.any() else 0
    return found


def fixed(losses: Array, needs: NDArray[np.bool_], spread: Array, drop: float) -> NDArray[np.intp]:
    """The exact test of a fixed sample, once, when every question is labelled."""
    n, delta = losses.shape[1], Promise(drop).delta
    counts = zip((losses > 0).sum(axis=1).tolist(), (losses < 0).sum(axis=1).tolist(), strict=True)
    passed = [h - b < n * drop and score_p_value(h, b, n, drop) <= delta for h, b in counts]
    return np.where(passed, n, 0)


WAYS: dict[str, Crossing] = {
    "as shipped: timed, or half of the fastest": crossing,
    "timed alone": partial(crossing, bets=Part),
    "timed, or the fastest": partial(crossing, bets=Whole),
    "one stake, timed": partial(crossing, bets=OneStake),
    "twelve stakes mixed": partial(crossing, bets=Mixed),
    "only what needs a label, its share bounded": conditional,
    "no sequential test: one exact test at the end": fixed,
}


def described(world: World, draws: int) -> str:
    """What was looked at."""
    one = world.discordance / world.open
    return (
        f"{len(world.score):,} questions, {len(world.cuts)} thresholds, {draws} recordings drawn, 0.95 confidence. "
        f"Where a kept answer is another letter than the large model's, one of the two is right in {one.min():.0%} to "
        f"{one.max():.0%} of the questions, by threshold."
    )


def tables(world: World, agreement: World, draws: int) -> dict[str, list[str]]:
    """By name, as lines of Markdown."""
    waited = (
        "| target, points | true loss | saved | planner | read | labels, of all kept | labels | labels, median | "
        "certified |",
        "|" + "---:|" * 9,
    )
    stopped = (
        "| target, points | recording | labels, median | saved | nothing | broken | saved, going on | broken | "
        "hindsight |",
        "|" + "---:|" * 9,
    )
    made = {"what": [described(world, draws)]}
    for name, traffic in (("accuracy", world), ("agreement", agreement)):
        found = {(drop, n): walks(traffic, n, draws, drop) for n in SIZES for drop in TARGETS}
        made[f"{name}, until certified"] = [*waited]
        for drop in TARGETS:
            made[f"{name}, until certified"] += waiting(traffic, found[drop, SIZES[0]], drop)
        made[f"{name}, stopping"] = [*stopped, *(stopping(traffic, each, *at) for at, each in found.items())]
    made["bets"] = ["| bets | target, points | recording | saved, going on | broken | labels to half the target |"]
    made["bets"].append("|---" + "|---:" * 5 + "|")
    for name, crosses in WAYS.items():
        for drop in TARGETS:
            for n in SIZES:
                each = walks(world, n, min(draws, WAYS_DRAWS), drop, crosses)
                saved, broken, _ = gained(world, (each.depth > 0).sum(axis=1), drop)
                half = int(np.flatnonzero(world.risk <= drop / 2)[-1])
                told = reached(each.labels[:, half], each.depth[:, half] > 0)
                made["bets"].append(f"| {name} | {100 * drop:g} | {n:,} | {saved:.1%} | {broken} | {told} |")
    return made


def written(page: str, made: dict[str, list[str]]) -> str:
    """The page with each table between its marks, ``<!-- NAME -->`` and ``<!-- end -->``."""
    for name, lines in made.items():
        head, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not begin or not end:
            raise SystemExit(f"The page has no place for '{name}'.")
        page = head + begin + "\n" + "\n".join(lines) + "\n\n" + end + tail
    return page


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recording.")],
    draws: Annotated[int, typer.Option(help="Recordings drawn.")] = 500,
    write: Annotated[Path | None, typer.Option(help="A page with a place for each table.")] = None,
) -> None:
    """Print the tables, and put them into a page."""
    began = time.perf_counter()
    world, agreement = (World.read(data / FILE, agreement=each).useful() for each in (False, True))
    made = tables(world, agreement, draws)
    for name, lines in made.items():
        print(f"{name}:\n\n" + "\n".join(lines) + "\n")
    if write is not None:
        write.write_text(written(write.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    typer.run(main)
