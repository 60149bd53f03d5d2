"""A bet that a mean loss is below a target, which may be looked at after every question.

Which stakes were compared is in docs/design/labels-one-by-one.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError

__all__ = ["Bets"]

_EVERY = 16  # questions for which a stake stays
_MOST = 0.99  # of the capital that a loss of 1 could take
_PART = 0.5  # of the stake that grows fastest by what was seen: that is an estimate
_SOBER = 1.5  # losses more than were seen, over as many questions more as bring one at the target, for a stake
_LIKELY = 0.5  # likewise, for what is likely to come
_NEAR = 0.02  # of the goal, below which the stake does not shrink further


class Bets:
    """Several gamblers, each on losses of their own, who bet that the mean loss is below the target.

    The capital of 1 is multiplied by ``1 + stake * (drop - loss)`` at each question. The stake is fixed before the
    question, by what was read so far: it is what takes the capital from where it stands to the goal with the questions
    that are left, if losses vary by `spread`; or half of what makes it grow fastest by the losses seen, if that is
    more, so that a safe policy is done early. If the mean loss of a question, given those before it, is `drop` or more,
    the capital is a supermartingale: it ever reaches ``1 / delta`` with probability at most `delta`.

    Args:
        spread: Mean squared loss that each is likely to see, in (0, 1], guessed without these losses: it makes bets
            good or bad, never wrong. Shape (gamblers,).
        questions: How many there are at most.
        drop: The target, in (0, 1).
        delta: Of the goal, in (0, 1).

    Attributes:
        read: Questions read so far.
        log: Logarithm of the capital now, shape (gamblers,).
        stakes: Of every sixteen questions begun, each of shape (gamblers,).

    Raises:
        ConfigurationError: If one of them is out of range.

    Source: Voráček & Orabona 2025, "STaR-Bets", arXiv 2505.22422, for the stake that is set anew by what is lacking to
    the goal; Waudby-Smith & Ramdas 2024, JRSS-B 86(1), section 4, for the bets and Ville's inequality.

    >>> bets = Bets([0.02], questions=300, drop=0.02, delta=0.05)
    >>> bool((bets.take(np.zeros((1, 300))) >= math.log(20)).any())
    True
    """

    def __init__(self, spread: ArrayLike, *, questions: int, drop: float, delta: float) -> None:
        self._spread = np.asarray(spread, dtype=np.float64)
        if not (0 < drop < 1 and 0 < delta < 1):
            raise ConfigurationError(f"`drop` and `delta` must be between 0 and 1. Got {drop} and {delta}.")
        if self._spread.ndim != 1 or not bool(((self._spread > 0) & (self._spread <= 1)).all()):
            raise ConfigurationError("`spread` has a share above 0, and at most 1, for each policy.")
        if questions < 1:
            raise ConfigurationError(f"`questions` must be at least 1. Got {questions}.")
        self.drop, self.goal = drop, math.log(1 / delta)
        self.read = 0
        self.log = np.zeros(len(self._spread))
        self.stakes: list[NDArray[np.float64]] = []
        self._questions = questions
        self._sum = np.zeros(len(self._spread))
        self._squares = np.zeros(len(self._spread))

    def take(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Read on.

        Args:
            losses: Of the next questions, in [-1, 1], shape (gamblers, questions).

        Returns:
            Logarithm of the capital after each of them, likewise.
        """
        told = np.empty(losses.shape)
        begin = 0
        while begin < losses.shape[1]:
            if self.read % _EVERY == 0:
                self.stakes.append(self._stake())
            end = min(losses.shape[1], begin + _EVERY - self.read % _EVERY)
            block = losses[:, begin:end]
            won = np.log1p(self.stakes[-1][:, None] * (self.drop - block))
            told[:, begin:end] = self.log[:, None] + np.cumsum(won, axis=1)
            self.log = told[:, end - 1]
            self._sum = self._sum + block.sum(axis=1)
            self._squares = self._squares + (block**2).sum(axis=1)
            self.read += end - begin
            begin = end
        return told

    def growth(self) -> NDArray[np.float64]:
        """What the logarithm of the capital is likely to gain by a question, at the best stake, by what was seen.

        Shape (gamblers,); 0 where nothing is.
        """
        mean, squares = self._sober(_LIKELY)
        stake = np.clip((self.drop - mean) / squares, 0, _MOST)
        return np.asarray(stake * (self.drop - mean) - stake**2 * squares / 2)

    def bound(self, losses: NDArray[np.float64], tolerance: float = 1e-5) -> float:
        """The least mean loss against which the first gambler's stakes have reached the goal on these losses.

        With probability at least ``1 - delta`` the true mean is at most that, at all times at once.

        Args:
            losses: That were read, from the first on, shape (questions,).
            tolerance: Of the bound, on its safe side.
        """
        if not len(losses):
            return 1.0
        stakes = np.repeat(np.array([each[0] for each in self.stakes]), _EVERY)[: len(losses)]
        low, high = -1.0, 1.0
        while high - low > tolerance:
            middle = (low + high) / 2
            ahead = 1 + stakes * (middle - losses)
            reached = np.cumsum(np.log(np.maximum(ahead, 1e-300))).max() >= self.goal and (ahead > 0).all()
            low, high = (low, middle) if reached else (middle, high)
        return high

    def _stake(self) -> NDArray[np.float64]:
        left = max(1, self._questions - self.read)
        lacking = np.maximum(self.goal - self.log, _NEAR * self.goal)
        timed = np.sqrt(2 * lacking / (left * self._spread))
        mean, squares = self._sober(_SOBER)
        fastest = np.maximum(0.0, (self.drop - mean) / np.maximum(self._spread, squares))
        return np.minimum(_MOST, np.maximum(timed, _PART * fastest))

    def _sober(self, more: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean loss and mean squared loss, with so many losses more than were seen."""
        read = self.read + 1 / self.drop
        return (self._sum + more) / read, (self._squares + more) / read
