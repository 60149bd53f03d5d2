"""When the first token is shown: the clock, the scores, and a running bound."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("langchain_core")

from confcascade import Architecture
from confcascade.bench.fitting import material_of
from confcascade.bench.recording import Row
from confcascade.types import Token, Usage


@pytest.fixture
def script(load_script):
    return load_script("first_token")


def row(question, model, probabilities, grade, script, problem=None):
    tokens = tuple(Token(f" w{i}", math.log(p)) for i, p in enumerate(probabilities))
    text = "".join(token.text for token in tokens).strip()
    bare = Row(question=question, model=model, answer=text, tokens=tokens, grade=grade, usage=Usage(9, len(tokens)))
    return script.scored(bare, problem)


def test_contenders_stream_the_same_answer(script):
    """Over the instant client every contender shows the whole answer, and a line tells both its times."""
    streams = script.instant()
    assert {"".join(stream()) for stream in streams.values()} == {" word" * 16}
    lines = script.times(streams, turns=1, calls=1)
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in streams]
    assert all(line.count("×") == 2 for line in lines[1:])


def test_what_is_waited_for(script):
    """Of a draft that is shown at its fourth token of eight, half; of one that is held, all."""
    rows = [row(f"q{i}", "small", [0.9] * 8, 1.0, script) for i in range(2)]
    rows += [row(f"q{i}", "large", [0.9] * 8, 1.0, script) for i in range(2)]
    sizes = {name: Architecture(10, 1, 1) for name in ("small", "large")}
    source = script.Source("two", rows, ("small", "large"), sizes)
    material = material_of(rows, models=source.models)
    kept = np.array([True, True])
    assert script.waited(material, source, kept, np.array([True, False]), 4) == pytest.approx(0.75)


def test_a_running_bound_ends_what_is_below_it(script):
    """Two answers of four tokens, at most four long: the worse one is given up after its first token."""
    rows = [row("a", "m", [0.9] * 4, 1.0, script), row("b", "m", [0.01] * 4, 0.0, script)]
    threshold = (0.9 + 0.01) / 2
    assert script.running_bound("two", rows, 4) == f"| two | 4 | {threshold:.2f} | 100% | 75.0% |"
    assert script.running_bound("two", rows, 400).endswith("| 0% | 0.0% |")
