"""`OpenAICompatibleModel` and cascades of it against llama.cpp's own server, held against the same models here."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

pytest.importorskip("openai")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Cascade, Message, ModelError, OpenAICompatibleModel, Request, Stage, TokenProbability
from confcascade.asks import Generate
from confcascade.models.bundled import bundled_model
from confcascade.testing import check_model

GREEDY = {"temperature": 0, "max_tokens": 64}


@pytest.fixture(scope="module")
def models(served):
    return [OpenAICompatibleModel(size, base_url=served(size)) for size in ("small", "large")]


def cascade(models, threshold, aggregate="mean"):
    signal = TokenProbability(aggregate=aggregate)
    return Cascade([Stage(models[0], [signal], {"p_t": threshold}), Stage(models[1])])


def test_it_keeps_the_contract_of_a_language_model(models, yardstick):
    for prompt in yardstick.prompts[:1] + yardstick.prompts[-1:]:
        check_model(models[0], Request((Message("user", prompt),), **GREEDY))


@pytest.mark.parametrize("continues", ["llama.cpp", "continue_final_message", "trailing"])
def test_it_continues_answers_in_each_form(served, yardstick, continues):
    """llama.cpp's server takes three of them, and gives the same text in parts as in one."""
    model = OpenAICompatibleModel("small", base_url=served("small"), continues=continues)

    check_model(model, Request((Message("user", yardstick.prompts[-1]),), **GREEDY))


def test_a_served_cascade_decides_as_the_local_one(models, yardstick):
    """Whichever way it is asked: answers, decisions and usage are equal, and scores but for rounding."""
    cascading = cascade(models, yardstick.threshold)
    for prompt, expected in zip(yardstick.prompts, yardstick.outcomes, strict=True):
        *chunks, outcome = cascading.stream(prompt, **GREEDY)
        yardstick.check(expected, outcome.text, outcome.record.as_dict())
        assert "".join(chunk.text for chunk in chunks) == outcome.text
        outcome = cascading.run(prompt, **GREEDY)
        yardstick.check(expected, outcome.text, outcome.record.as_dict())
    assert {outcome.record.stage for outcome in yardstick.outcomes} == {0, 1}


async def test_a_served_cascade_decides_so_asynchronously_and_in_batches(models, yardstick):
    """The server's slots answer side by side, and nobody's answer moves."""
    cascading = cascade(models, yardstick.threshold)
    batch = await asyncio.to_thread(cascading.run_batch, yardstick.prompts, **GREEDY)
    abatch = await cascading.arun_batch(yardstick.prompts, **GREEDY)
    for expected, *found in zip(yardstick.outcomes, batch, abatch, strict=True):
        for outcome in found:
            yardstick.check(expected, outcome.text, outcome.record.as_dict())
    *chunks, outcome = [item async for item in cascading.astream(yardstick.prompts[-1], **GREEDY)]
    yardstick.check(yardstick.outcomes[-1], outcome.text, outcome.record.as_dict())
    assert "".join(chunk.text for chunk in chunks) == outcome.text


def test_a_doomed_draft_is_ended_at_the_same_token(models, yardstick):
    """The product can only fall: server and local model give up the same drafts, having written as much of them."""
    local = [bundled_model("small"), bundled_model("large")]
    long = yardstick.prompts[-8:]
    answers = local[0].generate([Generate(local[0], Request((Message("user", prompt),), **GREEDY)) for prompt in long])
    scores = sorted(math.exp(math.fsum(token.logprob for token in answer.tokens)) for answer in answers)
    middle = len(scores) // 2
    threshold = (scores[middle - 1] + scores[middle]) / 2
    assert scores[middle] - scores[middle - 1] > yardstick.tolerance
    for prompt in long:
        ours, theirs = (cascade(m, threshold, "product").run(prompt, **GREEDY) for m in (local, models))
        assert theirs.text == f" {ours.text}"
        first, other = ours.record.attempts[0], theirs.record.attempts[0]
        assert (other.decision, other.aborted) == (first.decision, first.aborted)
        assert other.scores["p_t"].value == pytest.approx(first.scores["p_t"].value, abs=yardstick.tolerance)
        assert other.usage.output_tokens == first.usage.output_tokens
        assert other.usage.estimated == first.aborted


@pytest.mark.parametrize("stop", ["\n", "=", "Answer"])
def test_stop_is_honoured_with_the_same_scores(models, yardstick, stop):
    """Text, tokens and usage end before the stop string, whole and streamed, as in the local model."""
    local = bundled_model("small")
    request = Request((Message("user", yardstick.prompts[-1]),), stop=(stop,), **GREEDY)
    (expected,) = local.generate([Generate(local, request)])
    (whole,) = models[0].generate([Generate(models[0], request)])
    *_, streamed = models[0].stream(Generate(models[0], request))
    assert stop not in expected.text
    for response in (whole, streamed):
        assert response.text == f" {expected.text}"
        assert replace(response.usage, input_details={}) == expected.usage
        assert response.usage.input_details.keys() == {"cache_read"}  # whatever its slots held of the prompt
        found, wanted = ([token.logprob for token in each.tokens] for each in (response, expected))
        assert found == pytest.approx(wanted, abs=yardstick.tolerance)


def test_an_overlong_prompt_escalates_with_the_servers_word(models):
    """The server refuses it (HTTP 400); the attempt fails with that reason, and so does the last stage."""
    with pytest.raises(Exception, match="exceed") as raised:
        Cascade([Stage(models[0])], on_error="raise").run("many words " * 2000, **GREEDY)
    assert not isinstance(raised.value, ModelError)
