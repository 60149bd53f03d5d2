"""What the figures of a report need of a recording beside its `Columns`: letters, texts, and what is not known."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confcascade.evaluation.columns import Columns
from confcascade.evaluation.examples import LETTERS
from confcascade.evaluation.importers.rows import NOT_KEPT
from confcascade.evaluation.recordings import RecordedScore, Row

__all__ = ["MEAN_LOG_PROBABILITY", "NO_LETTER", "TEXTS_AT_MOST", "Gathered", "Texts", "gather"]

MEAN_LOG_PROBABILITY = "mean_log_probability"  # exp of it, in [0, 1]
NO_LETTER = -1
TEXTS_AT_MOST = 200_000  # rows whose texts are held; of larger recordings no learned baselines are made


@dataclass(frozen=True)
class Texts:
    """The texts of a recording: prompts by question, answers by question and model."""

    prompts: dict[str, str]
    answers: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Gathered:
    """A recording, read once.

    Attributes:
        columns: Its numbers, the score `MEAN_LOG_PROBABILITY` added where tokens were kept.
        predicted: Index of the letter that each model chose, shape (questions, models) as in `columns`; `NO_LETTER`
            where it chose none.
        reference: Index of the right letter, shape (questions,).
        estimated: How many rows have token counts that nobody told.
        rows: How many there are.
        texts: None where the recording keeps none, or more than `TEXTS_AT_MOST`.
        no_texts: Why there are none.
    """

    columns: Columns
    predicted: NDArray[np.int8]
    reference: NDArray[np.int8]
    estimated: int
    rows: int
    texts: Texts | None
    no_texts: str = ""

    def take(self, rows: NDArray[np.intp]) -> Gathered:
        """That of some questions."""
        return Gathered(
            self.columns.take(rows),
            self.predicted[rows],
            self.reference[rows],
            self.estimated,
            self.rows,
            self.texts,
            self.no_texts,
        )


def gather(rows: Iterable[Row]) -> Gathered:
    """Read a recording, texts included while they are few enough to be held."""
    notes = _Notes()
    columns = Columns.of(notes.passing(rows))
    return notes.gathered(columns)


class _Notes:
    """What is written down of rows as they pass."""

    def __init__(self) -> None:
        self.questions: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self.at = array("q")  # of each row: question, model, letter chosen, letter that is right
        self.by = array("q")
        self.chosen = array("b")
        self.right = array("b")
        self.estimated = 0
        self.prompts: dict[str, str] = {}
        self.answers: dict[tuple[str, str], str] = {}

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self._note(row)
            score = mean_log_probability(row)
            yield (
                row if score is None else row.model_copy(update={"scores": {**row.scores, MEAN_LOG_PROBABILITY: score}})
            )

    def _note(self, row: Row) -> None:
        self.at.append(self.questions.setdefault(row.question, len(self.questions)))
        self.by.append(self.models.setdefault(row.model, len(self.models)))
        self.chosen.append(_letter(row.answer if row.predicted is None else row.predicted))
        self.right.append(_letter(row.reference))
        self.estimated += row.usage.estimated
        if len(self.at) <= TEXTS_AT_MOST:
            if row.prompt:
                self.prompts[row.question] = row.prompt
            if row.answer != NOT_KEPT:
                self.answers[row.key] = row.answer
        else:
            self.prompts.clear()
            self.answers.clear()

    def gathered(self, columns: Columns) -> Gathered:
        predicted = np.full((len(self.questions), len(self.models)), NO_LETTER, dtype=np.int8)
        reference = np.full(len(self.questions), NO_LETTER, dtype=np.int8)
        at, by = np.array(self.at, dtype=np.intp), np.array(self.by, dtype=np.intp)
        predicted[at, by] = self.chosen  # of two rows with the same key the last holds, here as there
        reference[at] = self.right
        texts, reason = None, ""
        if len(self.at) > TEXTS_AT_MOST:
            reason = f"more than {TEXTS_AT_MOST:,} rows: their texts are not held"
        elif not self.prompts:
            reason = "prompts are not kept in this recording"
        else:
            texts = Texts(self.prompts, self.answers)
        return Gathered(columns, predicted, reference, self.estimated, len(self.at), texts, reason)


def mean_log_probability(row: Row) -> RecordedScore | None:
    """The baseline of a dozen lines: exp of the mean log-probability of the answer's tokens.

    None if they are unknown, or one is NaN or infinite (minus infinity is a probability of 0).

    Each row's is computed from its tokens, whatever signals the recording has.
    """
    if not row.tokens or not all(token.logprob < math.inf for token in row.tokens):  # of NaN no comparison is true
        return None
    return RecordedScore(value=min(1.0, math.exp(math.fsum(t.logprob for t in row.tokens) / len(row.tokens))))


def _letter(text: str | None) -> int:
    stripped = "" if text is None else text.strip()
    return LETTERS.index(stripped) if len(stripped) == 1 and stripped in LETTERS else NO_LETTER


def letters(codes: NDArray[np.int8]) -> Sequence[str]:
    """As words: "" where there is none."""
    return [LETTERS[code] if code != NO_LETTER else "" for code in codes.tolist()]
