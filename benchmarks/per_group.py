"""Promises for each group of questions: how many hold, what they save, and how often one is broken.

    python benchmarks/per_group.py --data DIR

DIR holds the recordings of Llama-3.1 8B and 70B on MMLU (57 subjects; as `mmlu_llama31.py` takes it) and, if it is
there, on MMLU-Pro (14 categories; ``llama_even.csv.gz``). Their questions are a known traffic: recordings as large are
drawn from it with replacement, and what a policy truly loses in a group is its loss on all the group's questions.

The tests are the library's; thresholds, losses and costs are computed here from scores and grades alone, in sorted
arrays, which is what makes hundreds of draws cheap. Three ways:

- all together: one policy for all groups, each tested at its part of the error, up to the first group that fails (what
  ``--per-group`` did before);
- each apart, the error divided over all groups;
- each apart, the error divided over the groups that can pass at all (`testable`), which is what ``--per-group`` does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.bench.fitting.by_group import testable
from confcascade.bench.fitting.candidates import lone_path
from confcascade.bench.recording import Columns
from confcascade.bench.recording.importers import read_choice_logits, read_verbalized
from confcascade.guarantee import Promise, score_p_value
from numpy.typing import NDArray

MMLU, PRO = "mmlu_test_even_logits.csv.gz", "llama_even.csv.gz"
PAIRS = {
    MMLU: ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "p_t"),
    PRO: ("Meta-Llama-3.1-8B-Instruct-Turbo", "Meta-Llama-3.1-70B-Instruct-Turbo", "mean_token_probability"),
}
COSTS = 8.0, 70.0  # 2N for a query, in billions of parameters: only the ratio matters
WAYS = ("all together", "apart, error over all", "apart, error over those that can pass")


@dataclass(frozen=True)
class World:
    """A recording as a known traffic, by question.

    Attributes:
        name: Of the recording.
        groups: As numbers.
        names: Of the groups.
        scores: Of the small model's answers; NaN where it has none to keep.
        lost: 1 where only the large model is right, -1 where only the small one is, else 0.
        thresholds: Of the path, the strictest first; the small model alone comes after them.
    """

    name: str
    groups: NDArray[np.intp]
    names: tuple[str, ...]
    scores: NDArray[np.float64]
    lost: NDArray[np.int64]
    thresholds: NDArray[np.float64]

    @classmethod
    def read(cls, name: str, path: Path) -> World:
        """The recording of a pair."""
        small, large, signal = PAIRS[path.name]
        reader = read_choice_logits if path.name == MMLU else read_verbalized
        columns = Columns.of(row for row in reader(path) if row.model in (small, large))
        path_of = lone_path(columns, (small, large), {small: [signal]})
        assert path_of is not None
        thresholds = [policy[0].thresholds[signal] for policy in path_of.policies[:-1]]
        i, j = columns.index(small), columns.index(large)
        grades = np.where(columns.usable, np.nan_to_num(columns.grades), 0.0)
        names, groups = np.unique(columns.groups, return_inverse=True)
        return cls(
            name,
            groups.astype(np.intp),
            tuple(names.tolist()),
            np.where(columns.usable[:, i], columns.signal(small, signal).values, np.nan),
            (grades[:, j] - grades[:, i]).astype(np.int64),
            np.array(thresholds, dtype=np.float64),
        )

    def take(self, rows: NDArray[np.intp]) -> World:
        """Some of the questions."""
        return replace(self, groups=self.groups[rows], scores=self.scores[rows], lost=self.lost[rows])

    @cached_property
    def counted(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """`counts` of every group."""
        return [self.counts(group) for group in range(len(self.names))]

    def counts(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """How many answers each policy of the path keeps in a group, and of these how many lose and gain."""
        own = self.groups == group
        scores, lost = self.scores[own], self.lost[own]
        order = np.argsort(-scores, kind="stable")  # NaN last
        scores, lost = scores[order], lost[order]
        known = int(np.isfinite(scores).sum())
        kept = np.append(np.searchsorted(-scores[:known], -self.thresholds, side="right"), len(scores))
        harms = np.append(0, np.cumsum(lost > 0))[kept]
        gains = np.append(0, np.cumsum(lost < 0))[kept]
        return kept, harms, gains


def passing(harms: int, gains: int, n: int, drop: float, delta: float) -> bool:
    """Whether the exact score test rejects a loss above `drop`."""
    return harms - gains < n * drop and score_p_value(harms, gains, n, drop) <= delta


def saving(kept: int, n: int, *, last: bool) -> float:
    """Share of the large model's cost; the last policy asks the small model alone."""
    return 1 - COSTS[0] / COSTS[1] if last else kept / n - COSTS[0] / COSTS[1]


