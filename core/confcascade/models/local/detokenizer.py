"""Text from tokens, as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confcascade.thoughts import is_mark
from confcascade.unusable import begins_call

__all__ = ["Detokenizer", "call_marks_of", "marks_of", "special_of"]

_WINDOW = 8  # tokens that are decoded again with each new one, at most, but for those of one character
_LOST = "\ufffd"


def marks_of(tokenizer: Any) -> Mapping[int, str]:
    """The special tokens of a tokenizer that are marks of thoughts, by id: text from tokens leaves special ones out."""
    return {token: text for token, (text, special) in _added(tokenizer).items() if special and is_mark(text)}


def call_marks_of(tokenizer: Any) -> Mapping[int, bool]:
    """The tokens of a tokenizer that begin a tool call, and whether they are special, and so have no text."""
    return {token: special for token, (text, special) in _added(tokenizer).items() if begins_call(text)}


def special_of(tokenizer: Any) -> frozenset[str]:
    """The texts of all special tokens of a tokenizer, marks of thoughts among them."""
    return frozenset(text for text, special in _added(tokenizer).values() if special)


def _added(tokenizer: Any) -> Mapping[int, tuple[str, bool]]:
    """Texts of all special tokens, and of others that were added to the vocabulary, and whether they are special."""
    found = {token: (tokenizer.convert_ids_to_tokens(token), True) for token in tokenizer.all_special_ids}
    for token, told in (getattr(tokenizer, "added_tokens_decoder", None) or {}).items():
        found[token] = str(told), token in found or getattr(told, "special", False)
    return found


class Detokenizer:
    """Turns tokens into text one by one, without special tokens: all pieces add up to the text of all tokens.

    Args:
        tokenizer: A `transformers` tokenizer.

    Attributes:
        pending: How many of the last tokens have added nothing yet: they may be the first bytes of a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # of the window
        self._known = 0  # of them, those that `_before` is the text of
        self._before = ""

    @property
    def pending(self) -> int:
        return len(self._ids) - self._known

    def add(self, token: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        if self._known == len(self._ids) and self._known > _WINDOW:
            self._ids = self._ids[-_WINDOW // 2 :]
            self._known = len(self._ids)
            self._before = self._decode()
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_LOST) or len(text) <= len(self._before):
            return ""
        return self._take(text)

    def rest(self) -> str:
        """The text of what is pending: of an incomplete character, a replacement for it."""
        return self._take(self._decode()) if self.pending else ""

    def restart(self) -> None:
        """Forget what came so far: what follows is another text."""
        self._ids, self._known, self._before = [], 0, ""

    def behind(self, ids: Sequence[int]) -> None:
        """What follows stands behind these tokens: some tokenizers strip a blank at the beginning of a text."""
        self._ids = list(ids[-_WINDOW // 2 :])
        self._known, self._before = len(self._ids), self._decode() if self._ids else ""

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def _take(self, text: str) -> str:
        added = text[len(self._before) :]
        self._before, self._known = text, len(self._ids)
        return added
