"""A test that may be looked at after every audit, for ever, and an interval of the same kind.

The mathematics, and what both were measured to do, is in docs/design/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from confcascade.errors import ConfigurationError

__all__ = ["SequentialTest", "rate_interval"]

ODDS = (1.5, 2.5, 4.0, 8.0)  # by how much a rate has risen, among which the bets on losses of 0 and 1 are spread
STAKES = (0.1, 0.25, 0.5, 0.9)  # of what may be staked at most, where a loss may also be -1


class SequentialTest:
    """Whether losses exceed `bound` in the mean, now or from some time on: an e-process by betting.

    While every loss has, given those before it, a mean of at most `bound`, the chance that `log_e` ever reaches
    ``log(1 / delta)`` is at most `delta`, however long it runs and whenever one looks. Each observation multiplies a
    bet's wealth by ``1 + stake * (loss - bound)``; the wealth is spread over four stakes and over all the times at
    which to begin, so a change after a long quiet time is not held against what was won or lost before.

    Args:
        bound: The mean loss that is promised, in (0, 1).
        lowest: The least loss there may be, 0 or -1; the greatest is 1.
        n: Observations so far.
        log_wealth: Logarithm of what each stake's bets that have begun are worth now; shape (4,).

    Raises:
        ConfigurationError: If the bound is none.

    Source: Ville's inequality for the product (Waudby-Smith & Ramdas 2024, JRSS-B 86(1)), mixed over the times of a
    change as in Shin, Ramdas & Rinaldo 2024, "E-detectors" (NEJSDS 2(2)), but with weights that sum to 1, so that the
    probability of a false alarm is bounded and not only its frequency.

    >>> test = SequentialTest(0.02)
    >>> for loss in [0] * 100 + [1] * 6:
    ...     test.observe(loss)
    >>> test.log_e > math.log(1 / 0.05)
    True
    """

    def __init__(
        self, bound: float, *, lowest: float = 0.0, n: int = 0, log_wealth: Sequence[float] | None = None
    ) -> None:
        if not 0 < bound < 1:
            raise ConfigurationError(f"The loss that is promised must be a share between 0 and 1. Got {bound}.")
        self.bound = bound
        self.n = n
        self.log_wealth = [-math.inf] * len(ODDS) if log_wealth is None else list(log_wealth)
        self.stakes = stakes(bound, lowest)

    def observe(self, loss: float) -> None:
        """Take one more loss, of the next query in their order."""
        begun = waiting(self.n) - waiting(self.n + 1)  # what begins with this observation, shared by the stakes
        entering = math.log(begun / len(self.stakes))
        self.log_wealth = [
            _log_sum((wealth, entering)) + math.log1p(stake * (loss - self.bound))
            for wealth, stake in zip(self.log_wealth, self.stakes, strict=True)
        ]
        self.n += 1

    @property
    def log_e(self) -> float:
        """Natural logarithm of the e-value: of 1 at the start; evidence against the promise as it grows."""
        return _log_sum((*self.log_wealth, math.log(waiting(self.n))))


def stakes(bound: float, lowest: float = 0.0) -> tuple[float, ...]:
    """The stakes of the bets: each wins most at one rate of losses above `bound`.

    A loss of 0 or 1 whose odds have grown k-fold has the likelihood ratio ``1 + stake * (loss - bound)``, with
    ``stake = (k - 1) / (1 + (k - 1) * bound)``.
    """
    if lowest < 0:
        return tuple(part / (bound - lowest) for part in STAKES)  # at most, for no wealth to become negative
    return tuple((odds - 1) / (1 + (odds - 1) * bound) for odds in ODDS)


def waiting(n: int) -> float:
    """The part of the wealth that begins later than observation `n`: it falls so slowly that some is always left."""
    return 1 / (1 + math.log1p(n))


def rate_interval(events: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """An interval for a rate that holds at all times at once, with probability at least ``1 - alpha``.

    Args:
        events: Observed, 0 <= events <= n.
        n: Observations, each an event with the same probability given those before.
        alpha: Probability with which the interval may miss it, ever, in (0, 1).

    Returns:
        Both ends, in [0, 1].

    Source: Robbins 1970, Annals of Mathematical Statistics 41(5): mixture of likelihood ratios, here over the beta
    distribution with both parameters 1/2.

    >>> low, high = rate_interval(10, 1000)
    >>> low < 0.01 < high < 0.03
    True
    """
    if not 0 <= events <= n:
        raise ValueError(f"`events` must be between 0 and n. Got events={events}, n={n}.")
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be between 0 and 1. Got {alpha}.")
    if n == 0:
        return 0.0, 1.0
    mixed = math.lgamma(events + 0.5) + math.lgamma(n - events + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
    seen = events / n

    def excluded(rate: float) -> bool:
        likelihood = events * math.log(rate) if events else 0.0
        likelihood += (n - events) * math.log1p(-rate) if events < n else 0.0
        return mixed - likelihood >= math.log(1 / alpha)

    def end(outer: float) -> float:
        inner = seen
        for _ in range(50):  # halves: the likelihood falls on either side of what was seen
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if excluded(middle) else (middle, outer)
        return outer

    return (end(0.0) if events else 0.0), (end(1.0) if events < n else 1.0)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(value - top) for value in values))
