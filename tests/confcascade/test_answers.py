"""The answer's tokens are found among all that are told, however they are cut, whole and as they come."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from confcascade import Message, Request, ToolCall
from confcascade.answers import AnswerTokens, parted, solid
from confcascade.extending import Response, Token
from confcascade.thoughts import part
from hypothesis import assume, given, settings
from hypothesis import strategies as st

# what opens thoughts, and what closes them
MARKS = st.sampled_from(
    [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("analysis", "assistantfinal"),
        ("Here is my thought process:\n", "\nHere is my response:\n"),
        ("<think>", "</think><response>"),
        ("<think>\n\n", "</think>\n<answer>\n"),
    ]
)
ENDS = st.sampled_from(["", "\n", "<|im_end|>", "</s>", "\n<end_of_turn>\n", "[/INST]", "<|return|>"])
BLANKS = st.text(st.sampled_from(" \n\t"), max_size=3)
# few letters, so that an answer also occurs in the thoughts; a capital first, as "analysis" wants it
WORDS = st.text(st.sampled_from("ABa1 .,\n漢"), max_size=10).map(lambda text: "A" + text)
CUTS = st.lists(st.integers(0, 120), max_size=30)


def request(**parameters: Any) -> Request:
    return Request((Message("user", "q"),), **parameters)


def tokens_of(text: str, cuts: list[int]) -> tuple[Token, ...]:
    """A text cut into tokens; each has a log-probability of its own."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return tuple(Token(text[a:b], -0.01 * (a + 1)) for a, b in pairwise(places))


def spelling(text: str, tokens: tuple[Token, ...], start: int, end: int) -> tuple[Token, ...]:
    """Of the tokens of `text` those that hold a character that is not blank between `start` and `end`, and blanks
    between them."""
    places, at = [], 0
    for i, token in enumerate(tokens):
        if text[max(at, start) : min(at + len(token.text), end)].strip():
            places.append(i)
        at += len(token.text)
    return tokens[places[0] : places[-1] + 1]


def texts(tokens: Any) -> Any:
    return None if tokens is None else [token.text for token in tokens]


def told(*pieces: str) -> tuple[Token, ...]:
    return tuple(Token(piece, -0.1 * (i + 1)) for i, piece in enumerate(pieces))


@settings(deadline=None)
@given(
    marks=MARKS,
    thoughts=WORDS,
    answer=WORDS,
    blanks=BLANKS,
    end=ENDS,
    cuts=CUTS,
    apart=st.booleans(),
    opened=st.booleans(),
)
def test_thoughts_marks_blanks_and_ends_do_not_count(marks, thoughts, answer, blanks, end, cuts, apart, opened):
    """Exactly the answer's tokens are found: thoughts in the text or told apart, the opening mark there or not."""
    opening, closing = marks
    begun = ("" if opened and "/" in closing else opening) + thoughts + closing + blanks
    text = begun + answer + end
    tokens = tokens_of(text, cuts)
    whole = Response(answer.strip(), tokens, thoughts=thoughts.strip()) if apart else Response(begun + answer, tokens)

    found = parted(request(), whole)

    assert found.tokens == spelling(text, tokens, len(begun), len(begun + answer))
    assert found.thoughts.split("\n")[-1] == thoughts.strip().split("\n")[-1]
    assert found.thought_tokens == tokens[: tokens.index(found.tokens[0])]
    assert parted(request(), found) == found


@settings(deadline=None)
@given(answer=WORDS, cuts=CUTS, stop=st.sampled_from(["###", "\n\n#", "</end>"]), more=BLANKS, strip=st.booleans())
def test_a_listed_stop_string_does_not_count(answer, cuts, stop, more, strip):
    """Nor the blanks that a server has stripped with it."""
    text = f" {answer}{stop}{more}"
    tokens = tokens_of(text, cuts)
    shown = answer.strip() if strip else f" {answer}"

    found = parted(request(stop=(stop,)), Response(shown, tokens))

    expected = spelling(text, tokens, 1, len(answer) + 1)
    if not strip:  # the first blank is the text's own
        expected = tokens[: tokens.index(expected[-1]) + 1]
    assert found.tokens == expected


