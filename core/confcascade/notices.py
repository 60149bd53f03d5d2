"""What a cascade logs, under the name ``confcascade``: whatever else would cost money or answers in silence."""

from __future__ import annotations

import logging

from confcascade.errors import kept_of
from confcascade.trace import Record

__all__ = ["Notices", "log_text"]

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
        self._said: set[tuple[str, ...]] = set()
        self._asked: dict[int, int] = {}  # attempts of stages that have never been scored
        self._scored: set[int] = set()

    def note(self, record: Record) -> None:
        """Take note of a query that has ended."""
        for attempt in record.attempts:
            if attempt.error is not None:
                then = "Its queries escalate." if attempt.stage < self._last else "It is the last stage."
                self._once(
                    ("failed", attempt.model, attempt.error),
                    f"Model '{attempt.model}' failed: {attempt.error}. {then}",
                )
            for name, score in attempt.scores.items():
                if score.value is None:
                    why = str(score.details["unavailable"])
                    then = "It is kept all the same." if score.passed else "Such queries escalate."
                    self._once(
                        ("unscored", attempt.model, name, why),
                        f"An answer of model '{attempt.model}' has no score {name}: {why}. {then}",
                    )
            if attempt.scores and attempt.stage not in self._scored:
                self._count(attempt.stage, attempt.model, any(s.value is not None for s in attempt.scores.values()))
        if record.degraded:
            _log.warning(
                "The last stage failed (%s), and the rejected answer of model '%s' was returned in its place "
                '(on_exhausted="best").',
                record.attempts[-1].reason,
                record.answered_by,
            )

    def _count(self, stage: int, model: str, scored: bool) -> None:
        if scored:
            self._scored.add(stage)
            return
        self._asked[stage] = self._asked.get(stage, 0) + 1
        if self._asked[stage] == _NEVER_SCORED:
            _log.warning(
                "Model '%s' was asked %d times and never scored: its calls are paid for and save nothing.",
                model,
                _NEVER_SCORED,
            )

    def _once(self, kind: tuple[str, ...], message: str) -> None:
        if kind not in self._said and len(self._said) < _MOST:
            self._said.add(kind)
            _log.warning("%s Logged once for each kind.", message)


def log_text(model: str, error: Exception) -> None:
    """Log what an error says, if that was asked for: the level of ``confcascade.texts`` itself is set to DEBUG.

    Only then, whatever the level of other loggers: it may quote prompts, answers and keys.
    """
    if _texts.level == logging.DEBUG:
        _texts.debug("Model '%s': %s: %s", model, kept_of(error), error)
