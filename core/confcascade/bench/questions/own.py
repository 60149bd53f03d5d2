"""The format of confcascade itself: one question a record, with what is known about it under plain names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from confcascade.bench.questions.fields import array, indexed, lettered, listed, text
from confcascade.graders.example import LETTERS, Example

__all__ = ["claims", "example", "uses_letters"]

# keys by which this format differs from every published one
MARKS = {"reference", "references", "reference_index", "group", "context", "choice_a"}
REFERENCES = ("reference", "references", "answer")
# what other data calls its choices and what is right; left unread, these would make another question of it
CHOICES_ELSEWHERE = """
    options endings distractors incorrect_answers incorrect_answer mc1_targets mc2_targets candidates
    option_a opa choice1 sol1 ending0 Option1
""".split()
REFERENCES_ELSEWHERE = """
    answers answer_key answerKey answer_index answer_idx answer_letter answer_text correct correct_answer
    correct_answers correct_option best_answer possible_answers right_answer label labels target targets gold
    golden_answers ground_truth ground_truths ideal output expected expected_output expected_answer solution cop
""".split()


def claims(record: Mapping[str, Any]) -> bool:
    """Whether its keys are this format's, and could not be a published one's."""
    elsewhere = isinstance(record.get("answers"), Mapping)  # SQuAD has a `context`, too
    return "question" in record and not elsewhere and (bool(MARKS & set(record)) or {"A", "B"} <= set(record))


def example(record: Mapping[str, Any], *, letters_only: bool = False) -> Example:
    """An example of a record.

    Its keys: ``question``, and none or some of

    - ``choices``: a list of texts, or an object that names them by label; in a table a JSON list in one cell, or the
      columns ``choice_a``, ``choice_b``, ... or ``A``, ``B``, ...;
    - ``reference``, ``references`` or ``answer``, one of them: a text, a number, or several in a list (in a table a
      JSON list under ``references``). Of a question with choices the letter, the label or the choice's own text, never
      an index. A letter that is also another choice's text is the letter where the file uses letters (`uses_letters`);
    - ``reference_index``: of a question with choices, the 0-based index instead;
    - ``context``, ``group``, ``id``.

    Other keys are ignored, but for such as other data has for its choices, or, where none of the above says what is
    right, for its references: those would be lost without a word.

    Raises:
        ValueError, TypeError: If one of them cannot be read, or one that is not read looks like choices or a reference.
    """
    question = text(record, "question")
    if question is None:
        raise ValueError("it has no `question`")
    labels, choices = _choices(record)
    references = _references(record, choices, labels, letters_only)
    _refuse_unread(record, choices, references)
    return Example(
        question=question,
        choices=choices,
        references=references,
        context=text(record, "context"),
        group=text(record, "group"),
        id=text(record, "id") or "",
    )


def _refuse_unread(record: Mapping[str, Any], choices: tuple[str, ...], references: tuple[str, ...]) -> None:
    """See that no key holds choices or references under a name that is not read."""
    for found, elsewhere, kind, read in (
        (choices, CHOICES_ELSEWHERE, "choices", "`choices` (a list)"),
        (references, REFERENCES_ELSEWHERE, "a reference", "`reference` (the answer, or the letter of a choice)"),
    ):
        unread = [key for key in elsewhere if record.get(key) not in (None, "", [], {})]
        if unread and not found:
            raise ValueError(
                f"its key `{unread[0]}` looks like {kind}, and is not read: rename it to {read}, or leave it out"
            )


def _choices(record: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Labels, where the data has its own, and texts."""
    given = record.get("choices")
    if isinstance(given, Mapping):
        return tuple(map(str, given)), tuple(text(given, label) or "" for label in given)
    if given not in (None, ""):
        return None, listed(record, "choices")
    columns = [f"choice_{letter.lower()}" for letter in LETTERS]
    if "choice_a" not in record and {"A", "B"} <= set(record):
        columns = list(LETTERS)
    texts = [text(record, column) or "" for column in columns]
    last = max((i for i, each in enumerate(texts) if each), default=-1)
    if "" in (texts := texts[: last + 1]):
        raise ValueError(f"`{columns[texts.index('')]}` is empty, but a later choice is not")
    return None, tuple(texts)


def uses_letters(records: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the references of a file are letters: all are, and at least one can be nothing else."""
    certain = False
    for record in records:
        labels, choices = _choices(record)
        if not choices or labels is not None or record.get("reference_index") not in (None, ""):
            continue
        for reference in _references(record, (), None, True):
            if reference.strip().upper() not in LETTERS[: len(choices)]:
                return False
            certain = certain or reference.strip() not in map(str.strip, choices)
    return certain


def _references(
    record: Mapping[str, Any], choices: tuple[str, ...], labels: tuple[str, ...] | None, letters_only: bool
) -> tuple[str, ...]:
    given = [key for key in (*REFERENCES, "reference_index") if record.get(key) not in (None, "")]
    if len(given) > 1:
        raise ValueError(f"it has both `{given[0]}` and `{given[1]}`; one of them must tell what is right")
    if not given:
        return ()
    (key,) = given
    value = record[key]
    if key == "reference_index":
        if not choices or not str(value).strip().isdecimal():
            raise ValueError("`reference_index` must be a whole number, of a question with choices")
        return (indexed(int(value), choices),)
    several = key == "references" or isinstance(value, list)
    if (
        choices
        and labels is None
        and not all(isinstance(each, str) for each in (array(record, key) if several else [value]))
    ):
        raise ValueError(
            f"`{key}` is a number, and could be an index or a text: give the letter, or `reference_index` (from 0)"
        )
    references = listed(record, key) if several else (text(record, key) or "",)
    references = tuple(each for each in references if each.strip())
    if not choices:
        return references
    return tuple(dict.fromkeys(lettered(each, choices, labels, letters_only=letters_only) for each in references))
