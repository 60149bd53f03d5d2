"""What a policy must beat: single models, chance, the oracle, a dozen lines of code, and learners of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from confcascade.evaluation.columns import Column
from confcascade.evaluation.curves import CurveFigures, area, hull, neutral_cost, signal_curves, with_signal
from confcascade.evaluation.frontier import Curve
from confcascade.evaluation.gathered import MEAN_LOG_PROBABILITY
from confcascade.evaluation.policy_figures import RIGHT, Bench, PolicyFigures, known

__all__ = ["Baseline", "Learner", "Predictor", "baselines", "cross_fitted", "learned"]

FOLDS = 5


class Predictor(Protocol):
    """What is learned from texts."""

    def predict(self, texts: Sequence[str]) -> Sequence[float] | NDArray[np.float64]:
        """How likely each text's answer is right; higher is likelier."""


@dataclass(frozen=True)
class Learner:
    """A way to learn from texts whether a model's answer is right.

    Attributes:
        name: Of the baseline.
        phase: "pre" sees the prompt alone; "post" the prompt, and the answer after an empty line.
        fit: From texts and whether the answer was right.
    """

    name: str
    phase: Literal["pre", "post"]
    fit: Callable[[Sequence[str], Sequence[bool]], Predictor]


@dataclass(frozen=True)
class Baseline:
    """What a policy is held against.

    Attributes:
        name: In words.
        accuracy: The mean grade; of those with thresholds the best that they reach at the policy's cost.
        cost: Mean cost of a question in the unit that counts.
        area: Under the cost-accuracy curve, where it has one.
        neutral_cost: Share of the largest model's cost for its accuracy, where it has such a curve.
        reason: Why a figure is missing.
    """

    name: str
    accuracy: float | None
    cost: float | None
    area: float | None = None
    neutral_cost: float | None = None
    reason: str = ""


def baselines(bench: Bench, policy: PolicyFigures, learners: Sequence[Learner]) -> tuple[Baseline, ...]:
    """All of them, at the policy's own cost where they can be had at any."""
    spent = getattr(policy.cost, bench.unit)
    found = [
        Baseline(f"{model} alone", float(bench.alone[model].grade.mean()), bench.mean_cost(model))
        for model in dict.fromkeys((bench.models[0], bench.models[-1]))
    ]
    for name, curve in (("a model drawn by lot", bench.blind), ("oracle", bench.oracle)):
        found.append(
            Baseline(
                name,
                known(curve.at(spent)),
                spent,
                area(bench, curve),
                neutral_cost(bench, curve),
                _below(curve, spent),
            )
        )
    if len(bench.models) == 1:
        return tuple(found)
    missing = [m for m in bench.models[:-1] if (m, MEAN_LOG_PROBABILITY) not in bench.columns.signals]
    if missing:
        reason = f"the tokens of {', '.join(missing)} are not kept in this recording"
        found.append(Baseline("mean log-probability", None, None, reason=reason))
    else:
        found.append(_of_curve("mean log-probability", bench, signal_curves(bench, [MEAN_LOG_PROBABILITY])[0], spent))
    for learner in learners:
        scores = learned(bench, learner)
        if isinstance(scores, str):
            found.append(Baseline(learner.name, None, None, reason=scores))
        else:
            swept = signal_curves(with_signal(bench, learner.name, scores), [learner.name])[0]
            found.append(_of_curve(learner.name, bench, swept, spent))
    return tuple(found)


def _of_curve(name: str, bench: Bench, swept: CurveFigures, spent: float) -> Baseline:
    curve = hull(bench, swept.cost, swept.accuracy)
    return Baseline(name, known(curve.at(spent)), spent, swept.area, swept.neutral_cost, _below(curve, spent))


def _below(curve: Curve, spent: float) -> str:
    return "nothing is to be had for so little" if spent < curve.cost[0] else ""


# ---------------------------------------------------------------------- learning from texts


def learned(bench: Bench, learner: Learner) -> Mapping[str, Column] | str:
    """Scores of every model but the last, none by a learner that saw the question; or why there are none."""
    texts = bench.gathered.texts
    if texts is None:
        return bench.gathered.no_texts
    if absent := sum(question not in texts.prompts for question in bench.columns.questions):
        return f"{absent} prompts are not kept in this recording"
    columns = {}
    for model in bench.models[:-1]:
        prompts = [texts.prompts[question] for question in bench.columns.questions]
        seen = prompts
        if learner.phase == "post":
            answers = [texts.answers.get((question, model)) for question in bench.columns.questions]
            if None in answers:
                return f"answers of {model} are not kept in this recording"
            seen = [f"{prompt}\n\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
        right = bench.alone[model].grade >= RIGHT
        scores = cross_fitted(prompts, seen, right, learner.fit)
        if scores is None:
            return f"{model} is right, or wrong, on too many of the questions to learn from them"
        columns[model] = Column(scores, learner.phase, False, None)
    return columns


def cross_fitted(
    prompts: Sequence[str],
    texts: Sequence[str],
    right: NDArray[np.bool_],
    fit: Callable[[Sequence[str], Sequence[bool]], Predictor],
) -> NDArray[np.float64] | None:
    """The score of each text by a learner that never saw its prompt, in five parts by the hash of the prompt.

    By the prompt and not by the id: data sets ask some questions twice, word for word.

    Returns:
        None where one of the parts leaves right, or wrong, answers only.
    """
    part = np.array([int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % FOLDS for prompt in prompts])
    scores = np.full(len(texts), np.nan)
    for fold in range(FOLDS):
        inside, outside = (np.flatnonzero(each).tolist() for each in (part == fold, part != fold))
        if not inside:
            continue
        if len(set(right[outside].tolist())) < 2:
            return None
        predictor = fit([texts[i] for i in outside], right[outside].tolist())
        scores[inside] = predictor.predict([texts[i] for i in inside])
    return scores
