from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import pytest
from confcascade import (
    ConfigurationError,
    Message,
    OutputSchema,
    Request,
    SignalUnavailableError,
    TokenProbability,
    Tool,
    ToolCall,
    Usage,
)
from confcascade.extending import Evidence, Prefilled, Response, Token
from confcascade.signals import corrected
from confcascade.testing import ScriptedModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st

REQUEST = Request((Message("user", "q"),))

logprobs = st.lists(st.floats(-30, 0), min_size=1, max_size=20)


def answer(*tokens: Token) -> Evidence:
    return Evidence(REQUEST, tokens=tokens)


def score(aggregate: Any, logprobs: list[float], **options: Any) -> float:
    signal = TokenProbability(aggregate=aggregate, **options)
    return signal.score(answer(*(Token("x", logprob) for logprob in logprobs))).value


# ---------------------------------------------------------------------- free text


@given(logprobs)
def test_aggregates_are_what_they_say(logprobs: list[float]):
    """Each aggregate is the formula of its docstring."""
    n = len(logprobs)

    assert score("mean", logprobs) == pytest.approx(math.exp(sum(logprobs) / n))
    assert score("min", logprobs) == pytest.approx(min(math.exp(x) for x in logprobs))
    assert score("product", logprobs) == pytest.approx(math.prod(math.exp(x) for x in logprobs))
    assert score("first", logprobs) == pytest.approx(math.exp(logprobs[0]))


@given(logprobs)
def test_aggregates_are_ordered(logprobs: list[float]):
    """product <= min <= mean <= max, and all lie in [0, 1]."""
    mean, least, product = (score(aggregate, logprobs) for aggregate in ("mean", "min", "product"))
    tiny = 1e-12  # of rounding

    assert 0 <= product <= least * (1 + tiny)
    assert least <= mean * (1 + tiny)
    assert mean <= math.exp(max(logprobs)) * (1 + tiny) <= 1 + tiny
    assert 0 <= score("first", logprobs) <= 1


@given(logprobs)
def test_the_mean_is_the_reciprocal_perplexity(logprobs: list[float]):
    """exp of the mean log-probability is 1 / perplexity."""
    perplexity = math.exp(-sum(logprobs) / len(logprobs))

    assert score("mean", logprobs) == pytest.approx(1 / perplexity)


@given(logprobs, st.sampled_from(["mean", "min", "product", "first"]))
def test_bounds_hold_whatever_follows(logprobs: list[float], aggregate: Any):
    """For every beginning of an answer, the final score lies within the bounds that were given then."""
    signal = TokenProbability(aggregate=aggregate)
    tokens = [Token("x", logprob) for logprob in logprobs]
    final = signal.score(answer(*tokens)).value

    for length in range(len(tokens) + 1):
        low, high = signal.bounds(answer(*tokens[:length]))
        assert low <= final <= high


@given(logprobs, st.sampled_from(["mean", "min", "product"]), st.integers(1, 6))
def test_only_the_first_tokens_count(logprobs: list[float], aggregate: Any, first: int):
    """The score is that of an answer which ends there; it is final with the last of them, and bounded before."""
    signal, tokens = TokenProbability(aggregate=aggregate, first=first), [Token("x", each) for each in logprobs]
    final = signal.score(answer(*tokens)).value

    assert final == TokenProbability(aggregate=aggregate).score(answer(*tokens[:first])).value
    bounds = [signal.bounds(answer(*tokens[:length])) for length in range(len(tokens) + 1)]
    assert all(low <= final <= high for low, high in bounds)
    assert all(each == (final, final) for each in bounds[first:])
    for (low, high), (later_low, later_high) in itertools.pairwise(bounds):
        assert low <= later_low
        assert later_high <= high * (1 + 1e-12)


def test_what_comes_after_the_first_tokens_withdraws_nothing():
    """A log-probability that is none makes no score missing that was final before; among them it does."""
    tokens = [Token("x", -0.1), Token("y", -0.2), Token("z", math.inf)]

    assert TokenProbability(first=2).score(answer(*tokens)).value == pytest.approx(math.exp(-0.15))
    assert TokenProbability(aggregate="first").score(answer(*tokens)).value == pytest.approx(math.exp(-0.1))
    with pytest.raises(SignalUnavailableError, match="not finite"):
        TokenProbability(first=3).score(answer(*tokens))