def apart(drawn: World, tested: Sequence[str], promise: Promise) -> dict[str, tuple[int, float]]:
    """Of every group where one passes that saves something: the cheapest policy that passes, and what it saves."""
    found = {}
    delta = replace(promise, groups=len(tested)).delta
    assert promise.max_drop is not None
    for name in tested:
        group = drawn.names.index(name)
        n = int((drawn.groups == group).sum())
        kept, harms, gains = drawn.counted[group]
        starts = np.flatnonzero(np.append(True, (np.diff(harms) != 0) | (np.diff(gains) != 0)))
        last = len(kept) - 1
        for i in starts.tolist():
            if not passing(int(harms[i]), int(gains[i]), n, promise.max_drop, delta):
                last = i - 1
                break
        if last >= 0 and (saved := saving(int(kept[last]), n, last=last == len(kept) - 1)) > 0:
            found[name] = last, saved
    return found


def together(drawn: World, promise: Promise) -> dict[str, tuple[int, float]]:
    """The last policy of the path up to which all groups pass, if it saves something over all of them."""
    present = sorted(set(drawn.groups.tolist()))
    delta = replace(promise, groups=len(present)).delta
    assert promise.max_drop is not None
    sizes = {group: int((drawn.groups == group).sum()) for group in present}
    counted = drawn.counted
    last = -1
    for i in range(len(drawn.thresholds) + 1):
        each = ((int(counted[g][1][i]), int(counted[g][2][i]), sizes[g]) for g in present)
        if not all(passing(h, b, n, promise.max_drop, delta) for h, b, n in each):
            break
        last = i
    end = last == len(drawn.thresholds)
    saved = {g: saving(int(counted[g][0][last]), sizes[g], last=end) for g in present} if last >= 0 else {}
    if sum(saved[g] * sizes[g] for g in saved) <= 0:
        return {}
    return {drawn.names[g]: (last, saved[g]) for g in saved}


def simulate(world: World, drop: float, draws: int) -> list[str]:
    """A row for each way: groups promised, saved over all traffic, samples in which a promised group is broken."""
    rng, promise = np.random.default_rng(0), Promise(drop)
    truth = []
    for group in range(len(world.names)):
        _, harms, gains = world.counts(group)
        truth.append((harms - gains) / (world.groups == group).sum())
    share = np.bincount(world.groups) / len(world.groups)
    promised, broken = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
    saved = dict.fromkeys(WAYS, 0.0)
    for _ in range(draws):
        drawn = world.take(rng.integers(len(world.groups), size=len(world.groups)))
        sizes = {world.names[g]: int(count) for g, count in enumerate(np.bincount(drawn.groups)) if count}
        results = (
            together(drawn, promise),
            apart(drawn, list(sizes), promise),
            apart(drawn, testable(sizes, promise, "score"), promise),
        )
        for way, result in zip(WAYS, results, strict=True):
            promised[way] += len(result)
            saved[way] += sum(share[world.names.index(name)] * own for name, (_, own) in result.items())
            broken[way] += any(truth[world.names.index(name)][at] > drop for name, (at, _) in result.items())
    best = 0.0
    for group in range(len(world.names)):
        kept, n = world.counts(group)[0], int((world.groups == group).sum())
        fine = np.flatnonzero(truth[group] <= drop)
        savings = [saving(int(kept[i]), n, last=i == len(kept) - 1) for i in fine]
        best += share[group] * max([*savings, 0.0])
    return [
        f"| {world.name}, {len(world.names)} groups, {100 * drop:.0f} points | {way} | {promised[way] / draws:.1f} "
        f"| {saved[way] / draws:.1%} | {broken[way] / draws:.1%} | {best:.1%} |"
        for way in WAYS
    ]


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recordings, or one above it.")],
    draws: Annotated[int, typer.Option(help="Recordings drawn of each.")] = 200,
) -> None:
    """Print the table."""
    began = time.perf_counter()
    print(f"{draws} draws each; a promise for each group at 95 % confidence, for all at once.\n")
    print("| recording | way | groups promised | saved, all traffic | a promised group broken | best in hindsight |")
    print("|---|---|---:|---:|---:|---:|")
    for name, file in (("MMLU", MMLU), ("MMLU-Pro", PRO)):
        found = sorted(data.rglob(file))
        if not found:
            print(f"({file} is not there.)")
            continue
        world = World.read(name, found[0])
        for drop in (0.05, 0.1):
            print("\n".join(simulate(world, drop, draws)), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    typer.run(main)
