"""Audits with real models, of this machine: they answer beside the cascade, and change nothing of what it says."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Audit, Cascade, Stage, TokenProbability
from confcascade.demo.world import World
from confcascade.graders import Agreement
from confcascade.models.bundled import bundled_model


def test_it_finds_what_the_large_model_would_have_said(tmp_path):
    """Asked in batches, with an audit of each kept answer beside: the same answers, the differences that there are."""
    prompts = [question.prompt for question in World().questions("test", ("facts",), per_task=24)]
    small, large = bundled_model("small"), bundled_model("large")
    stages = [Stage(small, [TokenProbability()], {"p_t": 0.6}), Stage(large)]
    same = Agreement("normalized")
    alone = [outcome.text for outcome in Cascade([stages[-1]]).run_batch(prompts, max_tokens=12)]
    plain = Cascade(stages).run_batch(prompts, max_tokens=12)

    cascade = Cascade(stages, audit=Audit(rate=1.0, state=tmp_path / "a", same=same, queue=1000))
    outcomes = cascade.run_batch(prompts, max_tokens=12)
    assert cascade.auditor.wait(120)
    state = cascade.auditor.file.state()

    assert [outcome.text for outcome in outcomes] == [outcome.text for outcome in plain]
    kept = [i for i, outcome in enumerate(outcomes) if outcome.record.stage == 0]
    differ = [i for i in kept if not same(prompts[i], outcomes[i].text, alone[i])]
    assert 0 < len(kept) < len(prompts)
    assert (state.n, state.kept, state.audited) == (len(prompts), len(kept), len(kept))
    assert state.disagreements == len(differ)
