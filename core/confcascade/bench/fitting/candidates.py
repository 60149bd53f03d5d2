"""Policies worth trying, in paths: each pair of models, the whole chain and single models, by one rule of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.label_cuts import label_cuts
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.derived import score_columns, with_confidence, with_gain
from confcascade.bench.replay.policy import PolicyStage
from confcascade.calibration import Calibrator, EarlyAccept, fit_calibrator
from confcascade.errors import ConfigurationError
from confcascade.signals import Threshold
from confcascade.signals.ties_by_lot import drawn

__all__ = [
    "Candidates",
    "Derived",
    "Structure",
    "at_pass_rates",
    "by_label",
    "candidates",
    "derive",
    "fixed_thresholds",
    "lone_path",
]

_LEVELS = np.linspace(0.99, 0.01, 99)  # shares of the scores below a threshold, along a path
_GATES = (0.05, 0.1, 0.2, 0.3, 0.5)  # shares of the questions that a gate passes on before anything is generated
_ODDS = np.arange(14, -14, -0.02)  # of thresholds that are fixed before any score is seen; 14 is 1 - 8e-7
_TIED = np.arange(101) / 100  # scores that many answers may have, from 0 to 1
_PARTS = np.arange(50) / 50  # lots from which on such answers are kept (`TiesByLot`)


class Rule(NamedTuple):
    """What keeps an answer of a stage.

    Attributes:
        words: For reports.
        names: Of the signals that have thresholds.
        gate: Whether the first of them only sorts out what is not worth generating.
    """

    words: str
    names: tuple[str, ...]
    gate: bool = False


@dataclass(frozen=True)
class Derived:
    """A signal made of others.

    Attributes:
        name: Of the signal.
        own: What a confidence is computed by, or the own part of a gain.
        larger: The larger model's part; None for a confidence.
        over: Which model that is.
    """

    name: str
    own: Calibrator
    larger: Calibrator | None = None
    over: str | None = None


@dataclass(frozen=True)
class Structure:
    """A path: policies that differ only in thresholds, each keeping whatever the one before it keeps, and more.

    Attributes:
        rule: What keeps an answer, in words.
        policies: The policies, the one that keeps least first.
    """

    rule: str
    policies: tuple[tuple[PolicyStage, ...], ...]


@dataclass
class Candidates:
    """What is tried, and on what.

    Attributes:
        columns: The recording, derived signals included.
        derived: By model and name.
        structures: What is tried.
        notes: What could not be.
    """

    columns: Columns
    derived: dict[tuple[str, str], Derived] = field(default_factory=dict)
    structures: list[Structure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def derive(
    columns: Columns,
    models: Sequence[str],
    routable: Mapping[str, Sequence[str]],
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
    spaces: Callable[[str, str], tuple[float, float]],
    *,
    confidence: str,
    gains: bool,
    early: str | None = None,
    texts: NDArray[np.intp] | None = None,
) -> Candidates:
    """Confidences of every model but the last, and what each larger one would gain, calibrated on some questions.

    Args:
        columns: The recording.
        models: Smallest first.
        routable: Signals by model.
        right: What is to be predicted, shape (questions, models) as in the columns.
        rows: The questions to calibrate on.
        spaces: Of a model's signal.
        confidence: Name of the confidences.
        gains: Whether to make gains.
        early: A signal that is known before an answer has ended, and may keep it: then the confidence of models that
            have it is an `EarlyAccept`, and no gain is made.
        texts: Which text each question has, shape (questions,): none is on both sides of a fold. By default all differ.
    """
    made = Candidates(columns)
    for i, model in enumerate(models[:-1]):
        names = list(routable.get(model, ()))
        j = columns.index(model)
        judged = rows[columns.usable[rows, j]]
        if not names or right[judged, j].all():  # then nothing is to be learnt, and the model may do alone
            continue
        scores = {name: values[judged] for name, values in score_columns(columns, model, names).items()}
        known = {name: spaces(model, name) for name in names}
        groups = None if texts is None else texts[judged]
        try:
            own = fit_calibrator(scores, right[judged, j], known, groups=groups)
            if early in names:
                first = fit_calibrator({early: scores[early]}, right[judged, j], known, groups=groups)
                own = EarlyAccept.fit(first, own, scores, right[judged, j])
            label = _free(columns, model, confidence)
            made.columns = with_confidence(made.columns, model, own, name=label)
            made.derived[model, label] = Derived(label, own)
            for larger in models[i + 1 :] if gains and early is None else ():
                theirs = fit_calibrator(scores, right[judged, columns.index(larger)], known, groups=groups)
                label = _free(columns, model, "gain" if len(models) == 2 else f"gain over {larger}")
                made.columns = with_gain(made.columns, model, own, theirs, name=label)
                made.derived[model, label] = Derived(label, own, theirs, larger)
        except ConfigurationError as error:
            made.notes.append(f"Not everything can be learnt of {model}: {error}")
    return made


def candidates(
    made: Candidates, models: Sequence[str], routable: Mapping[str, Sequence[str]], rows: NDArray[np.intp]
) -> Candidates:
    """Fill in the structures, thresholds at quantiles of the scores on some questions.

    Args:
        made: Of `derive`.
        models: Smallest first.
        routable: Signals by model.
        rows: The questions on which policies are chosen.
    """
    columns = made.columns.take(rows)
    # where a model has a path, it ends with the model alone: by itself that is all or nothing
    found = [Structure("alone", ((PolicyStage(model),),)) for model in models[:-1] if not routable.get(model)]
    chains = [*combinations(models, 2)] + ([tuple(models)] if len(models) > 2 else [])
    for chain in chains:
        rules = [list(_rules(columns, made, chain, i, routable)) for i in range(len(chain) - 1)]
        for same in zip(*rules, strict=False) if len(chain) == 2 else _common(rules):
            for gate in _GATES if same[0].gate else (None,):
                points = [_levels(columns, model, rule, gate) for model, rule in zip(chain, same, strict=False)]
                policies = _path(chain, points)
                if not policies:
                    continue
                found.append(Structure(same[0].words, policies))
                if len(chain) > 2 and gate is not None:
                    skipping = tuple(_skipping(policy, same[0].names[0]) for policy in policies[:-1])
                    found.append(Structure(f"{same[0].words}, skipping the middle below the gate", skipping))
    return replace(made, structures=found)


def lone_path(columns: Columns, models: Sequence[str], routable: Mapping[str, Sequence[str]]) -> Structure | None:
    """The only path there is, if two models and at most one signal leave nothing to choose but its threshold.

    Thresholds are fixed before any score is seen: they are a fiftieth apart in log-odds, and there are the hundredths
    with fifty more at each, for scores whose ties are broken by lot (`TiesByLot`). So no question need be spent on
    choosing. The last policy is the smaller model alone; without a signal it is the only one.

    Args:
        columns: The recording.
        models: Smallest first.
        routable: Signals by model.

    Returns:
        None if there is more to choose, or if the signal's scores do not lie in [0, 1], which leaves no such grid.
    """
    names = routable.get(models[0], ())
    if len(models) != 2 or len(names) > 1:
        return None
    if not names:
        return Structure("alone", ((PolicyStage(models[0]),),))
    values = columns.signal(models[0], names[0]).values
    known = values[np.isfinite(values)]
    if not len(known) or known.min() < 0 or known.max() > 1:
        return None
    thresholds = fixed_thresholds(known)
    policies = [(PolicyStage(models[0], {names[0]: each}), PolicyStage(models[1])) for each in thresholds]
    return Structure(names[0], (*policies, (PolicyStage(models[0]),)))


def fixed_thresholds(scores: NDArray[np.float64]) -> list[float]:
    """The thresholds of `lone_path`, highest first, without those that keep just the scores that one before keeps.

    What is shown of that one would be shown of them, so the path is the fixed one, whatever the scores are.

    Args:
        scores: Those that are known, in [0, 1].
    """
    parts = drawn(_TIED[:, None], _PARTS).ravel()
    every = np.unique(np.concatenate([1 / (1 + np.exp(-_ODDS)), _TIED, parts]))[::-1]
    below = np.searchsorted(np.sort(scores), every)
    found: list[float] = every[np.diff(below, prepend=-1) != 0].tolist()
    return found


def at_pass_rates(
    made: Candidates,
    models: Sequence[str],
    routable: Mapping[str, Sequence[str]],
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
) -> Candidates:
    """Fill in the structures of COREA's rule: an answer is kept if its score is at least the next model's pass rate.

    Nothing is chosen but the models and the score, a single signal in [0, 1] or the confidence: if a score is the
    probability of being right, whatever is below that rate the next model does better.

    Args:
        made: Of `derive`.
        models: Smallest first.
        routable: Signals by model.
        right: Whether each answer is right, shape (questions, models) as in the columns.
        rows: The questions that the rates are taken over.

    Source: COREA, arXiv 2603.03752, whose threshold is the large model's pass@1.
    """
    rates = {model: float(right[rows, made.columns.index(model)].mean()) for model in models}
    found = [Structure("alone", ((PolicyStage(model),),)) for model in models[:-1]]
    for chain in [*combinations(models, 2)] + ([tuple(models)] if len(models) > 2 else []):
        rules = [
            [rule for rule in _rules(made.columns, made, chain, i, routable) if _is_share(made.columns, chain[i], rule)]
            for i in range(len(chain) - 1)
        ]
        for same in zip(*rules, strict=False) if len(chain) == 2 else _common(rules):
            stages = [
                PolicyStage(model, {rule.names[0]: rates[larger]})
                for model, larger, rule in zip(chain, chain[1:], same, strict=False)
            ]
            found.append(
                Structure(f"{same[0].words} at the next model's pass rate", ((*stages, PolicyStage(chain[-1])),))
            )
    return replace(made, structures=found)


def by_label(
    made: Candidates,
    models: Sequence[str],
    routable: Mapping[str, Sequence[str]],
    right: NDArray[np.bool_],
    rows: NDArray[np.intp],
    *,
    agreement: bool,
) -> Candidates:
    """Fill in the structures with a threshold for each label of a signal (`label_cuts`), of every pair of models.

    Args:
        made: Of `derive`.
        models: Smallest first.
        routable: Signals by model.
        right: Whether each answer is right, or the largest model's, shape (questions, models) as in the columns.
        rows: The questions on which thresholds are learnt and paths chosen.
        agreement: Whether `right` says that answers are the largest model's.

    Raises:
        ConfigurationError: If no signal of a smaller model tells which label an answer gives.
    """
    columns, found = made.columns, list[Structure]()
    for model, larger in combinations(models, 2):
        for name in routable.get(model, ()):
            its = right[:, columns.index(model)]
            cuts = label_cuts(columns, model, name, its, rows, agreement=agreement)
            if cuts:
                policies = tuple((PolicyStage(model, {name: each}), PolicyStage(larger)) for each in cuts)
                found.append(Structure(f"{name} by label", (*policies, (PolicyStage(model),))))
    if not found:
        raise ConfigurationError(
            "No signal of the recording tells which of a few labels an answer gives (2 to 12, of 30 questions). "
            "A threshold for each label is there for `TokenProbability(labels=...)`."
        )
    return replace(made, structures=found)


def _is_share(columns: Columns, model: str, rule: Rule) -> bool:
    """Whether a rule has one score, which can be a probability."""
    if len(rule.names) != 1 or rule.words == "expected gain":
        return False
    values = columns.signal(model, rule.names[0]).values
    known = values[np.isfinite(values)]
    return bool(len(known)) and known.min() >= 0 and known.max() <= 1


def _skipping(policy: tuple[PolicyStage, ...], gate: str) -> tuple[PolicyStage, ...]:
    """The same, but what the first stage's gate holds back goes straight to the last stage."""
    first, *rest = policy
    below = first.thresholds[gate]
    assert isinstance(below, float)  # a gate has one threshold for all answers
    return replace(first, skip={gate: below}), *rest


