"""What is to be promised: how much may be lost against the largest model, how surely, and what counts as the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from confcascade.errors import ConfigurationError

__all__ = ["Equivalence", "Promise"]


@dataclass(frozen=True)
class Equivalence:
    """The rule by which two answers count as the same.

    Attributes:
        name: As the certificate shall print it: "choice", "normalised match", "judge gpt-4o".
        error: An upper bound on how often, of all questions, it calls two answers the same that are not (0: a rule that
            is right by definition). It is added to every bound.
        delta: The probability with which that bound may itself be wrong. It is taken off the promise's.
    """

    name: str
    error: float = 0.0
    delta: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("An equivalence of answers needs a name, which the certificate prints.")
        if not (0 <= self.error < 1 and 0 <= self.delta < 1):
            raise ConfigurationError(
                f"`error` and `delta` of an equivalence must be in [0, 1). Got {self.error} and {self.delta}."
            )


@dataclass(frozen=True)
class Promise:
    """A target, and how surely it shall hold.

    Attributes:
        max_drop: The greatest net loss of accuracy against the largest model that is allowed, in (0, 1); without labels
            the greatest share of disagreement. None: no target, a certificate then states the bound that there is.
        confidence: Probability, over the examples, with which the promise holds, in (0, 1).
        equivalence: None for a promise on labels; else answers are compared with the largest model's by this rule.
        group: The group of questions that it speaks about; None for all.
        groups: How many groups are promised together, at this confidence for all at once.
    """

    max_drop: float | None
    confidence: float = 0.95
    equivalence: Equivalence | None = None
    group: str | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise ConfigurationError(
                f"`max_drop` must be a share between 0 and 1 (0.01 is one point). Got {self.max_drop}."
            )
        if not 0 < self.confidence < 1:
            raise ConfigurationError(f"`confidence` must be between 0 and 1, such as 0.95. Got {self.confidence}.")
        if self.groups < 1:
            raise ConfigurationError(f"`groups` must be at least 1. Got {self.groups}.")
        if not self.delta > 0:
            raise ConfigurationError(
                f"The error bound of equivalence '{self.equivalence and self.equivalence.name}' is less certain than "
                f"the promise: its `delta` must be below {(1 - self.confidence) / self.groups:g}."
            )
        if self.max_drop is not None and self.tested_drop <= 0:
            raise ConfigurationError(
                f"Nothing within {self.max_drop:g} can be promised by an equivalence that may err on {self.error:g} "
                "of the questions: allow more, or check the judge on more pairs."
            )

    @property
    def error(self) -> float:
        """What the equivalence adds to every bound."""
        return 0.0 if self.equivalence is None else self.equivalence.error

    @property
    def delta(self) -> float:
        """The level of the test: what is left of ``1 - confidence`` for this group, after the equivalence's part."""
        # rounded, because 1 - 0.95 is not 0.05
        return round((1 - self.confidence) / self.groups, 12) - (self.equivalence.delta if self.equivalence else 0.0)

    @property
    def tested_drop(self) -> float:
        """What a test must show for the promise to hold: `max_drop` less the equivalence's error."""
        return math.nan if self.max_drop is None else self.max_drop - self.error

    def per_group(self, groups: Iterable[str]) -> dict[str, Promise]:
        """The same promise for each group, all at once: each is tested at an equal part of ``1 - confidence``.

        Raises:
            ConfigurationError: If a group is named twice.
        """
        names = list(groups)
        if len(set(names)) < len(names):
            raise ConfigurationError(f"Every group can be promised once. Got {names}.")
        return {name: replace(self, group=name, groups=len(names)) for name in names}
