"""Where a text states its own confidence, in a tag, a label or a sentence, and what of it can be taken off.

A statement is found in an answer (`statement_in`), or is the whole of a reply (`statement_of`).  What it is worth is
read by `confcascade.signals.stated_values`; where that reads no number, the statement has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from confcascade.signals.stated_values import (
    ASSURANCES,
    CLOSE,
    OPEN,
    QUANTITY,
    SCALE,
    any_of,
    compiled,
    key_of,
    plain,
    scale_in,
    share_in,
    value_at,
)

__all__ = ["Statement", "statement_in", "statement_of"]

Span = tuple[int, int]

_MOST = 20  # statements of a kind that are looked at, the last ones
_NEAR = 40  # characters before a statement among which its bracket, separator or key is looked for


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


_TAG = (
    r"<(?P<tag>confidence(?:[_-]?(?:score|level))?|certainty|probability)\b[^<>]*>"
    r"(?P<said>[^<]*)(?:</(?P=tag)\s*>|(?=<)|\Z)"
)
# one that was begun with another tag, or none, as small models write it: "<0.9>0.9</confidence>", "0.9</confidence>"
_CLOSED = (
    r"(?:<(?P<opened>[^<>\n]{1,40})>|^)[ \t]*(?P<said>[^<>\n]{0,40})"
    r"</(?:confidence(?:[_-]?(?:score|level))?|certainty|probability)\s*>"
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
_COLON = r"[\s*_`\"']*(?:[:=|]|->|→|\bis\b|\bof\b|\bat\b|\bist\b|\best\b|-)?"
# before a label: the beginning of a line, of a clause or of brackets; what belongs to no noun before it
_BEFORE = r"(?:^[ \t]*+|(?<=[(\[{,;|.!?>/#+*_`\"'-])|(?<=[(\[{,;|.!?>/#+*_`\"'-]\s))"
_NOT_OURS = r"(?!\s*(?:confidence\s+)?(?:intervals?|bounds?|limits?|bands?|regions?|sets?)\b)"
# in the place of a value: "N/A", "<number>", "PROBABILITY", "x%"
_BLANK = (
    rf"{OPEN}(?:[Nn]/?[Aa]|[Nn]one|[Uu]nknown|\?+|<[^<>\n]*>|[^\[\]\n]*\]|[A-Z]{{4,}}|\w{{1,2}}\s*%){CLOSE}\.?[ \t]*$"
)
_SURE = r"(?:sure|certain|confident|positive)"
_RIGHT = r"(?:that\s+)?(?:this|it|I|that|(?:my|the|this)\s+answer)(?:'s|'m|\s+is|\s+am)\s+(?:correct|right|true)"

# what may stand around a statement in a sentence that says nothing else
_NOTHING_ELSE = (
    r"[\W_]*(?:(?:and|so|overall|there\s+is|there's|I\s+would\s+say|I'd\s+say)\b\W*)?(?:with\b)?\W*(?:an?\b)?\W*"
    rf"(?:(?:in|about|of)\s+(?:this|it|that|my|the)\b(?:\s*answer)?)?(?:\s*{_RIGHT})?[\W_]*"
)


def _label(nouns: str) -> str:
    return rf"{_BEFORE}(?P<label>{_OWNER}{nouns}{_KIND}{_OF_ANSWER}?){SCALE}{_COLON}"


def statement_of(reply: str) -> Statement | None:
    """What a reply states that was asked for nothing but a confidence: also a bare number, and a bare word.

    Args:
        reply: Without thoughts.

    >>> statement_of("0.85").value, statement_of("Probability: 85%").value, statement_of("I cannot say.")
    (0.85, 0.85, None)
    """
    text = _without_code(reply)
    if (found := value_at(text, 0, whole=True)) is not None:
        return Statement(found[0], "bare", (0, len(reply)), ((0, len(reply)),))
    if (last := _last([*_tags(text), *_labels(text, rf"(?:{_NOUN}|{_PLAUSIBILITY})"), *_sentences(text, 0)])) is None:
        last = _last(_assurances(text, 0))
    if last is not None:
        return last
    *_, line = ["", *filter(str.strip, text.splitlines())]
    if (found := value_at(line, 0, whole=True)) is not None:  # after some reasoning
        return Statement(found[0], "bare", (text.rfind(line), len(reply)))
    only = list(compiled(rf"(?<![\w.,]){QUANTITY}", re.I).finditer(text))  # "I would say 0.7"
    return Statement(share_in(only[0]), "bare", only[0].span()) if len(only) == 1 else None


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
    text = _without_code(answer)
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


def _without_code(text: str) -> str:
    """What `plain` returns, with code blanked."""
    shown = plain(text)
    for fence in compiled(r"^[ \t]*```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)", re.M | re.S).finditer(
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
    for tag in list(compiled(_TAG, re.I).finditer(text))[-_MOST:]:
        value = value_at(tag["said"], 0, whole=True)
        found.append(
            Statement(None if value is None else value[0], "tag", tag.span(), (_whole_lines(text, tag.span()),))
        )
    ends = {each.own[1] for each in found}
    for tag in list(compiled(_CLOSED, re.I | re.M).finditer(text))[-_MOST:]:
        # "<0.9>PROBABILITY</confidence>": the form that was asked for, with the number in the wrong place
        blank = tag["opened"] is not None and compiled(r"[A-Z\s]*").fullmatch(tag["said"])
        value = value_at(tag["opened"] if blank else tag["said"], 0, whole=True)
        if value is not None and tag.end() not in ends:
            found.append(Statement(value[0], "tag", tag.span(), (_whole_lines(text, tag.span()),)))
    return found


def _labels(text: str, nouns: str) -> list[Statement]:
    found = []
    patterns = [_label(nouns), rf"(?<=\s)(?P<label>(?-i:Confidence){_KIND}){SCALE}\s*:(?=[^\n]*\s*\Z)"]
    seen: set[int] = set()
    for pattern in patterns:
        for label in list(compiled(pattern, re.I | re.M).finditer(text))[-_MOST:]:
            scale = scale_in(label)
            value = value_at(text, label.end(), scale)
            if value is None and (blank := compiled(_BLANK, re.M).match(text, label.end())) is not None:
                value = None, blank.end()
            begin = label.start("label")
            if value is None or begin in seen:
                continue
            said, end = value
            while again := compiled(r"[ \t]*[=≈][ \t]*(?=[\d.,])").match(text, end):  # "P(correct) = 1/2 = 0.5"
                value = value_at(text, again.end(), scale)
                if value is None:
                    break
                said, end = value
            between = text[label.end("label") : end]
            # two lines only with a heading or a colon in between
            if between.count("\n") > 2 or ("\n" in between and not re.search(r"[:*#]|\A\s*\n", between)):
                continue
            if compiled(_NOT_OURS, re.I).match(text, end) is None:
                continue
            seen.add(begin)
            found.append(Statement(said, "label", (begin, end), (_clause(text, (begin, end)),)))
    return found


def _pairs(text: str) -> list[Statement]:
    """ "Answer and Confidence (0-100): B, 80%", the form that Xiong et al. 2024 (arXiv 2306.13063) ask for."""
    pattern = (
        rf"\banswer(?P<more>\s+(?:and|&)\s+(?:overall\s+)?{_NOUN}{_KIND}{SCALE})[*_]*\s*[:=](?P<said>[^\n]{{1,200}}?)"
        rf"(?P<end>\s*[,;]\s*{OPEN}{QUANTITY}{CLOSE})[.\s]*?$"
    )
    found = []
    for match in list(compiled(pattern, re.I | re.M).finditer(text))[-_MOST:]:
        scale = scale_in(match)
        own = match.start("more"), match.end("end")
        found.append(Statement(share_in(match, scale), "label", own, (match.span("more"), match.span("end"))))
    return found


def _sentences(text: str, at: int) -> list[Statement]:
    """ "I am 90% sure", "90% confidence", "a 70% chance that this is right"."""
    patterns = (
        rf"(?<!\w)I(?:'m|\s+am|\s+would\s+say\s+I\s+am)\s+{QUANTITY}\s+{_SURE}\b",
        rf"(?<![\w.,]){QUANTITY}(?<=[%t])\s+{_SURE}\b",
        rf"(?<!\w)(?:with|at)\s+(?:a\s+)?{QUANTITY}\s+(?:confidence|certainty)\b{_NOT_OURS}",
        rf"(?<![\w.,]){QUANTITY}(?<=[%t])\s+(?:confidence|certainty)\b{_NOT_OURS}",
        rf"(?<![\w.,]){QUANTITY}\s+(?:chance|probability|likelihood)\s+(?:{_RIGHT}|of\s+being\s+(?:correct|right|true)\b)",
    )
    found = []
    for pattern in patterns:
        for match in list(compiled(pattern, re.I).finditer(text))[-_MOST:]:
            before = text[max(0, match.start() - 24) : match.start()]
            if compiled(r"\b(?:not|never|cannot|can't|isn't|without|nor)\b[^.!?]*\Z|n't\b[^.!?]*\Z", re.I).search(
                before
            ):
                continue
            own = match.span()
            found.append(_moved(Statement(share_in(match), "sentence", own, _sentence_alone(text, own)), at))
    return found


def _own_chances(text: str) -> list[Statement]:
    """ "Probability that my answer is correct: 0.8", but no probability of anything else."""
    return [
        each
        for each in _labels(text, _PLAUSIBILITY)
        if compiled(_OF_ANSWER, re.I).search(text, *each.own) or text[each.own[0] :].upper().startswith("P(")
    ]


def _assurances(text: str, at: int) -> list[Statement]:
    """ "I am fairly sure"."""
    words = any_of(ASSURANCES)
    pattern = (
        rf"(?<!\w)I(?:'m|\s+am)\s+(?:(?P<word>{words})\s+)?"
        rf"(?:(?P<sure>{_SURE})|(?P<unsure>unsure|uncertain|doubtful))\b"
    )
    found = []
    for match in list(compiled(pattern, re.I).finditer(text))[-_MOST:]:
        word = key_of(match["word"] or "", ASSURANCES)
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
    bare = compiled(r"[\s>#*_`\"'|.+-]*+\Z")
    if bare.match(text[first:begin]) and bare.match(text[end:last]):
        begin, end = first, last
        while begin > 0:  # over the newline, and what is before it, if that is blank or a rule
            before, _ = _line(text, (begin - 1, begin - 1))
            line = text[before : begin - 1].strip()
            begin -= 1
            if line and not compiled(r"-{3,}|\*{3,}|_{3,}").fullmatch(line):
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
    if opened := compiled(r"[,{]?\s*\"\Z").search(before):  # a member of a JSON object
        begin = near + opened.start() + (opened[0][0] == "{")
        while text[end - 1] in "}])":  # of the object
            end -= 1
        if opened[0][0] != "," and (comma := re.match(r"\s*,\s*", text[end:])):
            end += comma.end()
        return begin, end
    if (opened := compiled(r"\s*[(\[]\s*[*_]*\Z").search(before)) and not re.search(r"[(\[]", text[begin:end]):
        closed = re.match(r"\s*[)\]]", behind)
        if closed or text[end - 1] in ")]":
            return near + opened.start(), end + (closed.end() if closed and text[end - 1] not in ")]" else 0)
    if remark := re.match(r"[ \t]*\([^()\n]*\)", behind):
        end += remark.end()
    own = not _line_before(text, begin).strip(" \t>#*_`\"'|+-")  # it has the line to itself
    remark = re.match(r"[ \t]*[-,][ \t][^\n]*", text[end:])
    if own and remark and not re.search(r"answer", remark[0], re.I):
        end += remark.end()
    end += len(text[end:]) - len(text[end:].lstrip("*_`\"'.;,|"))
    whole = _whole_lines(text, (begin, end))
    if whole != (begin, end):
        return whole
    if separator := compiled(r"[ \t]*[,;|/-]?[ \t]*[*_`]*\Z").search(_line_before(text, begin)[-_NEAR:]):
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
    if compiled(_NOTHING_ELSE, re.I).fullmatch(around):
        return ((len(text[:begin].rstrip()), end),)
    return ()
