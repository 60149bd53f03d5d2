"""What a policy must beat: single models, chance, the oracle, a dozen lines of code, and learners of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from confcascade.bench.evaluation.curves import CurveFigures, area, hull, neutral_cost, signal_curves, with_signal
from confcascade.bench.evaluation.gathered import MEAN_LOG_PROBABILITY
from confcascade.bench.evaluation.policy_figures import Bench, PolicyFigures
from confcascade.bench.metrics.frontier import Curve
from confcascade.bench.recording.columns import Column
from confcascade.bench.replay.costs import known
from confcascade.errors import ConfigurationError
from confcascade.graders.grade import is_right
from confcascade.policy import question_key
from confcascade.signals.learned import LearnedScorer, TextRouter

__all__ = ["Baseline", "Learner", "baselines", "learned"]

Learner: TypeAlias = Literal["TextRouter", "LearnedScorer"]
LEARNERS: tuple[Learner, ...] = ("TextRouter", "LearnedScorer")


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


def baselines(bench: Bench, policy: PolicyFigures) -> tuple[Baseline, ...]:
    """All of them, at the policy's own cost where they can be had at any."""
    spent = getattr(policy.cost, bench.unit)
    found = [
        Baseline(f"{model} alone", float(bench.alone[model].grade.mean()), bench.mean_cost(model))
        for model in dict.fromkeys(bench.models)
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
    for name in _known_before(bench):
        found.append(_of_curve(f"router by {name}", bench, signal_curves(bench, [name])[0], spent))
    for learner in LEARNERS:
        scores = learned(bench, learner)
        if isinstance(scores, str):
            found.append(Baseline(learner, None, None, reason=scores))
        else:
            swept = signal_curves(with_signal(bench, learner, scores), [learner])[0]
            found.append(_of_curve(learner, bench, swept, spent))
    return tuple(found)


def _known_before(bench: Bench) -> list[str]:
    """Signals by which a model is chosen before anything is generated, so that one model answers and no other."""
    columns = bench.columns
    return [
        name
        for name in columns.signal_names
        if all((m, name) in columns.signals and columns.signal(m, name).phase == "pre" for m in bench.models[:-1])
    ]


def _of_curve(name: str, bench: Bench, swept: CurveFigures, spent: float) -> Baseline:
    curve = hull(bench, swept.cost, swept.accuracy)
    return Baseline(name, known(curve.at(spent)), spent, swept.area, swept.neutral_cost, _below(curve, spent))


def _below(curve: Curve, spent: float) -> str:
    return "nothing is to be had for so little" if spent < curve.cost[0] else ""


# ---------------------------------------------------------------------- learning from texts


def learned(bench: Bench, learner: Learner) -> Mapping[str, Column] | str:
    """Scores of every model but the last; or why there are none.

    None is by a learner that saw the question: data sets ask some twice, word for word, so questions of the same text
    are always on the same side.
    """
    texts = bench.gathered.texts
    if texts is None or bench.gathered.no_texts:
        return bench.gathered.no_texts
    if absent := sum(question not in texts.prompts for question in bench.columns.questions):
        return f"{absent:,} prompts are not kept in this recording"
    prompts = [texts.prompts[question] for question in bench.columns.questions]
    texts_of, columns = [question_key(prompt) for prompt in prompts], {}
    for model in bench.models[:-1]:
        right = is_right(bench.alone[model].grade)
        try:
            if learner == "TextRouter":
                scores = TextRouter.cross_predict(prompts, right, groups=texts_of)
            else:
                answers = [texts.answers.get((question, model)) for question in bench.columns.questions]
                if None in answers:
                    return f"answers of {model} are not kept in this recording"
                scores = LearnedScorer.cross_predict(prompts, [str(a) for a in answers], right, groups=texts_of)
        except ConfigurationError as error:  # too few questions, or all right
            return f"of {model} nothing can be learnt: {error}"
        columns[model] = Column(scores, "pre" if learner == "TextRouter" else "post", False, None)
    return columns