def test_an_opening_that_can_no_longer_reach_its_threshold_is_known_before_it_is_complete():
    """Of eight tokens, one of probability 0.01 leaves at best the eighth root of it."""
    assert TokenProbability(first=8).bounds(answer(Token("x", math.log(0.01)))) == (0.0, pytest.approx(0.01 ** (1 / 8)))


@pytest.mark.parametrize("first", [0, -1, 1.5, True, "8"])
def test_first_is_a_number_of_tokens(first: Any):
    """At least one; "first" is an aggregate of its own, and labels have a place of theirs."""
    with pytest.raises(ConfigurationError, match="number of tokens, at least 1"):
        TokenProbability(first=first)
    with pytest.raises(ConfigurationError, match="number of tokens, at least 1"):
        TokenProbability(aggregate="first", first=8)
    with pytest.raises(ConfigurationError, match="not both"):
        TokenProbability("AB", first=8)
    assert TokenProbability(first=8).identity() != TokenProbability().identity()
    assert "first" not in TokenProbability().identity()  # policies that were fitted before are still of this signal


@given(logprobs, st.sampled_from(["mean", "min", "product", "first"]))
def test_bounds_never_loosen(logprobs: list[float], aggregate: Any):
    """A verdict once given stays right: bounds only get tighter with every token."""
    signal = TokenProbability(aggregate=aggregate)
    tokens = [Token("x", logprob) for logprob in logprobs]
    bounds = [signal.bounds(answer(*tokens[:length])) for length in range(len(tokens) + 1)]

    assert bounds[0] == (0.0, 1.0)
    for (low, high), (later_low, later_high) in itertools.pairwise(bounds):
        assert low <= later_low
        assert later_high <= high


def test_bounds_are_tight_where_they_can_be():
    """The first token is final at once; a minimum and a product can only fall; a mean tells nothing before the end."""
    tokens = answer(Token("x", math.log(0.5)), Token("y", math.log(0.8)))

    assert TokenProbability(aggregate="first").bounds(tokens) == (0.5, 0.5)
    assert TokenProbability(aggregate="min").bounds(tokens) == (0.0, 0.5)
    assert TokenProbability(aggregate="product").bounds(tokens) == pytest.approx((0.0, 0.4))
    assert TokenProbability().bounds(tokens) == (0.0, 1.0)
    assert TokenProbability(aggregate="min", after="x").bounds(tokens) == (0.0, 1.0)


def test_only_sound_aggregates_claim_to_be_early():
    """`early` says where watching is worth it."""
    early = {
        aggregate: TokenProbability(aggregate=aggregate).early for aggregate in ("mean", "min", "product", "first")
    }

    assert early == {"mean": False, "min": True, "product": True, "first": True}
    assert TokenProbability("AB").early
    assert not TokenProbability(aggregate="first", after=":").early


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(None, "the model returned no log-probabilities"), ((), "there are no tokens to judge")],
    ids=["none told", "no tokens"],
)
@pytest.mark.parametrize("aggregate", ["mean", "min", "product", "first"])
def test_without_tokens_there_is_no_score(aggregate: Any, tokens: Any, said: str):
    """No value is invented where there is nothing to judge."""
    with pytest.raises(SignalUnavailableError, match=said):
        TokenProbability(aggregate=aggregate).score(Evidence(REQUEST, tokens=tokens))


