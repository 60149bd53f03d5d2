"""One run of `confidence_driven`: a chain asked live, what its answers are worth, and whether its replay agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from confcascade import KnowledgeProbe, Outcome, Prices, Stage, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.bench.collecting.attempt import known_depth
from confcascade.bench.metrics.frontier import gap_closed
from confcascade.bench.metrics.ranking import drop_points, drop_relative, hallucination_rate, macro_scores
from confcascade.bench.metrics.significance import discordant, mcnemar, paired_difference, saving
from confcascade.bench.recording import Columns, Row, score_of
from confcascade.bench.replay import PolicyStage, Replay
from confcascade.bench.replay.replay import DECISIONS, NOT_ASKED
from confcascade.demo.measure import request
from confcascade.demo.world import UNKNOWN, Question
from confcascade.extending import Signal
from confcascade.graders.grade import is_right
from confcascade.signals import Evidence
from confidence_driven_sets import QuestionSet
from numpy.typing import NDArray

CHAINS = (("small", "medium"), ("small", "large"), ("medium", "large"), ("small", "medium", "large"))
THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
PRICES = {"small": Prices(0.08, 0.16), "medium": Prices(0.10, 0.20), "large": Prices(0.60, 1.20)}  # Table 12
NEAR = 1e-4  # padding changes sums: a score so near its threshold may fall on either side
Probes = Mapping[tuple[str, str], KnowledgeProbe]  # by what they learnt from, and model


@dataclass(frozen=True)
class Policy:
    """A chain, whether P(IK) judges too, and the threshold of all its signals."""

    chain: tuple[str, ...]
    p_ik: bool
    threshold: float

    @property
    def thresholds(self) -> dict[str, float]:
        return dict.fromkeys(("p_ik", "p_t") if self.p_ik else ("p_t",), self.threshold)

    def stages(self, asked: QuestionSet, models: Mapping[str, TransformersModel], probes: Probes) -> list[Stage]:
        """To run live."""
        *gated, last = self.chain
        return [
            *(
                Stage(
                    models[size],
                    [*([probes[asked.probe, size]] if self.p_ik else []), asked.p_t()],
                    self.thresholds,
                    PRICES[size],
                )
                for size in gated
            ),
            Stage(models[last], prices=PRICES[last]),
        ]

    def replayed(self) -> list[PolicyStage]:
        """To replay."""
        *gated, last = self.chain
        return [*(PolicyStage(size, self.thresholds) for size in gated), PolicyStage(last)]


POLICIES = tuple(Policy(*each) for each in product(CHAINS, (True, False), THRESHOLDS))


# ---------------------------------------------------------------------- what answers are worth


@dataclass(frozen=True)
class Answers:
    """A run's answers, one entry for each question of its set."""

    right: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    predicted: tuple[str, ...]
    flops: NDArray[np.float64]
    answering_flops: NDArray[np.float64]
    usd: NDArray[np.float64]
    answering_usd: NDArray[np.float64]

    @classmethod
    def of(cls, questions: Sequence[Question], outcomes: Sequence[Outcome]) -> Answers:
        every = [outcome.record.cost for outcome in outcomes]
        answering = [outcome.record.cost_answering_stage for outcome in outcomes]
        return cls(
            right=np.array([q.is_correct(o.text) for q, o in zip(questions, outcomes, strict=True)]),
            refused=np.array([o.text.startswith(UNKNOWN) for o in outcomes]),
            predicted=tuple(o.text.strip() for o in outcomes),
            flops=np.array([cost.flops for cost in every]),
            answering_flops=np.array([cost.flops for cost in answering]),
            usd=np.array([cost.usd for cost in every]),
            answering_usd=np.array([cost.usd for cost in answering]),
        )


def quality(asked: QuestionSet, answers: Answers) -> dict[str, Any]:
    """How good a run's answers are: macro scores of multiple choice; of open questions, what was made up."""
    found = {"n": len(answers.right), "right": int(answers.right.sum()), "refused": int(answers.refused.sum())}
    if asked.labels:
        scores = macro_scores(answers.predicted, [question.reference for question in asked.questions])
        return {**found, "macro": [round(score, 4) for score in scores]}
    return {**found, "hallucination_rate": round(hallucination_rate(answers.right, answers.refused), 4)}


