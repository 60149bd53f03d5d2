"""Whether the promise is kept: the whole procedure on many drawn data sets whose truth is known.

    python benchmarks/guarantee_simulation.py --draws 500

A made-up world of two or three models: a question's ease, each model's own luck with it, and a score that sees both
through noise. In every draw policies are built and ordered on one part of the examples and certified on the rest,
through `confcascade.guarantee`, as `confcascade fit` does; then the chosen policy is judged by what it truly loses.
Beside it stand the best policy that knows the truth, and naive tuning: the cheapest policy that keeps the target on
all the examples. Prints Markdown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
import typer
from confcascade.guarantee import Equivalence, Promise, certify, reach, suited_test
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHOOSING = 0.15 / 0.85  # questions that choose a path, for each that proves it
SKILLS = (0.78, 1.50, 2.95)  # of the models; of two, the last two
SIZES = (3 / 70, 8 / 70, 1.0)  # cost of a query
ALIKE = 0.5  # how often two wrong answers are the same
REFERENCE = 100_000  # questions on which a policy's truth is computed, from probabilities and not from draws
SAME = Equivalence("the world's own")


@dataclass(frozen=True)
class Setting:
    """What is promised, of how many models, and on how many examples it is certified (as 1.5 times that order)."""

    max_drop: float
    stages: int
    labels: bool
    n: int

    @property
    def promise(self) -> Promise:
        return Promise(self.max_drop, equivalence=None if self.labels else SAME)


SETTINGS = [
    Setting(max_drop, stages, labels, n)
    for labels in (True, False)
    for stages in (2, 3)
    for max_drop, n in ((0.01, 2000), (0.02, 1000), (0.05, 500))
]


@dataclass(frozen=True)
class Drawn:
    """Questions; arrays of shape (questions, models), of scores without the last model."""

    chance: Array  # of being right
    right: NDArray[np.bool_]
    differs: Array  # from the last model's answer: 0 or 1
    differing: Array  # the chance of that
    score: Array


def draw(stages: int, n: int, rng: np.random.Generator) -> Drawn:
    skills = np.array(SKILLS[-stages:])
    seen = skills + 1.6 * rng.normal(size=(n, 1)) + rng.normal(size=(n, stages))
    chance = 1 / (1 + np.exp(-1.2 * seen))
    right = rng.random(chance.shape) < chance
    last, last_chance = right[:, -1:], chance[:, -1:]
    alike = rng.random(chance.shape) < ALIKE
    return Drawn(
        chance=chance,
        right=right,
        differs=np.where(right == last, ~right & ~alike, True).astype(float) * (np.arange(stages) < stages - 1),
        differing=1 - chance * last_chance - ALIKE * (1 - chance) * (1 - last_chance),
        score=(seen + rng.normal(size=seen.shape))[:, :-1],
    )


def policies(score: Array) -> Array:
    """Thresholds at quantiles of the scores, infinite where a model is not asked; shape (policies, models - 1)."""
    quantiles = [np.quantile(each, np.linspace(0.98, 0.02, 49)) for each in score.T]
    if len(quantiles) == 1:
        return quantiles[0][:, None]
    first, second = quantiles
    chains = zip(first, second, strict=True)
    return np.array([*((a, np.inf) for a in first), *((np.inf, b) for b in second), *chains])


def paths(thresholds: Array) -> list[NDArray[np.intp]]:
    """Rows of `policies` of which each keeps what the one before it keeps, and more."""
    return np.split(np.arange(len(thresholds)), len(thresholds) // 49)


def play(thresholds: Array, score: Array) -> tuple[NDArray[np.int8], Array]:
    """Which model answers, shape (policies, questions), and the mean cost of all models that ran, shape (policies,)."""
    stages = score.shape[1] + 1
    sizes = SIZES[-stages:]
    stop = np.full((len(thresholds), len(score)), stages - 1, dtype=np.int8)
    waiting, cost = np.ones(stop.shape, dtype=bool), np.zeros(len(thresholds))
    for j in range(stages - 1):
        level = thresholds[:, j, None]
        cost += sizes[j] * (waiting & np.isfinite(level)).mean(axis=1)
        kept = waiting & (score[None, :, j] >= level)
        stop[kept] = j
        waiting &= ~kept
    return stop, cost + waiting.mean(axis=1)


def losses(stop: NDArray[np.int8], drawn: Drawn, labels: bool) -> Array:
    rows = np.arange(len(drawn.right))
    if not labels:
        return drawn.differs[rows, stop]
    return drawn.right[:, -1].astype(float) - drawn.right[rows, stop]


@cache
def reference(stages: int) -> Drawn:
    return draw(stages, REFERENCE, np.random.default_rng(20_000 + stages))


@dataclass(frozen=True)
class Truth:
    kept: float
    saved: float
    loss: float
    drop: float


def truth(policy: Array, stages: int, labels: bool) -> Truth:
    """What a policy truly keeps, saves and loses; without labels its loss is disagreement, and the drop of accuracy is
    another figure."""
    drawn = reference(stages)
    (stop,), (cost,) = play(policy[None], drawn.score)
    rows, asked = np.arange(REFERENCE), stop < stages - 1
    drop = float((drawn.chance[:, -1] - drawn.chance[rows, stop]).mean())
    loss = drop if labels else float((drawn.differing[rows, stop] * asked).mean())
    return Truth(float(asked.mean()), float(1 - cost), loss, drop)


@cache
def truths(stages: int, labels: bool) -> list[Truth]:
    return [truth(each, stages, labels) for each in policies(reference(stages).score)]


def oracle(setting: Setting) -> Truth:
    """The cheapest policy that truly keeps the target."""
    known = truths(setting.stages, setting.labels)
    return max((each for each in known if each.loss <= setting.max_drop), key=lambda each: each.saved)


ALWAYS_LARGEST = Truth(0.0, 0.0, 0.0, 0.0)


def one(setting: Setting, rng: np.random.Generator) -> tuple[Truth, Truth]:
    """What was certified in one draw, and what naive tuning chose, as they truly are."""
    few = round(CHOOSING * setting.n)
    ordering, certifying = (draw(setting.stages, n, rng) for n in (few, setting.n))
    thresholds = policies(ordering.score)
    stop, costs = play(thresholds, ordering.score)
    lost = losses(stop, ordering, setting.labels)

    def expected(path: NDArray[np.intp]) -> float:
        return float(costs[path[: reach(lost[path], setting.promise, n=setting.n)]].min(initial=1.0))

    rows = min(paths(thresholds), key=expected)
    stop, then = play(thresholds, certifying.score)
    again = losses(stop, certifying, setting.labels)
    chosen = certify(again[rows], then[rows], setting.promise, suited_test(again, setting.promise)).chosen
    certified = ALWAYS_LARGEST
    if chosen is not None:
        certified = truth(thresholds[rows[chosen.index]], setting.stages, setting.labels)

    everything = (few * lost.mean(axis=1) + setting.n * again.mean(axis=1)) / (few + setting.n)
    fitting = np.flatnonzero(everything <= setting.max_drop)
    naive = ALWAYS_LARGEST
    if len(fitting):
        naive = truth(thresholds[fitting[np.argmin(costs[fitting])]], setting.stages, setting.labels)
    return certified, naive


@dataclass(frozen=True)
class Summary:
    """Over all draws: violations of the promise, and mean shares; "kept" are questions the largest model is spared."""

    setting: Setting
    draws: int
    violations: int
    nothing: int
    kept: float
    saved: float
    drop: float
    naive_violations: int
    naive_kept: float


def simulate(setting: Setting, draws: int, seed: int = 0) -> Summary:
    rng = np.random.default_rng(seed)
    pairs = [one(setting, rng) for _ in range(draws)]
    certified, naive = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Summary(
        setting=setting,
        draws=draws,
        violations=sum(each.loss > setting.max_drop for each in certified),
        nothing=sum(each is ALWAYS_LARGEST for each in certified),
        kept=float(np.mean([each.kept for each in certified])),
        saved=float(np.mean([each.saved for each in certified])),
        drop=float(np.mean([each.drop for each in certified])),
        naive_violations=sum(each.loss > setting.max_drop for each in naive),
        naive_kept=float(np.mean([each.kept for each in naive])),
    )


def allowed(draws: int, delta: float) -> int:
    """Violations that a procedure which breaks its promise with probability `delta` exceeds once in a thousand."""
    from scipy.stats import binom

    return int(binom.ppf(0.999, draws, delta))


def main(draws: Annotated[int, typer.Option(min=1)] = 500) -> None:
    begun = time.perf_counter()
    for stages in (2, 3):
        drawn = reference(stages)
        print(f"{stages} models: accuracies {', '.join(f'{each:.3f}' for each in drawn.chance.mean(axis=0))}; ", end="")
        print(f"AUROC of the scores {', '.join(f'{each:.3f}' for each in aurocs(drawn))}")
    most = allowed(draws, 0.05)
    print(f"\n{draws} draws a row at 95 % confidence: up to {most} violations ({most / draws:.1%}) are chance.\n")
    print(
        "| promised of | models | drop | n | violations | nothing certified | kept | saved | true drop "
        "| kept, oracle | saved, oracle | kept, naive | violations, naive |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for setting in SETTINGS:
        row, best = simulate(setting, draws), oracle(setting)
        print(
            f"| {'accuracy' if setting.labels else 'agreement'} | {setting.stages} | {setting.max_drop:.0%} "
            f"| {setting.n:,} | {row.violations / draws:.1%} | {row.nothing / draws:.1%} | {row.kept:.3f} "
            f"| {row.saved:.1%} | {100 * row.drop:.2f} | {best.kept:.3f} | {best.saved:.1%} | {row.naive_kept:.3f} "
            f"| {row.naive_violations / draws:.1%} |",
            flush=True,
        )
    print(f"\n{time.perf_counter() - begun:.0f} s")


def aurocs(drawn: Drawn) -> list[float]:
    from sklearn.metrics import roc_auc_score

    return [float(roc_auc_score(drawn.right[:, j], drawn.score[:, j])) for j in range(drawn.score.shape[1])]


if __name__ == "__main__":
    typer.run(main)
