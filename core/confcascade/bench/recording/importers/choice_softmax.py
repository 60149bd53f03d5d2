"""Multiple choice, of which the probability of the chosen letter was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from confcascade.bench.recording.importers.rows import ONE_TOKEN, correctness, csv_rows, score
from confcascade.bench.recording.row import NOT_KEPT, Row
from confcascade.errors import ConfigurationError

__all__ = ["read_choice_softmax"]


def read_choice_softmax(path: str | Path, prompt: int = 1) -> Iterator[Row]:
    """Multiple choice, of which the softmax probability of the answer letter was kept: a CSV file, gzipped or not.

    Its columns: ``question``, ``prompt``, ``model``, ``correct`` and ``confidence``. The last is P(T), the score
    ``p_t``: the probability of the letter that the model chose over the whole vocabulary, not normalised over the
    letters as `read_choice_logits` has to. It is judged with the answer, for nothing says that it was read off the
    prompt.

    Where no letter was found in the reply (``correct`` is empty), it is a wrong answer and has no score; the file's
    confidence of 0 is a filler. Which letter was chosen, how many tokens it took and how long is not told.

    Args:
        path: Such as the file of 14 models on ARC-Challenge, made from
            github.com/bplaut/llm-calibration-and-correctness-prediction (Plaut et al. 2024, arXiv 2402.13213).
        prompt: Which of the phrasings; it becomes `Row.prompt_version`. A recording has one row for each question and
            model, so each phrasing is a recording of its own.

    Raises:
        ConfigurationError: Naming the line, if a column or a number is missing; if there is no such prompt.
    """

    def rows(record: Mapping[str, str]) -> Iterator[Row]:
        version, told = record["prompt"], record["correct"]
        unread = told == ""
        row = Row(
            question=record["question"],
            model=record["model"],
            answer=NOT_KEPT,
            grade=0.0 if unread else correctness(told),
            finish_reason=None,
            scores={"p_t": score("", "no answer letter was found") if unread else score(record["confidence"])},
            usage=ONE_TOKEN,
            prompt_version=version,
        )
        if version == str(prompt):
            yield row

    any_row = False
    for row in csv_rows(path, rows):
        any_row = True
        yield row
    if not any_row:
        raise ConfigurationError(f"'{path}' has no row of prompt {prompt}.")
