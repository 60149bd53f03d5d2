"""How well retrieval matched the query: the scores of the passages that an answer is to be read from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Measurement, Signal

__all__ = ["RetrievalScore"]

Aggregate = Literal["top", "mean", "margin"]


class RetrievalScore(Signal):
    """How well the retrieved passages match the query, by the retriever's own scores.

    Judged before anything is generated: where the passages do not match, the question may need a model that notices.
    It knows nothing of the model, so it is best given beside P(T), and its threshold belongs to one retriever over one
    set of documents: scores of retrievers differ, and BM25's grow with the query and the collection.

    - "top" (default): the best passage's score;
    - "mean": the mean of the `k` best, or of all where there are fewer;
    - "margin": how far the best is ahead of the second.

    The scores come with the request (`Request.retrieved`). In LlamaIndex they are those of the retriever that ran for
    the same query, before any postprocessor or reranker; see `llamaindex_confcascade`.

    Args:
        aggregate: How the scores become one number.
        k: How many passages "mean" is taken over, at least 1.
        scores: Range of the retriever's scores, such as (-1, 1) for a cosine; unbounded by default, as BM25's are.
            Higher must mean more relevant: a distance is no such score.
        name: Key of thresholds and records.

    Raises:
        ConfigurationError: If an argument is out of its range.

    >>> RetrievalScore("margin", scores=(-1, 1)).space
    (0.0, 2.0)
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"

    def __init__(
        self,
        aggregate: Aggregate = "top",
        *,
        k: int = 3,
        scores: tuple[float, float] = (-math.inf, math.inf),
        name: str = "retrieval",
    ) -> None:
        if aggregate not in ("top", "mean", "margin"):
            raise ConfigurationError(
                f'`aggregate` of RetrievalScore must be "top", "mean" or "margin". Got {aggregate!r}.'
            )
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigurationError(f"`k` of RetrievalScore must be a whole number of at least 1. Got {k!r}.")
        low, high = map(float, scores)
        if not low < high:
            raise ConfigurationError(f"`scores` of RetrievalScore must be (low, high) with low < high. Got {scores!r}.")
        self.aggregate = aggregate
        self.k = k
        self.scores = (low, high)
        self.space = (0.0, high - low) if aggregate == "margin" else self.scores
        self.name = name

    def __repr__(self) -> str:
        return f"RetrievalScore({self.aggregate!r}, k={self.k}, scores={self.scores})"

    def identity(self) -> Mapping[str, Any]:
        return {
            "signal": "RetrievalScore",
            "aggregate": self.aggregate,
            "k": self.k if self.aggregate == "mean" else None,  # which alone reads it
            "scores": [end if math.isfinite(end) else None for end in self.scores],  # JSON knows no infinity
        }

    def check(self, model: LanguageModel) -> None:
        """Any model will do: nothing is asked of it."""

    def score(self, evidence: Evidence) -> Measurement:
        retrieved = evidence.request.retrieved
        if retrieved is None:
            raise SignalUnavailableError("nothing was retrieved for this query")
        if not retrieved:
            raise SignalUnavailableError("the retriever found no passage")
        known = sorted((score for score in retrieved if score is not None), reverse=True)
        if len(known) < len(retrieved):
            raise SignalUnavailableError("a retrieved passage has no score")
        low, high = self.scores
        if not all(math.isfinite(score) and low <= score <= high for score in known):
            raise SignalUnavailableError(f"a retrieved passage has a score outside of [{low:g}, {high:g}]")
        if self.aggregate == "margin" and len(known) < 2:
            raise SignalUnavailableError("one retrieved passage alone has no margin over a second")
        if self.aggregate == "top":
            value = known[0]
        elif self.aggregate == "mean":
            best = known[: self.k]
            value = math.fsum(best) / len(best)
        else:
            value = known[0] - known[1]
        return Measurement(float(value), {"passages": len(known)})