@pytest.mark.parametrize(
    ("tokens", "response", "found"),
    [
        (told("42"), Response("42"), ["42"]),
        (told(" ", "42", "\n"), Response("42"), ["42"]),
        (told(" ", "42"), Response(" 42"), [" ", "42"]),
        (told("Ly", "on", "<|im_end|>"), Response("Lyon", thoughts="Is it Lyon?"), ["Ly", "on"]),  # thoughts not listed
        (told("Is it", " Lyon", "?", "</think>", "Ly", "on"), Response("Lyon", thoughts="Is it Lyon?"), ["Ly", "on"]),
        (told("Ly", "on", ", or", "</think>", "Ly", "on"), Response("Lyon"), ["Ly", "on"]),  # its thoughts not told
        (told("14", "</s>"), Response("14", thoughts="4"), ["14"]),
        # a character of several tokens comes with the last of them
        (told("<think>", "hm", "</think>", "", "", "漢", "", "字"), Response("<think>hm</think>漢字"), 5 * [""]),
        (told("", "漢"), Response("漢"), ["", "漢"]),
        # an answer in the form of an end, or of the end of one
        (told("<b>", "</b>", "</s>"), Response("<b></b>"), ["<b>", "</b>"]),
        (told("<think>", "hm", "</think>", ">", "<|im_end|>"), Response("<think>hm</think>>"), [">"]),
        (told("<think>", "1", "</think>", "]", "[/INST]"), Response("]", thoughts="1"), ["]"]),
        # wherever nothing came before it, something ended it
        (told("Ly", "on", " Q:", " next"), Response("Lyon"), ["Ly", "on"]),
    ],
)
def test_the_last_that_spells_the_answer_counts(tokens, response, found):
    """However often it occurs before, and whatever ends it."""
    judged = parted(request(), response.replace(tokens=tokens)).tokens

    expected = ["", "", "漢", "", "字"] if found == 5 * [""] else found
    assert texts(judged) == expected
    assert judged == tokens[tokens.index(judged[0]) :][: len(judged)]


@pytest.mark.parametrize(
    ("tokens", "response"),
    [
        (told("Paris"), Response("Lyon")),
        (told("Ly"), Response("Lyon")),
        (told("<think>", "Lyon", ", or not"), Response("Lyon", thoughts="Lyon, or not")),  # of the thoughts alone
        (told("Is it", " Lyon", "?"), Response("Lyon", thoughts="Is it Lyon?")),
        (told("It is", " Lyon"), Response("Lyon", thoughts="It is Lyon")),
        (told("<think>", "Lyon"), Response("<think>Lyon</think>Lyon")),
    ],
)
def test_tokens_that_do_not_spell_the_answer_are_no_tokens_of_it(tokens, response):
    """And it is said why there is no score."""
    found = parted(request(), response.replace(tokens=tokens))

    assert found.tokens is None
    assert found.unscored == "the log-probabilities are not those of the answer's text"
    assert parted(request(), found) == found


def test_an_empty_list_is_called_so():
    """As LM Studio tells one."""
    found = parted(request(), Response("Lyon", ()))

    assert (found.tokens, found.unscored) == (None, "the list of log-probabilities is empty")


def test_thoughts_without_an_answer_are_thoughts_alone():
    """Nothing is missing then, and nothing is scored."""
    tokens = told("<think>", "hm")

    found = parted(request(), Response("<think>hm", tokens))

    assert (found.tokens, found.thought_tokens, found.unscored, found.thoughts) == (None, tokens, None, "hm")


def test_thoughts_are_told_where_no_tokens_are():
    """What is made of a draft does not hang on its log-probabilities."""
    found = parted(request(), Response("<think>hm</think>Lyon"))

    assert (found.thoughts, found.answer, found.tokens, found.unscored) == ("hm", "Lyon", None, None)


def test_an_aborted_answer_may_be_ahead_of_its_text():
    """Its tokens then are those that were told."""
    tokens = told("<think>", "hm", "</think>", "Ly", "on", " is")

    found = parted(request(), Response("<think>hm</think>Ly", tokens, finish_reason="aborted"))

    assert texts(found.tokens) == ["Ly", "on", " is"]


@pytest.mark.parametrize("apart", [True, False])
def test_of_a_call_all_tokens_behind_the_thoughts_are_kept(apart):
    """The signal finds the call among them."""
    tokens = told("<think>", "add ", '{"a": 1}', "</think>", 'add {"a": 1}')
    response = Response("", tokens, tool_calls=(ToolCall("add", {"a": 1}),), thoughts='add {"a": 1}' if apart else "")

    found = parted(request(), response)

    assert texts(found.tokens) == ["</think>", 'add {"a": 1}']


# ---------------------------------------------------------------------- as they come


def shown_of(text: str, tokens: tuple[Token, ...], steps: list[int]) -> list[tuple[Token, ...]]:
    """What is shown as the answer's tokens, each time that some more tokens and their text have come."""
    follower, shown = AnswerTokens(), []
    for n in sorted({*steps, *range(1, 4), len(tokens)}):
        come = "".join(token.text for token in tokens[:n])
        shown.append(tuple(follower.seen(tokens[:n], text if n >= len(tokens) else come)))
    return shown


