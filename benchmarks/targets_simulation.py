"""Whether promises other than accuracy are kept: the whole procedure on many drawn data sets whose truth is known.

    python benchmarks/targets_simulation.py --data DIR --draws 500

A population is a fixed set of questions: of a made-up world, or of a recording in DIR (`recordings`). Examples are
drawn from it with replacement, so what a policy truly does is known to the last digit. In every draw a fifth of the
examples order the policies (one smaller model with a threshold before the largest; 49 thresholds at quantiles of the
scores, for which no label is looked at) and the others prove them, through `confcascade.guarantee`, as `confcascade
fit` does. Beside it stand the best policy in hindsight, which knows the truth, and naive tuning: the best that keeps
the targets on all the examples. Prints Markdown.
"""

from __future__ import annotations

import csv
import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade import Architecture, Prices, Usage
from confcascade.bench.fitting import QueryLimits, Wanted, material_of
from confcascade.bench.fitting.played import ClassAnswers, played
from confcascade.bench.recording import RecordedScore, Row
from confcascade.bench.recording.importers import read_chain, read_choice_logits
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.guarantee import (
    Equivalence,
    Evidence,
    Mean,
    Paired,
    Played,
    Promise,
    Share,
    Target,
    TestName,
    in_testing_order,
    prove_within,
    suited_test,
)
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVELS = np.linspace(0.98, 0.02, 49)
CHOOSE = 0.2  # of the examples
CONFIDENCE = 0.95
WORLD = 10_000  # questions of the made-up world
BILLION = 10**9


@dataclass(frozen=True)
class Population:
    """Questions, and what every policy does on them.

    Attributes:
        name: For the tables.
        played: What policies do; the last of them is the largest model alone, which is no candidate.
        labels: Whether answers are right or wrong, or the largest model's or not.
    """

    name: str
    played: Played
    labels: bool

    @property
    def questions(self) -> int:
        return len(self.played.references)

    @property
    def candidates(self) -> NDArray[np.intp]:
        return np.arange(len(self.played.grade) - 1)

    def promise(self, max_drop: float) -> Promise:
        return Promise(max_drop, CONFIDENCE, equivalence=None if self.labels else Equivalence("exact"))


# ---------------------------------------------------------------------- populations


def world(seed: int = 0) -> Population:
    """Two models that answer "yes" or "no" to questions of which three in ten are "yes", at lognormal costs and times
    that are cut off at four times (six times) their mean."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=WORLD)
    yes = rng.random(WORLD) < 0.3
    seen = {skill: skill + 1.6 * ease + rng.normal(size=WORLD) for skill in (1.5, 2.95)}
    right = {skill: rng.random(WORLD) < 1 / (1 + np.exp(-1.2 * each)) for skill, each in seen.items()}
    answers = {skill: np.where(each, yes, ~yes) for skill, each in right.items()}
    score = seen[1.5] + rng.normal(size=WORLD)

    def cut(mean: float, at: float) -> Array:
        return np.minimum(mean * np.exp(0.7 * rng.normal(size=WORLD) - 0.245), at * mean)

    (small_cost, large_cost), (small_s, large_s) = (cut(0.1, 4), cut(1.0, 4)), (cut(0.4, 6), cut(2.0, 6))
    kept = np.vstack([score >= np.quantile(score, LEVELS)[:, None], np.zeros((1, WORLD), bool)])
    ran = (np.arange(len(kept)) < len(LEVELS))[:, None]  # whether the small model is asked
    return Population(
        "made-up",
        Played(
            asked=~kept,
            cost=ran * small_cost + ~kept * large_cost,
            largest_cost=large_cost,
            grade=np.where(kept, right[1.5], right[2.95]).astype(float),
            largest_grade=right[2.95].astype(float),
            seconds=ran * small_s + ~kept * large_s,
            answers=np.where(kept, answers[1.5], answers[2.95]).astype(np.int32),
            references=yes.astype(np.int32),
            classes=("no", "yes"),
            tops={
                "others": ran[:, 0] * 0.4,
                "largest": np.array(4.0),
                "seconds": ran[:, 0] * 2.4 + 12.0,
            },
        ),
        labels=True,
    )


def recorded(
    name: str,
    rows: list[Row],
    models: tuple[str, str],
    signal: str,
    *,
    labels: bool,
    sizes: tuple[int, int] | None = None,
    prices: tuple[Prices, Prices] | None = None,
    limits: QueryLimits | None = None,
) -> Population:
    """That of a recording of two models, the larger last."""
    material = material_of([each for each in rows if each.model in models], models=models, texts=True)
    columns = material.columns
    scores = columns.signal(models[0], signal).values
    levels = np.unique(np.quantile(scores[np.isfinite(scores)], LEVELS))[::-1].tolist()
    policies = [(PolicyStage(models[0], {signal: each}), PolicyStage(models[1])) for each in levels]
    bill = Costing.of(
        columns,
        models,
        None if sizes is None else {m: Architecture(n * BILLION, 0, 0) for m, n in zip(models, sizes, strict=True)},
        None if prices is None else dict(zip(models, prices, strict=True)),
    )
    classes = ClassAnswers.of(material, labels=labels)
    tried = [*policies, (PolicyStage(models[1]),)]
    return Population(name, played(columns, tried, models[1], bill, classes=classes, limits=limits), labels)


def streaming(path: Path) -> Iterator[Row]:
    """A set of "Streaming Model Cascades": a proxy's P(true), and the answer of an oracle, which is right here."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            p, oracle = float(row["proxy_pred_true_prob"]), row["oracle_pred"].lower()
            answer = "true" if p >= 0.5 else "false"
            score = {"margin": RecordedScore(value=max(p, 1 - p))}
            shared = {"question": str(i), "prompt": str(i), "usage": Usage(1, 0)}
            yield Row(**shared, model="proxy", answer=answer, grade=float(answer == oracle), scores=score)
            yield Row(**shared, model="oracle", answer=oracle, grade=1.0)