def test_an_impossible_token_has_probability_zero():
    """A log-probability of minus infinity is a score of 0, not an error."""
    assert [score(aggregate, [-0.1, -math.inf]) for aggregate in ("mean", "min", "product")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("aggregate", ["mean", "min", "product", "first"])
def test_a_number_that_is_not_finite_is_no_score(aggregate: Any, number: float):
    """Nor a bound, by which an answer would be ended or released."""
    evidence = answer(Token("x", number), Token("y", -0.1))
    signal = TokenProbability(aggregate=aggregate)

    with pytest.raises(SignalUnavailableError, match="a log-probability of the answer is not finite"):
        signal.score(evidence)
    assert signal.bounds(evidence) == (0.0, 1.0)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("prefilled", [True, False])
def test_a_label_that_is_not_finite_is_no_score(number: float, prefilled: bool):
    """`min` and `max` would make certainty of it."""
    told = (("A", number), ("B", -0.5))
    read = Prefilled(Usage(3, 0), label_logprobs=dict(told))
    evidence = Evidence(REQUEST, read) if prefilled else answer(Token("A", -0.1, told))

    with pytest.raises(SignalUnavailableError, match="is not finite"):
        TokenProbability("AB").score(evidence)
    assert TokenProbability("AB").bounds(evidence) == (0.0, 1.0)


@pytest.mark.parametrize("never", [-9999.0, -math.inf])
def test_labels_that_are_ruled_out_have_probability_zero(never: float):
    """As servers tell them that were given a choice of others."""
    evidence = answer(Token("C", -0.1, (("C", -0.1), ("A", never), ("B", never))))

    assert TokenProbability("AB").score(evidence).value == 0.0


# ---------------------------------------------------------------------- after a marker


@pytest.mark.parametrize(
    ("tokens", "judged"),
    [
        (["Answer", ":", " 4"], [2]),
        (["Answer:", " 4"], [1]),
        (["Answer: 4"], [0]),  # the marker's own token carries the answer, too
        (["Ans", "wer", ": 4"], [2]),
        (["Answer", ": ", "4"], [2]),  # what follows the marker in its token is a space only
        (["Answer", ":", " ", "\n", "4"], [4]),
        (["Answer: 3", " no, Answer:", " 4"], [2]),  # the last occurrence
        (["", "Answer:", "", "4"], [3]),
        (["Answer:", " 4", " 2"], [1, 2]),
    ],
    ids=str,
)
def test_only_what_follows_the_last_marker_is_judged(tokens: list[str], judged: list[int]):
    """Tokens after the last occurrence count; one across the marker's end does if the answer begins in it."""
    primes = [2, 3, 5, 7, 11]
    evidence = answer(*(Token(text, -math.log(primes[i])) for i, text in enumerate(tokens)))

    value = TokenProbability(after="Answer:", aggregate="product").score(evidence).value

    assert value == pytest.approx(math.prod(1 / primes[i] for i in judged))


@given(
    reasoning=st.lists(st.sampled_from(["so", " 4", " Answer:", "\n", " Ans"]), max_size=6),
    final=st.lists(st.sampled_from(["4", " two", "\n", " or"]), min_size=1, max_size=4),
    p=st.floats(0.01, 1.0),
)
def test_reasoning_does_not_count(reasoning: list[str], final: list[str], p: float):
    """However long and however sure the reasoning, only the final answer decides."""
    assume("".join(final).strip())
    tokens = [Token(text, -9.0) for text in reasoning] + [Token(" Answer:", -9.0)]
    tokens += [Token(text, math.log(p)) for text in final]

    for aggregate in ("mean", "min", "first"):
        value = TokenProbability(after="Answer:", aggregate=aggregate).score(answer(*tokens)).value  # type: ignore[arg-type]
        assert value == pytest.approx(p)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["4"], "the answer does not contain 'Answer:'"),
        (["answer: 4"], "the answer does not contain 'Answer:'"),
        (["Answer:"], "no tokens"),
        (["Answer:", " \n"], "no tokens"),
    ],
    ids=str,
)
def test_without_a_final_answer_there_is_no_score(tokens: list[str], said: str):
    """A marker that is missing, or that nothing follows, leaves nothing to judge."""
    with pytest.raises(SignalUnavailableError, match=said):
        TokenProbability(after="Answer:").score(answer(*(Token(text, -0.1) for text in tokens)))


# ---------------------------------------------------------------------- labels


def top(**probabilities: float) -> Token:
    listed = tuple((text.replace("_", " "), math.log(p)) for text, p in probabilities.items())
    return Token(listed[0][0], listed[0][1], listed)


def test_labels_with_and_without_a_space_are_pooled():
    """ " A" and "A" are one label; the most likely label's share is the score, the sum of all the label mass."""
    measured = TokenProbability("AB").score(answer(top(A=0.3, _A=0.25, B=0.2, _B=0.2, C=0.04)))

    assert measured.value == pytest.approx(0.55)
    assert measured.details == {"label": "A", "label_mass": pytest.approx(0.95)}


def test_labels_that_are_not_listed_are_told():
    """An API lists a few alternatives only: where a label is not among them, the label mass is a lower bound."""
    measured = TokenProbability("ABC").score(answer(top(A=0.7, B=0.2)))

    assert measured.value == pytest.approx(0.7)
    assert measured.details["label_mass_is_lower_bound"] is True


