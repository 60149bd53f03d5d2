"""Promised and true, where the truth is known: recordings are taken for the traffic itself, and drawn from.

    python benchmarks/fit_draws.py --data DIR

Questions are drawn with replacement from each recording (`fit_recorded.SOURCES`); `confcascade.bench.fitting.fit` makes
a policy of them, and what that policy loses and saves on the whole recording is its true loss and saving. Beside it
stands the best in hindsight: the cheapest threshold of one signal of one smaller model that truly keeps the target.
Prints Markdown. Rows run in the background as well: `--only` picks them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confcascade.bench.fitting import FitData, Fitted, agreement, fit, material_of, replayable
from confcascade.bench.fitting.fit import Rule
from confcascade.bench.fitting.proof import losses
from confcascade.bench.replay import PolicyStage
from confcascade.bench.replay.costing import Costing
from confcascade.guarantee import Equivalence, Promise
from fit_recorded import SOURCES, Source, thresholds
from numpy.typing import NDArray
from scipy.stats import binom

SAME = Equivalence("the answers' rule")


@dataclass(frozen=True)
class Setting:
    """What is drawn and promised.

    Attributes:
        source: Part of the name of one of `SOURCES`.
        n: Questions of a draw.
        drop: Promised.
        labels: Whether of accuracy, else of agreement.
        rule: As of `fit`.
    """

    source: str
    n: int
    drop: float
    labels: bool = True
    rule: Rule = "quantiles"

    @property
    def name(self) -> str:
        form = "accuracy" if self.labels else "agreement"
        return f"{self.source}, {self.n:,}, {100 * self.drop:g}, {form}, {self.rule}"


SETTINGS = (
    Setting("MMLU, Llama 3.1", 300, 0.05),
    Setting("MMLU, Llama 3.1", 1_000, 0.02),
    Setting("MMLU, Llama 3.1", 3_500, 0.01),
    Setting("MMLU, Llama 3.1", 1_000, 0.02, labels=False),
    Setting("ARC, Llama 3 8B", 1_000, 0.02),
    Setting("ARC, Yi", 1_000, 0.05),
    Setting("ARC, Llama 2", 1_000, 0.05),
    Setting("MMLU-Pro", 2_000, 0.05),
    Setting("GSM8K", 300, 0.05),
)


def one(
    setting: Setting,
    source: Source,
    traffic: FitData,
    same: NDArray[np.bool_] | None,
    bill: Costing,
    seed: int,
) -> tuple[float, float] | None:
    """True loss and saving of what one draw certifies; None if nothing."""
    rows = np.sort(np.random.default_rng([seed, setting.n]).integers(len(traffic), size=setting.n))
    result = fit(
        traffic.take(rows),
        Promise(setting.drop, equivalence=None if same is None else SAME),
        same=None if same is None else same[rows],
        architectures=source.architectures,
        prices=source.prices,
        seed=seed,
        rule=setting.rule,
    )
    if not isinstance(result, Fitted):
        return None
    columns, stages = replayable(traffic.columns, result.policy)
    (lost,) = losses(columns, [stages], source.models[-1], same)
    ours, theirs = bill.means(columns, [stages, [PolicyStage(source.models[-1])]])
    return float(lost.mean()), float(1 - ours / theirs)


def hindsight(source: Source, traffic: FitData, same: NDArray[np.bool_] | None, bill: Costing, drop: float) -> float:
    tried: list[Sequence[PolicyStage]] = [*thresholds(source, traffic), (PolicyStage(source.models[-1]),)]
    lost = losses(traffic.columns, tried, source.models[-1], same).mean(axis=1)
    cost = bill.means(traffic.columns, tried)
    return float(1 - cost[lost <= drop].min() / cost[-1])


def main(
    data: Annotated[Path, typer.Option(help="Folder of the recordings.", exists=True, file_okay=False)],
    draws: Annotated[int, typer.Option(min=1)] = 500,
    only: Annotated[str, typer.Option(help="Rows whose name holds this.")] = "",
) -> None:
    begun = time.perf_counter()
    most = int(binom.ppf(0.98, draws, 0.05))
    print(f"{draws} draws a row, 95 % confidence. A procedure that breaks its promise in 5 % of draws breaks more than")
    print(f"{most} of them once in fifty times.\n")
    print(
        "| traffic | questions | promised of | drop | broken | nothing | mean true loss | saved | hindsight | rules |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---|")
    for setting in SETTINGS:
        if only not in setting.name:
            continue
        source = next(each for each in SOURCES if setting.source in each.name)
        rows = [each for each in source.rows(data) if each.model in source.models]
        traffic = material_of(rows, models=source.models, texts=True)
        same = None if setting.labels or source.grader is None else agreement(traffic, source.grader)
        bill = Costing.of(traffic.columns, source.models, source.architectures, source.prices)
        found = [one(setting, source, traffic, same, bill, seed) for seed in range(draws)]
        made = [each for each in found if each is not None]
        best = hindsight(source, traffic, same, bill, setting.drop)
        print(
            f"| {source.name} | {setting.n:,} | {'accuracy' if setting.labels else 'agreement'} "
            f"| {100 * setting.drop:g} | {sum(loss > setting.drop for loss, _ in made)} | {len(found) - len(made)} "
            f"| {100 * sum(loss for loss, _ in made) / draws:.2f} | {sum(saved for _, saved in made) / draws:.1%} "
            f"| {best:.1%} | {setting.rule} |",
            flush=True,
        )
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
