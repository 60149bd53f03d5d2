"""The tables of `real_models`, from its recordings: no model runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from confcascade import Architecture
from confcascade.bench.fitting import FitData, Fitted, fit, material_of, realised, split_by_key
from confcascade.bench.fitting.proof import losses
from confcascade.bench.metrics.ranking import auroc, auroc_interval
from confcascade.bench.metrics.significance import discordant, mcnemar, mean_interval, paired_difference, saving
from confcascade.bench.recording import read_rows
from confcascade.bench.replay import PolicyStage, replay
from confcascade.bench.replay.costing import Costing
from confcascade.bench.training.cross_fitting import folds_of
from confcascade.calibration.fusion import Fusion
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Promise
from numpy.typing import NDArray

P_T = "p_t"  # in its default form
THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
DROPS = (0.01, 0.02, 0.05, 0.1)
HALVES = {"calibrate": 0.25, "choose": 0.25, "certify": 0.5}  # the first two for fitting, the last for looking
SPLITS = 20
_DEPTH = re.compile(r"p_ik(?P<kind>_mlp)?@(?P<depth>[\d.]+)")


@dataclass(frozen=True)
class Recorded:
    """One set.

    Attributes:
        name: Of the set.
        material: All its questions.
        architectures: By model.
    """

    name: str
    material: FitData
    architectures: Mapping[str, Architecture]

    @classmethod
    def read(cls, folder: Path) -> list[Recorded]:
        """Every set whose recording lies there."""
        if not (path := folder / "models.json").exists():
            raise ConfigurationError(f"'{folder}' holds no recordings of `real_models.py score`.")
        told = json.loads(path.read_text())
        sizes = {name: Architecture(**each["architecture"]) for name, each in told.items()}
        found = []
        for path in sorted(folder.glob("*.parquet")):
            rows = list(read_rows(path))
            models = [name for name in sizes if any(row.model == name for row in rows)]
            found.append(cls(path.stem, material_of(rows, models=models), {name: sizes[name] for name in models}))
        return found

    @property
    def models(self) -> tuple[str, ...]:
        """Smallest first."""
        return self.material.models

    def right(self, model: str) -> NDArray[np.bool_]:
        """Whether its answers are, shape (questions,)."""
        columns = self.material.columns
        return np.asarray(self.material.right[:, columns.index(model)])

    def score(self, model: str, name: str) -> NDArray[np.float64]:
        """Shape (questions,), NaN where there is none."""
        return self.material.columns.signal(model, name).values

    def names(self, model: str) -> list[str]:
        """Of the model's scores."""
        return sorted(name for owner, name in self.material.columns.signals if owner == model)

    def gate(self, model: str, wanted: float = 0.75) -> str | None:
        """P(IK), linear, at the depth nearest to the wanted one; by default where the cascade reads it."""
        read = [(name, _DEPTH.fullmatch(name)) for name in self.names(model)]
        depths = {float(found["depth"]): name for name, found in read if found and not found["kind"]}
        return depths[min(depths, key=lambda depth: abs(depth - wanted))] if depths else None