def without_blanks_behind(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    while tokens and not tokens[-1].text.strip():
        tokens = tokens[:-1]
    return tokens


@settings(deadline=None)
@given(marks=MARKS, thoughts=WORDS, answer=WORDS, blanks=BLANKS, cuts=CUTS, steps=st.lists(st.integers(1, 40)))
def test_no_thought_is_shown_and_the_whole_answer_in_the_end(marks, thoughts, answer, blanks, cuts, steps):
    """At every prefix the tokens of the answer so far, or none; in the end those that the whole has."""
    opening, closing = marks
    begun = opening + thoughts + closing + blanks
    text = begun + answer
    tokens = (Token(opening, -9.0), *tokens_of(text[len(opening) :], cuts))  # of a first word, it is one token
    whole = parted(request(), Response(text, tokens)).tokens

    *earlier, last = shown_of(text, tokens, steps)

    assert last == without_blanks_behind(whole)
    assert all(shown == whole[: len(shown)] for shown in earlier)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("aHh<>/[]|\n `think"), max_size=30), cuts=CUTS, steps=st.lists(st.integers(1, 30)))
def test_whatever_is_written_the_end_is_that_of_the_whole(text, cuts, steps):
    """Also where it only looks like marks."""
    assume(part(text).answer.strip())
    tokens = tokens_of(text, cuts)

    *_, last = shown_of(text, tokens, steps)

    assert last in ((), without_blanks_behind(parted(request(), Response(text, tokens)).tokens))


@settings(deadline=None)
@given(answer=WORDS, cuts=CUTS, lag=st.integers(0, 6), stop=st.sampled_from(["", "###"]))
def test_tokens_wait_for_a_text_that_lags_behind(answer, cuts, lag, stop):
    """Servers hold text back that may be a stop string: its tokens are not shown."""
    tokens = tokens_of(answer + stop, cuts)
    whole = parted(request(stop=("###",)), Response(answer, tokens)).tokens
    follower, text = AnswerTokens(), tokens[0].text[: len(answer)]
    for n in range(1, len(tokens) + 1):
        come = "".join(token.text for token in tokens[:n])[: len(answer)]
        text = come[: max(len(text), len(come) - lag)]
        shown = follower.seen(tokens[:n], text)
        assert shown == whole[: len(shown)]
    crossed = whole[-1].text.endswith("#")  # a token across the end is held back
    assert crossed or not shown or follower.seen(tokens, answer) == without_blanks_behind(whole)


@settings(deadline=None)
@given(thoughts=WORDS, answer=WORDS, cuts=CUTS, ahead=st.integers(1, 30))
def test_a_text_that_is_ahead_waits_for_its_tokens(thoughts, answer, cuts, ahead):
    """The answer is not looked for in the thoughts meanwhile."""
    text = f"<think>{thoughts}</think>{answer}"
    tokens = tokens_of(text, cuts)
    whole = parted(request(), Response(text, tokens)).tokens
    follower = AnswerTokens()

    for n in range(1, len(tokens) + 1):
        come = len("".join(token.text for token in tokens[:n]))
        shown = follower.seen(tokens[:n], text[: come + ahead])
        assert shown == whole[: len(shown)]
    assert shown == without_blanks_behind(whole)


def test_tokens_of_thoughts_that_are_told_apart_are_not_shown():
    """The text has none of them."""
    tokens = told("Is it", " Lyon", "?", "</think>", "\n\n", "Ly", "on")
    follower = AnswerTokens()

    shown = [texts(follower.seen(tokens[:n], text)) for n, text in ((2, ""), (5, ""), (6, "Ly"), (7, "Lyon"))]

    assert shown == [[], [], ["Ly"], ["Ly", "on"]]


def test_a_closing_mark_alone_begins_the_answer_anew():
    """Before it nothing tells that it is thoughts; it may come in pieces."""
    tokens = told("hm", ", 4", "</", "think", ">", "\n\n", "5", " km")
    follower = AnswerTokens()

    shown = [texts(follower.seen(tokens[:n], "".join(token.text for token in tokens[:n]))) for n in range(1, 9)]

    assert shown[1] == ["hm", ", 4"]
    assert shown[4:] == [[], [], ["5"], ["5", " km"]]


def test_the_first_token_shown_is_the_first_of_the_answer():
    """Not that of a mark that some models write around it: a verdict on the first token is final."""
    tokens = told("<think>", "hm", "</think>", "\n", "<", "answer", ">", "\n", "Ly", "on", "</", "answer", ">")
    follower = AnswerTokens()

    shown = [texts(follower.seen(tokens[:n], "".join(token.text for token in tokens[:n]))) for n in range(1, 14)]

    assert [each[0] for each in shown if each] == 5 * ["Ly"]
    assert shown[-1] == ["Ly", "on"]


@given(st.text())
def test_solid_text_has_no_blanks_and_all_else(text):
    """Whatever counts as blank."""
    assert solid(text) == "".join(c for c in text if not c.isspace())
