"""Recordings out of what others have published of their models' answers."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from confcascade.errors import ConfigurationError
from confcascade.evaluation.recordings import Row, recorded_score
from confcascade.signals import Evidence
from confcascade.signals.token_probability import TokenProbability
from confcascade.types import Message, Prefilled, Request, Response, Usage

__all__ = ["read_choice_logits"]


def read_choice_logits(path: str | Path, labels: Sequence[str] = "ABCD") -> Iterator[Row]:
    """Multiple choice, of which the logits of the answer letters were kept: a CSV file, gzipped or not.

    Its columns: ``id``, ``subject``, ``answer``, ``model``, and ``logit_A`` and so on for each label, at the last
    position of the prompt. The answer is the label of the largest logit; P(T), the score ``p_t``, is its probability
    among the labels alone, for the logits of other tokens are not there: it is above the raw P(T).

    Nothing says how many tokens a question has. Each is counted as one input token, so that costs are the paper's
    equation 6, 2N for a query, in either accounting.

    Args:
        path: Such as the file of Llama-3.1 on MMLU, made from github.com/alecwangcq/llm-calibration.
        labels: Answer letters.

    Raises:
        ConfigurationError: Naming the line, if a column or a number is missing.
    """
    signal = TokenProbability(labels)
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", newline="", encoding="utf-8") as file:
        for number, record in enumerate(csv.DictReader(file), start=2):
            try:
                logits = [float(record[f"logit_{label}"]) for label in labels]
                question, model, reference = record["id"], record["model"], record["answer"]
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigurationError(f"Line {number} of '{path}' lacks a column or a number: {error}.") from error
            highest = max(logits)
            total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
            logprobs = {label: logit - total for label, logit in zip(labels, logits, strict=True)}
            answer = labels[logits.index(highest)]
            usage = Usage(input_tokens=1)
            evidence = Evidence(
                Request((Message("user", question),)),
                Prefilled(usage, label_logprobs=logprobs),
                None,
                Response(answer, None, usage),
            )
            yield Row(
                question=question,
                model=model,
                group=record.get("subject"),
                reference=reference,
                answer=answer,
                grade=float(answer == reference),
                labels=logprobs,
                scores={signal.name: recorded_score(signal, evidence, prefill=True)},
                usage=usage,
            )
