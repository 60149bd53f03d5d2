"""An audit of a fitted policy guards its own promise, or says why none can."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from confcascade import Audit, Cascade, ConfigurationError
from confcascade.audit.of_policy import audit_of
from confcascade.cascade_file import CascadeFile
from confcascade.guarantee import Certificate, TargetCertificate
from confcascade.policy import FittedStage, MadeFrom, Policy, Saving
from confcascade.testing import ScriptedModel

LABELS = {
    "kind": "labels",
    "max_drop": 0.01,
    "confidence": 0.95,
    "test": "split",
    "n": 1000,
    "harms": 2,
    "benefits": 1,
    "loss": 0.001,
    "bound": 0.006,
    "date": "2026-11-22",
    "assumptions": ("The questions to come are like the examples.",),
}
ASKED = {
    "kind": "asked",
    "limit": 0.5,
    "confidence": 0.95,
    "test": "binomial",
    "n": 100,
    "counted": 100,
    "failing": 10,
    "seen": 0.1,
    "bound": 0.2,
    "date": "2026-11-30",
    "assumptions": ("The questions to come are like the examples.",),
}
AGREEMENT = {**LABELS, "kind": "agreement", "test": "harms", "benefits": 0, "loss": 0.002, "equivalence": "numeric"}


def policy(*certificates, stages=("small", "large")):
    *gated, last = stages
    listed = [FittedStage(model=name, signals=[{"type": "p_t"}], thresholds={"p_t": 0.9}) for name in gated]
    return Policy(
        models=["small", "medium", "large"],
        stages=[*listed, FittedStage(model=last)],
        certificates=[(TargetCertificate if "limit" in each else Certificate)(**each) for each in certificates],
        saving=Saving(unit="usd", cost=0.5, largest=1.0, share=0.5, low=0.4, high=0.6, spared=0.6),
        made_from=MadeFrom(questions=2, keyed_by="id", keys=""),
    )


def test_it_guards_what_is_promised(tmp_path):
    """Of labels: the loss of accuracy. Settings of the audit's own go along; the policy may be a file."""
    policy(LABELS).save(tmp_path / "policy.json")
    audit = audit_of(tmp_path / "policy.json", 0.1, state=tmp_path / "audit.sqlite")
    assert (audit.rate, audit.state) == (0.1, tmp_path / "audit.sqlite")
    assert audit.bounds == {"accuracy": 0.01}


def test_of_several_promises_it_guards_accuracy():
    """What is promised of cost and the like, no audit sees."""
    assert audit_of(policy(LABELS, ASKED)).bounds == {"accuracy": 0.01}


@pytest.mark.parametrize("rule", ["numeric", "choice", "normalized", "exact"])
def test_answers_are_compared_as_the_certificate_did(rule):
    audit = audit_of(policy({**AGREEMENT, "equivalence": rule}))
    assert audit.same.name == rule
    assert audit.bounds == {"agreement": 0.01, "accuracy": 0.01}


def test_a_judge_is_the_certificates():
    """By the name that the certificate has for it."""
    assert audit_of(policy({**AGREEMENT, "equivalence": "judge bundled:small"})).same.name == "judge bundled:small"


def test_what_is_the_users_stays():
    """An audit of one's own, or none."""
    own = Audit(rate=0.5)
    assert audit_of(policy(LABELS), own) is own
    assert audit_of(policy(LABELS), 0.0) == 0.0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (policy(LABELS, stages=("small", "medium")), "held against 'large', which it never asks"),
        (policy({**LABELS, "group": "law"}, {**LABELS, "group": "art"}), "something of each group"),
        (policy(ASKED), "promises asked, of which an audit sees nothing"),
    ],
)
def test_what_no_audit_can_see_is_refused(made, message):
    with pytest.raises(ConfigurationError, match=message):
        audit_of(made)


MODELS = [ScriptedModel("small", {"2+2?": ("4", 0.99)}), ScriptedModel("large", {"2+2?": ("4", 0.99)})]


def from_stages(made: Policy, audit: Any, folder: Any) -> Cascade:
    return Cascade(made.make_stages(MODELS), audit=audit)


def from_parts(made: Policy, audit: Any, folder: Any) -> Cascade:
    return Cascade.of(models=MODELS, policy=made, audit=audit)


def from_a_file(made: Policy, audit: Any, folder: Any) -> Cascade:
    made.save(folder / "p.json")
    (folder / "cascade.yaml").write_text("models: [bundled:small, bundled:large]\npolicy: p.json\n")
    return CascadeFile.load(folder / "cascade.yaml").cascade(audit=audit)


@pytest.mark.filterwarnings("ignore:This policy's promise")
@pytest.mark.parametrize("way", [from_stages, from_parts, from_a_file])
def test_a_share_guards_the_policy_in_the_core(way, tmp_path, monkeypatch):
    """However a cascade of the core is made of a policy: its promise, by its own rule."""
    agreement = policy({**AGREEMENT, "equivalence": "choice"})
    found = []
    for number, (made, share) in enumerate([(policy(LABELS), 0.5), (agreement, 0.5), (agreement, Audit(rate=0.25))]):
        folder = tmp_path / str(number)  # an audit's state is of one promise
        folder.mkdir()
        monkeypatch.chdir(folder)
        audit = way(made, share, folder).auditor.audit
        found.append((audit.rate, audit.same.name, audit.bounds))
    assert found == [
        (0.5, "same text", {"accuracy": 0.01}),
        (0.5, "choice", {"agreement": 0.01, "accuracy": 0.01}),
        (0.25, "same text", {}),
    ]
    assert way(agreement, 0.0, tmp_path).auditor is None


@pytest.mark.filterwarnings("ignore:This policy's promise")
def test_a_promise_that_no_audit_sees_is_refused_when_the_cascade_is_built():
    """And not after a thousand queries that nobody guarded."""
    unseen = policy(LABELS, stages=("small", "medium"))
    models = [*MODELS, ScriptedModel("medium")]
    with pytest.raises(ConfigurationError, match="which it never asks"):
        Cascade(unseen.make_stages(models), audit=0.5)
    with pytest.raises(ConfigurationError, match="which it never asks"):
        Cascade.of(models=models, policy=unseen, audit=0.5)


@pytest.mark.filterwarnings("ignore:This policy's promise")
def test_fitted_stages_remember_their_policy():
    """Through `build_stages`, and to another process."""
    made = policy(LABELS)
    stages = made.make_stages(MODELS)
    assert Cascade(stages).stages.policy is made
    assert pickle.loads(pickle.dumps(made.make_stages(["bundled:small", "bundled:large"][:0] or MODELS))).policy == made
