"""What comes of a fit: a policy with its promise, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confcascade.bench.fitting.rivals import Rival
from confcascade.bench.fitting.splitting import FitSplit
from confcascade.bench.metrics.health import SignalHealth
from confcascade.bench.replay.policy import PolicyStage
from confcascade.guarantee import Certificate, Examined
from confcascade.policy import Policy, Saving

__all__ = ["Contender", "Fitted", "GroupFit", "NotCertified"]


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
class GroupFit:
    """What came of one group of questions.

    Attributes:
        name: As the recording has it.
        questions: How many of the recording are in it.
        stages: What is done with them; the largest model alone where nothing is promised.
        saving: What that saves in the group.
        certificate: What is promised; None where the largest model alone is asked.
        tested: What was put to the proof, in its order.
        why: Why nothing is promised, as a clause; "" if something is.
        more: How many more questions of the group would do; None if something is promised, or no number is known.
        could: What the policy that they would do for saves in the group, about.
    """

    name: str
    questions: int
    stages: tuple[PolicyStage, ...]
    saving: Saving
    certificate: Certificate | None
    tested: tuple[Contender, ...]
    why: str = ""
    more: int | None = None
    could: float | None = None


@dataclass(frozen=True)
class Fitted:
    """A policy with its promise, and what stood beside it.

    Attributes:
        policy: It.
        rule: What keeps an answer.
        stages: It, as it is replayed on `replayable` columns; the largest model alone where there are `groups`.
        tested: All that were tested, in their order; group after group.
        health: Of every signal, by model and name.
        parts: Of the material's questions.
        rivals: What asks one model only, on the questions of the proof.
        notes: What a reader should know.
        groups: What came of each, where each has a promise of its own.
    """

    policy: Policy
    rule: str
    stages: tuple[PolicyStage, ...]
    tested: tuple[Contender, ...]
    health: Mapping[tuple[str, str], SignalHealth]
    parts: FitSplit
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]
    groups: tuple[GroupFit, ...] = ()


@dataclass(frozen=True)
class NotCertified:
    """Nothing can be promised.

    Attributes:
        why: In words.
        n: Questions there were for the proof.
        questions: In all.
        more: How many more in all would do; None if no number is known that would. With `groups`: how many more of the
            group that lacks fewest.
        saved: What the policy that they would do for saves, about.
        usd: What collecting them costs, about; None if prices are not known.
        tokens: Likewise.
        seconds: Likewise, one after the other; None if the recording tells no times.
        tested: As of `Fitted`.
        health: As of `Fitted`.
        notes: As of `Fitted`.
        groups: As of `Fitted`.
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
    groups: tuple[GroupFit, ...] = ()
