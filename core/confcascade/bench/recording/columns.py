"""A recording as arrays: the numbers that decisions and costs hang on, without the texts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.row import RecordedScore, Row
from confcascade.errors import ConfigurationError
from confcascade.types import Usage

__all__ = ["Column", "Columns", "Gathering", "Labels", "Upper"]

_LABELS = 256  # of one signal; answers out of more are free text


@dataclass(frozen=True)
class Upper:
    """How the greatest value that a signal can still reach falls as tokens come (`RecordedScore.upper`).

    Attributes:
        starts: Where each question's entries begin, shape (questions + 1,).
        tokens: Generated so far, ascending within a question.
        bounds: From then on, descending within a question.
    """

    starts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    bounds: NDArray[np.float64]

    def __getitem__(self, rows: slice) -> Upper:
        """That of consecutive questions."""
        first, last, _ = rows.indices(len(self.starts) - 1)
        begin, end = self.starts[first], self.starts[last]
        return Upper(self.starts[first : last + 1] - begin, self.tokens[begin:end], self.bounds[begin:end])

    def take(self, rows: NDArray[np.intp]) -> Upper:
        """That of some questions."""
        counts = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(counts)])
        entries = np.repeat(self.starts[rows] - starts[:-1], counts) + np.arange(starts[-1])
        return Upper(starts, self.tokens[entries], self.bounds[entries])


@dataclass(frozen=True)
class Labels:
    """Which label each answer gives, of those that its model ever gave.

    Attributes:
        names: Sorted.
        index: Of each question, shape (questions,); -1 where none is known.
        probabilities: Of a signal that corrects: of each label in the place of the answer's, shape (questions, names);
            NaN where none is known, or the answer cannot be corrected. None of other signals.
        grades: How right the answer would be with that label, likewise; NaN where nobody graded it.
    """

    names: tuple[str, ...]
    index: NDArray[np.int16]
    probabilities: NDArray[np.float64] | None = None
    grades: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[np.intp]) -> Labels:
        """Those of some questions."""
        if self.probabilities is None or self.grades is None:
            return Labels(self.names, self.index[rows])
        return Labels(self.names, self.index[rows], self.probabilities[rows], self.grades[rows])

    def are(self, label: str) -> NDArray[np.bool_]:
        """Which answers give this label, shape (questions,)."""
        at = self.names.index(label) if label in self.names else len(self.names)
        return np.equal(self.index, at)


@dataclass(frozen=True)
class Column:
    """One signal of one model.

    Attributes:
        values: Shape (questions,); NaN where the score is missing.
        phase: "pre" or "post".
        prefill: Whether the prompt is read for it.
        upper: Its bounds; None if it never decides early.
        lower: What it could no longer fall below before the answer ended (`RecordedScore.lower`), shape (questions,);
            NaN where there is none, None if there is none at all.
        labels: Which label the answer gives, as the signal read it, or else its grader (`Row.predicted`); None where
            neither tells.
        depth: As of `RecordedScore`.
    """

    values: NDArray[np.float64]
    phase: str
    prefill: bool
    upper: Upper | None
    labels: Labels | None = None
    depth: float | None = None
    lower: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[np.intp]) -> Column:
        """That of some questions."""
        upper = None if self.upper is None else self.upper.take(rows)
        labels = None if self.labels is None else self.labels.take(rows)
        lower = None if self.lower is None else self.lower[rows]
        return Column(self.values[rows], self.phase, self.prefill, upper, labels, self.depth, lower)


@dataclass(frozen=True)
class Columns:
    """A recording as arrays of shape (questions, models), both in the order of their first rows.

    A question that was drawn several times (`Row.drawn`) stands there as often: whatever counts questions counts draws.

    Attributes:
        questions: Ids.
        models: Names.
        groups: Of each question; "" where none is told.
        recorded: Whether there is a row.
        grades: From 0 to 1; NaN where nobody graded.
        usable: There is an answer that a cascade could keep.
        said: There is an answer, were it cut off or filtered: something that a stream may have shown.
        failed: The model raised an error.
        refused: The answer says that it does not know.
        input_tokens: Paid for.
        output_tokens: Paid for.
        gate_input_tokens: Of them, those of a call of its own before the answer (`Row.gate_input_tokens`).
        gate_output_tokens: Likewise.
        flops: Of answers that tell it themselves, because several models made them (`Row.flops`); else NaN.
        usd: Likewise.
        told_tokens: How many the answer was known to have come to, thoughts included; -1 where none were told.
        before_answer: How many of them came before the answer itself.
        latency_s: Whole attempts; NaN where unknown.
        prefill_s: Of reading the prompt; NaN where unknown.
        signals: By model and name.
    """

    questions: tuple[str, ...]
    models: tuple[str, ...]
    groups: NDArray[np.str_]
    recorded: NDArray[np.bool_]
    grades: NDArray[np.float64]
    usable: NDArray[np.bool_]
    said: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    gate_input_tokens: NDArray[np.int64]
    gate_output_tokens: NDArray[np.int64]
    flops: NDArray[np.float64]
    usd: NDArray[np.float64]
    told_tokens: NDArray[np.int64]
    before_answer: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    prefill_s: NDArray[np.float64]
    signals: Mapping[tuple[str, str], Column]

    def __len__(self) -> int:
        return len(self.questions)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Columns:
        """Those of rows in any order. Of two with the same question and model the later holds.

        Raises:
            ConfigurationError: If there is no row, or a signal of a model is now of one kind, now of another.
        """
        gathering = Gathering()
        for row in rows:
            gathering.add(row)
        return gathering.columns()

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """Every score, shape (questions, models, signals), NaN where missing; signals as in `signal_names`."""
        missing = np.full(len(self), np.nan)
        columns = [
            [self.signals[model, name].values if (model, name) in self.signals else missing for model in self.models]
            for name in self.signal_names
        ]
        return np.array(columns).reshape(len(columns), len(self.models), len(self)).transpose(2, 1, 0)

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Of all models, sorted."""
        return tuple(sorted({name for _, name in self.signals}))

    def index(self, model: str) -> int:
        """Where `model` stands among the models.

        Raises:
            ConfigurationError: If it is not recorded.
        """
        if model not in self.models:
            raise ConfigurationError(f"Model '{model}' is not in the recording, which has {list(self.models)}.")
        return self.models.index(model)

    def signal(self, model: str, name: str) -> Column:
        """One signal of one model.

        Raises:
            ConfigurationError: If it is not recorded.
        """
        self.index(model)
        if (model, name) not in self.signals:
            known = sorted(signal for owner, signal in self.signals if owner == model)
            raise ConfigurationError(f"Signal '{name}' of model '{model}' is not in the recording, which has {known}.")
        return self.signals[model, name]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | Sequence[int]) -> Columns:
        """Those of some questions (a split, a group), by index or mask."""
        chosen = np.asarray(rows)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.intp)
        changed = {
            name: value[index]
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray) and name in type(self).__dataclass_fields__
        }
        signals = {key: column.take(index) for key, column in self.signals.items()}
        return Columns(
            questions=tuple(self.questions[i] for i in index), models=self.models, signals=signals, **changed
        )

    def complete(self, models: Sequence[str] | None = None) -> Columns:
        """Those of the questions that every one of `models` (by default all) was asked."""
        columns = [self.index(model) for model in self.models if models is None or model in models]
        return self.take(np.flatnonzero(self.recorded[:, columns].all(axis=1)))


