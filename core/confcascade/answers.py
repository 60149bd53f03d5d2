"""Which of the tokens that a model tells are those of the answer, for every client, whole or as they come.

Servers list more than the answer: thoughts, marks, stop strings, the end of the text. Others list less. The answer is
found among them from the right, by all characters that are not blank; what cannot be found is not scored.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from confcascade.thoughts import CLOSERS, may_open, part
from confcascade.types import Request, Response, ThoughtToken, Token

__all__ = ["AnswerTokens", "parted", "solid", "without"]

# what may stand behind an answer and is no part of it: <|im_end|>, </s>, [/INST], <end_of_turn>, </response>
_ENDS = re.compile(r"(?:<[^<>]*>|\[/?[A-Z_]+\])*")
_LONGEST_MARK = 40  # characters
_LOST = "\ufffd"  # what SGLang and older vLLM tell of each token of a character that takes several
_RUN = "\ufffd+"
_UNCOVERED = "the log-probabilities are not those of the answer's text"
_EMPTY = "the list of log-probabilities is empty"


def parted(request: Request, response: Response) -> Response:
    """A model's response with its tokens in two: those of the answer, and those that came before it.

    Args:
        request: What was asked.
        response: As the model gave it, `Response.tokens` being all that it told, in their order.

    Returns:
        `tokens` of only the answer, without blanks that were stripped; of an answer that calls tools, all that follow
        the thoughts. None, and `unscored` says why, where they do not spell the answer.
    """
    tokens = response.tokens
    if response.thought_tokens is not None:  # parted already
        return response
    text = part(response.text)
    thoughts = response.thoughts or text.thoughts
    if tokens is None:
        return response.replace(thoughts=thoughts) if thoughts else response
    if not thoughts and tokens and tokens[-1].text.strip() and _spells(tokens, response.text):
        return response  # a plain answer, and nothing but it
    if response.calls_tools:
        start = _after_thoughts(tokens, thoughts)
        return response.replace(thoughts=thoughts, tokens=tokens[start:], thought_tokens=tokens[:start])
    found = _place(tokens, text.answer, request.stop, thoughts)
    if found is None and response.finish_reason == "aborted":  # where it ended, the text may lag behind
        spelled = part("".join(token.text for token in tokens))
        found = _place(tokens, spelled.answer, (), spelled.thoughts)
    if found is None:
        unscored = (_UNCOVERED if tokens else _EMPTY) if text.answer.strip() else None
        before = tokens if unscored is None else None
        return response.replace(thoughts=thoughts, tokens=None, thought_tokens=before, unscored=unscored)
    start, end = found
    return response.replace(thoughts=thoughts, tokens=tokens[start:end], thought_tokens=tokens[:start])


def without(response: Response, spans: Sequence[tuple[int, int]]) -> Response:
    """A model's response, as it gave it, with some parts of its text and their tokens taken off.

    Args:
        response: Its tokens being all that were told (not `parted`).
        spans: Of `Response.text`, as (begin, end) in characters, in order, none overlapping.

    Returns:
        What is left, without blanks at its end. No tokens, and `unscored` says why, where they do not spell what is
        taken off.
    """
    text, tokens, unscored = response.text, response.tokens, response.unscored
    limit = len(solid("".join(token.text for token in tokens or ())))
    for begin, end in reversed(spans):
        if tokens is not None:
            tokens, limit = _taken(tokens, solid(text[begin:end]), limit)
            unscored = unscored if tokens is not None else _UNCOVERED
        text = text[:begin] + text[end:]
    return response.replace(text=text.rstrip(), tokens=tokens, unscored=unscored)


def _taken(tokens: Sequence[Token], piece: str, limit: int) -> tuple[tuple[Token, ...] | None, int]:
    """Tokens without the last that spell `piece` before the character `limit`, blanks not counted; and where it began.

    Of a token that spells more, the rest stays, and its log-probability.
    """
    if not piece:
        return tuple(tokens), limit
    begin = "".join(solid(token.text) for token in tokens).rfind(piece, 0, limit)
    if begin < 0:
        return None, limit
    kept, at, end = list[Token](), 0, begin + len(piece)
    for token in tokens:
        first, at = at, at + len(solid(token.text))
        if at <= begin or first >= end:
            kept.append(token)
        elif first < begin or at > end:
            rest = "".join(c for i, c in _placed(token.text) if not begin <= first + i < end)
            kept.append(replace(token, text=rest))
    return tuple(kept), begin


def _placed(text: str) -> Iterator[tuple[int, str]]:
    """Each character with the number of those before it that are not blank."""
    count = 0
    for character in text:
        yield count, character
        count += not character.isspace()


def _spells(tokens: Sequence[Token], text: str) -> bool:
    return "".join([token.text for token in tokens]) == text


def solid(text: str) -> str:
    """Without blanks, which servers strip and tokenizers tidy up."""
    return "".join(text.split())


def _place(
    tokens: Sequence[Token], answer: str, stop: Sequence[str], thoughts: str, *, whole: bool = True
) -> tuple[int, int] | None:
    """Between which tokens the answer stands; None if nowhere.

    Args:
        tokens: All that were told.
        answer: Its text.
        stop: The request's.
        thoughts: Those before it.
        whole: Whether it has come to its end.
    """
    wanted = solid(answer)
    if not wanted:
        return None
    pieces = [solid(token.text) for token in tokens]
    if any(_LOST in piece for piece in pieces):
        wanted, pieces = _without_lost(wanted, pieces)
    spelled = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    stops = tuple(filter(None, map(solid, stop)))
    thought = solid(thoughts)
    listed = _listed(tokens)
    if thought not in spelled and not whole and not listed:  # they are still to come
        return None
    # all of the tokens may be the answer, although thoughts are found in it; those of another list are not
    told = bool(thought) and thought in spelled and not listed
    thought_end = ends[listed - 1] if listed else spelled.find(thought) + len(thought) if told else 0
    found, at = -1, spelled.rfind(wanted)
    while at >= (thought_end if listed else 0):
        if told and 0 < at < thought_end:
            break
        rest = spelled[at + len(wanted) :]
        if found >= 0 and len(rest) > _LONGEST_MARK:
            break
        # where nothing came before it, whatever follows is what ended it
        ended = not rest or rest.startswith(stops) or _ENDS.fullmatch(rest) or (whole and at == 0 and not thoughts)
        # the last of the thoughts is not the answer
        if ended and not (told and len(thought) >= len(wanted) and at + len(wanted) == thought_end):
            found = at if found < 0 or _begins(ends, at) else found
            if _begins(ends, at):  # in the midst of a token it may be the ">" of what ended it
                break
        at = spelled.rfind(wanted, 0, at + len(wanted) - 1)
    if found < 0:
        return None
    # a blank token ends where the one before it does: neither the first nor the last is one
    start = bisect_right(ends, found)
    lead = "".join(token.text for token in tokens[:start])
    if found == 0 and not thoughts and answer.startswith(lead):  # the text has these blanks, too
        start = 0
    while start and tokens[start - 1].text == "":  # the first bytes of a character
        start -= 1
    end = _first_reaching(ends, found + len(wanted)) + 1
    while end < len(tokens) and not pieces[end] and _LOST in tokens[end].text:
        end += 1
    return start, end


def _listed(tokens: Sequence[Token]) -> int:
    """How many tokens were told in a list of thoughts."""
    return sum(isinstance(token, ThoughtToken) for token in tokens)


def _begins(ends: Sequence[int], at: int) -> bool:
    """Whether a token begins with the character `at`."""
    return at == 0 or ends[bisect_right(ends, at) - 1] == at


def _without_lost(wanted: str, pieces: Sequence[str]) -> tuple[str, list[str]]:
    """An answer and tokens with one mark in the place of each run of characters that no token spells."""
    known = set("".join(pieces))
    told, lost = [], False
    for piece in pieces:
        marked = re.sub(_RUN, _LOST, piece)
        told.append(marked.removeprefix(_LOST) if lost else marked)
        lost = piece.endswith(_LOST) if piece else lost
    shown = "".join(each if each.isascii() or each in known else _LOST for each in wanted)
    return re.sub(_RUN, _LOST, shown), told


def _first_reaching(ends: Sequence[int], length: int) -> int:
    return next(i for i, end in enumerate(ends) if end >= length)


def _after_thoughts(tokens: Sequence[Token], thoughts: str) -> int:
    """The first token behind the thoughts; 0 where there are none, or where they are not among the tokens."""
    if listed := _listed(tokens):
        return listed
    if not thoughts:
        text = part("".join(token.text for token in tokens))
        thoughts = text.thoughts
        if not thoughts:
            return 0
    pieces = [solid(token.text) for token in tokens]
    wanted = solid(thoughts)
    at = "".join(pieces).find(wanted)
    if at < 0:
        return 0
    return _first_reaching(list(accumulate(map(len, pieces))), at + len(wanted)) + 1


class AnswerTokens:
    """Follows an answer as it comes: which of the tokens so far are its own.

    None are as long as the model thinks, or may be about to. Blanks at the end are held back until more follows, and
    so are tokens that the text has not come to: a stop string may be among them.
    """

    def __init__(self) -> None:
        self._read = 0  # characters of the text
        self._solid = 0  # of them not blank
        self._thinking = False  # and only a mark can end it
        self._start: int | None = None  # the answer's first token
        self._begun = 0  # the answer's first character
        self._before = 0  # characters that are not blank, of the text around the answer
        self._end = 0  # the first token that the text has not come to
        self._spelled = 0  # characters that are not blank, of the answer's tokens up to there

    def seen(self, tokens: Sequence[Token], text: str) -> Sequence[Token]:
        """Those of the answer.

        Args:
            tokens: All so far.
            text: All so far, without thoughts that are told apart.
        """
        overlap = text[max(0, self._read - _LONGEST_MARK) :]
        self._solid += len(solid(text[self._read :]))
        self._read = len(text)
        if (self._start is None and not self._thinking) or any(mark in overlap for mark in CLOSERS):
            self._begin(tokens, text)
        if self._start is None:
            return ()
        while self._end < len(tokens):
            length = len(solid(tokens[self._end].text))
            if self._before + self._spelled + length > self._solid:
                break
            self._spelled += length
            self._end += 1
        end = self._end
        while end > self._start and not tokens[end - 1].text.strip():
            end -= 1
        return tokens[self._start : end]

    def _begin(self, tokens: Sequence[Token], text: str) -> None:
        found = part(text)
        begun = len(text.rstrip()) - len(found.answer.rstrip())
        if self._start is not None and begun == self._begun:
            return
        self._start, self._begun, self._thinking = None, begun, found.thinking
        if found.thinking or not found.answer.strip() or may_open(found.answer):
            return
        place = _place(tokens, found.answer, (), found.thoughts, whole=False)
        if place is not None:
            self._start, self._end = place
            self._spelled = len(solid(found.answer))
            self._before = self._solid - self._spelled