LISTED = Prices(0.15, 0.60), Prices(2.50, 10.0)


def recordings(data: Path) -> Iterator[Population]:
    one_token = QueryLimits((1, 1))
    yield recorded(
        "MMLU, Llama 3.1 8B → 70B",
        list(read_choice_logits(data / "mmlu_llama31_logits/mmlu_test_even_logits.csv.gz")),
        ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct"),
        "p_t",
        labels=True,
        sizes=(8, 70),
        limits=one_token,
    )
    yield recorded(
        "BoolQ, 8B → 70B, no labels",
        list(streaming(data / "streaming_cascades/BOOLQ_P0_12697.csv.gz")),
        ("proxy", "oracle"),
        "margin",
        labels=False,
        sizes=(8, 70),
        limits=one_token,
    )
    yield recorded(
        "GSM8K, GPT-4o mini → GPT-4o",
        list(read_chain(data / "cascade_chains/gsm8k_qwen_oai_dev.jsonl.gz")),
        ("gpt-4o-mini", "gpt-4o"),
        "p_true",
        labels=True,
        prices=LISTED,
        limits=QueryLimits((512, 1024), timeout=60.0),
    )


# ---------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Setting:
    """What is promised of a population, on how many examples.

    Attributes:
        words: For the tables.
        wanted: It.
        n: Examples, of which a fifth orders.
    """

    words: str
    wanted: Wanted
    n: int


def truth_of(evidence: Evidence) -> Array:
    """By how much each policy keeps a target on the questions at hand; below 0 it breaks it."""
    match evidence:
        case Share(target, marks, _):
            counted = (marks >= 0).sum(axis=1)
            return np.asarray(target.failing - (marks > 0).sum(axis=1) / np.maximum(counted, 1))
        case Mean(values=values):
            return -np.asarray(values.mean(axis=1))
        case Paired(promise=promise, losses=losses):
            return np.asarray(promise.tested_drop - losses.mean(axis=1))
    raise TypeError(evidence)


def own(population: Population, kind: str, of: str) -> float:
    """What the largest model alone reaches."""
    (shown,) = [
        Target(kind, 0.5, of=of).evidence(population.played, CONFIDENCE)  # type: ignore[arg-type]
    ]
    assert isinstance(shown, Share)
    marks = shown.marks[-1]
    return shown.target.measured(float((marks > 0).sum() / (marks >= 0).sum()))


