"""Multiple choice, of which the logits of the answer letters were published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from confcascade.evaluation.importers.rows import ONE_TOKEN, csv_rows, finite
from confcascade.evaluation.recordings import Row, recorded_score
from confcascade.signals import Evidence
from confcascade.signals.token_probability import TokenProbability
from confcascade.types import Message, Prefilled, Request, Response

__all__ = ["read_choice_logits"]


def read_choice_logits(path: str | Path, labels: Sequence[str] = "ABCD") -> Iterator[Row]:
    """Multiple choice, of which the logits of the answer letters were kept: a CSV file, gzipped or not.

    Its columns: ``id``, ``subject``, ``answer``, ``model``, and ``logit_A`` and so on for each label, at the last
    position of the prompt. The answer is the label of the largest logit; P(T), the score ``p_t``, is its probability
    among the labels alone, for the logits of other tokens are not there: it is above the raw P(T).

    Nothing says how many tokens a question has, or how long it took.

    Args:
        path: Such as the file of Llama-3.1 on MMLU, made from github.com/alecwangcq/llm-calibration.
        labels: Answer letters.

    Raises:
        ConfigurationError: Naming the line, if a column or a number is missing, or a logit is not finite.
    """
    signal = TokenProbability(labels)

    def rows(record: Mapping[str, str]) -> Iterator[Row]:
        logits = [finite(record[f"logit_{label}"]) for label in labels]
        question, reference = record["id"], record["answer"]
        highest = max(logits)
        total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
        logprobs = {label: logit - total for label, logit in zip(labels, logits, strict=True)}
        answer = labels[logits.index(highest)]
        evidence = Evidence(
            Request((Message("user", question),)),
            Prefilled(ONE_TOKEN, label_logprobs=logprobs),
            None,
            Response(answer, None, ONE_TOKEN),
        )
        yield Row(
            question=question,
            model=record["model"],
            group=record.get("subject"),
            reference=reference,
            answer=answer,
            grade=float(answer == reference),
            labels=logprobs,
            scores={signal.name: recorded_score(signal, evidence, prefill=True)},
            usage=ONE_TOKEN,
        )

    return csv_rows(path, rows)