def run_figures(
    asked: QuestionSet,
    policy: Policy,
    outcomes: Sequence[Outcome],
    answers: Answers,
    single: Mapping[str, Answers],
) -> dict[str, Any]:
    """A cascade beside its last model alone, in both accountings.

    ``gap_closed`` is how far it comes from a blind choice of one of all `single` models to the oracle, at its own
    cost; None where that is below the cost of the cheapest.
    """
    largest = single[policy.chain[-1]]

    def saved(spent: NDArray[np.float64], alone: NDArray[np.float64]) -> float:
        return round(100 * float(1 - spent.sum() / alone.sum()), 1)

    accuracy, alone = float(answers.right.mean()), float(largest.right.mean())
    _, low, high = paired_difference(answers.right, largest.right)
    harms, benefits = discordant(answers.right, largest.right)
    stage = [outcome.record.stage for outcome in outcomes]
    grades = np.column_stack([each.right for each in single.values()])
    closed = gap_closed(answers.flops.mean(), accuracy, grades, np.column_stack([s.flops for s in single.values()]))
    return {
        "set": asked.name,
        "chain": list(policy.chain),
        "p_ik": policy.p_ik,
        "threshold": policy.threshold,
        **quality(asked, answers),
        "points": round(drop_points(accuracy, alone), 2),
        "points_interval": [round(100 * low, 2), round(100 * high, 2)],
        "relative": round(drop_relative(accuracy, alone), 2),
        "harms": harms,
        "benefits": benefits,
        "mcnemar_p": float(f"{mcnemar(answers.right, largest.right):.3g}"),
        "answered_by": [stage.count(j) for j in range(len(policy.chain))],
        "flops_saved": [round(100 * x, 1) for x in saving(answers.flops, largest.flops)],
        "flops_saved_answering_stage": saved(answers.answering_flops, largest.flops),
        "gap_closed": None if math.isnan(closed) else round(closed, 2),
        "usd_per_1000": round(1e3 * float(answers.usd.mean()), 6),
        "usd_per_1000_answering_stage": round(1e3 * float(answers.answering_usd.mean()), 6),
        "usd_saved": saved(answers.usd, largest.usd),
        "usd_saved_answering_stage": saved(answers.answering_usd, largest.usd),
    }


# ---------------------------------------------------------------------- the recording


def record(model: TransformersModel, asked: QuestionSet, signals: Sequence[Signal]) -> list[Row]:
    """What `model` says to every question of a set, with the scores of its signals."""
    rows = []
    layers = tuple({layer for signal in signals for layer in signal.layers(model)})
    labels = tuple({label: None for signal in signals for label in signal.labels})
    for start in range(0, len(asked.questions), model.capability.batch_size):
        part = asked.questions[start : start + model.capability.batch_size]
        requests = [request(question) for question in part]
        prompts = model.prefill([Prefill(model, one, layers, labels) for one in requests])
        answers = model.generate([Generate(model, one) for one in requests])
        for i, (question, one, read, said) in enumerate(zip(part, requests, prompts, answers, strict=True)):
            if isinstance(read, Exception):
                raise read
            if isinstance(said, Exception):
                raise said
            evidence = Evidence(one, read, said.tokens, said)
            rows.append(
                Row(
                    question=f"{asked.name} {start + i}",
                    model=model.name,
                    answer=said.text,
                    grade=float(question.is_correct(said.text)),
                    refused=said.text.startswith(UNKNOWN),
                    tokens=said.tokens,
                    finish_reason=said.finish_reason,
                    labels=read.label_logprobs,
                    scores={
                        signal.name: score_of(
                            signal,
                            evidence,
                            prefill=bool(signal.layers(model) or signal.labels),
                            depth=known_depth(signal, model),
                        )
                        for signal in signals
                    },
                    usage=said.usage,
                    build=model.fingerprint,
                )
            )
            read.close()
    return rows


def differing(played: Replay, outcomes: Sequence[Outcome], answers: Answers) -> NDArray[np.bool_]:
    """Which questions a live run decided otherwise than replayed, at any stage, or with another grade or cost."""
    found = np.zeros(len(outcomes), bool)
    for i, outcome in enumerate(outcomes):
        decided = [DECISIONS[attempt.decision] for attempt in outcome.record.attempts]
        same = decided == [decision for decision in played.decision[i] if decision != NOT_ASKED]
        same &= outcome.record.stage == played.stage[i] and bool(answers.right[i]) == is_right(float(played.grade[i]))
        same &= math.isclose(outcome.record.cost.flops or 0, played.cost.flops[i])
        same &= math.isclose(outcome.record.cost_answering_stage.flops or 0, played.cost_answering_stage.flops[i])
        found[i] = not same
    return found


def near(columns: Columns, policy: Policy) -> NDArray[np.bool_]:
    """Which questions have a score that is nearer than `NEAR` to its threshold."""
    found = np.zeros(len(columns), bool)
    for size, name in product(policy.chain[:-1], policy.thresholds):
        found |= np.abs(columns.signal(size, name).values - policy.threshold) < NEAR
    return found
