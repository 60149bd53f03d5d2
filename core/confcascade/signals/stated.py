"""What a text states of its own confidence, whatever the words: 90%, 0.9, "9 out of 10", "high", "I am fairly sure".

A statement is found in an answer (`statement_in`), is the whole of a reply (`statement_of`), or stands behind each of
several guesses (`guesses_in`).  What cannot be read is no number: nothing is guessed, and nothing becomes 0.5.

What words are worth is written in three tables: `LEVELS`, `LIKELIHOODS` and `ASSURANCES`.  Their order means something,
the numbers less: `fit` calibrates them like any score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "ASSURANCES",
    "LEVELS",
    "LIKELIHOODS",
    "Guesses",
    "Statement",
    "guesses_in",
    "statement_in",
    "statement_of",
    "value_of",
]

Span = tuple[int, int]

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
_MOST = 20  # statements of a kind that are looked at, the last ones
_NEAR = 40  # characters before a statement among which its bracket, separator or key is looked for
_WIDEST = 0.5  # of a range: a wider one says nothing, or repeats the form that was asked for


@dataclass(frozen=True)
class Statement:
    """What is stated, and where.

    Attributes:
        value: In [0, 1]; None if it cannot be read as one number ("150%", "5", "from 0.0 to 1.0").
        form: "tag", "label", "sentence", "words" or "bare".
        cut: What can be taken off the text, as (begin, end) in characters, in order; nothing where the statement is
            part of a sentence of the answer.
        own: The statement itself, as (begin, end).
    """

    value: float | None
    form: str
    own: Span
    cut: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Guesses:
    """A list of guesses, each with its probability.

    Attributes:
        first: Where the first stands in the text, as (begin, end).
        values: What was stated of each, in their order; None where that cannot be read.
    """

    first: Span
    values: tuple[float | None, ...]


# ---------------------------------------------------------------------- quantities

# one character for one, so that places stay the same
_PLAIN = str.maketrans("０１２３４５６７８９．，％：（）‐‑‒–—−’｡", "0123456789.,%:()------'.")
_NUMBER = r"(?:\d+(?:[.,]\d+)?|[.,]\d+)"
_PERCENT = r"\s*(?:\\?%|(?:per\s?cent|pct|Prozent|pour\s?cent|por\s?ciento)\b)"
_ABOUT = (
    r"(?:(?:about|around|approximately|approx\.?|roughly|nearly|almost|at\s+least|over|above|more\s+than|less\s+than|"
    r"under|below|up\s+to|exactly|only|maybe|perhaps|ca\.?|circa|etwa|rund|environ)\s+|[~≈≥≤<>]=?\s*)?"
)
_QUANTITY = (
    rf"{_ABOUT}(?P<minus>-\s?)?(?P<low>{_NUMBER})(?P<low_percent>{_PERCENT})?"
    rf"(?:\s*(?:-|\bto\b|\bbis\b|\bà\b|\band\b)\s*(?P<high>{_NUMBER})(?P<high_percent>{_PERCENT})?)?"
    rf"(?:\s*(?:/|\bout\s+of\b|\bof\b|\bin\b|\bvon\b|\bsur\b)\s*(?P<whole>{_NUMBER})(?:{_PERCENT})?)?"
    r"\+?(?![^\W_]|[.,]\d)"
)
# what may stand around a quantity: Markdown, brackets, quotes, TeX
_OPEN = r"(?:[\s*_`\"'(\[{$|]|\\(?:boxed|text|textbf|mathbf)\b|\\)*"
_CLOSE = r"[*_`\"')\]}$|]*"


def _words(table: Sequence[str]) -> str:
    longest_first = sorted(filter(None, table), key=len, reverse=True)
    return "|".join(re.escape(word).replace(r"\ ", r"\s+").replace(r"\-", r"[\s-]") for word in longest_first)


_compiled = cache(re.compile)  # where it is needed, and not whenever confcascade is imported
_FLAGS = re.IGNORECASE


def _number(text: str) -> float:
    whole, comma, decimals = text.partition(",")
    if comma and len(decimals) == 3 and whole not in ("", "0"):  # 1,000
        return float(whole + decimals)
    return float(text.replace(",", "."))


def _quantity(found: re.Match[str], scale: float | None = None) -> float | None:
    """The share that a quantity says, in [0, 1]; None if it says none.

    Of a plain number up to 1 it is the number, of one above 10 up to 100 a percentage. Between the two nobody knows
    whether 5 is of ten or of a hundred.

    Args:
        found: A match of `_QUANTITY`.
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