def test_labels_are_read_from_the_prompt_where_possible():
    """What the prefill measured comes before what the first token lists."""
    prefilled = Prefilled(Usage(3), label_logprobs={"A": math.log(0.2), "B": math.log(0.6)})
    evidence = Evidence(REQUEST, prefilled, (top(A=0.9),))

    assert TokenProbability("AB").score(evidence).value == pytest.approx(0.6)
    assert TokenProbability("AB").bounds(evidence) == pytest.approx((0.0, 0.6))


def test_labels_are_known_before_anything_is_generated():
    """With a prefill, the upper bound from the start; without, from the token that ends the label. Which is not."""
    signal = TokenProbability("AB")
    prefilled = Prefilled(Usage(3), label_logprobs={"A": math.log(0.2), "B": math.log(0.6)})

    assert signal.bounds(Evidence(REQUEST, prefilled, ())) == pytest.approx((0.0, 0.6))
    assert signal.bounds(answer()) == (0.0, 1.0)
    assert signal.bounds(answer(top(A=0.7, B=0.2))) == (0.0, 1.0)  # "A good question" may follow
    assert signal.bounds(answer(top(A=0.7, B=0.2), Token(".", -0.1))) == pytest.approx((0.0, 0.7))


@given(
    listed=st.dictionaries(
        st.sampled_from(["A", " A", "B", " B", "C", " C", "\n", "The"]), st.floats(0.001, 0.12), min_size=1
    ),
    later=st.lists(st.floats(-9, 0), max_size=4),
)
def test_bounds_of_labels_hold_whatever_follows(listed: dict[str, float], later: list[float]):
    """The first token decides: the final score, or that there is none, follows from it."""
    signal = TokenProbability("ABC")
    first = Token("A", -1.0, tuple((text, math.log(p)) for text, p in listed.items()))
    tokens = [first, *(Token("x", logprob) for logprob in later)]
    pooled = {label: listed.get(label, 0) + listed.get(f" {label}", 0) for label in "ABC"}

    if not any(pooled.values()):
        with pytest.raises(SignalUnavailableError, match="none of the labels"):
            signal.score(answer(*tokens))
        assert signal.bounds(answer(*tokens)) == (0.0, 1.0)
        return
    measured = signal.score(answer(*tokens))
    assert measured.value == pytest.approx(max(pooled.values()))
    assert measured.details["label"] in [label for label, p in pooled.items() if p >= max(pooled.values()) * (1 - 1e-9)]
    assert measured.details["label_mass"] == pytest.approx(sum(pooled.values()))
    for length in range(1, len(tokens) + 1):
        low, high = signal.bounds(answer(*tokens[:length]))
        assert low <= measured.value <= high


def test_other_labels_of_a_stage_are_not_its_own():
    """Signals of one stage are prefilled together: what another asked for is neither the best label nor label mass."""
    prefilled = Prefilled(Usage(3), label_logprobs={"Answer": math.log(0.7), "A": math.log(0.2), "B": math.log(0.1)})
    measured = TokenProbability("AB").score(Evidence(REQUEST, prefilled))

    assert measured.value == pytest.approx(0.2)
    assert measured.details == {"label": "A", "label_mass": pytest.approx(0.3)}


@pytest.mark.parametrize("tokens", [None, ()], ids=["none told", "no tokens"])
def test_labels_without_evidence_have_no_score(tokens: Any):
    """Neither a prefill nor a first token: no value is invented."""
    with pytest.raises(SignalUnavailableError, match="no log-probabilities"):
        TokenProbability("AB").score(Evidence(REQUEST, tokens=tokens))


def test_rounding_does_not_leave_the_space():
    """Pooled probabilities that round to more than 1 are a score of 1."""
    measured = TokenProbability("AB").score(answer(top(A=0.7, _A=0.3000001)))

    assert (measured.value, measured.details["label_mass"]) == (1.0, 1.0)


# ---------------------------------------------------------------------- labels, wherever they stand


def said(*tokens: Token | str, prefilled: Prefilled | None = None) -> Evidence:
    """A whole answer; only tokens that are listed have alternatives."""
    listed = tuple(token if isinstance(token, Token) else Token(token, -0.1) for token in tokens)
    text = "".join(token.text for token in listed)
    return Evidence(REQUEST, prefilled, listed, Response(text, listed))


def letter(text: str, **probabilities: float) -> Token:
    """The token `text` beside labels with these probabilities."""
    return Token(text, math.log(0.5), ((text, math.log(0.5)), *((k, math.log(p)) for k, p in probabilities.items())))