def settings(population: Population) -> list[Setting]:
    """Limits near what can be reached: below the largest model's own figure by some points, or fixed shares. Of the
    made-up world every kind of target, of a recording fewer."""
    whole = population.name == "made-up"
    several = population.name == "GSM8K, GPT-4o mini → GPT-4o"
    n = 600 if several else 2000
    drops = (0.02,) if population.labels and not several else (0.05,)

    def of(words: str, *targets: Target, drop: float | None = None, n: int = n) -> Setting:
        promise = None if drop is None else population.promise(drop)
        return Setting(words, Wanted(targets, promise, CONFIDENCE), n)

    def least(kind: str, name: str, below: float) -> Target:
        return Target(kind, round(own(population, kind, name) - below, 3), of=name)  # type: ignore[arg-type]

    found: list[Setting] = []
    if not several:
        name = {"made-up": "yes", "BoolQ, 8B → 70B, no labels": "true"}.get(population.name, "C")
        below = 0.1 if population.labels else 0.05
        for kind in ("precision", "recall", "f1") if whole else ("f1",):
            target = least(kind, name, below if kind != "precision" or population.labels else 0.02)
            found.append(of(f"{kind} of {name} ≥ {target.limit:.3f}", target))
        each = [Target("recall", round(own(population, "recall", c) - 0.1, 3), of=c) for c in used(population)]
        found.append(of(f"recall of each class ≥ own − 10 points ({len(each)} targets)", *each))
    mean = float(population.played.largest_cost.mean())
    for price in (2.0, 10.0) if whole else (2.0,):
        found.append(of(f"cost + {price:g} × mean cost of the largest for an error", Target("total", price * mean)))
    if whole:
        found.append(of("asked ≤ 60 %", Target("asked", 0.6)))
    found.append(of("mean cost ≤ 60 %", Target("cost", 0.6)))
    found += [of(f"drop ≤ {100 * d:g} and mean cost ≤ 90 %", Target("cost", 0.9), drop=d) for d in drops]
    if np.isfinite(population.played.seconds).all():
        alone = population.played.seconds[-1]
        slow, mean_s = round(float(np.quantile(alone, 0.7)), 2), round(float(alone.mean()), 2)
        found.append(of(f"late: over {slow:g} s in ≤ 25 %", Target("late", 0.25, seconds=slow)))
        found.append(of(f"mean latency ≤ {mean_s:g} s", Target("latency", mean_s)))
        found += [
            of(
                f"drop ≤ {100 * d:g}, mean cost ≤ 90 %, late ≤ 30 %",
                Target("cost", 0.9),
                Target("late", 0.3, seconds=slow),
                drop=d,
            )
            for d in drops
            if whole
        ]
    return found


def used(population: Population) -> list[str]:
    counts = np.bincount(population.played.references, minlength=len(population.played.classes))
    return [name for name, count in zip(population.played.classes, counts, strict=True) if count]


# ---------------------------------------------------------------------- the procedure


@dataclass(frozen=True)
class Run:
    """Over all draws.

    Attributes:
        violations: Draws in which the certified policy breaks a target.
        nothing: Draws in which nothing was certified.
        goal: Mean of the goal over the draws in which something was; where nothing was, with the largest model alone,
            unless the goal is the loss (which nothing is certified of then).
        naive_violations: Likewise of naive tuning.
    """

    draws: int
    violations: int
    nothing: int
    goal: float
    naive_violations: int


def part(seen: Played, rows: slice) -> Played:
    """That of some questions."""
    by_policy = {name: getattr(seen, name)[:, rows] for name in ("asked", "cost", "grade", "seconds", "answers")}
    shared = {name: getattr(seen, name)[rows] for name in ("largest_cost", "largest_grade", "references")}
    return replace(seen, **by_policy, **shared)


def lost(seen: Played) -> Array:
    return np.asarray(seen.largest_grade - seen.grade)


def goals(population: Population, wanted: Wanted) -> Array:
    """Of each policy, the largest model alone last: the share of (priced) cost saved, or accuracy lost in points."""
    seen = population.played
    if wanted.goal == "loss":
        return 100 * np.asarray(lost(seen).mean(axis=1))
    spent = seen.cost.mean(axis=1)
    if wanted.goal == "total":
        price = next(each.limit for each in wanted.targets if each.kind == "total")
        spent = spent + price * (1 - seen.grade.mean(axis=1))
    return 100 * np.asarray(1 - spent / spent[-1])


def keeping(population: Population, wanted: Wanted) -> NDArray[np.bool_]:
    """Which candidates truly keep all targets."""
    return np.asarray(slack(wanted, population.played)[:-1] >= -1e-12)


def slack(wanted: Wanted, seen: Played) -> Array:
    """By how much each policy keeps the target that it keeps worst, on the questions at hand."""
    quality, caps = wanted.evidence(seen, lost(seen), ["harms"] * len(seen.grade))
    return np.asarray(np.min([truth_of(each) for each in [*quality, *caps]], axis=0))


def hindsight(population: Population, wanted: Wanted) -> float | None:
    """The goal of the best candidate that keeps all targets."""
    kept = np.flatnonzero(keeping(population, wanted))
    if not len(kept):
        return None
    reached = goals(population, wanted)[kept]
    return float(reached.min() if wanted.goal == "loss" else reached.max())


