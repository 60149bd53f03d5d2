"""A bound on the memory of a file's local models, which are then loaded when they are first asked."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import ConfigurationError, MemoryBound, OnDemandModel
from confcascade.cascade_file import CascadeFile
from confcascade.models.bundled import bundled_folder

QUESTION = "How does Nebros Krurer earn a living?"
THREE = "models: [bundled:small, bundled:medium, bundled:large]\nthreshold: 0.99\n"

pytestmark = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="models on demand are refused there"
)


def file(tmp_path: Path, text: str, name: str = "cascade.yaml") -> CascadeFile:
    (tmp_path / name).write_text(text)
    return CascadeFile.load(tmp_path / name)


def test_nothing_is_loaded_before_a_question_and_what_is_not_asked_never(tmp_path):
    """And records are those of the models loaded at once."""
    bounded = file(tmp_path, THREE + "memory_gib: 0.0055\n")
    cascade = bounded.cascade()
    models = [stage.model for stage in cascade.stages]
    assert all(isinstance(model, OnDemandModel) for model in models)
    memory = models[0].memory  # type: ignore[attr-defined]
    assert (memory.gib, memory.loaded) == (0.0055, ())

    outcome, plain = cascade.run(QUESTION), file(tmp_path, THREE).cascade().run(QUESTION)
    assert outcome.text == plain.text
    assert outcome.record.policy_id == plain.record.policy_id
    asked = [attempt.model for attempt in outcome.record.attempts]
    assert asked == [attempt.model for attempt in plain.record.attempts]
    assert memory.loaded[-1] == asked[-1]
    assert "large" in asked or "large" not in memory.loaded


def test_a_bound_does_not_make_another_cascade(tmp_path):
    """Recordings and reports know a file by what its models answer."""
    assert file(tmp_path, THREE + "memory_gib: 8\n").digest == file(tmp_path, THREE).digest


def test_cascades_share_a_bound_that_they_are_given(tmp_path):
    memory = MemoryBound(0.0055)
    cascades = [file(tmp_path, THREE, f"{i}.yaml").cascade(memory=memory) for i in range(2)]
    for cascade in cascades:
        cascade.run(QUESTION)
    bounds = {stage.model.memory for cascade in cascades for stage in cascade.stages}  # type: ignore[attr-defined]
    assert bounds == {memory}
    assert len(memory.loaded) <= 2


def test_one_model_asked_in_two_ways_is_loaded_once(tmp_path):
    place = bundled_folder("small")
    models = f"models:\n  - {{local: {place}, name: a}}\n  - {{local: {place}, name: b, max_new_tokens: 3}}\n"
    cascade = file(tmp_path, models + "threshold: 1.0\nmemory_gib: 1\n").cascade()
    outcome = cascade.run(QUESTION)
    memory = cascade.stages[0].model.memory  # type: ignore[attr-defined]
    assert [attempt.model for attempt in outcome.record.attempts] == ["a", "b"]
    assert memory.loaded == ("a",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (THREE + "memory_gib: 0\n", r"line 3.*memory_gib.*greater than 0"),
        (THREE + "memory_gib: 0.003\n", r"'large' takes 5.3 MiB, more than the bound of 0.003 GiB"),
        (
            "models:\n  - {local: x, adapter: y}\n  - bundled:large\nthreshold: 0.9\nmemory_gib: 1\n",
            r"line 2.*`adapter` is loaded at once, and not within `memory_gib`",
        ),
    ],
)
def test_what_cannot_be_within_a_bound_is_refused_at_its_line(tmp_path, text, told):
    with pytest.raises(ConfigurationError, match=told):
        file(tmp_path, text).cascade()
