"""Values of options, as people write them."""

from __future__ import annotations

import pytest
from confcascade.cli.options import architecture, pair, prices, threshold
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "number"),
    [("8B", 8e9), ("8.03b", 8.03e9), ("350M", 350e6), ("1.5T", 1.5e12), ("12k", 12e3), ("8e9", 8e9), ("7", 7)],
)
def test_sizes(text, number):
    """With a letter or without."""
    assert architecture(text).parameters == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_thresholds(number):
    """Every number is one; so are two words."""
    assert pair(f"small.p_t={number!r}", "--threshold", threshold) == ("small.p_t", number)
    assert threshold("always") == "always"


def test_one_price_is_for_both():
    """Reading and writing."""
    assert (prices("2").input_usd, prices("2").output_usd) == (2, 2)
    assert (prices("2,3").input_usd, prices("2,3").output_usd) == (2, 3)