@pytest.mark.parametrize(
    ("tokens", "place"),
    [
        (["Answer", ":", letter(" B", A=0.2)], 2),
        (["Answer", ":", letter(" B", A=0.2), ".", " warm", " climate"], 2),
        (["The", " correct", " answer", " is", " (", letter("B", A=0.2), ")"], 5),
        (["**", "Answer", ":**", letter(" B", A=0.2), "\n"], 3),
        (["Answer", ": (", letter("B)", A=0.2), " Paris"], 2),
        (["Answer", letter(": B.", A=0.2)], 1),
        ([letter("B", A=0.2), ".", " warm"], 0),
        ([letter("(B", A=0.2), ")"], 0),
        ([letter("B.", A=0.2), " warm"], 0),
        ([letter("**B", A=0.2), "**"], 0),
        (["**", letter("B", A=0.2), "**"], 1),
        (["(", letter("B", A=0.2), ") Paris"], 1),
    ],
    ids=str,
)
def test_a_label_is_judged_where_it_stands(tokens: list[Any], place: int):
    """Whatever the model says before it, and whatever stands around it in its token."""
    measured = TokenProbability("AB").score(said(*tokens))

    assert measured.value == pytest.approx(0.5)
    assert measured.details["label"] == "B"
    assert measured.details["label_mass"] == pytest.approx(0.7)
    assert measured.details.get("token", 0) == place


def test_tokens_that_are_one_label_are_pooled_whatever_stands_around_it():
    token = Token(" B", math.log(0.3), tuple((t, math.log(0.1)) for t in (" B", "B", "B.", "(B", "A", "Because", "b")))

    measured = TokenProbability("AB").score(said("Answer", ":", token))

    assert measured.value == pytest.approx(0.4)
    assert measured.details["label_mass"] == pytest.approx(0.5)


@pytest.mark.parametrize("answer", ["Answer: yes", "Paris", "A or B", "Because", "A good question"])
def test_where_no_label_can_be_read_there_is_no_score(answer: str):
    """Though a label may be likely at the first token."""
    with pytest.raises(SignalUnavailableError, match="gives none of the labels"):
        TokenProbability("AB").score(Evidence(REQUEST, None, (top(A=0.7, B=0.2),), Response(answer)))


def test_another_label_that_the_answer_begins_with_is_not_the_place():
    """It bounds the score of a draft, and what B has there is not how sure the model is of its conclusion."""
    goes_through = said(letter("A", B=0.01), ". London", " is wrong.\n", "Answer", ":", letter(" B", A=0.2))

    with pytest.raises(SignalUnavailableError, match="begins with 'A' and concludes with 'B'"):
        TokenProbability("AB").score(goes_through)


def test_a_word_that_is_spelled_otherwise_is_judged_by_what_was_listed_for_it():
    """An API lists "Yes" and "No"; a pass over the prompt told how likely "yes" is, which is another token."""
    token = Token("Yes", math.log(0.7), (("Yes", math.log(0.7)), ("No", math.log(0.2))))
    signal = TokenProbability(("yes", "no"))

    assert signal.score(said(token, ".")).value == pytest.approx(0.7)
    told = Prefilled(Usage(3), label_logprobs={"yes": math.log(0.01), "no": math.log(0.02)})
    with pytest.raises(SignalUnavailableError, match="spells the label 'yes' otherwise"):
        signal.score(said(token, ".", prefilled=told))


def test_a_sampled_letter_is_judged_not_the_likeliest():
    """Where the answer gives it: the text is what the user is told."""
    measured = TokenProbability("AB").score(said("Answer", ":", Token(" B", math.log(0.1), top(_A=0.8, _B=0.1).top)))

    assert (measured.details["label"], measured.value) == ("B", pytest.approx(0.1))


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["Answer: B", "B", "B.", "A is it. Answer: B"]))
def test_a_label_that_is_bound_to_come_first_is_judged_by_the_prompt(a: float, b: float, text: str):
    """So that what escalates from the prompt would have been rejected; any other waits for the answer."""
    total = max(1.0, a + b)
    told = {"A": math.log(a / total), "B": math.log(b / total)}
    signal = TokenProbability("AB")
    prefilled = Prefilled(Usage(3), label_logprobs=told)
    _, high = signal.bounds(Evidence(REQUEST, prefilled, ()))

    answer = Evidence(REQUEST, prefilled, (letter("x", B=0.4),) * 3, Response(text))
    if high < 1:
        assert signal.score(answer).value <= high
        assert signal.score(answer).value == pytest.approx(b / total)


