"""Policies in a fixed order, certified from labels that come one by one: a bet on each, the same labels for all.

The proof is in docs/design/labels-one-by-one.md.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from confcascade.errors import ConfigurationError
from confcascade.guarantee.sequential_bets import Bets

__all__ = ["SequentialPath", "SequentiallyExamined"]


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

    Every policy's questions are read in the one drawn order, as far as their losses are known; a policy whose capital
    (`Bets`) has ever reached ``1 / delta`` is certified, if all before it are. Policies, their order and the
    order of the questions must not hang on any label. Then, whenever one looks or stops, and whichever label is bought
    next, a policy that breaks the target is certified with probability at most `delta`: the first such policy of the
    order would have to be, so its own capital would have to reach ``1 / delta``, and that is a supermartingale.

    Args:
        losses: Paired losses in the drawn order, in [-1, 1], shape (policies, questions), the safest policy first; NaN
            where a label is needed to know it. It is copied.
        drop: The greatest mean loss that may be certified, in (0, 1).
        delta: The probability with which any that is above may be, in (0, 1).
        spread: As of `Bets`, shape (policies,).

    Attributes:
        losses: As far as they are known now.
        labels: How many were taken.

    Raises:
        ConfigurationError: If losses, `drop`, `delta` or `spread` are out of range.

    Source: Ville's inequality, as of `Bets`; fixed-sequence testing, Angelopoulos et al. 2021, "Learn then Test", arXiv
    2110.01052, section 3.2.

    >>> same = np.zeros((1, 400))  # the same answer 400 times: no label needed
    >>> path = SequentialPath(same, drop=0.02, delta=0.05, spread=[0.01])
    >>> path.certified
    1
    """

    def __init__(self, losses: ArrayLike, *, drop: float, delta: float, spread: ArrayLike) -> None:
        values = np.array(losses, dtype=np.float64)
        if values.ndim != 2 or not values.size:
            raise ConfigurationError(f"Losses are of shape (policies, questions). Got {values.shape}.")
        if bool((np.abs(values) > 1).any()):
            raise ConfigurationError("Paired losses lie in [-1, 1], or are NaN where a label is needed.")
        each = np.asarray(spread, dtype=np.float64)
        if each.shape != values.shape[:1]:
            raise ConfigurationError(f"`spread` has one number a policy. Got {each.shape} for {len(values)} policies.")
        self.losses = values
        self.labels = 0
        self._open = np.isnan(values)
        self._bets = [
            Bets(each[i : i + 1], questions=values.shape[1], drop=drop, delta=delta) for i in range(len(values))
        ]
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
        """Whether a policy could still be certified, were nothing more lost, or all that is not known gained."""
        if self._crosses(index):
            return True
        left = self.losses[index, self._bets[index].read :]
        for best in (0.0, -1.0):
            bets = copy.copy(self._bets[index])
            bets.stakes = list(bets.stakes)
            if (bets.take(np.nan_to_num(left, nan=best)[None]) >= bets.goal).any():
                return True
        return False

    def outlook(self, index: int) -> int | None:
        """About how many more labels a policy takes, if it goes on losing and gaining as it did so far.

        An estimate, of no part in the proof.

        Returns:
            None where its losses so far do not lie below the target, or the questions would not do.
        """
        if self._crosses(index):
            return 0
        bets = self._bets[index]
        growth, left = float(bets.growth()[0]), int(self.losses.shape[1]) - bets.read
        if growth <= 0 or (rows := (bets.goal - float(bets.log[0])) / growth) > left:
            return None
        unknown = int(np.isnan(self.losses[index, bets.read :]).sum())
        return max(1, math.ceil(rows * unknown / left))

    def examined(self, index: int, *, cost: float, error: float = 0.0) -> SequentiallyExamined:
        """What was shown of a policy.

        Args:
            index: Its place in the order.
            cost: Mean cost of a question.
            error: What an equivalence adds to the bound.
        """
        crossed, bets = self._crosses(index), self._bets[index]
        n = self._crossed[index] or bets.read
        seen = self.losses[index, :n]
        bound = bets.bound(seen)
        return SequentiallyExamined(
            index=index,
            test="sequential",
            n=n,
            labels=int(self._open[index, :n].sum()),
            harms=int((seen > 0).sum()),
            benefits=int((seen < 0).sum()),
            loss=float(seen.mean()) if n else 0.0,
            bound=min(1.0, (min(bets.drop, bound) if crossed else bound) + error),
            cost=cost,
            certified=crossed and index < self.certified,
        )

    def _crosses(self, index: int) -> bool:
        """Read on as far as losses are known; whether the goal was ever reached."""
        bets = self._bets[index]
        if self._crossed[index] is None:
            ahead = self.losses[index, bets.read :]
            unknown = np.flatnonzero(np.isnan(ahead))
            known = ahead[: unknown[0]] if len(unknown) else ahead
            if len(known):
                before = bets.read
                won = np.flatnonzero(bets.take(known[None])[0] >= bets.goal)
                if len(won):
                    self._crossed[index] = before + int(won[0]) + 1
        return self._crossed[index] is not None