def tables(recorded: Sequence[Recorded], splits: int = SPLITS) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of each table."""
    yield "Accuracy", accuracy(recorded)
    yield "Can each score tell right answers from wrong ones?", ranking(recorded)
    yield "P(IK) by depth", by_depth(recorded)
    yield "A probe of another set", elsewhere(recorded)
    yield "Is the larger model needed?", needed(recorded)
    yield "The paper's thresholds", thresholds(recorded)
    yield "Certified policies", certified(recorded, splits)


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), *rows)]


def _share(right: NDArray[np.bool_]) -> str:
    mean, low, high = mean_interval(right)
    return f"{mean:.1%} ({low:.1%} to {high:.1%})"


def _area(right: NDArray[np.bool_], score: NDArray[np.float64]) -> str:
    """AUROC with its interval; where answers without a score rank last."""
    filled = np.where(np.isnan(score), -math.inf if np.isnan(score).all() else np.nanmin(score) - 1, score)
    area, interval = auroc(right, filled), auroc_interval(right, filled)
    if area is None or interval is None:
        return "–"
    return f"{area:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def accuracy(recorded: Sequence[Recorded]) -> list[str]:
    """Of each model, and what there is between two of them."""
    rows = []
    for each in recorded:
        n = len(each.material)
        rows += [[each.name, f"{n:,}", model, _share(each.right(model)), "", ""] for model in each.models]
        for small, large in combinations(each.models, 2):
            lacking, gained = discordant(each.right(small), each.right(large))
            rows.append([each.name, "", f"{small} → {large}", "", f"{lacking / n:.1%}", f"{gained / n:.1%}"])
    return _lines(["set", "questions", "model", "right", "only the larger is right", "only the smaller"], rows)


def joined(each: Recorded, model: str) -> NDArray[np.float64] | None:
    """P(T) and P(IK) in one logistic regression, every question by one that did not see it."""
    if (gate := each.gate(model)) is None:
        return None
    right, folds = each.right(model), folds_of(each.material.columns.questions, 10)
    scores = {name: each.score(model, name) for name in (P_T, gate)}
    found = np.full(len(right), np.nan)
    for fold in range(10):
        ours, theirs = folds != fold, np.flatnonzero(folds == fold)
        fusion = Fusion.fit({k: v[ours] for k, v in scores.items()}, right[ours], dict.fromkeys(scores, (0.0, 1.0)))
        for i in theirs:
            confidence = fusion.confidence({k: None if math.isnan(v[i]) else float(v[i]) for k, v in scores.items()})
            found[i] = np.nan if confidence is None else confidence
    return found


def ranking(recorded: Sequence[Recorded]) -> list[str]:
    """AUROC of P(T) in its forms, P(IK), and both."""
    rows = []
    for each in recorded:
        for model in each.models:
            right = each.right(model)
            found = {name: each.score(model, name) for name in each.names(model) if name.startswith("p_t")}
            if gate := each.gate(model):
                found[gate] = each.score(model, gate)
                both = joined(each, model)
                assert both is not None
                found[f"{P_T} and {gate}"] = both
            groups = each.material.columns.groups
            rows += [
                [each.name, model, name, _area(right, score), _within(groups, right, score)]
                for name, score in found.items()
            ]
    return _lines(["set", "model", "score", "AUROC (95 %)", "within the kinds of question"], rows)


def _within(groups: NDArray[np.str_], right: NDArray[np.bool_], score: NDArray[np.float64]) -> str:
    """AUROC over pairs of the same group only: what is left once the kind of question is known."""
    above, pairs, filled = 0.0, 0, np.nan_to_num(score, nan=-1.0)
    for group in np.unique(groups):
        those, others = filled[(groups == group) & right], filled[(groups == group) & ~right]
        above += float((np.sign(those[:, None] - others[None]) / 2 + 0.5).sum())
        pairs += len(those) * len(others)
    return f"{above / pairs:.3f}" if pairs else "–"


def by_depth(recorded: Sequence[Recorded]) -> list[str]:
    """AUROC of cross-fitted P(IK), by the depth at which it is read."""
    rows = []
    for each in recorded:
        for model in each.models:
            for name in each.names(model):
                if found := _DEPTH.fullmatch(name):
                    kind = "network" if found["kind"] else "linear"
                    rows.append(
                        [each.name, model, kind, found["depth"], _area(each.right(model), each.score(model, name))]
                    )
    return _lines(["set", "model", "probe", "depth", "AUROC (95 %)"], rows)


def elsewhere(recorded: Sequence[Recorded]) -> list[str]:
    """AUROC of a probe of one set on another: the paper's section 4.2."""
    rows = []
    for each in recorded:
        for model in each.models:
            gate = each.gate(model)
            own = "–" if gate is None else _area(each.right(model), each.score(model, gate))
            for name in each.names(model):
                if name.startswith("p_ik_from_"):
                    score = each.score(model, name)
                    rows.append([
                        model,
                        name.removeprefix("p_ik_from_"),
                        each.name,
                        _area(each.right(model), score),
                        own,
                        f"{score.mean():.0%}",
                        f"{each.right(model).mean():.0%}",
                    ])  # fmt: skip
    return _lines(["model", "learned from", "asked on", "AUROC (95 %)", "learned there", "mean P(IK)", "right"], rows)


def needed(recorded: Sequence[Recorded]) -> list[str]:
    """Who predicts best that the larger model is right where the smaller is not."""
    rows = []
    for each in recorded:
        for small in each.models:
            for large in each.models:
                gate = each.gate(small)
                if gate is None or not {f"needed_{large}", f"right_{large}"} <= {*each.names(small)}:
                    continue
                wanted = each.right(large) & ~each.right(small)
                rows.append([
                    each.name,
                    f"{small} → {large}",
                    f"{wanted.mean():.1%}",
                    _area(wanted, -each.score(small, gate)),
                    _area(wanted, each.score(small, f"needed_{large}")),
                    _area(wanted, each.score(small, f"right_{large}") - each.score(small, gate)),
                    _area(wanted, -each.score(small, P_T)),
                    _area(each.right(large), each.score(small, f"right_{large}")),
                ])  # fmt: skip
    head = ["set", "pair", "needed", "1 - P(IK)", "probe of need", "difference of two probes", "1 - P(T)"]
    return _lines([*head, "the larger one's P(IK), from the smaller one's state"], rows)


