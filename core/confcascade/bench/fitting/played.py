"""What policies do on a recording, as targets other than accuracy speak about it: `confcascade.guarantee.Played`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.fitting.material import FitData
from confcascade.bench.recording.columns import Columns
from confcascade.bench.replay.costing import Costing
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import NOT_ASKED, replay
from confcascade.cost import token_flops
from confcascade.errors import ConfigurationError
from confcascade.graders.texts import normalized
from confcascade.guarantee import (
    Played,
    Target,
)
from confcascade.types import Usage

__all__ = ["ClassAnswers", "QueryLimits", "played"]


@dataclass(frozen=True)
class QueryLimits:
    """What one question costs at most at one model: without it nothing can be promised of a mean cost.

    Attributes:
        tokens: Of the prompt and of the answer that are paid for, all calls for the question together; None if there
            is no limit.
        timeout: Seconds after which an attempt is given up; likewise.
    """

    tokens: tuple[int, int] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and not all(each > 0 for each in self.tokens):
            raise ConfigurationError(f"`most_tokens` must be two numbers above 0. Got {self.tokens}.")
        if self.timeout is not None and not 0 < self.timeout < np.inf:
            raise ConfigurationError(f"`timeout` must be seconds above 0. Got {self.timeout:g}.")

    def tops(
        self, columns: Columns, policies: Sequence[Sequence[PolicyStage]], largest: str, bill: Costing
    ) -> dict[str, NDArray[np.float64]]:
        """Of `Played`.

        Raises:
            ConfigurationError: If a recorded attempt is beyond a limit, or costs something else than its tokens.
        """
        found: dict[str, NDArray[np.float64]] = {}
        models = {stage.model for policy in policies for stage in policy} | {largest}
        if self.timeout is not None:
            slow = int((columns.latency_s[:, [columns.index(model) for model in models]] > self.timeout).sum())
            if slow:
                raise ConfigurationError(
                    f"{slow:,} recorded attempts took longer than the `timeout={self.timeout:g}` after which they are "
                    "said to be given up. Collect with that timeout, or give a longer one."
                )
            found["seconds"] = np.array([self.timeout * len(policy) for policy in policies])
        by_model = {model: self._most(columns, model, bill) for model in models}
        if None not in by_model.values():
            known = {model: most for model, most in by_model.items() if most is not None}
            found["largest"] = np.array(known[largest])
            found["others"] = np.array(
                [sum(known[stage.model] for stage in policy if stage.model != largest) for policy in policies], float
            )
        return found

    def _most(self, columns: Columns, model: str, bill: Costing) -> float | None:
        """What a question costs at most at a model, in the bill's unit; None if that has no bound."""
        if bill.unit == "seconds":
            return self.timeout
        if self.tokens is None:
            return None
        read, written = self.tokens
        j = columns.index(model)
        beyond = int(((columns.input_tokens[:, j] > read) | (columns.output_tokens[:, j] > written)).sum())
        if beyond:
            raise ConfigurationError(
                f"{beyond:,} recorded answers of '{model}' took more than the {read:,} tokens of a prompt and "
                f"{written:,} of an answer that are said to be the most (`most_tokens=...`). The longest recorded: "
                f"{int(columns.input_tokens[:, j].max()):,} and {int(columns.output_tokens[:, j].max()):,}."
            )
        if bill.unit == "tokens":
            return float(read + written)
        own = columns.usd[:, j] if bill.unit == "usd" else columns.flops[:, j]
        if np.isfinite(own).any():
            raise ConfigurationError(
                f"What '{model}' costs was recorded with its answers, because several models made them, so no number "
                "of tokens bounds it. Limit how often the largest model is asked (`max_asked=...`) in its place."
            )
        if bill.unit == "usd":
            return bill.prices[model].of(Usage(read, written))
        return float(token_flops(bill.architectures[model], read + written))