@dataclass
class _Signal:
    """One signal of one model while rows come in: an entry per row that has it."""

    phase: str
    prefill: bool
    depth: float | None
    rows: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("d"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    bounds: array[float] = field(default_factory=lambda: array("d"))
    lower: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("h"))
    label_names: dict[str, int] = field(default_factory=dict)
    others: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # details of those that can be corrected

    def add(self, row: int, score: RecordedScore, predicted: str | None) -> None:
        self.rows.append(row)
        self._label(score.details, predicted)
        self.value.append(np.nan if score.value is None else score.value)
        self.lower.append(np.nan if score.lower is None else score.lower)
        self.counts.append(len(score.upper))
        for tokens, bound in score.upper:
            self.tokens.append(tokens)
            self.bounds.append(bound)

    def add_many(
        self,
        rows: NDArray[np.int64],
        values: NDArray[np.float64],
        lower: NDArray[np.float64],
        counts: NDArray[np.int64],
        tokens: NDArray[np.int64],
        bounds: NDArray[np.float64],
        labels: Iterable[tuple[Mapping[str, Any], str | None]],
    ) -> None:
        """The scores of `rows`, each with `counts` entries of `tokens` and `bounds`; details and grader's readings."""
        for details, predicted in labels:
            self._label(details, predicted)
        self.rows.frombytes(rows.astype(np.int64).tobytes())
        self.value.frombytes(values.tobytes())
        self.lower.frombytes(lower.tobytes())
        self.counts.frombytes(counts.astype(np.int64).tobytes())
        self.tokens.frombytes(tokens.astype(np.int64).tobytes())
        self.bounds.frombytes(bounds.tobytes())

    def _label(self, details: Mapping[str, Any], predicted: str | None) -> None:
        if "label" in details and isinstance(details.get("probabilities"), Mapping):
            self.others[len(self.labels)] = details
            for label in details["probabilities"]:
                self.label_names.setdefault(label, len(self.label_names))
        label, known = details.get("label", predicted), self.label_names
        few = isinstance(label, str) and (label in known or len(known) < _LABELS)
        self.labels.append(known.setdefault(label, len(known)) if few else -1)

    def _labels(self, chosen: NDArray[np.intp]) -> Labels | None:
        if not self.label_names or len(self.label_names) >= _LABELS:
            return None
        names = sorted(self.label_names)
        place = np.array([*(names.index(name) for name in self.label_names), -1], dtype=np.int16)
        index = place[np.array([*self.labels, -1], dtype=np.int16)]
        if not self.others:
            return Labels(tuple(names), index[chosen])
        probabilities, grades = np.full((2, len(index), len(names)), np.nan)
        for entry, details in self.others.items():
            for told, key in ((probabilities, "probabilities"), (grades, "grades")):
                for label, value in details.get(key, {}).items():
                    told[entry, names.index(label)] = np.nan if value is None else value
        return Labels(tuple(names), index, probabilities, grades).take(chosen)

    def column(self, rows: NDArray[np.int64], total: int) -> Column:
        """One entry for each of `rows`, of `total` in all; -1 stands for no row."""
        entry = np.full(total + 1, len(self.rows))  # by default, and for no row, an empty entry at the end
        entry[np.array(self.rows, dtype=np.intp)] = np.arange(len(self.rows))
        chosen = entry[rows]
        values = np.array([*self.value, np.nan])[chosen]
        below = np.array([*self.lower, np.nan])[chosen]
        lower = None if np.isnan(below).all() else below
        if not self.tokens:
            return Column(values, self.phase, self.prefill, None, self._labels(chosen), self.depth, lower)
        starts = np.concatenate([[0], np.cumsum([*self.counts, 0])])
        upper = Upper(starts, np.array(self.tokens, dtype=np.int64), np.array(self.bounds))
        return Column(values, self.phase, self.prefill, upper.take(chosen), self._labels(chosen), self.depth, lower)


