"""Whole solutions of a chain of models, each of which was then asked whether its own is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confcascade.bench.recording.importers.rows import count, json_rows, score
from confcascade.bench.recording.row import Row
from confcascade.types import Usage

__all__ = ["read_chain"]


def read_chain(path: str | Path) -> Iterator[Row]:
    """Solutions of a chain of models with each one's check of itself: JSON Lines, gzipped or not.

    On each line ``question`` (an id), ``prompt``, ``answer`` (the reference) and ``models``: a list of ``model``,
    ``answer``, ``correct``, ``logprob``, ``tokens_in``, ``tokens_out`` and ``latency_ms``. The score ``p_true`` is
    P(True), exp of ``logprob``: the probability of "yes" when the same model is asked whether the answer just given is
    right. The probability of the answer's own tokens, P(T), is not told.

    Tokens and time are of the call that answered. The check is a further call that reads the question and the answer
    again; its tokens are not told, so a policy that judges by ``p_true`` costs more than a replay says. ``cost_usd`` is
    left out: it grows with the tokens as both calls together would, and so is no price of the answer. Give `Prices`.

    Args:
        path: Such as the file of four models on GSM8K, made from github.com/mzelling/rational-llm-cascades (Zellinger
            and Thomson 2025, arXiv 2501.09345).

    Raises:
        ConfigurationError: Naming the line, if a key is missing or a value is of another kind.
    """
    return json_rows(path, _rows)


def _rows(record: Any) -> Iterator[Row]:
    for attempt in record["models"]:
        if not isinstance(attempt["correct"], bool):
            raise TypeError(f"`correct` is true or false, not {attempt['correct']!r}")
        yield Row(
            question=str(record["question"]),
            model=attempt["model"],
            prompt=record["prompt"],
            reference=record["answer"],
            answer=attempt["answer"],
            grade=float(attempt["correct"]),
            finish_reason=None,
            scores={"p_true": score(math.exp(attempt["logprob"]))},
            usage=Usage(count(attempt["tokens_in"]), count(attempt["tokens_out"])),
            latency_s=attempt["latency_ms"] / 1000,
        )