def test_a_prefix_goes_with_labels_and_into_the_identity():
    signal = TokenProbability("AB", prefix="Choice:")

    assert signal.identity()["prefix"] == "Choice:"
    assert "prefix" not in TokenProbability("AB").identity()
    assert signal.score(said("A", " is", " my", " Choice", ":", letter(" B", A=0.2))).details["token"] == 5
    with pytest.raises(ConfigurationError, match="goes with `labels`"):
        TokenProbability(prefix="Answer:")


# ---------------------------------------------------------------------- as a signal


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregate": "median"}, "'median'"),
        ({"labels": "A"}, "at least two"),
        ({"labels": "AA"}, "different"),
        ({"labels": ["A", "B", "A"]}, "different"),
        ({"labels": ["A", ""]}, "non-empty"),
        ({"labels": [" A", " B"]}, "without spaces"),
        ({"labels": [1, 2]}, "strings"),
        ({"labels": "AB", "after": ":"}, "either `labels` or free text"),
        ({"labels": "AB", "aggregate": "min"}, "either `labels` or free text"),
        ({"after": ""}, "`after` must be a text"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str):
    """A signal that could not mean anything is refused when it is made."""
    with pytest.raises(ConfigurationError, match=said):
        TokenProbability(**options)


def test_it_asks_for_what_it_needs():
    """Labels need alternatives, free text does not; both need log-probabilities, neither a hidden state."""
    text, labels = TokenProbability(), TokenProbability("AB")

    assert (text.logprobs, text.top_logprobs, text.labels) == (True, 0, ())
    assert (labels.logprobs, labels.top_logprobs, labels.labels) == (True, 20, ("A", "B"))
    assert text.layers(ScriptedModel("m")) == ()


def test_it_is_refused_on_a_model_without_log_probabilities():
    """Where it is known that there are none, the stage cannot be built; where only the answer will tell, it can."""
    with pytest.raises(ConfigurationError, match="'m' does not return them"):
        TokenProbability().check(ScriptedModel("m", logprobs=False))
    TokenProbability().check(ScriptedModel("m", logprobs=None))


def test_its_identity_is_its_options():
    """Signals that score differently have different identities; the name, which keys the record, is not part of it."""
    identities = [
        signal.identity()
        for signal in (
            TokenProbability(),
            TokenProbability(aggregate="min"),
            TokenProbability(after=":"),
            TokenProbability("AB"),
            TokenProbability("BA"),
        )
    ]

    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert TokenProbability(name="x").identity() == TokenProbability().identity()
    assert repr(TokenProbability(aggregate="min")) == "TokenProbability(aggregate='min', after=None)"
    assert repr(TokenProbability("AB")) == "TokenProbability(labels=('A', 'B'))"


# ---------------------------------------------------------------------- tool calls

WITH_TOOLS = Request((Message("user", "q"),), tools=(Tool("add"), Tool("note")))


def written(*pieces: str | tuple[str, float]) -> tuple[Token, ...]:
    """Tokens of a text: those with a probability, and certain ones."""
    return tuple(Token(*piece) if isinstance(piece, tuple) else Token(piece, 0.0) for piece in pieces)


def called(tokens: tuple[Token, ...] | None, *calls: ToolCall, text: str = "") -> Evidence:
    return Evidence(WITH_TOOLS, None, tokens, Response(text, tokens, tool_calls=calls))


def judged(tokens: tuple[Token, ...], *calls: ToolCall, text: str = "") -> list[str]:
    """The texts of the tokens that count: those that change the score if they change."""
    signal = TokenProbability(aggregate="product")
    count = []
    for i, token in enumerate(tokens):
        doubted = (*tokens[:i], Token(token.text, -1.0), *tokens[i + 1 :])
        if signal.score(called(doubted, *calls, text=text)).value < 1:
            count.append(token.text)
    return count


ADD = ToolCall("add", {"a": 12, "b": "x y"})


