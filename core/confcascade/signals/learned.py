"""Signals that are learnt from texts alone, for any model: a router of questions, and a scorer of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from confcascade.errors import SignalUnavailableError
from confcascade.signals import Evidence, Measurement
from confcascade.signals.learning import LearnedCard, LearnedSignal, checked_labels, checked_texts
from confcascade.signals.text_classifier import cross_predictions, predict
from confcascade.types import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LearnedScorer", "TextRouter"]


class TextRouter(LearnedSignal):
    """The probability, by a question's words alone, that the stage's model will do, in [0, 1].

    Judged before anything is generated and without asking the model anything, so a rejected question costs nothing of
    it; and it needs nothing of a model, so it serves every API. What it knows is which kinds of questions the model
    gets wrong; of questions unlike those that it was fitted on it knows nothing.

    It reads the last message of the user's, and no other: fit it on texts of that form, the prompt's template included.
    Made by `fit` or `load`.

    Source: after RouteLLM (Ong et al. 2024, arXiv 2406.18665) and Hybrid LLM (Ding et al. 2024, arXiv 2404.14618), with
    logistic regression on hashed words in the place of their language models.
    """

    phase: ClassVar[Literal["pre", "post"]] = "pre"
    columns = 1

    def __init__(self, card: LearnedCard, weights: Mapping[str, NDArray[np.float32]], name: str = "router") -> None:
        super().__init__(card, weights, name)

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(float(self.predict([_question(evidence.request)])[0]))

    def predict(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities of shape (n,)."""
        return predict(self._weights, checked_texts(questions))

    @classmethod
    def fit(
        cls,
        questions: Sequence[str],
        labels: ArrayLike,
        *,
        larger: ArrayLike | None = None,
        model: str | None = None,
        groups: Sequence[Any] | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> TextRouter:
        """Learn which questions the model gets right; or, with `larger`, where a larger model does no better.

        Args:
            questions: Texts, n of them.
            labels: Whether the model's answers were right, shape (n,); with `larger` their grades from 0 to 1.
            larger: Grades of the larger model's answers, shape (n,): a question is kept where they are no better, even
                if both are wrong (Hybrid LLM's quality gap, H >= 0).
            model: Name of the model; given, the router is refused on any other.
            groups: What must not be on both sides of a fold (the fact behind a question, say); by default every row is
                its own. Repeated questions belong in one group.
            folds: Of the cross-validation that `card` reports.
            seed: Of the folds.

        Returns:
            A router fitted on all rows; its `card` tells how well such a one does on rows that it did not see.

        Raises:
            ConfigurationError: If there are fewer than 30 rows, or rows of one class only, in all or in a fold.
        """
        columns = checked_texts(questions)
        y = checked_labels(columns, labels, larger)
        return cls._fit(columns, y, "right" if larger is None else "no worse", model, groups, folds, seed)

    @classmethod
    def cross_predict(
        cls,
        questions: Sequence[str],
        labels: ArrayLike,
        *,
        larger: ArrayLike | None = None,
        groups: Sequence[Any] | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> NDArray[np.float64]:
        """For every row the probability by a router fitted without its group; arguments and errors as of `fit`.

        What to report on the very rows that are there to learn from: shape (n,).
        """
        columns = checked_texts(questions)
        return cross_predictions(columns, checked_labels(columns, labels, larger), groups, folds=folds, seed=seed)[0]


class LearnedScorer(LearnedSignal):
    """The probability, by the words of a question and its answer, that the answer is right, in [0, 1].

    Judged once the answer is whole, with no further call. It reads the last message of the user's and the answer; fit
    it on texts of that form. Made by `fit` or `load`.

    Source: after FrugalGPT (Chen et al. 2023, arXiv 2305.05176), with logistic regression on hashed words in the place
    of DistilBERT.
    """

    phase: ClassVar[Literal["pre", "post"]] = "post"
    columns = 2

    def __init__(self, card: LearnedCard, weights: Mapping[str, NDArray[np.float32]], name: str = "scorer") -> None:
        super().__init__(card, weights, name)

    def score(self, evidence: Evidence) -> Measurement:
        if evidence.response is None:
            raise SignalUnavailableError("there is no whole answer")
        if evidence.response.calls_tools:
            raise SignalUnavailableError("the answer is a call of a tool, and not a text")
        return Measurement(float(self.predict([_question(evidence.request)], [evidence.response.text])[0]))

    def predict(self, questions: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities of shape (n,)."""
        return predict(self._weights, checked_texts(questions, answers))

    @classmethod
    def fit(
        cls,
        questions: Sequence[str],
        answers: Sequence[str],
        labels: ArrayLike,
        *,
        model: str | None = None,
        groups: Sequence[Any] | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> LearnedScorer:
        """Learn which answers are right.

        Args:
            questions: Texts, n of them.
            answers: The model's answers to them.
            labels: Whether they are right, shape (n,).
            model: Name of the model; given, the scorer is refused on any other.
            groups: What must not be on both sides of a fold; by default every row is its own. Several answers to one
                question belong in one group.
            folds: Of the cross-validation that `card` reports.
            seed: Of the folds.

        Returns:
            A scorer fitted on all rows; its `card` tells how well such a one does on rows that it did not see.

        Raises:
            ConfigurationError: If there are fewer than 30 rows, or rows of one class only, in all or in a fold.
        """
        columns = checked_texts(questions, answers)
        return cls._fit(columns, checked_labels(columns, labels, None), "right", model, groups, folds, seed)

    @classmethod
    def cross_predict(
        cls,
        questions: Sequence[str],
        answers: Sequence[str],
        labels: ArrayLike,
        *,
        groups: Sequence[Any] | None = None,
        folds: int = 5,
        seed: int = 0,
    ) -> NDArray[np.float64]:
        """For every row the probability by a scorer fitted without its group; arguments and errors as of `fit`.

        What to report on the very rows that are there to learn from: shape (n,).
        """
        columns = checked_texts(questions, answers)
        return cross_predictions(columns, checked_labels(columns, labels, None), groups, folds=folds, seed=seed)[0]


def _question(request: Request) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            if not message.content.strip():
                raise SignalUnavailableError("the last message of the user's has no text")
            return message.content
    raise SignalUnavailableError("there is no message of the user's")