def value_of(text: str, *, scale: float | None = None) -> float | None:
    """The confidence that a short text is, such as "90 %", "9/10" or "very high"; None if it is none.

    Args:
        text: Of a label or a tag, without these.
        scale: Of what a plain number is, if that was said: 10 for "8".

    >>> value_of("**0,9**"), value_of("9 out of 10"), value_of("high"), value_of("150%"), value_of("5")
    (0.9, 0.9, 0.7, None, None)
    """
    found = _value_at(text.translate(_PLAIN), 0, scale, whole=True)
    return None if found is None else found[0]


def _value_at(
    text: str, at: int, scale: float | None = None, *, whole: bool = False
) -> tuple[float | None, int] | None:
    """What is said at a place, and where that ends; None if it is neither a quantity nor a word of the tables.

    Args:
        text: One-to-one translated by `_PLAIN`.
        at: Where to begin.
        scale: As of `value_of`.
        whole: Whether nothing may follow but what closes it.
    """
    ending = rf"{_CLOSE}(?:\s*\([^()]*\))?[\s.!;,]*{_CLOSE}\s*\Z" if whole else _CLOSE
    quantity = _compiled(rf"{_OPEN}{_QUANTITY}{ending}", _FLAGS).match(text, at)
    if quantity is not None:
        return _quantity(quantity, scale), quantity.end()
    table = {**LIKELIHOODS, **LEVELS}
    # "high (0.9)": the number says it better
    both = _compiled(rf"{_OPEN}(?:{_words([*table])}){_CLOSE}\s*[(,:-]\s*{_QUANTITY}{_CLOSE}{ending}", _FLAGS).match(
        text, at
    )
    if both is not None:
        return _quantity(both, scale), both.end()
    word = _compiled(rf"{_OPEN}(?P<word>{_words([*table])})\b{ending}", _FLAGS).match(text, at)
    if word is not None:
        return table[_key(word["word"], table)], word.end()
    return None


def _key(word: str, table: dict[str, float]) -> str:
    told = " ".join(word.lower().split())
    return told if told in table else told.replace(" ", "-", 1)


# ---------------------------------------------------------------------- statements

_TAG = (
    r"<(?P<tag>confidence(?:[_-]?(?:score|level))?|certainty|probability)\b[^<>]*>"
    r"(?P<said>[^<]*)(?:</(?P=tag)\s*>|(?=<)|\Z)"
)
_OF_ANSWER = (
    r"(?:\s+(?:in|of|for|that)\s+(?:my|this|the|your)\s+(?:final\s+)?(?:answer|guess|response)"
    r"(?:\s+(?:is|being)\s+(?:correct|right|true))?)"
)
_NOUN = r"(?:confidence|certainty|Konfidenz|Zuversicht|confiance|certitude|confianza|置信度|信心)"
_PLAUSIBILITY = (
    r"(?:probability|likelihood|chance|P\((?:correct|true|right)\)|Wahrscheinlichkeit|probabilité|probabilidad)"
)
_KIND = r"(?:[\s_-]*(?:level|score|rating|estimate|value|percentage))?"
_OWNER = r"(?:(?:my|the|your|overall|final|stated|answer|estimated?|self-?reported|model|with)[\s_]+)*"
_SCALE = r"(?:\s*[(\[](?:0(?:[.,]0)?%?\s*(?:-|to)\s*(?P<scale>1(?:[.,]0)?|10|100)%?|in\s+%|%)[)\]])?"
_COLON = r"[\s*_`\"']*(?:[:=|]|->|→|\bis\b|\bof\b|\bat\b|\bist\b|\best\b|-)?"
# before a label: the beginning of a line, of a clause or of brackets; what belongs to no noun before it
_BEFORE = r"(?:^[ \t]*+|(?<=[(\[{,;|.!?>/#+*_`\"'-])|(?<=[(\[{,;|.!?>/#+*_`\"'-]\s))"
_NOT_OURS = r"(?!\s*(?:confidence\s+)?(?:intervals?|bounds?|limits?|bands?|regions?|sets?)\b)"
# in the place of a value: "N/A", "<number>", "PROBABILITY", "x%"
_BLANK = (
    rf"{_OPEN}(?:[Nn]/?[Aa]|[Nn]one|[Uu]nknown|\?+|<[^<>\n]*>|[^\[\]\n]*\]|[A-Z]{{4,}}|\w{{1,2}}\s*%){_CLOSE}\.?[ \t]*$"
)
_SURE = r"(?:sure|certain|confident|positive)"
_RIGHT = r"(?:that\s+)?(?:this|it|I|that|(?:my|the|this)\s+answer)(?:'s|'m|\s+is|\s+am)\s+(?:correct|right|true)"