def whole_level(wanted: Wanted, seen: Played, tests: list[TestName]) -> list[Evidence]:
    """Evidence of all targets, each at the whole level, for tests of all of them along one path."""
    found: list[Evidence] = [] if wanted.promise is None else [Paired(wanted.promise, lost(seen), tests)]
    return found + [each.evidence(seen, wanted.confidence) for each in wanted.targets]


def chosen(wanted: Wanted, ordering: Played, proof: Played, one_path: bool) -> int | None:
    """The policy that one draw certifies, as `fit_targets` does; or with all targets tested along one path."""
    chain, tests = range(len(ordering.grade)), ["harms"] * len(ordering.grade)
    objective = wanted.objective(ordering, lost(ordering))
    promise = wanted.promise if one_path else wanted.tested[0]
    if one_path:
        path = back = in_testing_order(whole_level(wanted, ordering, tests), objective, [chain])
    else:
        path, back = wanted.order(ordering, lost(ordering), [chain])
    if promise is not None:
        for i in path:
            tests[i] = suited_test(lost(ordering), promise)
    if one_path:
        proofs = prove_within(whole_level(wanted, proof, tests), [], path, back)
    else:
        proofs = prove_within(*wanted.evidence(proof, lost(proof), tests), path, back)
    passed = [each.policy for each in proofs if each.certified]
    if not passed:
        return None
    over_all = CHOOSE * objective + (1 - CHOOSE) * wanted.objective(proof, lost(proof))
    return min(passed, key=lambda i: over_all[i])


def simulate(population: Population, setting: Setting, draws: int, *, one_path: bool = False, seed: int = 0) -> Run:
    rng, wanted = np.random.default_rng(seed), setting.wanted
    keeps, reached = keeping(population, wanted), goals(population, wanted)
    violations = nothing = naive_violations = 0
    found: list[float] = []
    first = round(CHOOSE * setting.n)
    for _ in range(draws):
        drawn = rng.integers(population.questions, size=setting.n)
        every = population.played.take(population.candidates, drawn)
        policy = chosen(wanted, part(every, slice(first)), part(every, slice(first, None)), one_path)
        if policy is None:
            nothing += 1
            if wanted.goal != "loss":
                found.append(0.0)
        else:
            violations += not keeps[policy]
            found.append(float(reached[policy]))
        fitting = np.flatnonzero(slack(wanted, every) >= 0)
        if len(fitting):
            naive = fitting[np.argmin(wanted.objective(every, lost(every))[fitting])]
            naive_violations += not keeps[naive]
    return Run(draws, violations, nothing, float(np.mean(found)) if found else float("nan"), naive_violations)


def told(goal: str, value: float | None) -> str:
    if value is None or np.isnan(value):
        return "none"
    return f"{value:.2f} points lost" if goal == "loss" else f"{value:.1f} %"


def allowed(draws: int, delta: float) -> int:
    """Violations that a procedure which breaks its promise with probability `delta` exceeds once in a thousand."""
    from scipy.stats import binom

    return int(binom.ppf(0.999, draws, delta))


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of recordings; without it the made-up world alone.")] = None,
    draws: Annotated[int, typer.Option(min=1)] = 500,
    only: Annotated[str, typer.Option(help="Populations whose name holds this.")] = "",
) -> None:
    begun = time.perf_counter()
    most = allowed(draws, 1 - CONFIDENCE)
    print(f"{draws} draws a row at 95 % confidence: up to {most} violations ({most / draws:.1%}) are chance.\n")
    print(
        "| population | promised | examples | violations | nothing certified | reached | in hindsight "
        "| violations, naive | nothing, one path | reached, one path |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for population in [world(), *([] if data is None else recordings(data))]:
        if only not in population.name:
            continue
        for setting in settings(population):
            row, goal = simulate(population, setting, draws), setting.wanted.goal
            parts = "| | |"
            if population.name == "made-up" and setting.wanted.tested[1] != CONFIDENCE:  # quality and caps
                other = simulate(population, setting, draws, one_path=True)
                parts = f"| {other.nothing / draws:.1%} | {told(goal, other.goal)} |"
            best = told(goal, hindsight(population, setting.wanted))
            print(
                f"| {population.name} | {setting.words} | {setting.n:,} | {row.violations / draws:.1%} "
                f"| {row.nothing / draws:.1%} | {told(goal, row.goal)} | {best} "
                f"| {row.naive_violations / draws:.1%} {parts}",
                flush=True,
            )
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