def _rules(
    columns: Columns, made: Candidates, chain: Sequence[str], i: int, routable: Mapping[str, Sequence[str]]
) -> Iterator[Rule]:
    """What may keep an answer of a stage."""
    model, larger = chain[i], chain[i + 1]
    names = tuple(routable.get(model, ()))
    for (owner, label), each in made.derived.items():
        if owner == model and isinstance(each.own, EarlyAccept):
            yield Rule(f"{' and '.join(each.own.early.signals)} early, else {label}", (label,))
            return
    for name in names:
        yield Rule(name, (name,))
    if len(names) < 2:
        return
    yield Rule(" and ".join(names), names)
    own = [label for (owner, label), each in made.derived.items() if owner == model and each.larger is None]
    gates = [name for name in names if columns.signal(model, name).phase == "pre"]
    for label in own:
        yield Rule(label, (label,))
        for gate in gates:
            yield Rule(f"{gate} gate, then {label}", (gate, label), gate=True)
    for (owner, label), each in made.derived.items():
        if owner == model and each.over == larger:
            yield Rule("expected gain", (label,))


def _common(rules: Sequence[Sequence[Rule]]) -> Iterator[tuple[Rule, ...]]:
    """For chains, the same rule at every stage."""
    for rule in rules[0]:
        same = [next((each for each in stage if each.words == rule.words), None) for stage in rules]
        found = tuple(each for each in same if each is not None)
        if len(found) == len(rules):
            yield found


