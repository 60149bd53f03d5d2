"""What comes of a fit: a policy with its promise, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confcascade.bench.fitting.rivals import Rival
from confcascade.bench.fitting.splitting import FitSplit
from confcascade.bench.metrics.health import SignalHealth
from confcascade.bench.replay.policy import PolicyStage
from confcascade.guarantee import Examined
from confcascade.policy import Policy

__all__ = ["Contender", "Fitted", "NotCertified"]


@dataclass(frozen=True)
class Contender:
    """A policy that was tested, too.

    Attributes:
        rule: What keeps an answer.
        policy: It.
        saved: Share of the largest model's cost, on all questions of the material.
        examined: What was shown, by group.
    """

    rule: str
    policy: tuple[PolicyStage, ...]
    saved: float
    examined: tuple[Examined, ...]

    @property
    def certified(self) -> bool:
        """Whether it holds, too."""
        return all(each.certified is not False for each in self.examined)


@dataclass(frozen=True)
class Fitted:
    """A policy with its promise, and what stood beside it.

    Attributes:
        policy: It.
        rule: What keeps an answer.
        stages: It, as it is replayed on `replayable` columns.
        tested: All that were tested, in their order.
        health: Of every signal, by model and name.
        parts: Of the material's questions.
        rivals: What asks one model only, on the questions of the proof.
        notes: What a reader should know.
    """

    policy: Policy
    rule: str
    stages: tuple[PolicyStage, ...]
    tested: tuple[Contender, ...]
    health: Mapping[tuple[str, str], SignalHealth]
    parts: FitSplit
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NotCertified:
    """Nothing can be promised.

    Attributes:
        why: In words.
        n: Questions there were for the proof.
        questions: In all.
        more: How many more in all would do; None if no number is known that would.
        saved: What the policy that they would do for saves, about.
        usd: What collecting them costs, about; None if prices are not known.
        tokens: Likewise.
        seconds: Likewise, one after the other; None if the recording tells no times.
        tested: As of `Fitted`.
        health: As of `Fitted`.
        notes: As of `Fitted`.
    """

    why: str
    n: int
    questions: int
    more: int | None
    saved: float | None
    usd: float | None
    tokens: float
    seconds: float | None
    tested: tuple[Contender, ...]
    health: Mapping[tuple[str, str], SignalHealth]
    notes: tuple[str, ...]
