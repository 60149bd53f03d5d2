"""What words and numbers are worth, whatever stands around them."""

import math
import re

import pytest
from confcascade.signals.stated_values import (
    ASSURANCES,
    LEVELS,
    LIKELIHOODS,
    SCALE,
    any_of,
    key_of,
    plain,
    scale_in,
    value_at,
    value_of,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.9", 0.9),
        (".9", 0.9),
        ("90", 0.9),
        ("90 %", 0.9),
        ("90 percent", 0.9),
        ("9/10", 0.9),
        ("9 out of 10", 0.9),
        ("9.5/10", 0.95),
        ("at least 75%", 0.75),
        ("80-90%", 0.85),
        ("0.8 to 0.9", 0.85),
        ("９０％", 0.9),
        ("\\boxed{0.9}", 0.9),
        ("**0.9**.", 0.9),
        ("Very  High", 0.9),
        ("medium-high", 0.6),
        ("almost certain", 0.95),
        ("high (0.9)", 0.9),  # the number says it better
        ("0.9 (high)", 0.9),
    ],
)
def test_forms(text, value):
    assert value_of(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "5", "150%", "-0.5", "1,000", "11/10", "90% of 200", "1/0", "0.0-1.0", "0.9-0.8", "Paris", "0.9 Paris"]
)
def test_what_is_no_share_has_no_value(text):
    """Nothing is guessed: 5 may be of ten or of a hundred."""
    assert value_of(text) is None


@pytest.mark.parametrize(
    ("text", "scale", "value"),
    [("8", 10, 0.8), ("8", 100, 0.08), ("8%", 10, 0.08), ("8/20", 10, 0.4), ("11", 10, None), ("8", 0, None)],
)
def test_of_a_scale(text, scale, value):
    """The scale is that of a plain number; a percent sign and a whole say it better."""
    assert value_of(text, scale=scale) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("label", "scale"),
    [(" (0-10)", 10), ("(0-100)", 100), (" [0.0 to 1.0]", 1), ("(0-100%)", 100), ("(%)", None), ("", None)],
)
def test_scales(label, scale):
    assert scale_in(re.fullmatch(SCALE, label, re.IGNORECASE)) == scale


def test_at_a_place():
    """With where it ends, so that a text can be read on; the rest counts only where the whole is asked for."""
    assert value_at("is **90%** so", 2) == (0.9, 10)
    assert value_at("is **90%** so", 2, whole=True) is None
    assert value_at("is 150% so", 2) == (None, 7)
    assert value_at("is so", 2) is None


@given(st.text(max_size=300))
def test_any_text(text):
    """Places in the plain text are those of the text; values are shares."""
    assert len(plain(text)) == len(text)
    value = value_of(text)
    assert value is None or 0 <= value <= 1


def test_tables():
    """Words are worth shares, in the order of what they say."""
    for table in (LEVELS, LIKELIHOODS, ASSURANCES):
        assert all(math.isfinite(value) and 0 < value < 1 for value in table.values())
    assert LEVELS["very low"] < LEVELS["low"] < LEVELS["medium"] < LEVELS["high"] < LEVELS["very high"]
    assert ASSURANCES["not"] < ASSURANCES["somewhat"] < ASSURANCES["fairly"] < ASSURANCES[""] < ASSURANCES["very"]


@pytest.mark.parametrize("table", [LEVELS, LIKELIHOODS, ASSURANCES], ids=["levels", "likelihoods", "assurances"])
def test_every_word_of_a_table_is_found(table):
    """Whole, though another begins with it, in any case and spacing."""
    for word in filter(None, table):
        for written in (word, word.upper(), word.replace(" ", "  "), word.replace("-", " ")):
            found = re.match(any_of(table), written, re.IGNORECASE)
            assert found[0] == written
            assert key_of(found[0], table) == word