def _path(
    chain: Sequence[str], points: Sequence[Sequence[dict[str, Threshold]]]
) -> tuple[tuple[PolicyStage, ...], ...]:
    """Policies at the same levels of every stage, then the first model alone."""
    found: list[tuple[PolicyStage, ...]] = []
    for level in zip(*points, strict=True):
        stages = (PolicyStage(model, point) for model, point in zip(chain, level, strict=False))
        policy = (*stages, PolicyStage(chain[-1]))
        if not found or policy != found[-1]:
            found.append(policy)
    return (*found, (PolicyStage(chain[0]),)) if found else ()


def _levels(columns: Columns, model: str, rule: Rule, gate: float | None) -> list[dict[str, Threshold]]:
    """Thresholds of a stage, by level: of all its signals, but a gate's is fixed."""
    found = {name: _quantiles(columns, model, name, _LEVELS) for name in rule.names}
    if gate is not None:
        found[rule.names[0]] = _quantiles(columns, model, rule.names[0], np.full(len(_LEVELS), gate))
    return [dict(zip(found, level, strict=True)) for level in zip(*found.values(), strict=True)]


def _quantiles(columns: Columns, model: str, name: str, at: NDArray[np.float64]) -> list[float]:
    values = columns.signal(model, name).values
    known = values[np.isfinite(values)]
    return np.quantile(known, at, method="higher").tolist() if len(known) else []


def _free(columns: Columns, model: str, name: str) -> str:
    while (model, name) in columns.signals:
        name = f"fitted {name}"
    return name
