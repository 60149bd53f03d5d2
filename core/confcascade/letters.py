"""Which answer label a text gives, and where in it: read in one way, whoever wants to know.

A grader compares the letter, and P(T) of labels is the probability at the place where it stands. Models write "B",
"(B)", "B. Paris", "**Answer:** B" or "B is right, because ..." in turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

__all__ = ["LETTERS", "LabelReading", "begins_with", "conclusion", "folded", "named_by", "read_label", "read_letter"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# what the paper's prompts ask for, and how models conclude of their own accord
_CONCLUSION = re.compile(
    r"\banswer\b\W{0,4}:"
    r"|(?<!what the )(?<!what the correct )(?<!what the right )\banswer (?:to (?:the|this|your) question )?is\b"
    r"(?:\W{0,4}:)?",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\\(?:boxed|text|mathbf|mathrm)\b|</?answer>|[*`$\\{}\"“”]|(?<!\w)'|'(?!\w)")
_LEAD = r"^(?i:(?:the |my )?(?:correct |right |best )?(?:option|choice|letter|answer)(?: is)?\b[:\s]*)?"
_ALONE = re.compile(rf"{_LEAD}[(\[]?\s*([A-Za-z])\s*[)\]]?[.:,;!]?$")
# "(B) Paris", "B. Paris", "B - Paris", "B (Paris)", "B is right": something sets it apart from words such as A and I
_LEADING = re.compile(
    rf"{_LEAD}(?:[(\[]([A-Z])[)\]]|([A-Z])\s*[).:,;\n–—]|([A-Z]) [-(]|([A-Z]) (?:is|because|since)\b)"
)
# a second letter right after the first, joined to it further on, or at the beginning of the next line
_SECOND = re.compile(
    r"^\W*(?:(?:or|and|nor)\b\W*)?([A-Z])(?:\s*$|\s*[).:,/\]]| or\b| and\b)"
    r"|\b(?:or|and)\s+[(\[]?([A-Z])[).:\]]"
    r"|^[^\n]*\n[ \t]*[(\[]?([A-Z])[).:\]]"
)
_NUMERALS = frozenset("IVX")  # "A. I and II only": where they are no labels, they count statements
_NONE = "no letter can be read"
# what stands around a label in a token: " B", "B.", "(B", "**B**"
_AROUND = " \t\r\n.,:;!()[]{}*`$\"'“”_"


@dataclass(frozen=True)
class LabelReading:
    """What an answer gives.

    Attributes:
        label: The label; None if none can be read.
        problem: Why not, in a few words.
        at: Which character of the answer the label begins with; None if the label itself is not in it (the text of a
            choice stands for its letter).
    """

    label: str | None
    problem: str = ""
    at: int | None = None


def conclusion(text: str) -> str:
    """What stands after the last "Answer:" or "answer is", without white space and asterisks around it; else the whole.

    >>> conclusion("17-3=14\\n**Answer:** 14")
    '14'
    """
    begin, end = _concluded(text)
    return text[begin:end]


def _concluded(text: str) -> tuple[int, int]:
    """Where in `text` its conclusion stands."""
    for found in list(_CONCLUSION.finditer(text))[-1:]:
        begin, end = _stripped(text, found.end(), len(text), " \t\r\n*")
        if re.search(r"\w", text[begin:end]):
            return begin, end
    return _stripped(text, 0, len(text), None)


def _stripped(text: str, begin: int, end: int, characters: str | None) -> tuple[int, int]:
    rest = text[begin:end].lstrip(characters)
    begin = end - len(rest)
    return begin, begin + len(rest.rstrip(characters))


def read_letter(
    answer: str, choices: Sequence[str] = (), letters: str = LETTERS, same: Sequence[Callable[[str], str]] = ()
) -> LabelReading:
    """The letter of an answer: "B", "(B)", "B.", "B) Paris", "Option B", or only the text of a choice.

    It is read from what stands after the last "Answer:" or "answer is", else from the whole.

    Args:
        answer: Without thoughts.
        choices: Their texts, if they are known.
        letters: Those that there are; with `choices`, as many of them.
        same: Forms in which the text of a choice is recognised, the strictest first; the last may drop articles.
    """
    letters = letters[: len(choices)] if choices else letters
    begin, end = _concluded(answer)
    whole = _stripped(answer, 0, len(answer), None)
    if (begin, end) != whole:  # a choice may itself hold "the answer is"
        exact = [letter for letter, choice in zip(letters, choices, strict=False) if choice.strip() == answer.strip()]
        if len(exact) == 1:
            return LabelReading(exact[0])
    read = _read(answer, begin, end, choices, letters, same)
    if read.problem == _NONE and (begin, end) != whole:
        return _read(answer, *whole, choices, letters, same)
    return read


def _read(
    answer: str,
    begin: int,
    end: int,
    choices: Sequence[str],
    letters: str,
    same: Sequence[Callable[[str], str]],
) -> LabelReading:
    said, places = _plain(answer, begin, end)

    def known(letter: str, at: int) -> LabelReading:
        if letter not in letters:
            return LabelReading(None, f"the letter {letter} is none of {letters[0]} to {letters[-1]}")
        return LabelReading(letter, at=places[at])

    if alone := _ALONE.match(said):
        return known(alone[1].upper(), alone.start(1))
    leading = _LEADING.match(said)
    # the loosest form takes the "A." of "A. Rome" for an article
    named = _named(answer[begin:end], choices, letters, same if leading is None else same[:-1])
    if len(named) == 1:
        return LabelReading(named[0])
    if named:
        return LabelReading(None, f"the choices {', '.join(named)} have the same text")
    if leading is not None:
        group = next(i for i, letter in enumerate(leading.groups(), start=1) if letter)
        letter, rest = leading[group], said[leading.end() :]
        own = choices[letters.index(letter)] if choices and letter in letters else ""
        second = _SECOND.search(_without(own, rest))
        if second and next(filter(None, second.groups())) not in {letter, *_NUMERALS.difference(letters)}:
            return LabelReading(None, "more than one letter can be read")
        named = _named(rest, choices, letters, same)
        if named and letter not in named:
            return LabelReading(None, f"the letter {letter} stands beside the text of another choice")
        return known(letter, leading.start(group))
    *_, last_line = ["", *said.splitlines()]
    if alone := _ALONE.match(last_line.strip()):
        return known(alone[1].upper(), len(said) - len(last_line.lstrip()) + alone.start(1))
    return LabelReading(None, _NONE)


def _without(own: str, rest: str) -> str:
    """What stands after a letter, without the text of its choice: that may hold letters, as "Both A and B" does."""
    bare = _MARKUP.sub("", own).strip().rstrip(".")
    found = re.match(rf"\W*{re.escape(bare)}(?!\w)", rest, re.IGNORECASE) if bare else None
    return rest if found is None else rest[found.end() :]


def _plain(answer: str, begin: int, end: int) -> tuple[str, list[int]]:
    """A part of an answer without markup and the white space around it, and where each character of it stands."""
    kept = list(range(begin, end))
    for found in _MARKUP.finditer(answer[begin:end]):
        kept[found.start() : found.end()] = [-1] * len(found[0])
    kept = [at for at in kept if at >= 0]
    first, last = _stripped("".join(answer[at] for at in kept), 0, len(kept), None)
    kept = kept[first:last]
    return "".join(answer[at] for at in kept), kept


def _named(text: str, choices: Sequence[str], letters: str, same: Sequence[Callable[[str], str]]) -> list[str]:
    """The letters of the choices whose text this is, in the strictest form in which there is one."""
    for form in same:
        if wanted := form(text):
            found = [letters[i] for i, choice in enumerate(choices) if form(choice) == wanted]
            if found:
                return found
    return []


# ---------------------------------------------------------------------- any labels


def read_label(answer: str, labels: Sequence[str], *, after: str | None = None) -> LabelReading:
    """Which of `labels` an answer gives: letters as `read_letter` reads them, others where it begins or concludes.

    Args:
        answer: Without thoughts.
        labels: Such as "ABCD", or "yes" and "no".
        after: What stands before the label, where the answer has it; the last of them counts.
    """
    start = answer.rfind(after) + len(after) if after is not None and after in answer else 0
    told = answer[start:]
    if set(labels) <= set(LETTERS):
        read = read_letter(told, letters="".join(labels))
        problem = read.problem
    else:
        read, problem = LabelReading(None), "no label can be read"
        for begin, end in dict.fromkeys((_concluded(told), _stripped(told, 0, len(told), None))):
            if (found := begins_with(told[begin:end], labels)) is not None:
                read = LabelReading(found[0], at=begin + found[1])
                break
    if read.label is None:
        return LabelReading(None, problem)
    return LabelReading(read.label, at=None if read.at is None else start + read.at)


def begins_with(answer: str, labels: Sequence[str], *, open_ended: bool = False) -> tuple[str, int] | None:
    """The label that an answer consists of or begins with, and where: "B", "(B)", "B. Lyon", not "A good question".

    Args:
        answer: Without thoughts.
        labels: Those that there are.
        open_ended: Whether more may follow: then only what cannot turn out to be something else.
    """
    begun = answer.lstrip(_AROUND)
    at = len(answer) - len(begun)
    for label in sorted(labels, key=len, reverse=True):
        spelled, rest = begun[: len(label)], begun[len(label) :]
        if not (spelled == label or (spelled in _spellings(label) and spelled not in labels)) or rest[:1].isalnum():
            continue
        if (open_ended and not rest.strip(" ")) or _joined(label, rest, open_ended=open_ended):
            continue
        # after a single letter, a word would make another word of it
        if len(label) > 1 or not rest.strip() or rest[0] == "\n" or not rest.lstrip(" ")[0].isalnum():
            return label, at
    return None


def _spellings(label: str) -> tuple[str, ...]:
    """How else a label may be written: "Yes" and "YES" for "yes", but neither "a" for "A" nor "It" for "IT"."""
    return () if len(label) == 1 or label.isupper() else (label.lower(), label.capitalize(), label.upper())


def _joined(label: str, rest: str, *, open_ended: bool) -> bool:
    """Whether a label is the beginning of another word or number, or may be: "I'm", "B-cells", "1.5"."""
    if not rest.startswith((".", ",") if label.isdigit() else ("'", "’", "-", "/", "_")):
        return False
    return (open_ended and len(rest) == 1) or rest[1:2].isalnum()


def named_by(token: str, labels: Collection[str]) -> str | None:
    """The label that a token is, with blanks and punctuation around it or without: " B", "B.", "(B"; None if none."""
    known = set(labels)
    bare = token.strip()
    bare = bare if bare in known else bare.strip(_AROUND)
    return bare if bare in known else None


def folded(token: str, labels: Sequence[str]) -> str | None:
    """`named_by`, whatever the case."""
    by_case = {label.casefold(): label for label in labels}
    found = named_by(token.casefold(), list(by_case))
    return None if found is None else by_case[found]
