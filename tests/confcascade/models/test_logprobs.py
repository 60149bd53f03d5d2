"""Log-probabilities are read in every form in which they come, and never invented."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
from confcascade.extending import Token
from confcascade.models.logprobs import TokenReader, whole_tokens
from hypothesis import given
from hypothesis import strategies as st


def entry(token, logprob, **more):
    return {"token": token, "logprob": logprob, **more}


def as_objects(told):
    """The same as attributes of objects, as clients with types of their own give them."""
    if isinstance(told, dict):
        return SimpleNamespace(**{key: as_objects(value) for key, value in told.items()})
    return [as_objects(each) for each in told] if isinstance(told, list) else told


@pytest.mark.parametrize("form", [lambda told: told, as_objects], ids=["mappings", "objects"])
@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        (None, None),
        ({"content": None, "refusal": None}, None),
        ({"content": []}, ()),
        ({"content": [entry("a", -0.5), entry("<end>", -0.5, bytes=[]), entry("", -0.5)]}, ("a",)),
        ([entry("a", -0.5, bytes=None), entry(" b", -1.0, bytes="no bytes")], ("a", " b")),  # Ollama
        ({"tokens": ["a", " b"], "token_logprobs": [-0.1, -0.2]}, ("a", " b")),  # Together
        ({"tokens": ["a", " b"], "token_logprobs": [None, -0.2]}, None),
        ({"tokens": ["a", " b"], "token_logprobs": [-0.1]}, None),
        ([entry("a", math.nan)], None),
        ([entry("a", math.inf)], None),
        (["unknown"], None),
        ({"chosen_candidates": [1]}, None),
        (0.5, None),
    ],
)
def test_every_known_form_is_read(form, logprobs, expected):
    """An unknown form is no log-probabilities, and never a failed answer."""
    tokens = TokenReader().read(form(logprobs))

    assert (None if tokens is None else tuple(token.text for token in tokens)) == expected


def test_alternatives_are_read_from_both_shapes():
    chat = [entry("A", -0.1, top_logprobs=[entry("B", -math.inf), {"token": 3}])]
    legacy = {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": [{"A": -0.1, "B": -2.0}]}

    assert TokenReader().read(chat)[0].top == (("B", -9999.0),)
    assert TokenReader().read(as_objects(chat))[0].top == (("B", -9999.0),)
    assert TokenReader().read(legacy)[0].top == (("A", -0.1), ("B", -2.0))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_one_number_that_is_not_finite_spoils_the_answer(number):
    """Whole, and in pieces: what comes before and after it is not the answer either."""
    reader = TokenReader()

    assert reader.read([entry("a", -0.1)]) == (Token("a", -0.1),)
    assert reader.problem is None
    assert reader.read([entry("b", number)]) is None
    assert reader.read([entry("c", -0.1)]) is None
    assert reader.problem
    assert TokenReader().read([entry("a", -0.1, top_logprobs=[entry("b", number)])]) is None


@pytest.mark.parametrize(("told", "read"), [(1e-7, 0.0), (-math.inf, -9999.0), (-9999.0, -9999.0), (-1, -1.0)])
def test_a_log_probability_is_at_most_zero_and_has_a_mean(told, read):
    assert TokenReader().read([entry("a", told)]) == (Token("a", read),)


@given(text=st.text(min_size=1), cuts=st.lists(st.integers(0, 40)), pieces=st.booleans())
def test_characters_cut_into_tokens_come_together_again(text, cuts, pieces):
    """Whole or piece by piece: the texts of the tokens add up to the answer."""
    encoded = text.encode()
    edges = sorted({0, len(encoded), *(cut for cut in cuts if cut < len(encoded))})
    told = [entry("\\x", -0.5, bytes=list(encoded[first:last])) for first, last in pairwise(edges)]
    reader = TokenReader()
    tokens = [t for each in told for t in reader.read([each])] if pieces else reader.read({"content": told})

    assert "".join(token.text for token in tokens) == text
    assert len(tokens) == len(told)


def zero(token, *others):
    return entry(token, 0.0, top_logprobs=[entry(text, value) for text, value in others])


@pytest.mark.parametrize(
    ("told", "is_one"),
    [
        ([entry("Ly", 0.0, top_logprobs=[]), entry("on", 0.0, top_logprobs=[])], False),  # DeepSeek V3.2
        ([entry("Ly", 0.0), entry("on", 0.0)], False),
        ([zero("Ly", ("other", -9999.0)), zero("on", ("other", -9999.0))], False),  # a proxy of it
        ([zero("Ly", ("Ly", 0.0), ("other", -9999.0))], False),  # DeepSeek V4 that does not think
        ([entry("Ly", 0.0), entry("on", -9999.0)], False),  # DeepSeek V3.2, too
        ([entry("Ly", 0.0), entry("on", -9999.0, top_logprobs=[entry("e", -0.1)])], True),
        ([zero("B", ("B", 0.0))], True),  # gpt-4o-mini, asked for one alternative
        ([zero("B", ("B", 0.0), ("A", -16.75))], True),
        ([zero("B", ("B", 0.0), ("A", -9999.0)), entry("!", -0.2, top_logprobs=[])], True),  # vLLM under a grammar
    ],
)
def test_certainty_without_alternatives_is_no_log_probability(told, is_one):
    """Decided from the answer itself, whole or in pieces."""
    tokens, problem = whole_tokens({"content": told}, 1)
    reader = TokenReader(1)
    for each in told:
        reader.read([each])

    assert (tokens is not None) == (problem is None) == (reader.problem is None) == is_one
    assert is_one or "exactly 0" in problem


def test_a_probability_is_no_log_probability():
    """Some servers send 0.97 where -0.03 belongs; clamped, it would look certain."""
    assert whole_tokens([entry("a", 0.97)], 1)[0] is None


def test_thoughts_in_a_list_of_their_own_come_before_the_answer():
    """As DeepSeek tells them, whole, and in a stream in turns."""
    thought, answer = entry("hm", -0.5), entry("4", -0.1)

    assert [t.text for t in whole_tokens({"content": [answer], "reasoning_content": [thought]}, 1)[0]] == ["hm", "4"]
    assert [t.text for t in whole_tokens({"content": None, "reasoning_content": [thought]}, 1)[0]] == ["hm"]
