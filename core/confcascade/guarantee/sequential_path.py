"""Policies in a fixed order, certified from labels that come one by one: a bet on each, the same labels for all.

The proof, and which bets were compared, is in docs/design/labels-one-by-one.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confcascade.errors import ConfigurationError

__all__ = ["SequentialPath", "SequentiallyExamined", "log_wealth"]

STAKES = np.geomspace(0.05, 0.99, 12)  # of the capital, on "the loss of the next question is below the target"
_SHARES = np.sqrt(STAKES) / np.sqrt(STAKES).sum()  # of the capital that each begins with
_TOLERANCE = 1e-5  # of a bound that is searched for, on its safe side
_BLOCK = 4096  # questions read at a time


@dataclass(frozen=True)
class SequentiallyExamined:
    """One policy on the questions that were read until it was certified, or on all that could be read.

    Attributes:
        index: Its place in the order.
        test: The test's name in certificates.
        n: Questions read, in the drawn order: those whose loss is known without a label, too.
        labels: How many of them needed one.
        harms: On how many it lost against the largest model (without labels: disagreed with it).
        benefits: On how many it gained.
        loss: The mean paired loss.
        bound: Upper bound on the loss, which holds at all times at once; the equivalence's error included.
        cost: Mean cost of a question.
        certified: Whether it reached the target.
    """

    index: int
    test: Literal["sequential"]
    n: int
    labels: int
    harms: int
    benefits: int
    loss: float
    bound: float
    cost: float
    certified: bool


class SequentialPath:
    """Which policies of a fixed order are certified by the labels known so far, and whose label is wanted next.

    Every policy's questions are read in the one drawn order, as far as their losses are known; a policy whose wealth
    (`log_wealth`) has ever reached ``1 / delta`` is certified, if all before it are. Policies, their order and the
    order of the questions must not hang on any label. Then, whenever one looks or stops, and whichever label is bought
    next, a policy that breaks the target is certified with probability at most `delta`: the first such policy of the
    order would have to be, so its own wealth would have to reach ``1 / delta``, and that is a supermartingale.

    Args:
        losses: Paired losses in the drawn order, in [-1, 1], shape (policies, questions), the safest policy first; NaN
            where a label is needed to know it. It is copied.
        drop: The greatest mean loss that may be certified, in (0, 1).
        delta: The probability with which any that is above may be, in (0, 1).

    Attributes:
        losses: As far as they are known now.
        labels: How many were taken.

    Raises:
        ConfigurationError: If losses, `drop` or `delta` are out of range.

    Source: Ville's inequality for the product of bets (Waudby-Smith & Ramdas 2024, JRSS-B 86(1), section 4), mixed over
    stakes; fixed-sequence testing, Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052, section 3.2.

    >>> path = SequentialPath(np.zeros((1, 400)), drop=0.02, delta=0.05)  # the same answer 400 times: no label needed
    >>> path.certified
    1
    """

    def __init__(self, losses: ArrayLike, *, drop: float, delta: float) -> None:
        values = np.array(losses, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ConfigurationError(f"Losses are of shape (policies, questions). Got {values.shape}.")
        if bool((np.abs(values) > 1).any()):
            raise ConfigurationError("Paired losses lie in [-1, 1], or are NaN where a label is needed.")
        if not (0 < drop < 1 and 0 < delta < 1):
            raise ConfigurationError(f"`drop` and `delta` must be between 0 and 1. Got {drop} and {delta}.")
        self.losses = values
        self.drop = drop
        self.goal = math.log(1 / delta)
        self.labels = 0
        self._open = np.isnan(values)
        self._read = np.zeros(len(values), dtype=np.intp)
        self._log = np.tile(np.log(_SHARES), (len(values), 1))
        self._crossed: list[int | None] = [None] * len(values)

    def lacks(self, question: int) -> bool:
        """Whether a loss on the question at this place of the drawn order is not known for want of a label."""
        return bool(np.isnan(self.losses[:, question]).any())

    def learn(self, question: int, losses: ArrayLike, *, again: bool = False) -> None:
        """Take what a label told.

        Args:
            question: Its place in the drawn order.
            losses: Of every policy, shape (policies,); used where they were not known.
            again: The label was counted with the same question elsewhere.

        Raises:
            ConfigurationError: If one is missing or out of range, or the question has been labelled.
        """
        told = np.asarray(losses, dtype=np.float64)
        unknown = np.isnan(self.losses[:, question])
        if not unknown.any():
            raise ConfigurationError(f"The losses of question {question} are known: it needs no label.")
        if not bool((np.abs(told[unknown]) <= 1).all()):
            raise ConfigurationError("A label tells a paired loss in [-1, 1] of every policy.")
        self.losses[unknown, question] = told[unknown]
        self.labels += not again

    @property
    def certified(self) -> int:
        """How many policies from the safest on are certified."""
        return next((i for i in range(len(self.losses)) if not self._crosses(i)), len(self.losses))

    def wanted(self, count: int = 1) -> tuple[int, ...]:
        """The next questions to label: the first ones that the first uncertified policy cannot do without.

        Returns:
            Places in the drawn order, at most `count`; none if all policies are certified, or no question is left.
        """
        focus = self.certified
        if focus == len(self.losses):
            return ()
        return tuple(np.flatnonzero(np.isnan(self.losses[focus]))[:count].tolist())

    def attainable(self, index: int) -> bool:
        """Whether a policy could still be certified, if nothing more were lost."""
        if self._crosses(index):
            return True
        return bool(_highest(np.nan_to_num(self.losses[index], nan=0.0), self.drop) >= self.goal)

    def outlook(self, index: int) -> int | None:
        """About how many more labels a policy takes, if it goes on losing and gaining as it did so far.

        One more loss than was seen, on as many questions again as a first certificate takes, keeps it sober at the
        start. An estimate, of no part in the proof.

        Returns:
            None where its losses so far do not lie below the target, or the questions would not do.
        """
        if self._crosses(index):
            return 0
        n = int(self._read[index])
        seen = np.append(self.losses[index, :n], [1.0, *[0.0] * math.ceil(self.goal / self.drop)])
        growth = np.log1p(STAKES[:, None] * (self.drop - seen)).mean(axis=1)
        ahead = self.goal - self._log[index]  # of each stake alone
        rows = np.where(growth > 0, ahead / np.where(growth > 0, growth, 1.0), np.inf).min()
        left = self.losses.shape[1] - n
        if rows > left:
            return None
        return max(1, math.ceil(rows * float(np.isnan(self.losses[index, n:]).sum()) / left))

    def examined(self, index: int, *, cost: float, error: float = 0.0) -> SequentiallyExamined:
        """What was shown of a policy.

        Args:
            index: Its place in the order.
            cost: Mean cost of a question.
            error: What an equivalence adds to the bound.
        """
        crossed = self._crosses(index)
        n = self._crossed[index] or int(self._read[index])
        seen = self.losses[index, :n]
        return SequentiallyExamined(
            index=index,
            test="sequential",
            n=n,
            labels=int(self._open[index, :n].sum()),
            harms=int((seen > 0).sum()),
            benefits=int((seen < 0).sum()),
            loss=float(seen.mean()) if n else 0.0,
            bound=min(1.0, (self._bound(seen) if not crossed else min(self.drop, self._bound(seen))) + error),
            cost=cost,
            certified=crossed and index < self.certified,
        )

    def _crosses(self, index: int) -> bool:
        """Read on as far as losses are known; whether the goal was ever reached."""
        while self._crossed[index] is None:
            begin = int(self._read[index])
            block = self.losses[index, begin : begin + _BLOCK]
            unknown = np.flatnonzero(np.isnan(block))
            block = block[: unknown[0]] if len(unknown) else block
            if not len(block):
                return False
            paths = self._log[index][:, None] + np.cumsum(np.log1p(STAKES[:, None] * (self.drop - block)), axis=1)
            won = np.flatnonzero(np.logaddexp.reduce(paths, axis=0) >= self.goal)
            if len(won):
                self._crossed[index] = begin + int(won[0]) + 1
            self._read[index] += len(block)
            self._log[index] = paths[:, -1]
        return True

    def _bound(self, seen: NDArray[np.float64]) -> float:
        low, high = 0.0, 1.0
        while high - low > _TOLERANCE:
            middle = (low + high) / 2
            low, high = (low, middle) if _highest(seen, middle) >= self.goal else (middle, high)
        return high


def log_wealth(losses: ArrayLike, drop: float) -> NDArray[np.float64]:
    """Logarithm of what a gambler is worth after each question who bets that the mean loss is below `drop`.

    The capital of 1 is divided over twelve stakes; each multiplies its part by ``1 + stake * (drop - loss)``. If the
    mean loss of a question, given those before it, is `drop` or more, the wealth is a supermartingale: it ever reaches
    ``1 / delta`` with probability at most `delta`. It does not hang on the order of the questions read so far.

    Args:
        losses: In the order of reading, in [-1, 1], shape (questions,).
        drop: In (0, 1).

    Returns:
        Shape (questions,).

    >>> bool(log_wealth([0.0] * 299, 0.01)[-1] < math.log(20) < log_wealth([0.0] * 480, 0.01)[-1])
    True
    """
    values = np.asarray(losses, dtype=np.float64)
    steps = np.cumsum(np.log1p(STAKES[:, None] * (drop - values)), axis=1)
    return np.asarray(np.logaddexp.reduce(np.log(_SHARES)[:, None] + steps, axis=0))


def _highest(losses: NDArray[np.float64], drop: float) -> float:
    return float(log_wealth(losses, drop).max()) if len(losses) else -math.inf
