from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    Evidence,
    FormatProbability,
    Message,
    OpenAICompatibleModel,
    Prefilled,
    Request,
    Response,
    SignalUnavailableError,
    Stage,
    Token,
    Usage,
)
from confcascade.evaluation import recorded_score
from confcascade.testing import Reply, ScriptedModel
from hypothesis import given
from hypothesis import strategies as st

REQUEST = Request((Message("user", "q"),))


def first(**listed: float) -> Token:
    """A first token with its alternatives; an underscore stands for a space."""
    return Token("x", -1.0, tuple((text.replace("_", " "), math.log(p)) for text, p in listed.items()))


def answer(*tokens: Token) -> Evidence:
    return Evidence(REQUEST, tokens=tokens)


def test_it_is_the_probability_of_the_first_word():
    """With and without a space before it; what comes after says nothing."""
    measured = FormatProbability().score(answer(first(Answer=0.5, _Answer=0.3, answer=0.1), first(Answer=0.01)))

    assert measured.value == pytest.approx(0.8)


def test_the_prompt_tells_it_where_it_can():
    """What the pass over the prompt measured comes before what the first token lists, and is known at once."""
    signal = FormatProbability()
    prefilled = Prefilled(Usage(3), label_logprobs={"Answer": math.log(0.6), "A": math.log(0.9)})

    assert signal.score(Evidence(REQUEST, prefilled, (first(Answer=0.1),))).value == pytest.approx(0.6)
    assert signal.bounds(Evidence(REQUEST, prefilled)) == pytest.approx((0.6, 0.6))


@given(
    st.dictionaries(st.sampled_from(["Answer", " Answer", "The", "A"]), st.floats(0.001, 0.25)),
    st.lists(st.floats(-9, 0), max_size=4),
)
def test_the_first_token_decides(listed: dict[str, float], later: list[float]):
    """From the first token on the bounds are the final score; where there is none, they are the whole space."""
    signal = FormatProbability()
    tokens = [Token("x", -1.0, tuple((t, math.log(p)) for t, p in listed.items())), *(Token("y", p) for p in later)]
    pooled = listed.get("Answer", 0) + listed.get(" Answer", 0)
    bounds = {signal.bounds(answer(*tokens[:length])) for length in range(1, len(tokens) + 1)}

    assert signal.bounds(answer()) == (0.0, 1.0)
    if pooled:
        value = signal.score(answer(*tokens)).value
        assert value == pytest.approx(pooled)
        assert bounds == {(value, value)}
    else:
        assert bounds == {(0.0, 1.0)}
        with pytest.raises(SignalUnavailableError, match="'Answer'"):
            signal.score(answer(*tokens))


@pytest.mark.parametrize("tokens", [None, ()], ids=["none told", "no tokens"])
def test_without_evidence_there_is_no_score(tokens: Any):
    """No value is invented."""
    with pytest.raises(SignalUnavailableError, match="no log-probabilities"):
        FormatProbability().score(Evidence(REQUEST, tokens=tokens))


def test_rounding_does_not_leave_the_space():
    """Pooled probabilities that round to more than 1 are a score of 1."""
    assert FormatProbability().score(answer(first(Answer=0.7, _Answer=0.3000001))).value == 1.0


@pytest.mark.parametrize("opening", ["", "The answer", " Answer", 7, None])
def test_the_opening_is_one_word(opening: Any):
    """A space is not the word's: it is pooled."""
    with pytest.raises(ConfigurationError, match="one word"):
        FormatProbability(opening)


def test_it_is_refused_on_a_model_that_tells_no_probabilities():
    """When the cascade is built, with what to do."""
    with pytest.raises(ConfigurationError, match="'m' does not return them"):
        FormatProbability().check(ScriptedModel("m", logprobs=False))
    FormatProbability().check(ScriptedModel("m", logprobs=None))


def test_its_identity_is_its_opening():
    """Which decides its values; its name does not."""
    assert FormatProbability(name="x").identity() == {"signal": "FormatProbability", "opening": "Answer"}
    assert FormatProbability("Result").identity() != FormatProbability().identity()
    assert repr(FormatProbability()) == "FormatProbability('Answer')"


