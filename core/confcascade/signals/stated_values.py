"""What a confidence in words or numbers is worth: 90%, 0.9, "9 out of 10", "8" of 10, "very high".

What words are worth is written in three tables: `LEVELS`, `LIKELIHOODS` and `ASSURANCES`.  Their order means something,
the numbers less: `fit` calibrates them like any score.  What cannot be read has no value: nothing is guessed, and
nothing becomes 0.5.

Where a text states it is found by `confcascade.signals.stated` and `confcascade.signals.stated_guesses`, with patterns
made of those here: `QUANTITY`, `SCALE`, `OPEN` and `CLOSE`, written for `re.IGNORECASE` and for text as `plain` returns
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

__all__ = [
    "ASSURANCES",
    "CLOSE",
    "LEVELS",
    "LIKELIHOODS",
    "OPEN",
    "QUANTITY",
    "SCALE",
    "any_of",
    "compiled",
    "key_of",
    "plain",
    "scale_in",
    "share_in",
    "value_at",
    "value_of",
]

# "Confidence: high". The middles of five equal bands, and what lies between two.
LEVELS = {
    "lowest": 0.1,
    "very low": 0.1,
    "extremely low": 0.1,
    "low": 0.3,
    "low to medium": 0.4,
    "low to moderate": 0.4,
    "medium-low": 0.4,
    "medium": 0.5,
    "moderate": 0.5,
    "average": 0.5,
    "medium-high": 0.6,
    "medium to high": 0.6,
    "moderate to high": 0.6,
    "moderately high": 0.6,
    "fairly high": 0.7,
    "high": 0.7,
    "very high": 0.9,
    "extremely high": 0.9,
    "highest": 0.9,
    "niedrig": 0.3,
    "mittel": 0.5,
    "hoch": 0.7,
    "sehr hoch": 0.9,
}
# Tian et al. 2023 (arXiv 2305.14975): the median that people gave to each in Fagen-Ulmschneider's survey.
LIKELIHOODS = {
    "almost certain": 0.95,
    "highly likely": 0.9,
    "very likely": 0.9,
    "very good chance": 0.8,
    "we believe": 0.75,
    "probably": 0.7,
    "probable": 0.7,
    "likely": 0.7,
    "better than even": 0.6,
    "about even": 0.5,
    "probably not": 0.25,
    "we doubt": 0.2,
    "unlikely": 0.2,
    "little chance": 0.1,
    "chances are slight": 0.1,
    "improbable": 0.1,
    "highly unlikely": 0.05,
    "very unlikely": 0.05,
    "almost no chance": 0.02,
}
# "I am fairly sure", also certain and confident. Bands again; the ends for those who say that there is no doubt.
ASSURANCES = {
    "not at all": 0.1,
    "not": 0.2,
    "not very": 0.3,
    "not really": 0.3,
    "not too": 0.3,
    "not quite": 0.3,
    "not entirely": 0.4,
    "not completely": 0.4,
    "not absolutely": 0.6,
    "not 100%": 0.6,
    "somewhat": 0.5,
    "moderately": 0.5,
    "mostly": 0.7,
    "fairly": 0.7,
    "pretty": 0.7,
    "quite": 0.7,
    "reasonably": 0.7,
    "relatively": 0.7,
    "": 0.8,
    "very": 0.9,
    "highly": 0.9,
    "extremely": 0.9,
    "almost": 0.9,
    "nearly": 0.9,
    "absolutely": 0.95,
    "completely": 0.95,
    "totally": 0.95,
    "entirely": 0.95,
}

_WIDEST = 0.5  # of a range: a wider one says nothing, or repeats the form that was asked for

# one character for one, so that places stay the same
_PLAIN = str.maketrans("０１２３４５６７８９．，％：（）‐‑‒–—−’｡", "0123456789.,%:()------'.")
_NUMBER = r"(?:\d+(?:[.,]\d+)?|[.,]\d+)"
_PERCENT = r"\s*(?:\\?%|(?:per\s?cent|pct|Prozent|pour\s?cent|por\s?ciento)\b)"
_ABOUT = (
    r"(?:(?:about|around|approximately|approx\.?|roughly|nearly|almost|at\s+least|over|above|more\s+than|less\s+than|"
    r"under|below|up\s+to|exactly|only|maybe|perhaps|ca\.?|circa|etwa|rund|environ)\s+|[~≈≥≤<>]=?\s*)?"
)
QUANTITY = (
    rf"{_ABOUT}(?P<minus>-\s?)?(?P<low>{_NUMBER})(?P<low_percent>{_PERCENT})?"
    rf"(?:\s*(?:-|\bto\b|\bbis\b|\bà\b|\band\b)\s*(?P<high>{_NUMBER})(?P<high_percent>{_PERCENT})?)?"
    rf"(?:\s*(?:/|\bout\s+of\b|\bof\b|\bin\b|\bvon\b|\bsur\b)\s*(?P<whole>{_NUMBER})(?:{_PERCENT})?)?"
    r"\+?(?![^\W_]|[.,]\d)"
)
# what may stand around a quantity: Markdown, brackets, quotes, TeX
OPEN = r"(?:[\s*_`\"'(\[{$|]|\\(?:boxed|text|textbf|mathbf)\b|\\)*"
CLOSE = r"[*_`\"')\]}$|]*"
# what may stand behind a label: of what a plain number is, "(0-100)"
SCALE = r"(?:\s*[(\[](?:0(?:[.,]0)?%?\s*(?:-|to)\s*(?P<scale>1(?:[.,]0)?|10|100)%?|in\s+%|%)[)\]])?"


@cache
def compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern, compiled where it is needed, and not whenever confcascade is imported."""
    return re.compile(pattern, flags)


