"""An audit of a fitted policy: against its own promise, by its own rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confcascade.audit import Audit
from confcascade.errors import ConfigurationError
from confcascade.graders import Agreement
from confcascade.policy import Policy

__all__ = ["audit_of"]


def audit_of(policy: Policy | str | Path, audit: float | Audit = 0.02, **settings: Any) -> Audit | float:
    """What guards the promise of a policy: its certificate, and the rule by which that compares answers.

    Args:
        policy: A fitted one, or its file.
        audit: The share of queries that is drawn; an `Audit` of one's own, or 0 (none), is given back as it is.
        **settings: Others of `Audit`, such as ``state`` or ``on_alarm``.

    Raises:
        ConfigurationError: If an audit cannot see what is promised: the policy never asks the model that its promise
            is held against, or promises something of each group (`Policy.for_group` makes one of one group), or
            nothing of accuracy or agreement.
    """
    if isinstance(audit, Audit) or not audit:
        return audit
    if not isinstance(policy, Policy):
        policy = Policy.load(policy)
    policy.check_one()
    if not policy.certificates:
        raise ConfigurationError(
            f"The policy asks '{policy.models[-1]}' alone, which is held against itself: there is nothing to audit."
        )
    if (last := policy.stages[-1].model) != policy.models[-1]:
        raise ConfigurationError(
            f"The policy's promise is held against '{policy.models[-1]}', which it never asks: an audit asks the last "
            f"stage, '{last}'. Without `audit` it can be used; collect again from time to time in its place."
        )
    guarded = policy.accuracy_certificates
    if not guarded:
        kinds = ", ".join(sorted({each.kind for each in policy.certificates}))
        raise ConfigurationError(
            f"The policy promises {kinds}, of which an audit sees nothing: it compares answers with the largest "
            "model's. Give an Audit(max_disagreement=...) of your own."
        )
    if len(guarded) > 1:
        raise ConfigurationError(
            "The policy promises something of each group, and an audit sees all queries alike. Give an "
            "Audit(max_disagreement=...) of your own."
        )
    (certificate,) = guarded
    if certificate.group is not None:  # of `Policy.for_group`: all that this cascade is asked is of that group
        certificate = certificate.model_copy(update={"group": None})
    if certificate.equivalence is not None and "same" not in settings:
        grader = certificate.equivalence.replace("judge ", "judge:", 1)  # in words there, as an option here
        settings["same"] = Agreement(grader, name=certificate.equivalence)
    return Audit(rate=audit, certificate=certificate, **settings)
