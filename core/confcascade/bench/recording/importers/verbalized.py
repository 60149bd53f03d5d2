"""Answers to which the model wrote how sure it is, beside the probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from confcascade.bench.recording.importers.rows import ONE_TOKEN, correctness, count, csv_rows, score
from confcascade.bench.recording.row import NOT_KEPT, Row
from confcascade.types import Usage

__all__ = ["read_stated", "read_verbalized"]


def read_verbalized(path: str | Path) -> Iterator[Row]:
    """Multiple choice worked out in words that end with a number: a CSV file, gzipped or not.

    Its columns: ``question``, ``category``, ``answer`` (the reference), ``model``, ``predicted``,
    ``verbal_confidence``, ``sequence_confidence``, ``linguistic_confidence`` and ``tokens``. The scores:

    - ``verbalized``: the number that the model wrote, from 0 to 1; missing where it wrote none;
    - ``mean_token_probability``: the arithmetic mean of the probabilities of all tokens of the reply. It is not P(T),
      which is the geometric mean and never above it;
    - ``wording``: how sure the reply sounds to another model, which read it; that call is in no cost.

    The answer is the letter that was found in the reply, `NOT_KEPT` where none was, which is wrong; the reply itself is
    not told. Output tokens are those of the whole reply; those of the question are not told and count 0, so the usage
    is marked as estimated. Nor is the time told.

    Args:
        path: Such as the file of four Llamas on MMLU-Pro, made from github.com/Linwei94/LLM-Calibration-Study.

    Raises:
        ConfigurationError: Naming the line, if a column or a number is missing.
    """
    return csv_rows(path, _verbalized)


def _verbalized(record: Mapping[str, str]) -> Iterator[Row]:
    predicted, reference = record["predicted"], record["answer"]
    if not reference:
        raise ValueError("it has no `answer`")
    scores = {"verbalized": score(record["verbal_confidence"], "the model wrote no number")}
    for name, column in (("mean_token_probability", "sequence_confidence"), ("wording", "linguistic_confidence")):
        if record[column] != "":
            scores[name] = score(record[column])
    yield Row(
        question=record["question"],
        model=record["model"],
        group=record["category"],
        reference=reference,
        answer=predicted or NOT_KEPT,
        grade=float(predicted == reference),
        finish_reason=None,
        scores=scores,
        usage=Usage(0, count(record["tokens"]), estimated=True),
    )


def read_stated(path: str | Path) -> Iterator[Row]:
    """Short answers with a stated probability and, of some models, a token's: a CSV file, gzipped or not.

    Its columns: ``dataset``, ``question``, ``model``, ``correct``, ``stated_confidence`` and
    ``chosen_token_confidence``. The score ``verbalized`` is the probability that the model wrote for its answer;
    ``p_t``, P(T), that of the answer's token, which only models with log-probabilities have. The question's id is
    ``dataset/question``, and its group the data set.

    Rows that its makers could not parse are not in the file, so not every model has every question: compare models on
    `Columns.complete`. Which answer was given, how many tokens it took and how long is not told.

    Args:
        path: Such as the file of 11 models on SciQ and BoolQ, made from
            github.com/NoamMichael/Comparing-Confidence-in-LLMs.

    Raises:
        ConfigurationError: Naming the line, if a column or a number is missing.
    """
    return csv_rows(path, _stated)


def _stated(record: Mapping[str, str]) -> Iterator[Row]:
    dataset, token = record["dataset"], record["chosen_token_confidence"]
    scores = {"verbalized": score(record["stated_confidence"], "the model stated none")}
    if token != "":
        scores["p_t"] = score(token)
    yield Row(
        question=f"{dataset}/{record['question']}",
        model=record["model"],
        group=dataset,
        answer=NOT_KEPT,
        grade=correctness(record["correct"]),
        finish_reason=None,
        scores=scores,
        usage=ONE_TOKEN,
    )