@pytest.mark.parametrize(
    ("text", "calls", "counted"),
    [
        ('{"name": "add", "arguments": {"a": 12, "b": "x y"}}', [ADD], ["add", "12", "x", "y"]),
        (
            '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": "x y"}}\n</tool_call>',
            [ADD],
            ["add", "12", "x", "y"],
        ),
        ('<function=add>{"b": "x y", "a": 12}</function>', [ADD], ["add", "x", "y", "12"]),
        ('{"arguments": {"a": 12, "b": "x y"}, "name": "add"}', [ADD], ["12", "x", "y", "add"]),
        ('{"name": "add", "arguments": {}}', [ToolCall("add", {})], ["add"]),
        ('I add, adding: add {"a": 1}', [ToolCall("add", {"a": 1})], ["add", "1"]),
        (
            '[{"name": "add", "arguments": {"a": 1}}, {"name": "note", "arguments": {"a": 1}}]',
            [ToolCall("add", {"a": 1}), ToolCall("note", {"a": 1})],
            ["add", "1", "note", "1"],
        ),
        (
            '{"name": "note", "arguments": {"add": [1.5, true, null, {"add": "add"}], "t": "\\u00e9"}}',
            [ToolCall("note", {"add": [1.5, True, None, {"add": "add"}], "t": "é"})],
            ["note", "1", ".", "5", "true", "null", "add", "\\", "u00e9"],
        ),
    ],
)
def test_of_a_tool_call_only_its_name_and_values_count(text, calls, counted):
    """Not its braces, quotes and keys, nor a tool's name that is only talked about."""
    tokens = written(*re.findall(r"\s?\w+|\s?[^\w\s]|\s", text))

    assert "".join(token.text for token in tokens) == text
    assert [piece.strip() for piece in judged(tokens, *calls)] == counted


def test_tokens_that_overlap_a_value_count_whole():
    tokens = written('{"name', '": "ad', 'd", "arguments": {"a": 1', "2}}")

    assert judged(tokens, ToolCall("add", {"a": 12})) == ['": "ad', 'd", "arguments": {"a": 1', "2}}"]


def test_text_before_a_call_does_not_count():
    tokens = written("I", " will", " add", ".", '{"name": "', "add", '", "arguments": {"a": ', "1", "}}")

    assert judged(tokens, ToolCall("add", {"a": 1}), text="I will add.") == ["add", "1"]


@pytest.mark.parametrize("aggregate", ["mean", "min", "product", "first"])
def test_aggregates_of_a_call_are_those_of_its_tokens(aggregate):
    tokens = written(('{"name": "', -9.0), ("add", -0.1), ('", "arguments": {"a": ', -9.0), ("1", -0.3), ("}}", -9.0))
    signal = TokenProbability(aggregate=aggregate)

    found = signal.score(called(tokens, ToolCall("add", {"a": 1})))

    assert found == signal.score(answer(Token("add", -0.1), Token("1", -0.3)))


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=4,
    ),
    st.booleans(),
    st.integers(1, 7),
)
def test_every_json_call_is_found_however_it_is_cut_into_tokens(arguments, ascii_only, size):
    text = json.dumps({"name": "add", "arguments": arguments}, ensure_ascii=ascii_only)
    tokens = tuple(Token(text[i : i + size], -0.5) for i in range(0, len(text), size))

    found = TokenProbability().score(called(tokens, ToolCall("add", arguments)))

    assert found.value == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("tokens", [None, (), written(" ")])
def test_a_call_without_tokens_is_not_scored(tokens):
    """OpenAI lists none."""
    with pytest.raises(SignalUnavailableError, match="returned no log-probabilities of its tool calls"):
        TokenProbability().score(called(tokens, ADD))
    with pytest.raises(SignalUnavailableError, match="returned no log-probabilities of its tool calls"):
        TokenProbability(labels="AB").score(called(tokens, ADD))


def test_tokens_of_the_text_do_not_stand_for_a_call():
    tokens = written("I", " add")

    with pytest.raises(SignalUnavailableError, match="returned no log-probabilities of its tool calls"):
        TokenProbability().score(called(tokens, ADD, text="I add"))


def test_a_call_that_is_not_written_in_json_is_not_scored():
    tokens = written("[add(a=", "12", ", b='", "x y", "')]")

    with pytest.raises(SignalUnavailableError, match="cannot be found among the tokens"):
        TokenProbability().score(called(tokens, ADD))


def test_plain_text_is_scored_as_free_text_whatever_tools_there_were():
    tokens = written(("Five", -0.2), (".", -0.4))

    with_tools = TokenProbability().score(called(tokens, text="Five."))

    assert with_tools == TokenProbability().score(answer(*tokens))