def thresholds(recorded: Sequence[Recorded]) -> list[str]:
    """Cascades at the paper's thresholds, with P(IK) and without, compared with the last model only."""
    rows = []
    for each in recorded:
        for small, large in combinations(each.models, 2):
            gate, columns, right = each.gate(small), each.material.columns, each.right(large)
            alone = replay(columns, [PolicyStage(large)], architectures=each.architectures)
            for at in THRESHOLDS:
                for names in ((P_T,), (gate, P_T)):
                    if None in names:
                        continue
                    policy = [PolicyStage(small, dict.fromkeys(map(str, names), at)), PolicyStage(large)]
                    played = replay(columns, policy, architectures=each.architectures)
                    ours = played.grade > 0.5
                    difference, low, high = paired_difference(ours, right)
                    spared, least, most = saving(played.cost.flops, alone.cost.flops)
                    answering = 1 - played.cost_answering_stage.flops.sum() / alone.cost.flops.sum()
                    rows.append([
                        each.name,
                        f"{small} → {large}",
                        "with" if gate in names else "without",
                        f"{at:g}",
                        f"{ours.mean():.1%}",
                        f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                        f"{mcnemar(ours, right):.2g}",
                        f"{(played.stage == 0).mean():.1%}",
                        f"{spared:.1%} ({least:.1%} to {most:.1%})",
                        f"{answering:.1%}",
                    ])  # fmt: skip
    head = [
        "set",
        "pair",
        "P(IK)",
        "threshold",
        "accuracy",
        "points (95 %)",
        "McNemar p",
        "kept",
        "compute saved (95 %)",
    ]
    return _lines([*head, "by the answering stage only"], rows)


@dataclass
class _Summary:
    """Of random halves."""

    loss: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    nothing: int = 0


def certified(recorded: Sequence[Recorded], splits: int) -> list[str]:
    """What `fit` promises of all questions, and what came of it on halves that it had not seen."""
    rows = []
    for each in recorded:
        for small, large in combinations(each.models, 2):
            gate, early = each.gate(small), each.gate(small, 0.25)
            pair = each.material if len(each.models) == 2 else _only(each.material, (small, large))
            for signals in ([P_T], [P_T, gate], [P_T, early]):
                if None in signals:
                    continue
                names = [name for name in signals if name is not None]
                for drop in DROPS:
                    rows.append([
                        each.name,
                        f"{small} → {large}",
                        " and ".join(names),
                        f"{100 * drop:g}",
                        _promised(each, pair, names, drop),
                        *_halves(each, pair, names, drop, splits),
                    ])  # fmt: skip
    head = ["set", "pair", "signals", "points", "all questions: saved, bound", "halves: saved", "best in hindsight"]
    return _lines([*head, "lost", "broken", "nothing"], rows)


def _only(material: FitData, models: tuple[str, ...]) -> FitData:
    return replace(material, models=models)


def _promised(each: Recorded, pair: FitData, signals: Sequence[str], drop: float) -> str:
    result = fit(pair, Promise(drop), signals=signals, architectures=each.architectures)
    if not isinstance(result, Fitted):
        return "nothing"
    promised = result.policy.accuracy_certificates[0].promised
    return f"{result.policy.saving.share:.1%}, {100 * promised:.2f}"


def _halves(each: Recorded, pair: FitData, signals: Sequence[str], drop: float, splits: int) -> list[str]:
    summary, best = _Summary(), []
    small, large = pair.models[0], pair.models[-1]
    bill = Costing.of(pair.columns, pair.models, each.architectures)
    for seed in range(splits):
        halves = split_by_key(pair.keys, seed=10_000 + seed, shares=HALVES)
        fitting, looking = pair.take(np.sort(halves.ordering)), pair.take(halves.certify)
        result = fit(fitting, Promise(drop), signals=signals, seed=seed, architectures=each.architectures)
        if isinstance(result, Fitted):
            came = realised(result.policy, looking, architectures=each.architectures)
            summary.loss.append(came.loss)
            summary.saved.append(came.saved)
        else:
            summary.nothing += 1
            summary.loss.append(0.0)
            summary.saved.append(0.0)
        tried = [
            [PolicyStage(small, {name: at}), PolicyStage(large)]
            for name in signals
            for at in _quantiles(looking, small, name)
        ]
        tried.append([PolicyStage(large)])
        lost = losses(looking.columns, tried, large, None).mean(axis=1)
        cost = bill.means(looking.columns, tried)
        best.append(float((1 - cost / cost[-1])[lost <= drop].max()))
    broken = sum(loss > drop for loss in summary.loss)
    return [
        f"{np.mean(summary.saved):.1%}",
        f"{np.mean(best):.1%}",
        f"{100 * np.mean(summary.loss):.2f}",
        f"{broken}/{splits}",
        f"{summary.nothing}/{splits}",
    ]


def _quantiles(data: FitData, model: str, name: str) -> list[float]:
    values = data.columns.signal(model, name).values
    found: list[float] = np.unique(np.nanquantile(values, np.linspace(0, 1, 101))).tolist()
    return found
