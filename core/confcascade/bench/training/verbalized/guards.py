"""Whether training has gone wrong: statements that cannot be read, or that all say the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["CollapseGuard"]


class CollapseGuard:
    """Watches the statements of each step.

    Where questions are about as hard as each other, a model earns nearly as much by always stating one number, and
    learning does not come back from there: RLCR (arXiv 2507.16806) warns of it.

    Args:
        window: Steps over which it looks.
        least_read: Of the statements of these steps, the least share that must be readable.
        most_alike: The greatest share that may be the same number.
    """

    def __init__(self, *, window: int = 20, least_read: float = 0.5, most_alike: float = 0.98) -> None:
        self.least_read = least_read
        self.most_alike = most_alike
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)

    def problem(self, told: Mapping[str, float]) -> str | None:
        """Take in a step's figures (`statement_figures`), and say what is wrong, if so.

        It says so only of full windows: a model that learns the form may begin with none.
        """
        if "stated/read" not in told:
            return None
        self._steps.append((told["stated/read"], told.get("stated/alike") or 0.0))
        if len(self._steps) < (self._steps.maxlen or 0):
            return None
        read = sum(each for each, _ in self._steps) / len(self._steps)
        alike = sum(each for _, each in self._steps) / len(self._steps)
        if read < self.least_read:
            return f"only {read:.0%} of the last {len(self._steps)} steps' statements can be read"
        if alike > self.most_alike:
            return f"{alike:.0%} of the last {len(self._steps)} steps' statements are the same number"
        return None