class Gathering:
    """Rows as they come, in buffers that grow."""

    def __init__(self) -> None:
        self.questions: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self.groups: dict[int, str] = {}
        self.drawn: dict[int, int] = {}  # of the questions that were drawn more than once
        self.at: array[int] = array("q")  # question and model of each row
        self.by: array[int] = array("q")
        self.numbers: array[float] = array("d")  # fifteen of each row
        self.signals: dict[tuple[str, str], _Signal] = {}

    def add(self, row: Row) -> None:
        question = self.questions.setdefault(row.question, len(self.questions))
        model = self.models.setdefault(row.model, len(self.models))
        if row.group is not None:
            self.groups[question] = row.group
        self._draw(question, row.drawn)
        number = len(self.at)
        self.at.append(question)
        self.by.append(model)
        usage: Usage = row.usage
        self.numbers.extend(
            (
                np.nan if row.grade is None else row.grade,
                row.usable,
                row.error is None and bool(row.answer.strip()),
                row.error is not None,
                row.refused,
                usage.input_tokens,
                usage.output_tokens,
                -1 if row.tokens is None else row.before_answer + len(row.tokens),
                row.before_answer,
                np.nan if row.latency_s is None else row.latency_s,
                np.nan if row.prefill_s is None else row.prefill_s,
                np.nan if row.flops is None else row.flops,
                np.nan if row.usd is None else row.usd,
                row.gate_input_tokens,
                row.gate_output_tokens,
            )
        )
        for name, score in row.scores.items():
            kind = score.phase, score.prefill, score.depth
            self.signal(row.model, name, *kind, row.question).add(number, score, row.predicted)

    def add_many(
        self,
        questions: Sequence[str],
        models: Sequence[str],
        groups: Sequence[str | None],
        drawn: Sequence[int],
        numbers: NDArray[np.float64],
    ) -> int:
        """Many rows without their scores; `numbers` has the shape (rows, fifteen). Returns the first row's number."""
        first = len(self.at)
        self.at.extend(self.questions.setdefault(question, len(self.questions)) for question in questions)
        self.by.extend(self.models.setdefault(model, len(self.models)) for model in models)
        self.groups.update((at, group) for at, group in zip(self.at[first:], groups, strict=True) if group is not None)
        self.numbers.frombytes(numbers.astype(np.float64).tobytes())
        for at, times in zip(self.at[first:], drawn, strict=True):
            self._draw(at, times)
        return first

    def _draw(self, question: int, times: int) -> None:
        if times > self.drawn.get(question, 1):
            self.drawn[question] = times

    def signal(self, model: str, name: str, phase: str, prefill: bool, depth: float | None, question: str) -> _Signal:
        """Where the scores of a signal of this kind go; `question` is one that has such a score.

        A depth holds if all rows have it: those of older recordings have none.

        Raises:
            ConfigurationError: If they were of another kind so far.
        """
        known = self.signals.setdefault((model, name), _Signal(phase, prefill, depth))
        if (known.phase, known.prefill) != (phase, prefill):
            raise ConfigurationError(
                f"Signal '{name}' of model '{model}' is recorded in two kinds: (phase, prefill) is "
                f"{(known.phase, known.prefill)} first and {(phase, prefill)} at question '{question}'. "
                "Give one of them another name."
            )
        if known.depth != depth:
            known.depth = None
        return known

    def columns(self) -> Columns:
        if not self.questions:
            raise ConfigurationError("The recording has no rows.")
        shape = len(self.questions), len(self.models)
        at, by = np.array(self.at, dtype=np.intp), np.array(self.by, dtype=np.intp)
        last = np.full(shape, -1)
        last[at, by] = np.arange(len(at))
        numbers = np.array(self.numbers).reshape(-1, 15)
        absent = np.array([[np.nan, 0, 0, 0, 0, 0, 0, -1, 0, *[np.nan] * 4, 0, 0]])
        grade, usable, said, failed, refused, read, written, told, before, *others = np.moveaxis(
            np.concatenate([numbers, absent])[last], -1, 0
        )
        latency, prefill, flops, usd, gate_read, gate_written = others
        columns = Columns(
            questions=tuple(self.questions),
            models=tuple(self.models),
            groups=np.array([self.groups.get(i, "") for i in range(shape[0])]),
            recorded=last >= 0,
            grades=grade.copy(),
            usable=usable.astype(bool),
            said=said.astype(bool),
            failed=failed.astype(bool),
            refused=refused.astype(bool),
            input_tokens=read.astype(np.int64),
            output_tokens=written.astype(np.int64),
            gate_input_tokens=gate_read.astype(np.int64),
            gate_output_tokens=gate_written.astype(np.int64),
            flops=flops.copy(),
            usd=usd.copy(),
            told_tokens=told.astype(np.int64),
            before_answer=before.astype(np.int64),
            latency_s=latency.copy(),
            prefill_s=prefill.copy(),
            signals={
                (model, name): signal.column(last[:, self.models[model]], len(at))
                for (model, name), signal in self.signals.items()
            },
        )
        if not self.drawn:
            return columns
        return columns.take(np.repeat(np.arange(shape[0]), [self.drawn.get(i, 1) for i in range(shape[0])]))
