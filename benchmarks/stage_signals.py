"""What a middle stage gains by knowing the stage before it: whether both answer alike, and how sure that one was.

    python benchmarks/stage_signals.py --data DIR

Chains small → middle → large of recorded models. The middle's answer is kept if its confidence reaches a threshold;
the confidence is made of the middle's own scores ("own"), or of these and of what is known of the small model by then:
whether it gave the same answer, its confidence, its support (its confidence if the answers are the same, else one
minus it), or all three; or the middle's answer is kept only where the small one's is the same ("same answer
required"). In each variant, pairs of two models, single models and the chain of own scores may be chosen, too. Every
model that ran is charged.

In hindsight: the cheapest thresholds that keep the target on all questions, with confidences that were cross-fitted in
five folds; two thresholds that are free to be anything fit some noise, too. Certified: on one half of the questions,
30 % calibrate and choose a path, and the rest prove it, for own scores, too (which favours the others: of one score
alone nothing need be calibrated); what is told is the saving on the other half. DIR holds the files of
``fit_recorded.py``, whose halves these are. No model runs. Prints Markdown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import typer
from confcascade.bench.fitting import FitData, material_of, split_by_key
from confcascade.bench.fitting.splitting import SHARES
from confcascade.bench.recording import Row
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.calibration import fit_calibrator
from confcascade.graders import ChoiceLetter, Example, Grader
from confcascade.graders.grade import is_right
from confcascade.guarantee import Promise, passes, reach, suited_test
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from fit_recorded import HALVES, SOURCES, Source

Figures: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.intp]

DROPS = (0.01, 0.02, 0.05)
LEVELS = np.linspace(0.98, 0.02, 49)  # shares of the scores below a threshold, along a path
GATES = (0.9, 0.8, 0.7, 0.6, 0.5)  # shares below a threshold of the small model that stays, along other paths
PROMISING = 6  # paths that save most within the target where they are chosen, of which the proof is foreseen
FOLDS = 5
OWN, SAME, REQUIRED, EARLIER, SUPPORT, BOTH = (
    "own",
    "and same answer",
    "same answer required",
    "and the small model's confidence",
    "and the small model's support",
    "and all three",
)


def base_too(data: Path) -> Iterator[Row]:
    return read_choice_logits(data / "mmlu_llama31_logits/mmlu_test_even_logits.csv.gz")


BASE = Source(
    "MMLU, Llama 3.1 8B base → 8B → 70B",
    base_too,
    ("llama-3.1-8b-base", "llama-3.1-8b-instruct", "llama-3.1-70b-instruct"),
    (8, 8, 70),
    grader=ChoiceLetter(),
)
GRADERS: Mapping[str, Grader] = {"MMLU-Pro, 3B → 8B → 70B": ChoiceLetter()}  # of sources that name none
CHAINS = (BASE, *(source for source in SOURCES if len(source.models) > 2))


@dataclass(frozen=True)
class Chain:
    """Three models' answers to the same questions.

    Attributes:
        name: For the table.
        right: Grades, shape (questions, 3).
        cost: Of each model's answer, likewise.
        scores: Of the small model and of the middle one, by signal, each of shape (questions,).
        same: Whether the middle's answer is the small one's; None where answers are not recorded.
        keys: Of the questions.
    """

    name: str
    right: Figures
    cost: Figures
    scores: tuple[Mapping[str, Figures], Mapping[str, Figures]]
    same: NDArray[np.bool_] | None
    keys: tuple[bytes, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        return (OWN, EARLIER) if self.same is None else (OWN, SAME, REQUIRED, EARLIER, SUPPORT, BOTH)

    def confidences(self, variant: str, learn: Rows) -> tuple[Figures, Figures]:
        """Of the small and the middle model, learnt on some questions and told of all."""

        def told(scores: Mapping[str, Figures], model: int) -> Figures:
            varied = {name: each for name, each in scores.items() if len(np.unique(each[learn])) > 1}
            made = fit_calibrator(
                {name: each[learn] for name, each in varied.items()},
                self.right[learn, model] > 0.5,
                dict.fromkeys(varied, (0.0, 1.0)),
            )
            return made.predict(varied)

        small = told(self.scores[0], 0)
        more = dict(self.scores[1])
        if variant in (SAME, BOTH):
            assert self.same is not None
            more["same"] = self.same.astype(np.float64)
        if variant in (EARLIER, BOTH):
            more["small"] = small
        if variant in (SUPPORT, BOTH):
            assert self.same is not None
            more["support"] = np.where(self.same, small, 1 - small)
        middle = told(more, 1)
        if variant == REQUIRED:
            middle = np.where(self.same, middle, -np.inf)
        return small, middle

    def crossed(self, variant: str) -> tuple[Figures, Figures]:
        """Confidences of every question, by calibrators that did not see it."""
        text = np.unique(np.array(self.keys, dtype=object), return_inverse=True)[1]
        fold = np.random.default_rng(0).permutation(text.max() + 1)[text] % FOLDS
        found = np.empty((2, len(text)))
        for held in range(FOLDS):
            found[:, fold == held] = np.array(self.confidences(variant, np.flatnonzero(fold != held)))[:, fold == held]
        return found[0], found[1]


def chains(source: Source, data: Path) -> Iterator[Chain]:
    """Of every two models of a source before its largest."""
    rows = [row for row in source.rows(data) if row.model in source.models]
    material = material_of(rows, models=source.models, texts=True)
    columns, largest = material.columns, source.models[-1]
    bill = Costing.of(columns, source.models, source.architectures, source.prices)
    grader = source.grader or GRADERS.get(source.name)
    for small, middle in combinations(source.models[:-1], 2):
        models = small, middle, largest
        named = source.name if len(source.models) == 3 else f"{source.name.split(',')[0]}, {' → '.join(models)}"
        yield Chain(
            named,
            columns.grades[:, [columns.index(model) for model in models]],
            np.stack([bill.each(columns, [PolicyStage(model)]) for model in models], axis=1),
            (scores_of(material, small), scores_of(material, middle)),
            None if grader is None else alike(material, small, middle, grader),
            material.keys,
        )


def scores_of(material: FitData, model: str) -> dict[str, Figures]:
    return {name: column.values for (owner, name), column in material.columns.signals.items() if owner == model}


def alike(material: FitData, one: str, other: str, grader: Grader) -> NDArray[np.bool_]:
    """Whether two models' answers to a question are the same; an empty one is like none."""

    def same(question: str) -> bool:
        first, second = (material.answers.get((question, model), "").strip() for model in (one, other))
        if not first or not second:
            return False
        return bool(is_right(grader.grade(Example(question, references=(first,)), second).value))

    return np.array([same(question) for question in material.columns.questions])