# what may stand around a statement in a sentence that says nothing else
_NOTHING_ELSE = (
    r"[\W_]*(?:(?:and|so|overall|there\s+is|there's|I\s+would\s+say|I'd\s+say)\b\W*)?(?:with\b)?\W*(?:an?\b)?\W*"
    rf"(?:(?:in|about|of)\s+(?:this|it|that|my|the)\b(?:\s*answer)?)?(?:\s*{_RIGHT})?[\W_]*"
)


def _label(nouns: str) -> str:
    return rf"{_BEFORE}(?P<label>{_OWNER}{nouns}{_KIND}{_OF_ANSWER}?){_SCALE}{_COLON}"


def statement_of(reply: str) -> Statement | None:
    """What a reply states that was asked for nothing but a confidence: also a bare number, and a bare word.

    Args:
        reply: Without thoughts.

    >>> statement_of("0.85").value, statement_of("Probability: 85%").value, statement_of("I cannot say.")
    (0.85, 0.85, None)
    """
    text = _plain(reply)
    if (found := _value_at(text, 0, whole=True)) is not None:
        return Statement(found[0], "bare", (0, len(reply)), ((0, len(reply)),))
    if (last := _last([*_tags(text), *_labels(text, rf"(?:{_NOUN}|{_PLAUSIBILITY})"), *_sentences(text, 0)])) is None:
        last = _last(_assurances(text, 0))
    if last is not None:
        return last
    *_, line = ["", *filter(str.strip, text.splitlines())]
    if (found := _value_at(line, 0, whole=True)) is not None:  # after some reasoning
        return Statement(found[0], "bare", (text.rfind(line), len(reply)))
    only = list(_compiled(rf"(?<![\w.,]){_QUANTITY}", _FLAGS).finditer(text))  # "I would say 0.7"
    return Statement(_quantity(only[0]), "bare", only[0].span()) if len(only) == 1 else None


def statement_in(answer: str) -> Statement | None:
    """What an answer states of its own confidence; of several statements the last.

    Tags and labels count anywhere but in code; sentences ("I am 90% sure") and words ("I am fairly sure") only in the
    first or last line, for elsewhere they may be those of whom the answer speaks. Bare numbers and percentages are the
    answer's own.

    Args:
        answer: Without thoughts.

    >>> statement_in("Paris.\\n\\n**Confidence:** 90%").value
    0.9
    >>> statement_in("The tax is 20%.") is None
    True
    """
    text = _plain(answer)
    strong = sorted(
        [*_tags(text), *_labels(text, _NOUN), *_own_chances(text), *_pairs(text)], key=lambda each: each.own
    )
    cut = _joined([span for each in strong for span in each.cut])
    edge = _edge(text)
    sentences = [each for at in edge for each in _sentences(text[at[0] : at[1]], at[0])]
    told = _last([*strong, *sentences])
    if told is None:
        told = _last([each for at in edge for each in _assurances(text[at[0] : at[1]], at[0])])
    if told is None:
        return None
    cut = cut if told in strong else _joined([*cut, *told.cut])
    return Statement(told.value, told.form, told.own, tuple(cut))


