"""Keeping the promise: some of the kept answers are compared with the largest model's, for as long as a cascade runs.

Here is what an audit is told: how much, by which rule, against which promise, and whom to call. `sequential` is the
mathematics, `file` the state that processes share, `auditor` what happens beside every answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from confcascade.audit.state import AuditState, TestName
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.guarantee import Certificate

__all__ = ["Audit", "Same", "SameText"]


class Same(Protocol):
    """The rule by which two answers count as the same; `graders.Agreement` makes one of a grader.

    Attributes:
        name: As the certificate names it.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, question: str, answer: str, larger: str) -> bool | None:
        """Whether `answer` says what `larger`, the largest model's, says; None if the rule cannot tell."""


class SameText:
    """The same words: white space, capitals and a full stop at the end do not count."""

    name = "same text"

    def __call__(self, question: str, answer: str, larger: str) -> bool | None:
        del question
        return _plain(answer) == _plain(larger)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Keep watch over a cascade: ask the largest model in the background about some of the answers that were kept.

    No answer waits for it. What was seen stays in a file, which threads and processes share, and which holds counts and
    hashes, no texts.

    Args:
        rate: The share of queries that is drawn, in (0, 1]: so much of the kept answers is audited.
        state: The file. A cascade with other models, signals, thresholds or promises needs another.
        same: By which rule two answers are the same.
        certificate: Whose promise is guarded.
        max_disagreement: Without a certificate: the greatest share of all queries answered otherwise than by the
            largest model.
        max_drop: Without a certificate: the greatest net loss of accuracy, tested where `AuditFile.feedback` tells who
            was right. With neither of the three the audit measures, and never raises an alarm.
        false_alarms: The probability that a test ever raises an alarm though its promise holds, in (0, 1).
        usd: Dollars to spend on audits in all; the last stage needs `prices`.
        per_hour: Most calls of the largest model in an hour, over all processes.
        on_alarm: Called once for each alarm, in a thread of the audit, with the state.
        keep_texts: Also store question and answers where two answers differ, for people to label.
        queue: Most drawn queries that may wait; what comes beyond is dropped, and counted.
        seed: Of the draws; None draws anew in every process.

    Raises:
        ConfigurationError: If a value is out of its range, or the certificate does not fit.
    """

    rate: float = 0.02
    state: str | Path = "audit.sqlite"
    same: Same = field(default_factory=SameText)
    certificate: Certificate | None = None
    max_disagreement: float | None = None
    max_drop: float | None = None
    false_alarms: float = 0.05
    usd: float | None = None
    per_hour: int | None = None
    on_alarm: Callable[[AuditState], Any] | None = None
    keep_texts: bool = False
    queue: int = 100
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _number(self.rate) or not 0 < self.rate <= 1:
            raise ConfigurationError(
                f"The rate of an audit must be a share in (0, 1], such as 0.02. Got {self.rate!r}."
            )
        for name in ("max_disagreement", "max_drop", "false_alarms"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and 0 < value < 1):
                raise ConfigurationError(f"`{name}` must be a share between 0 and 1, such as 0.05. Got {value!r}.")
        for name in ("usd", "per_hour"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and 0 < value < math.inf):
                raise ConfigurationError(f"`{name}` must be a number above 0, or None for no limit. Got {value!r}.")
        if isinstance(self.queue, bool) or not isinstance(self.queue, int) or self.queue < 1:
            raise ConfigurationError(f"`queue` must be a whole number of at least 1. Got {self.queue!r}.")
        if not callable(self.same) or not isinstance(getattr(self.same, "name", None), str):
            raise ConfigurationError(
                "`same` must be a rule with a name, such as confcascade.graders.agreement.Agreement('choice'). "
                f"Got {self.same!r}."
            )
        if self.certificate is not None:
            self._check(self.certificate)

    def _check(self, certificate: Certificate) -> None:
        if self.max_disagreement is not None or self.max_drop is not None:
            raise ConfigurationError(
                "Give either the `certificate`, or bounds of your own: `max_disagreement`, `max_drop`."
            )
        if certificate.group is not None:
            raise ConfigurationError(
                f"The certificate is about the group '{certificate.group}' alone; an audit sees all queries alike."
            )
        if certificate.equivalence not in (None, self.same.name):
            raise ConfigurationError(
                f"The certificate compares answers by '{certificate.equivalence}', the audit by '{self.same.name}': "
                "give `same` the rule of the certificate."
            )

    @classmethod
    def of(cls, audit: float | Audit) -> Audit | None:
        """What `audit=` means: a number is the rate, 0 is none.

        Raises:
            ConfigurationError: If it is neither a rate nor an `Audit`.
        """
        if isinstance(audit, Audit):
            return audit
        if not _number(audit) or not 0 <= audit <= 1:
            raise ConfigurationError(f"`audit` must be a share of queries, such as 0.02, or an Audit. Got {audit!r}.")
        return cls(rate=audit) if audit else None

    @property
    def bounds(self) -> dict[TestName, float]:
        """What is guarded. Answers that agree are equally right, so a promise of agreement is one of accuracy, too."""
        found: dict[TestName, float] = {}
        if (certificate := self.certificate) is not None:
            if certificate.kind == "agreement":  # of what the rule itself sees: its errors come on top
                found["agreement"] = certificate.promised - certificate.equivalence_error
            found["accuracy"] = certificate.promised
        if self.max_disagreement is not None:
            found["agreement"] = self.max_disagreement
        if self.max_drop is not None:
            found["accuracy"] = self.max_drop
        return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
