"""``confcascade fit`` with other targets than a drop: what the options say, a policy, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.cli.fit_targets import TargetOptions
from confcascade.guarantee import Target
from confcascade.policy import Policy

from tests.confcascade.bench.fitting.conftest import made_rows

PRICED = ("--prices", "small=0.1,0.4", "--prices", "large=2,8")


def options(**changes):
    names = (
        *("precision", "recall", "f1", "error_price", "max_cost", "max_drop", "max_asked", "max_latency"),
        *("late_share", "most_tokens", "timeout"),
    )
    return TargetOptions(**{name: () if name in ("precision", "recall", "f1") else None for name in names} | changes)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    rng, references = np.random.default_rng(1), {}
    path = tmp_path_factory.mktemp("targets") / "answers.jsonl"
    with path.open("wb") as file:
        for row in made_rows(1500):
            reference = references.setdefault(row.question, "yes" if rng.random() < 0.4 else "no")
            answer = reference if row.grade else {"yes": "no", "no": "yes"}[reference]
            file.write(row.model_copy(update={"reference": reference, "answer": answer}).line())
    return path


def test_options_become_targets():
    told = options(
        precision=["yes=0.9"], recall=["each=0.8"], f1=["a=b=0.7"], error_price=0.05, max_cost=0.4, max_asked=0.3
    )
    assert told.targets == (
        Target("precision", 0.9, of="yes"),
        Target("recall", 0.8, of="each"),
        Target("f1", 0.7, of="a=b"),
        Target("total", 0.05),
        Target("cost", 0.4),
        Target("asked", 0.3),
    )
    assert options(max_latency=2.0).targets == (Target("latency", 2.0),)
    assert options(max_latency=2.0, late_share=0.05).targets == (Target("late", 0.05, seconds=2.0),)
    limits = options(most_tokens="4000, 512", timeout=30.0).limits
    assert (limits.tokens, limits.timeout) == ((4000, 512), 30.0)


def test_a_drop_or_a_cost_alone_is_another_fit():
    assert not options(max_drop=0.01).used
    assert not options(max_cost=0.4).used
    assert options(max_drop=0.01, max_cost=0.4).used
    assert options(max_cost=0.4, most_tokens="40,20").used
    assert options(max_asked=0.3).used


def test_what_contradicts_itself_is_refused():
    for changes, said in (
        ({"late_share": 0.05}, "--max-latency"),
        ({"timeout": 3.0}, "name a target, too"),
        ({"precision": ["yes"]}, "NAME=VALUE"),
        ({"f1": ["yes=lots"]}, "--min-f1"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            _ = options(**changes).targets
    with pytest.raises(ConfigurationError, match="4000,512"):
        _ = options(most_tokens="4000").limits
    for changes in ({"grid": True}, {"per_group": True}, {"rule": "pass-rate"}):
        with pytest.raises(ConfigurationError, match="goes with --max-drop or --max-cost alone"):
            options().refuse(**({"grid": False, "per_group": False, "rule": "quantiles"} | changes))


def test_a_drop_and_a_cost_hold_together(confcascade, recording, tmp_path):
    out = tmp_path / "policy.json"
    asked = ("fit", recording, "-o", out, "--max-drop", 0.08, "--max-cost", 0.9, *PRICED)
    unbounded = confcascade(*asked)
    assert unbounded.returncode == 2
    assert "`most_tokens` is --most-tokens" in unbounded.stderr
    assert not out.exists()

    done = confcascade(*asked, "--most-tokens", "40,20")
    assert done.returncode == 0, done.stderr + done.stdout
    for part in (
        "2 promises, which hold together with 0.95 confidence:",
        "Promised: accuracy at most 8.00 points below the largest model's, with 0.95 confidence.",
        "Promised: a question costs on average at most 90.00% of the largest model's cost, with 0.95 confidence.",
        f"Policy: {out}",
    ):
        assert part in done.stdout
    assert [each.kind for each in Policy.load(out).certificates] == ["labels", "cost"]


def test_a_class_that_cannot_be_promised_ends_with_1(confcascade, recording, tmp_path):
    out = tmp_path / "policy.json"
    done = confcascade("fit", recording, "-o", out, "--min-f1", "yes=0.99", *PRICED)
    assert done.returncode == 1
    assert "Nothing can be promised" in done.stdout
    assert not out.exists()
    good = confcascade("fit", recording, "-o", out, "--min-f1", "yes=0.6", "--min-recall", "each=0.6", *PRICED)
    assert good.returncode == 0, good.stderr + good.stdout
    assert "F1 of 'yes' against the references is at least 60.00%" in good.stdout