# ---------------------------------------------------------------------- in a cascade


def small(hidden_size: int = 0) -> ScriptedModel:
    keeps = Reply("Answer: the smith", labels={"Answer": 0.9}, hidden=(1,))
    strays = Reply("It was the smith", labels={"It": 0.9, "Answer": 0.05}, hidden=(1,))
    return ScriptedModel("small", {"keeps": keeps, "strays": strays}, hidden_size=hidden_size, batch_size=4)


@pytest.mark.parametrize(("hidden_size", "generated"), [(0, 1), (1, 0)], ids=["first token", "prompt"])
def test_another_beginning_is_ended_at_once(hidden_size: int, generated: int):
    """At its first token, or before it where the prompt tells."""
    stages = [Stage(small(hidden_size), [FormatProbability()], {"p_format": 0.5}), Stage(ScriptedModel("large"))]
    kept, passed = Cascade(stages).run_batch(["keeps", "strays"])

    assert (kept.text, kept.record.stage) == ("Answer: the smith", 0)
    assert passed.record.stage == 1
    attempt = passed.record.attempts[0]
    assert attempt.scores["p_format"].value == pytest.approx(0.05)
    assert attempt.usage.output_tokens == generated


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_no_score(number: float):
    """`min` would make certainty of it."""
    evidence = Evidence(REQUEST, Prefilled(Usage(3, 0), label_logprobs={"Answer": number}))

    with pytest.raises(SignalUnavailableError, match="is not finite"):
        FormatProbability().score(evidence)
    assert FormatProbability().bounds(evidence) == (0.0, 1.0)


def test_a_recording_knows_where_a_draft_ends():
    """The recorded bound falls at the first token, so that a replay counts one token of a draft that strays."""
    tokens = (first(It=0.9, Answer=0.05), Token(" was", -0.1))
    score = recorded_score(FormatProbability(), Evidence(REQUEST, None, tokens, Response("It was", tokens)))

    assert score.value == pytest.approx(0.05)
    assert score.upper == ((1, pytest.approx(0.05)),)


def test_it_is_what_a_real_model_says():
    """On a bundled model, it is the softmax of the last position of the prompt, of the one token that says it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from confcascade.asks import Prefill
    from confcascade.demo import bundled_model

    model = bundled_model("small")
    signal = FormatProbability()
    request = Request((Message("user", "Tasu has 140 stamps, finds 17, loses 81. How many stamps?"),))
    (prefilled,) = model.prefill([Prefill(model, request, labels=signal.labels)])
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": request.messages[0].content}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        p = model.model(ids).logits[0, -1].softmax(-1)

    value = signal.score(Evidence(request, prefilled)).value
    assert value == pytest.approx(float(p[model.tokenizer.convert_tokens_to_ids("Answer")]), rel=1e-4)
    assert 0 < value < 1
    prefilled.close()


def test_an_api_tells_what_the_model_itself_does(served: Callable[[str], str]):
    """Through llama.cpp's server it is read off the first token, in this process off the prompt: the same to 1e-3."""
    pytest.importorskip("torch")
    pytest.importorskip("openai")
    from confcascade.demo import bundled_model
    from confcascade.demo.world import World

    signal = FormatProbability("A")  # what these models begin with, where they are to choose a letter
    local = bundled_model("small")
    api = OpenAICompatibleModel("small", base_url=served("small"), api_key="none")
    scores = []
    for question in World().questions("test", ("letters",), per_task=8):
        found = []
        for model in (local, api):
            stages = [Stage(model, [signal], {"p_format": "always"}), Stage(model)]
            found.append(
                Cascade(stages).run(question.prompt, temperature=0).record.attempts[0].scores["p_format"].value
            )
        scores.append(found)

    told = [found for found in scores if found[1] is not None]
    assert len(told) >= 6
    assert max(here for here, _ in told) > 0.5
    for here, there in told:
        assert there == pytest.approx(here, abs=1e-3)
