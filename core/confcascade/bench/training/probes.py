"""P(IK) from labelled questions: probes of several depths and kinds, the one to keep, and how good it is.

The questions are told apart by a hash into a training, a validation and a test part. Everything is chosen on the
validation part; the test part is looked at once, by the probe that was chosen.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from confcascade.asks import LanguageModel
from confcascade.bench.metrics.health import SignalHealth, signal_health
from confcascade.bench.metrics.ranking import (
    auroc,
    auroc_interval,
    brier,
    calibration_error,
    reliability,
    risk_coverage,
)
from confcascade.bench.questions import side
from confcascade.bench.training.examples import Asked, ProbeExamples
from confcascade.bench.training.states import StateCache, key_of, read_states
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.signals.knowledge_probe import KnowledgeProbe, ProbeSplit, check_parts, checked_states, resolve_layer
from confcascade.signals.probe_fitting import NETWORK, Weights, fit_weights, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEPTHS", "SHARES", "Candidate", "CurvePoint", "TestFigures", "TrainedProbe", "layers_of", "train_probe"]

Kind: TypeAlias = Literal["linear", "mlp"]

DEPTHS = (0.4, 0.5, 0.6, 0.75, 1.0)
KINDS: Mapping[Kind, tuple[int, ...]] = {"linear": (), "mlp": NETWORK}
SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
_LEAST = 30  # questions of different texts or groups
_CURVE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training part
_KEPT = (1.0, 0.75, 0.5, 0.25)  # shares of the questions that stay with the model


@dataclass(frozen=True)
class Candidate:
    """One probe that was tried.

    Attributes:
        kind: "linear" or "mlp".
        layer: The block, counted from 1.
        auroc: On the validation part.
        epochs: As on the probe's card.
    """

    kind: Kind
    layer: int
    auroc: float
    epochs: int


@dataclass(frozen=True)
class CurvePoint:
    """What so many examples would have given.

    Attributes:
        examples: To learn from.
        auroc: On the validation part.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
    """

    examples: int
    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class TestFigures:
    """The chosen probe on the part that had no hand in it.

    Attributes:
        n: Questions.
        base_rate: Share that the model answered right.
        auroc: With `low` and `high`, its 95 % interval.
        low: Lower end.
        high: Upper end.
        health: Whether P(IK) can route, decided as by `fit` and in every report (`signal_health`).
        brier: Mean squared error of P(IK).
        brier_base_rate: That of always saying the base rate of the training part.
        ece: Expected calibration error, 15 bins of equal mass.
        bins: Number, accuracy and mean P(IK) of each of these bins.
        kept: If only such a share of the questions stays with the model, those of the highest P(IK): the share, how
            many of them it answers right, and how many of the others it would have answered wrong (None of none).
    """

    n: int
    base_rate: float
    auroc: float
    low: float
    high: float
    health: SignalHealth
    brier: float
    brier_base_rate: float
    ece: float
    bins: tuple[tuple[int, float, float], ...]
    kept: tuple[tuple[float, float, float | None], ...]


@dataclass(frozen=True)
class TrainedProbe:
    """A probe with all that led to it.

    Attributes:
        probe: The chosen one.
        chosen: Of the candidates.
        candidates: All that were tried, by depth.
        curve: Learning curve of the chosen kind and depth.
        test: The probe on the test part.
        left_out: How many questions could not be learned from, by the reason.
        split_by: By which the parts are told: "question", "prompt" or "group".
    """

    probe: KnowledgeProbe
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    curve: tuple[CurvePoint, ...]
    test: TestFigures
    left_out: Mapping[str, int]
    split_by: str


def layers_of(model: LanguageModel, depths: Sequence[int | float] | None = None) -> tuple[int, ...]:
    """The blocks at some depths, each once; by default at `DEPTHS`, or all that a server gives.

    Raises:
        ConfigurationError: If there is none, the model gives no hidden states, or not those at a depth.
    """
    capability = model.capability
    if depths is not None and not depths:
        raise ConfigurationError("Name at least one depth.")
    if not capability.layers:
        raise ConfigurationError(
            f"A probe reads hidden states, and model '{model.name}' does not give any. It needs a local model, or "
            "OpenAICompatibleModel(hidden_states=...) with a server of SGLang or vLLM."
        )
    if depths is None and capability.engine:
        return tuple(sorted(capability.served_layers))
    layers = {resolve_layer(depth, capability.layers) for depth in depths or DEPTHS}
    if capability.engine and (others := sorted(layers - set(capability.served_layers))):
        given = ", ".join(map(str, sorted(capability.served_layers)))
        raise ConfigurationError(
            f"The server of model '{model.name}' gives the hidden states of block {given}, of {capability.layers}. "
            f"Got depths at block {', '.join(map(str, others))}; leave them out, and all that it gives are tried."
        )
    return tuple(sorted(layers))


def train_probe(
    model: LanguageModel,
    material: ProbeExamples,
    cache: StateCache,
    *,
    kinds: Sequence[Kind] = ("linear", "mlp"),
    balanced: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> TrainedProbe | None:
    """Train probes at every depth of the cache, choose one on the validation part, and judge it on the test part.

    Chosen is the greatest validation AUROC; of equal ones a linear probe, then the earlier block.

    Args:
        model: Whose probe it is.
        material: Questions that it was asked.
        cache: Where its hidden states are kept; those that lack are read first.
        kinds: Which kinds to try.
        balanced: Right and wrong answers weigh the same in training (see `fit_weights`).
        seed: Of the split and the networks.
        progress: Called with what is done, how much of it, and how much there is.
        stop: Once set, ends at the next step; what was read is kept.

    Returns:
        The probe and how it came to be; None if it was stopped.

    Raises:
        ConfigurationError: If there are too few questions, or a part has right or wrong answers alone.
    """
    tell = progress or (lambda _what, _done, _of: None)
    requests = [asked.request for asked in material.asked]
    problems = read_states(
        model, requests, cache, progress=lambda done, of: tell("reading prompts", done, of), stop=stop
    )
    if _ended(stop):
        return None
    asked = [each for each in material.asked if key_of(each.request) in cache]
    left_out = dict(material.left_out)
    if problems:
        unread = len(material.asked) - len(asked)
        why = next(iter(problems.values()))
        left_out[f"the prompt was not read ({why.rstrip('.')})"] = unread
        if not asked:
            raise ConfigurationError(f"Model '{model.name}' could not read any of the {unread} prompts: {why}")
    parts = _parts(asked, seed)
    train, validation, _ = parts
    keys = [key_of(each.request) for each in asked]
    right = np.array([each.right for each in asked])
    check_parts(right, parts)
    best: list[tuple[Candidate, Weights]] = []
    steps = len(cache.layers) * len(kinds) + len(_CURVE) - 1
    tell("training", 0, steps)
    for layer in cache.layers:
        x, y = checked_states(model, cache.read(keys, layer), right.tolist())
        for kind in kinds:
            if _ended(stop):
                return None
            weights, epochs = fit_weights(
                x, y, train, validation, hidden_layers=KINDS[kind], balanced=balanced, seed=seed
            )
            area = auroc(y[validation], predict(weights, x[validation]))
            assert area is not None  # both classes are there
            best.append((Candidate(kind, layer, area, epochs), weights))
            tell("training", len(best), steps)
    chosen, weights = _chosen(best)
    x, y = checked_states(model, cache.read(keys, chosen.layer), right.tolist())
    curve, groups = [], [asked[row].kept_with for row in validation]
    for rows in _nested([each.kept_with for each in asked], train, seed):
        if _ended(stop):
            return None
        if len(rows) < len(train) and 0 < y[rows].sum() < len(rows):
            options = {"hidden_layers": KINDS[chosen.kind], "balanced": balanced, "seed": seed}
            fewer, _ = fit_weights(x, y, rows, validation, **options)  # type: ignore[arg-type]
            curve.append(_point(len(rows), y[validation], predict(fewer, x[validation]), groups))
        tell("training", min(steps, len(best) + len(curve)), steps)
    curve.append(_point(len(train), y[validation], predict(weights, x[validation]), groups))
    probe = KnowledgeProbe.of_weights(
        model, weights, x, y, parts, layer=chosen.layer, epochs=chosen.epochs, seed=seed, balanced=balanced
    )
    return TrainedProbe(
        probe=probe,
        chosen=chosen,
        candidates=tuple(candidate for candidate, _ in best),
        curve=tuple(curve),
        test=_figures(probe, x, y, parts, [asked[row].kept_with for row in parts[2]]),
        left_out=left_out,
        split_by=material.split_by,
    )


def _ended(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def _parts(asked: Sequence[Asked], seed: int) -> ProbeSplit:
    """Rows for training, validation and test: by a hash of what must not be shared, so the same in every run."""
    if (count := len({" ".join(each.kept_with.split()).casefold() for each in asked})) < _LEAST:
        raise ConfigurationError(f"A probe needs at least {_LEAST} different questions with a grade. Got {count}.")
    sides = np.array([side(Example(each.kept_with), SHARES, seed=seed) for each in asked])
    train, validation, test = (np.flatnonzero(sides == part) for part in SHARES)
    return train, validation, test


def _chosen(tried: Sequence[tuple[Candidate, Weights]]) -> tuple[Candidate, Weights]:
    return max(tried, key=lambda each: (each[0].auroc, each[0].kind == "linear", -each[0].layer))


def _nested(kept_with: Sequence[str], train: NDArray[np.intp], seed: int) -> Iterator[NDArray[np.intp]]:
    """Growing parts of the training rows, each part of the next; what must not be shared comes in as a whole."""
    places = {name: hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in set(kept_with)}
    order = sorted(train.tolist(), key=lambda row: (places[kept_with[row]], row))
    for share in _CURVE:
        yield np.array(order[: max(1, round(share * len(order)))])


def _point(examples: int, y: NDArray[np.bool_], p: NDArray[np.float64], groups: Sequence[str]) -> CurvePoint:
    area, interval = auroc(y, p), auroc_interval(y, p, groups=groups)
    assert area is not None
    assert interval is not None
    return CurvePoint(examples, area, *interval)


def _figures(
    probe: KnowledgeProbe, x: NDArray[np.float32], y: NDArray[np.bool_], parts: ProbeSplit, groups: Sequence[str]
) -> TestFigures:
    train, _, test = parts
    right, p = y[test], probe.predict(x[test])
    point = _point(len(test), right, p, groups)
    kept = []
    risk = risk_coverage(right, p)  # ties are shared
    wrong = float((~right).sum())
    for share in _KEPT:
        k = max(1, round(share * len(right)))
        others = len(right) - k
        kept.append((share, 1 - float(risk[k - 1]), (wrong - float(risk[k - 1]) * k) / others if others else None))
    return TestFigures(
        n=len(test),
        base_rate=float(right.mean()),
        auroc=point.auroc,
        low=point.low,
        high=point.high,
        health=signal_health(p, right),
        brier=brier(right, p),
        brier_base_rate=brier(right, np.full(len(right), y[train].mean())),
        ece=calibration_error(right, p),
        bins=tuple((int(n), float(accuracy), float(mean)) for n, accuracy, mean in reliability(right, p)),
        kept=tuple(kept),
    )
