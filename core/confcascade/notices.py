"""What a cascade logs, under the name ``confcascade``: whatever else would cost money or answers in silence."""

from __future__ import annotations

import logging
from typing import Any

from confcascade.errors import kept_of
from confcascade.trace import Attempt, Record

__all__ = ["Notices", "log_failed_batch", "log_only_told", "log_text"]

_log = logging.getLogger("confcascade")
_texts = logging.getLogger("confcascade.texts")

_NEVER_SCORED = 20  # attempts of a stage in a row, from the first, after which it is said
_MOST = 256  # kinds of notices of a cascade


class Notices:
    """Logs, of the records of one cascade, what its user should know: each kind once, degraded answers always.

    Args:
        last: Index of the last stage.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        self._said: dict[tuple[Any, ...], None] = {}  # the latest last
        self._asked: dict[int, int] = {}  # attempts of stages that have never been scored
        self._scored: set[int] = set()

    def note(self, record: Record) -> None:
        """Take note of a query that has ended."""
        for attempt in record.attempts:
            if attempt.error is not None:
                then = "Its queries escalate." if attempt.stage < self._last else "It is the last stage."
                self._once(
                    ("failed", attempt.stage, attempt.error),
                    f"Model '{attempt.model}' failed: {attempt.error.rstrip('.')}. {then}",
                )
            elif attempt.decision == "escalate" and not (attempt.latency_s or attempt.scores):  # it was not asked
                self._once(
                    ("passed over", attempt.stage, attempt.reason),
                    f"Model '{attempt.model}' was not asked: {attempt.reason}. Such queries escalate.",
                )
            for name, score in attempt.scores.items():
                if score.value is None:
                    why = str(score.details["unavailable"])
                    then = "It is kept all the same." if score.passed else "Such queries escalate."
                    self._once(
                        ("unscored", attempt.stage, name, why),
                        f"An answer of model '{attempt.model}' has no score {name}: {why.rstrip('.')}. {then}",
                    )
            self._count(attempt)
        if record.degraded:
            _log.warning(
                "The last stage failed (%s), and the rejected answer of model '%s' was returned in its place "
                '(on_exhausted="best").',
                record.attempts[-1].reason.rstrip("."),
                record.answered_by,
            )

    def _count(self, attempt: Attempt) -> None:
        """Of a judged stage: whether it is paid and its answers are never scored, whatever the reason."""
        stage = attempt.stage
        if stage in self._scored or stage == self._last or not attempt.usage.total_tokens:
            return
        wrote = attempt.decision == "accept" or any(step.kept for step in attempt.steps)
        if wrote or any(score.value is not None for score in attempt.scores.values()):
            self._scored.add(stage)
            return
        self._asked[stage] = self._asked.get(stage, 0) + 1
        if self._asked[stage] == _NEVER_SCORED:
            _log.warning(
                "Model '%s' was asked %d times and none of its answers was scored (the last: %s): its calls are paid "
                "for and save nothing.",
                attempt.model,
                _NEVER_SCORED,
                attempt.reason.rstrip("."),
            )

    def _once(self, kind: tuple[Any, ...], message: str) -> None:
        if kind not in self._said:
            self._said[kind] = None
            if len(self._said) > _MOST:
                self._said.pop(next(iter(self._said)), None)
            _log.warning("%s Logged once for each kind.", message)


_failed: set[tuple[str, str]] = set()  # kinds of failures of batches


def log_failed_batch(model: str, error: Exception, count: int) -> None:
    """Log that a batch failed, the first of its kind: asking one by one would hide it, and is slow."""
    kind = model, kept_of(error)
    if kind not in _failed:
        _failed.add(kind)
        _log.warning(
            "A call of model '%s' for %d queries failed: %s. They are asked one by one, which is slower. "
            "Logged once for each kind.",
            model,
            count,
            kind[1],
        )


_only_told: set[str] = set()


def log_only_told(model: str) -> None:
    """Log, once for each model, that nothing judges its answers but what it says of itself."""
    if model not in _only_told:
        _only_told.add(model)
        _log.warning(
            "Answers of model '%s' are judged only by the confidence that it states, which any text in its prompt can "
            "ask it to state. Where others write part of the prompt, add a signal that reads something else "
            "(TokenProbability, LearnedScorer, RetrievalScore). Logged once for each model.",
            model,
        )


def log_text(model: str, error: Exception) -> None:
    """Log what an error says, if that was asked for: the level of ``confcascade.texts`` itself is set to DEBUG.

    Only then, whatever the level of other loggers: it may quote prompts, answers and keys.
    """
    if _texts.level == logging.DEBUG:
        _texts.debug("Model '%s': %s: %s", model, kept_of(error), error)