# ---------------------------------------------------------------------- in hindsight


def hindsight(chain: Chain, confidences: Sequence[tuple[Figures, Figures]], drop: float) -> float:
    """The greatest saving of thresholds of the two stages, of any of some pairs of confidences, that keep the target.

    Single models and pairs are among them: a stage that is left out is not paid for.
    """
    right, cost = chain.right, chain.cost
    alone = cost[:, 2].sum()
    best = max(1 - cost[:, m].sum() / alone for m in range(3) if (right[:, 2] - right[:, m]).mean() <= drop)
    for small, middle in confidences:
        at = [np.inf, *np.unique(np.quantile(small, np.linspace(0.01, 0.99, 99))).tolist()]
        ends, order = thresholds(middle)
        stages = [(small >= t, cost[:, 0]) for t in at] + [(np.zeros(len(small), bool), np.zeros(len(small)))]
        for kept, paid in stages:  # the last leaves the small model out
            gone = ~kept
            loss = np.where(kept, right[:, 2] - right[:, 0], 0.0).sum()
            spent = (paid + gone * (cost[:, 1] + cost[:, 2])).sum()
            lost = loss + np.cumsum(np.where(gone, right[:, 2] - right[:, 1], 0.0)[order])[ends]
            saved = 1 - (spent - np.cumsum(np.where(gone, cost[:, 2], 0.0)[order])[ends]) / alone
            best = max(best, saved[lost <= drop * len(small) + 1e-9].max(initial=0.0))
        # the small model before the large one, the middle left out
        ends, order = thresholds(small)
        lost = np.cumsum((right[:, 2] - right[:, 0])[order])[ends]
        saved = (np.cumsum(cost[order, 2])[ends] - cost[:, 0].sum()) / alone
        best = max(best, saved[lost <= drop * len(small) + 1e-9].max(initial=0.0))
    return float(best)


