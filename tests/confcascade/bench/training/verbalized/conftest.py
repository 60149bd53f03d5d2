"""Facts of the made-up world, which the small bundled model answers right about half of the time."""

import pytest


@pytest.fixture(scope="session")
def examples():
    from confcascade.demo.world import World
    from confcascade.graders.example import Example

    asked = World().questions("fit", ("facts",), per_task=160)
    return [Example(each.prompt, references=(each.reference,), group=each.task) for each in asked]


@pytest.fixture(scope="session")
def questions(examples):
    from confcascade.bench.questions.prompts import PROMPTS
    from confcascade.bench.training.verbalized import Questions
    from confcascade.graders import NormalizedMatch
    from confcascade.signals.verbalized import Verbalized

    return Questions.of(
        examples,
        prompt=PROMPTS["plain"],
        grader=NormalizedMatch(),
        signal=Verbalized(instruction="Sure?"),
        max_tokens=40,
    )


@pytest.fixture
def small():
    """Loaded anew: training changes it."""
    pytest.importorskip("torch")
    from confcascade.models.bundled import bundled_model

    return bundled_model("small")