@dataclass(frozen=True)
class ClassAnswers:
    """Answers and what they ought to be, as numbers of classes; answers that differ only in case, articles and
    punctuation are of one class, as of `normalized`.

    Attributes:
        classes: As they were first written.
        answers: Shape (questions, models) as in the columns; -1 where there is none.
        references: Shape (questions,).
        against: What they are: "references", or the "largest" model's answers.
    """

    classes: tuple[str, ...]
    answers: NDArray[np.int32]
    references: NDArray[np.int32]
    against: Literal["references", "largest"]

    @classmethod
    def of(cls, material: FitData, *, labels: bool) -> ClassAnswers:
        """Those of a recording.

        Args:
            material: Read with `texts`.
            labels: Whether answers are compared with references, or with the largest model's answers.

        Raises:
            ConfigurationError: If the recording keeps no answers, or no references.
        """
        columns, codes, names = material.columns, dict[str, int](), list[str]()

        def code(text: str) -> int:
            key = normalized(text) or text.strip()
            if key not in codes:
                codes[key] = len(names)
                names.append(text.strip())
            return codes[key]

        answers = np.full((len(columns), len(columns.models)), -1, dtype=np.int32)
        references = np.full(len(columns), -1, dtype=np.int32)
        largest = columns.index(material.models[-1])
        for i, question in enumerate(columns.questions):
            if labels:
                if question not in material.references:
                    raise ConfigurationError(
                        f"The recording keeps no reference of question '{question}', so precision, recall and F1 are "
                        "not known. Collect with `keep_text=True` and references, or fit without labels, against the "
                        "largest model's answers."
                    )
                references[i] = code(material.references[question])
            for model in material.models:
                j = columns.index(model)
                if columns.usable[i, j]:
                    text = material.answers.get((question, model), "")
                    if not text.strip():
                        raise ConfigurationError(
                            f"The recording keeps no answer of '{model}' to question '{question}', so its class is not "
                            "known. Collect with `keep_text=True`."
                        )
                    answers[i, j] = code(text)
            if not labels:
                references[i] = answers[i, largest]
        return cls(tuple(names), answers, references, "references" if labels else "largest")

    def named(self, target: Target) -> Target:
        """The target with its class as it is written here; unchanged if it is not there, or speaks of none."""
        if target.of is None:
            return target
        key = normalized(target.of) or target.of.strip()
        same = [name for name in self.classes if (normalized(name) or name) == key]
        return replace(target, of=same[0]) if same else target


def played(
    columns: Columns,
    policies: Sequence[Sequence[PolicyStage]],
    largest: str,
    bill: Costing,
    *,
    classes: ClassAnswers | None = None,
    limits: QueryLimits | None = None,
) -> Played:
    """What policies do on every question of a recording.

    Args:
        columns: The questions, with the signals that the policies read.
        policies: Any.
        largest: The model that targets are held against.
        bill: Of costs.
        classes: Of these questions; None if no target speaks of a class.
        limits: What a question costs at most; by default nothing is known of that.

    Raises:
        ConfigurationError: If a policy cannot be replayed, or a recorded attempt is beyond the limits.
    """
    shape = len(policies), len(columns)
    cost, seconds, grade = (np.empty(shape) for _ in range(3))
    asked, answers = np.zeros(shape, bool), np.full(shape, -1, np.int32)
    for i, policy in enumerate(policies):
        each = replay(columns, policy, architectures=bill.architectures, prices=bill.prices)
        cost[i], seconds[i], grade[i] = getattr(each.cost, bill.unit), each.cost.seconds, each.grade
        if policy[-1].model == largest:
            asked[i] = each.decision[:, -1] != NOT_ASKED
        if classes is not None:
            model = np.array([columns.index(stage.model) for stage in policy])[np.maximum(each.stage, 0)]
            answers[i] = np.where(each.stage >= 0, classes.answers[np.arange(len(columns)), model], -1)
    alone = replay(columns, [PolicyStage(largest)], architectures=bill.architectures, prices=bill.prices)
    return Played(
        asked=asked,
        cost=cost,
        largest_cost=getattr(alone.cost, bill.unit),
        grade=grade,
        largest_grade=alone.grade,
        seconds=seconds,
        answers=answers,
        references=np.full(len(columns), -1, np.int32) if classes is None else classes.references,
        classes=() if classes is None else classes.classes,
        tops={} if limits is None else limits.tops(columns, policies, largest, bill),
    )