def plain(text: str) -> str:
    """The same, of the same length: other scripts' digits, dashes and brackets as ours."""
    return text.translate(_PLAIN)


def any_of(table: Iterable[str]) -> str:
    """A pattern for the words of a table, the longest first."""
    longest_first = sorted(filter(None, table), key=len, reverse=True)
    return "|".join(re.escape(word).replace(r"\ ", r"\s+").replace(r"\-", r"[\s-]") for word in longest_first)


def _number(text: str) -> float:
    whole, comma, decimals = text.partition(",")
    if comma and len(decimals) == 3 and whole not in ("", "0"):  # 1,000
        return float(whole + decimals)
    return float(text.replace(",", "."))


def share_in(found: re.Match[str], scale: float | None = None) -> float | None:
    """The share that a quantity says, in [0, 1]; None if it says none.

    Of a plain number up to 1 it is the number, of one above 10 up to 100 a percentage. Between the two nobody knows
    whether 5 is of ten or of a hundred.

    Args:
        found: A match that holds `QUANTITY`.
        scale: Of what a plain number is, if that was said.
    """
    if found["minus"]:
        return None
    percent = bool(found["low_percent"] or found["high_percent"])
    ends = [_number(found[name]) for name in ("low", "high") if found[name]]
    whole = _number(found["whole"]) if found["whole"] else None
    if whole is not None and not (percent and whole == 100):
        if percent:  # "90% of 200"
            return None
        scale = whole
    elif percent:
        scale = 100.0
    elif scale is None:
        most = max(ends)
        if 1 < most <= 10:
            return None
        scale = 1.0 if most <= 1 else 100.0
    if scale <= 0:
        return None
    shares = [end / scale for end in ends]
    low, high = shares[0], shares[-1]
    if not 0 <= low <= high <= 1 or high - low > _WIDEST:
        return None
    return round((low + high) / 2, 12)


def scale_in(found: re.Match[str]) -> float | None:
    """Of what a plain number is, if that was said.

    Args:
        found: A match that holds `SCALE`.
    """
    return _number(found["scale"]) if found["scale"] else None


def value_of(text: str, *, scale: float | None = None) -> float | None:
    """The confidence that a short text is, such as "90 %", "9/10" or "very high"; None if it is none.

    Args:
        text: Of a label or a tag, without these.
        scale: Of what a plain number is, if that was said: 10 for "8".

    >>> value_of("**0,9**"), value_of("9 out of 10"), value_of("high"), value_of("150%"), value_of("5")
    (0.9, 0.9, 0.7, None, None)
    """
    found = value_at(plain(text), 0, scale, whole=True)
    return None if found is None else found[0]


def value_at(text: str, at: int, scale: float | None = None, *, whole: bool = False) -> tuple[float | None, int] | None:
    """What is said at a place, and where that ends; None if it is neither a quantity nor a word of the tables.

    Args:
        text: As `plain` returns it.
        at: Where to begin.
        scale: As of `value_of`.
        whole: Whether nothing may follow but what closes it.
    """
    ending = rf"{CLOSE}(?:\s*\([^()]*\))?[\s.!;,]*{CLOSE}\s*\Z" if whole else CLOSE
    quantity = compiled(rf"{OPEN}{QUANTITY}{ending}", re.I).match(text, at)
    if quantity is not None:
        return share_in(quantity, scale), quantity.end()
    table = {**LIKELIHOODS, **LEVELS}
    # "high (0.9)": the number says it better
    both = compiled(rf"{OPEN}(?:{any_of(table)}){CLOSE}\s*[(,:-]\s*{QUANTITY}{CLOSE}{ending}", re.I).match(text, at)
    if both is not None:
        return share_in(both, scale), both.end()
    word = compiled(rf"{OPEN}(?P<word>{any_of(table)})\b{ending}", re.I).match(text, at)
    if word is not None:
        return table[key_of(word["word"], table)], word.end()
    return None


def key_of(word: str, table: Mapping[str, float]) -> str:
    """The key of a table for a word that `any_of` found there, however it is spaced, hyphenated or capitalised."""
    told = " ".join(word.lower().split())
    return told if told in table else told.replace(" ", "-", 1)