def thresholds(scores: Figures) -> tuple[Rows, Rows]:
    """Where a falling threshold may stand, as the last place that it keeps, and the order of the questions."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    known = np.flatnonzero(np.isfinite(ranked))
    return known[np.append(ranked[known][1:] != ranked[known][:-1], True)], order


# ---------------------------------------------------------------------- certified


@dataclass(frozen=True)
class Played:
    """Policies of one path: what each loses and costs, both of shape (policies, questions)."""

    losses: Figures
    cost: Figures


Choice: TypeAlias = tuple[tuple[float, float], "Path_", tuple[Figures, Figures]]
Path_: TypeAlias = Sequence[tuple[float | None, float | None]]  # thresholds of both stages; None leaves one out


def play(chain: Chain, rows: Rows, small: Figures, middle: Figures, path: Path_) -> Played:
    """A path on some questions, whose confidences these are."""
    right, cost = chain.right[rows], chain.cost[rows]
    losses, costs = np.empty((2, len(path), len(rows)))
    for i, (first, second) in enumerate(path):
        by_small = np.zeros(len(rows), bool) if first is None else small >= first
        by_middle = ~by_small & (np.zeros(len(rows), bool) if second is None else middle >= second)
        last = ~by_small & ~by_middle
        answered = np.select([by_small, by_middle], [right[:, 0], right[:, 1]], right[:, 2])
        losses[i] = right[:, 2] - answered
        costs[i] = (first is not None) * cost[:, 0] + (second is not None) * ~by_small * cost[:, 1] + last * cost[:, 2]
    return Played(losses, costs)


def paths(small: Figures, middle: Figures, *, own: bool) -> Iterator[Path_]:
    """Each nested, of thresholds that are quantiles of these confidences: of own scores, or of those that know more."""
    first = np.quantile(small, LEVELS, method="higher").tolist()
    second = np.quantile(middle, LEVELS, method="higher").tolist()
    whole = -np.inf
    if own:
        yield [(whole, None)]
        yield [(None, whole)]
        yield [*((t, None) for t in first), (whole, None)]
        yield [*((None, t) for t in second), (None, whole)]
    yield [*zip(first, second, strict=True), (whole, None)]
    yield [*((t, t) for t in first), (whole, None)]
    for gate in np.quantile(small, GATES, method="higher").tolist():
        yield [(gate, t) for t in second]
    if not own:  # the small model is asked only to tell of the middle one
        yield [(np.inf, t) for t in second]


def chosen(chain: Chain, variant: str, promise: Promise, learn: Rows, order: Rows, n: int) -> Choice:
    """The path that is hoped to save most: what it would prove on `n` questions, then what it saves within the target.

    Beside it stand the confidences of all questions.
    """
    assert promise.max_drop is not None
    made = chain.confidences(variant, learn)
    small, middle = (each[order] for each in made)
    alone = float(chain.cost[order, 2].mean())
    found = []
    for path in paths(small, middle, own=variant == OWN):
        played = play(chain, order, small, middle, path)
        spent, lost = played.cost.mean(axis=1), played.losses.mean(axis=1)
        found.append((float(spent[lost <= promise.max_drop].min(initial=alone)), path, played.losses, spent))
    found.sort(key=lambda each: each[0])
    hopes = []
    for within, path, losses, spent in found[:PROMISING]:
        proven = float(spent[: reach(losses, promise, n=n)].min(initial=alone))
        hopes.append(((1 - proven / alone, 1 - within / alone), path))
    hope, path = max(hopes, key=lambda each: each[0])
    return hope, path, made


def certified(chain: Chain, variant: str, drop: float, seed: int, known: dict[int, Choice]) -> tuple[float, float]:
    """The saving on the other half and the loss there; nothing saved where nothing is certified.

    What own scores choose is the same for every variant, and is kept in `known`.
    """
    halves = split_by_key(chain.keys, seed=10_000 + seed, shares=HALVES)
    ours, theirs = np.sort(halves.ordering), halves.certify
    split = split_by_key([chain.keys[i] for i in ours], seed=seed, shares=SHARES["signals"])
    learn, order, prove = ours[split.calibrate], ours[split.ordering], ours[split.certify]
    promise = Promise(drop)
    own = known[seed] = known.get(seed) or chosen(chain, OWN, promise, learn, order, len(prove))
    ours_too = own if variant == OWN else chosen(chain, variant, promise, learn, order, len(prove))
    _, path, (small, middle) = max(own, ours_too, key=lambda found: found[0])
    proof = play(chain, prove, small[prove], middle[prove], path)
    test = suited_test(chain.right[prove, 2] - chain.right[prove, 0], promise)
    far = next((i for i, own in enumerate(proof.losses) if not passes(own, promise, test)), len(path))
    alone = chain.cost[prove, 2].mean()
    cost = proof.cost[:far].mean(axis=1)
    if not far or cost.min() >= alone:
        return 0.0, 0.0
    best = int(np.argmin(cost))
    there = play(chain, theirs, small[theirs], middle[theirs], path[best : best + 1])
    return float(1 - there.cost.mean() / chain.cost[theirs, 2].mean()), float(there.losses.mean())


# ---------------------------------------------------------------------- told


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recordings.", exists=True, file_okay=False)],
    splits: Annotated[int, typer.Option(min=0, help="Random halves of each recording; 0: in hindsight only.")] = 20,
    drop: Annotated[list[float] | None, typer.Option(help="Targets, shares; by default 0.01, 0.02 and 0.05.")] = None,
    only: Annotated[str, typer.Option(help="Sources whose name holds this.")] = "",
) -> None:
    begun = time.perf_counter()
    print(
        "| chain | questions | same answer | drop | the middle's confidence | hindsight | more than own | certified "
        "| more than own | halves better, worse | violations |"
    )
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for source in CHAINS:
        if only not in source.name:
            continue
        for chain in chains(source, data):
            tell(chain, splits, drop or DROPS)
    print(f"\n{time.perf_counter() - begun:.0f} s")


def tell(chain: Chain, splits: int, drops: Iterable[float]) -> None:
    crossed = {variant: chain.crossed(variant) for variant in chain.variants}
    alike = "not kept" if chain.same is None else f"{chain.same.mean():.0%}"
    for drop in drops:
        best: dict[str, float] = {}
        known: dict[int, Choice] = {}
        halves: dict[str, Figures] = {}
        for variant in chain.variants:
            best[variant] = hindsight(chain, [crossed[each] for each in dict.fromkeys((OWN, variant))], drop)
            cells = [f"{best[variant]:.1%}", f"{100 * (best[variant] - best[OWN]):+.1f}", "", "", "", ""]
            if splits:
                halves[variant] = np.array([certified(chain, variant, drop, seed, known) for seed in range(splits)])
                cells[2:] = proven(*halves[variant].T, halves[OWN][:, 0], drop)
            told = [chain.name, f"{len(chain.keys):,}", alike, f"{100 * drop:g}", variant, *cells]
            print(f"| {' | '.join(told)} |", flush=True)


def proven(saved: Figures, lost: Figures, own: Figures, drop: float) -> list[str]:
    """Of the certified policies of one variant, over halves: cells of the table."""
    gained = saved - own
    more, less = int((gained > 1e-9).sum()), int((gained < -1e-9).sum())
    broken = f"{int((lost > drop).sum())}/{len(lost)}"
    return [f"{saved.mean():.1%}", f"{100 * gained.mean():+.1f}", f"{more}, {less}", broken]


if __name__ == "__main__":
    typer.run(main)