def _plain(text: str) -> str:
    """The same, of the same length: other scripts' digits and dashes as ours, code blanked."""
    shown = text.translate(_PLAIN)
    for fence in _compiled(r"^[ \t]*```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)", re.M | re.S).finditer(
        shown
    ):
        words = fence["kind"].lower() in ("json", "xml", "text", "markdown", "md") or fence["code"].count("\n") <= 1
        if not words:
            begin, end = fence.span("code")
            shown = shown[:begin] + re.sub(r"\S", " ", shown[begin:end]) + shown[end:]
    return shown


def _edge(text: str) -> list[Span]:
    """The first and the last line with something in it."""
    lines, at = list[Span](), 0
    for line in text.split("\n"):
        if line.strip():
            lines.append((at, at + len(line)))
        at += len(line) + 1
    return [*lines[:1], *lines[1:][-1:]]


def _last(found: Sequence[Statement]) -> Statement | None:
    return max(found, key=lambda each: each.own[1], default=None)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """In order, overlapping ones as one."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _tags(text: str) -> list[Statement]:
    found = []
    for tag in list(_compiled(_TAG, _FLAGS).finditer(text))[-_MOST:]:
        value = _value_at(tag["said"], 0, whole=True)
        found.append(
            Statement(None if value is None else value[0], "tag", tag.span(), (_whole_lines(text, tag.span()),))
        )
    return found


def _labels(text: str, nouns: str) -> list[Statement]:
    found = []
    patterns = [_label(nouns), rf"(?<=\s)(?P<label>(?-i:Confidence){_KIND}){_SCALE}\s*:(?=[^\n]*\s*\Z)"]
    seen: set[int] = set()
    for pattern in patterns:
        for label in list(_compiled(pattern, _FLAGS | re.MULTILINE).finditer(text))[-_MOST:]:
            scale = _number(label["scale"]) if label["scale"] else None
            value = _value_at(text, label.end(), scale)
            if value is None and (blank := _compiled(_BLANK, re.MULTILINE).match(text, label.end())) is not None:
                value = None, blank.end()
            begin = label.start("label")
            if value is None or begin in seen:
                continue
            said, end = value
            between = text[label.end("label") : end]
            # two lines only with a heading or a colon in between
            if between.count("\n") > 2 or ("\n" in between and not re.search(r"[:*#]|\A\s*\n", between)):
                continue
            if _compiled(_NOT_OURS, _FLAGS).match(text, end) is None:
                continue
            seen.add(begin)
            found.append(Statement(said, "label", (begin, end), (_clause(text, (begin, end)),)))
    return found


def _pairs(text: str) -> list[Statement]:
    """ "Answer and Confidence (0-100): B, 80%", the form that Xiong et al. 2024 (arXiv 2306.13063) ask for."""
    pattern = (
        rf"\banswer(?P<more>\s+(?:and|&)\s+(?:overall\s+)?{_NOUN}{_KIND}{_SCALE})[*_]*\s*[:=](?P<said>[^\n]{{1,200}}?)"
        rf"(?P<end>\s*[,;]\s*{_OPEN}{_QUANTITY}{_CLOSE})[.\s]*?$"
    )
    found = []
    for match in list(_compiled(pattern, _FLAGS | re.MULTILINE).finditer(text))[-_MOST:]:
        scale = _number(match["scale"]) if match["scale"] else None
        own = match.start("more"), match.end("end")
        found.append(Statement(_quantity(match, scale), "label", own, (match.span("more"), match.span("end"))))
    return found


def _sentences(text: str, at: int) -> list[Statement]:
    """ "I am 90% sure", "90% confidence", "a 70% chance that this is right"."""
    patterns = (
        rf"(?<!\w)I(?:'m|\s+am|\s+would\s+say\s+I\s+am)\s+{_QUANTITY}\s+{_SURE}\b",
        rf"(?<![\w.,]){_QUANTITY}(?<=[%t])\s+{_SURE}\b",
        rf"(?<!\w)(?:with|at)\s+(?:a\s+)?{_QUANTITY}\s+(?:confidence|certainty)\b{_NOT_OURS}",
        rf"(?<![\w.,]){_QUANTITY}(?<=[%t])\s+(?:confidence|certainty)\b{_NOT_OURS}",
        rf"(?<![\w.,]){_QUANTITY}\s+(?:chance|probability|likelihood)\s+{_RIGHT}",
    )
    found = []
    for pattern in patterns:
        for match in list(_compiled(pattern, _FLAGS).finditer(text))[-_MOST:]:
            before = text[max(0, match.start() - 24) : match.start()]
            if _compiled(r"\b(?:not|never|cannot|can't|isn't|without|nor)\b[^.!?]*\Z|n't\b[^.!?]*\Z", _FLAGS).search(
                before
            ):
                continue
            own = match.span()
            found.append(_moved(Statement(_quantity(match), "sentence", own, _sentence_alone(text, own)), at))
    return found


def _own_chances(text: str) -> list[Statement]:
    """ "Probability that my answer is correct: 0.8", but no probability of anything else."""
    return [
        each
        for each in _labels(text, _PLAUSIBILITY)
        if _compiled(_OF_ANSWER, _FLAGS).search(text, *each.own) or text[each.own[0] :].upper().startswith("P(")
    ]


def _assurances(text: str, at: int) -> list[Statement]:
    """ "I am fairly sure"."""
    words = _words([*ASSURANCES])
    pattern = (
        rf"(?<!\w)I(?:'m|\s+am)\s+(?:(?P<word>{words})\s+)?"
        rf"(?:(?P<sure>{_SURE})|(?P<unsure>unsure|uncertain|doubtful))\b"
    )
    found = []
    for match in list(_compiled(pattern, _FLAGS).finditer(text))[-_MOST:]:
        word = _key(match["word"] or "", ASSURANCES)
        value = ASSURANCES.get(word, 0.8) if match["sure"] else ASSURANCES["not"]
        if match["unsure"] and word.startswith("not"):
            continue  # "I am not unsure"
        found.append(_moved(Statement(value, "words", match.span(), _sentence_alone(text, match.span())), at))
    return found


def _moved(told: Statement, by: int) -> Statement:
    def moved(span: Span) -> Span:
        return span[0] + by, span[1] + by

    return Statement(told.value, told.form, moved(told.own), tuple(map(moved, told.cut)))


# ---------------------------------------------------------------------- what is taken off


def _line(text: str, span: Span) -> Span:
    begin = text.rfind("\n", 0, span[0]) + 1
    end = text.find("\n", span[1])
    return begin, len(text) if end < 0 else end


def _whole_lines(text: str, span: Span) -> Span:
    """A span, with its line where nothing else is on it, and the blanks and rules before."""
    begin, end = span
    first, last = _line(text, span)
    bare = _compiled(r"[\s>#*_`\"'|.+-]*+\Z")
    if bare.match(text[first:begin]) and bare.match(text[end:last]):
        begin, end = first, last
        while begin > 0:  # over the newline, and what is before it, if that is blank or a rule
            before, _ = _line(text, (begin - 1, begin - 1))
            line = text[before : begin - 1].strip()
            begin -= 1
            if line and not _compiled(r"-{3,}|\*{3,}|_{3,}").fullmatch(line):
                break
            begin = before
        if begin == 0:
            end += len(text[end:]) - len(text[end:].lstrip())
    return begin, end


def _clause(text: str, span: Span) -> Span:
    """A label and its value, with the brackets, the separator or the key and comma around them, and a remark behind."""
    begin, end = span
    near = max(0, begin - _NEAR)
    before, behind = text[near:begin], text[end:]
    if opened := _compiled(r"[,{]?\s*\"\Z").search(before):  # a member of a JSON object
        begin = near + opened.start() + (opened[0][0] == "{")
        while text[end - 1] in "}])":  # of the object
            end -= 1
        if opened[0][0] != "," and (comma := re.match(r"\s*,\s*", text[end:])):
            end += comma.end()
        return begin, end
    if (opened := _compiled(r"\s*[(\[]\s*[*_]*\Z").search(before)) and not re.search(r"[(\[]", text[begin:end]):
        closed = re.match(r"\s*[)\]]", behind)
        if closed or text[end - 1] in ")]":
            return near + opened.start(), end + (closed.end() if closed and text[end - 1] not in ")]" else 0)
    if remark := re.match(r"[ \t]*\([^()\n]*\)", behind):
        end += remark.end()
    own = not _line_before(text, begin).strip(" \t>#*_`\"'|+-")  # it has the line to itself
    remark = re.match(r"[ \t]*[-,][ \t][^\n]*", text[end:])
    if own and remark and not re.search(r"answer", remark[0], _FLAGS):
        end += remark.end()
    end += len(text[end:]) - len(text[end:].lstrip("*_`\"'.;,|"))
    whole = _whole_lines(text, (begin, end))
    if whole != (begin, end):
        return whole
    if separator := _compiled(r"[ \t]*[,;|/-]?[ \t]*[*_`]*\Z").search(_line_before(text, begin)[-_NEAR:]):
        begin -= len(separator[0])
    return begin, end


def _line_before(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 : at]


def _sentence_alone(text: str, span: Span) -> tuple[Span, ...]:
    """The sentence around a span, if it says nothing else: "I am 90% sure of it."."""
    begin = max((found.end() for found in re.finditer(r"[.!?]\s|\n", text[: span[0]])), default=0)
    found = re.search(r"[.!?](?=\s|\Z)|\n|\Z", text[span[1] :])
    end = span[1] + (found.end() if found else 0)
    around = text[begin : span[0]] + text[span[1] : end]
    if _compiled(_NOTHING_ELSE, _FLAGS).fullmatch(around):
        return ((len(text[:begin].rstrip()), end),)
    return ()


# ---------------------------------------------------------------------- several guesses

_GUESS = r"^[ \t>*_#-]*(?:G|Guess[ \t]*#?)(?P<number>\d+)[*_]*[ \t]*[:.)=][*_]*[ \t]*"
_CHANCE = r"[\s>*_#-]*(?:P|Prob(?:ability)?[ \t]*#?)(?P<number>\d+)[*_]*[ \t]*[:.)=]"


def guesses_in(answer: str) -> Guesses | None:
    """A list of guesses with their probabilities: ``G1: Paris``, ``P1: 0.9``, ``G2: ...``; None if there is no first.

    Args:
        answer: Without thoughts.

    >>> found = guesses_in("G1: Paris\\n\\nP1: 0.9\\n\\nG2: Lyon\\nP2: 5%")
    >>> found.values
    (0.9, 0.05)
    """
    text = answer.translate(_PLAIN)
    begun = list(_compiled(_GUESS, _FLAGS | re.MULTILINE).finditer(text))
    first = next((each for each in begun if int(each["number"]) == 1), None)
    if first is None:
        return None
    chances = {int(each["number"]): each for each in _chances(text, first.end())}
    ends = [each.start() for each in (*begun, *chances.values()) if each.start() > first.start()]
    begin, end = first.end(), min(ends, default=len(text))
    said = text[begin:end]
    begin += len(said) - len(said.lstrip(' \t\n*_`"'))
    end -= len(said) - len(said.rstrip(' \t\n*_`",;|-'))
    if begin >= end:
        return None
    count = max([1, *(int(each["number"]) for each in begun)])
    values = []
    for number in range(1, count + 1):
        at = chances.get(number)
        value = None if at is None else _value_at(text, at.end())
        values.append(None if value is None else value[0])
    return Guesses((begin, end), tuple(values))


def _chances(text: str, at: int) -> Iterator[re.Match[str]]:
    """Where probabilities stand: on lines of their own, or behind their guess."""
    yield from _compiled(rf"(?:(?<=\n)|(?<=\s)|(?<=[,;|])){_CHANCE}", _FLAGS).finditer(text, at)
