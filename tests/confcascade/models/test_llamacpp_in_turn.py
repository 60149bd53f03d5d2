"""Two models of llama.cpp write an answer in turn, as the same two do in this process."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")
pytest.importorskip("openai")
pytest.importorskip("gguf")

from confcascade import ConfigurationError, Glimpse, LlamaCppModel, Stage, Steps, StepwiseCascade, TokenProbability
from confcascade.asks import Chunk, Generate
from confcascade.demo import WEIGHTS, bundled_model
from confcascade.demo.gguf import write_gguf
from confcascade.demo.world import World
from confcascade.types import Message, Request

SUMS = [question.prompt for question in World().questions("test", ("sums",), per_task=8)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    models = []
    for size in ("small", "large"):
        write_gguf(WEIGHTS / size, folder / f"{size}.gguf")
        models.append(LlamaCppModel(folder / f"{size}.gguf", context=512, slots=2, max_new_tokens=64))
    yield models
    for model in models:
        model.close()


def cascade(models, threshold):
    signal = TokenProbability(aggregate="min")
    return StepwiseCascade([Stage(models[0], [signal], {"p_t": threshold}), Stage(models[1])], steps=Steps("\n"))


def alone(model, question):
    (answer,) = model.generate([Generate(model, Request((Message("user", question),), temperature=0.0))])
    return answer.text


@pytest.mark.parametrize(("threshold", "which"), [("always", 0), (0.0, 0), ("never", 1), (1.0, 1)])
def test_at_the_ends_it_is_one_model(pair, threshold, which):
    outcomes = cascade(pair, threshold).run_batch(SUMS, temperature=0.0)

    assert [outcome.text for outcome in outcomes] == [alone(pair[which], question) for question in SUMS]


def test_in_between_it_decides_as_models_in_this_process_do(pair):
    """Step for step; llama.cpp shows the blank with which these models begin."""
    here = cascade([bundled_model("small"), bundled_model("large")], 0.75).run_batch(SUMS)
    there = cascade(pair, 0.75).run_batch(SUMS, temperature=0.0)

    def steps(outcome):
        return [(step.author, step.kept) for step in outcome.record.steps]

    assert [outcome.text for outcome in here] == [outcome.text.strip() for outcome in there]
    assert list(map(steps, here)) == list(map(steps, there))
    assert {author for outcome in there for author, kept in steps(outcome) if kept} == {"small", "large"}
    for mine, its in zip(here, there, strict=True):  # what is read again comes out of llama.cpp's cache, prompts too
        assert 0 < its.record.cost.flops <= 1.1 * mine.record.cost.flops


def test_streams_and_async_calls_say_the_same(pair):
    turns = cascade(pair, 0.75)
    *chunks, outcome = turns.stream(SUMS[0], temperature=0.0)

    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)) == outcome.text
    assert asyncio.run(turns.arun(SUMS[0], temperature=0.0)).text == outcome.text


def test_what_it_cannot_show_is_refused(pair):
    with pytest.raises(ConfigurationError, match="before it writes"):
        StepwiseCascade([Stage(pair[0], [Glimpse()], {"glimpse": 0.5}), Stage(pair[1])])