@pytest.mark.parametrize("request_", [WITH_TOOLS, Request((Message("user", "q"),), output=OutputSchema("S", {}))])
@pytest.mark.parametrize("signal", [TokenProbability(aggregate="product"), TokenProbability(labels="AB")])
def test_nothing_is_decided_early_of_an_answer_that_must_be_whole(request_, signal):
    """The next token may be the brace of a call, which does not count."""
    tokens = (Token("A", -20.0, (("A", -20.0), ("B", -21.0))),)

    assert signal.bounds(Evidence(request_, tokens=tokens)) == (0.0, 1.0)


# ---------------------------------------------------------------------- a threshold for each label


def alternatives_of(text: str, **probabilities: float) -> Evidence:
    """An answer whose first token has these alternatives."""
    top = tuple((label, math.log(p)) for label, p in probabilities.items())
    tokens = (Token(text, top[0][1], top),)
    return Evidence(REQUEST, tokens=tokens, response=Response(text, tokens, Usage(1, 1)))


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        ({"yes": 0.9}, "name each of its labels"),
        ({"yes": 0.9, "no": 0.8, "maybe": 0.7}, "name each of its labels"),
        ({"yes": 0.9, "no": 1.2}, r"number in \[0, 1\]"),
        ({"yes": 0.9, "no": "always"}, "Use the least score"),
    ],
)
def test_a_threshold_for_each_label_is_one_for_each(threshold: Any, told: str):
    signal = TokenProbability(["yes", "no"])
    signal.validate({"yes": 0.9, "no": "never"})
    with pytest.raises(ConfigurationError, match=told):
        signal.validate(threshold)


def test_other_signals_take_one_threshold():
    """Free text gives no label."""
    with pytest.raises(ConfigurationError, match="takes one threshold, not one for each label"):
        TokenProbability().validate({"yes": 0.9, "no": 0.8})


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("no", True),
        ("No.", True),
        ("**no**", True),
        ("Answer: no", True),
        ("no, it rains", False),
    ],
)
def test_only_an_answer_of_nothing_but_a_label_can_be_corrected(text: str, bare: bool):
    """Reasons would speak for the other label."""
    signal = TokenProbability(["yes", "no"], prefix="Answer:", corrects=True)
    tokens = tuple(Token(piece, -0.1, (("no", -0.5), ("yes", -1.0))) for piece in re.findall(r"\s*\S+", text))
    details = signal.score(Evidence(REQUEST, tokens=tokens, response=Response(text, tokens, Usage(1, 1)))).details
    assert ("probabilities" in details) == bare


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("no", "yes"),
        ("No.", "yes."),
        ("**no**", "**yes**"),
        ("Answer: no", "Answer: yes"),
        ("<think>no or yes?</think>no", "<think>no or yes?</think>yes"),
    ],
)
def test_the_other_label_stands_in_the_place_of_the_answers(text: str, given: str):
    assert TokenProbability(["yes", "no"], corrects=True).gives(Response(text), "yes").text == given


def test_the_details_of_a_correcting_signal_are_all_labels():
    details = TokenProbability("ABC", corrects=True).score(alternatives_of("A", A=0.5, B=0.3, C=0.1)).details
    assert details["probabilities"] == {"A": pytest.approx(0.5), "B": pytest.approx(0.3), "C": pytest.approx(0.1)}
    assert "probabilities" not in TokenProbability("ABC").score(alternatives_of("A", A=0.5, B=0.3)).details


@given(
    p=st.dictionaries(st.sampled_from("ABC"), st.sampled_from([0.1, 0.2, 0.3, 0.45]), min_size=1),
    cuts=st.fixed_dictionaries(dict.fromkeys("ABC", st.sampled_from([0.0, 0.15, 0.3, 0.5, "never"]))),
)
def test_an_answer_is_corrected_to_the_most_probable_label_that_reaches_its_threshold(p: Any, cuts: Any):
    """By looking at all of them."""
    found = corrected(cuts, {"probabilities": p})
    reaching = {label: value for label, value in p.items() if cuts[label] != "never" and value >= cuts[label]}
    assert (found is None) == (not reaching)
    assert found is None or (found in reaching and reaching[found] == max(reaching.values()))


def test_nothing_is_corrected_by_one_threshold_for_all():
    assert corrected(0.1, {"probabilities": {"A": 0.9}}) is None


def test_correcting_needs_labels_and_is_in_the_identity():
    with pytest.raises(ConfigurationError, match="name them"):
        TokenProbability(corrects=True)
    assert TokenProbability("AB", corrects=True).identity() == {**TokenProbability("AB").identity(), "corrects": True}
