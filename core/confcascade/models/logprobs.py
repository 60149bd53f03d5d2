"""The log-probabilities of an answer, in whatever form a server or a client tells them, as tokens."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from confcascade.types import Token

__all__ = ["TokenReader", "visible"]

_LEAST = -9999.0  # nats


class TokenReader:
    """Reads the tokens of one answer, whole or in pieces, so that their texts add up to it.

    Where a character takes several tokens, its text comes with the last of them.  End-of-text entries, which have no
    text or no bytes, are left out.

    Args:
        top_logprobs: How many alternatives at each position are wanted, too.

    Attributes:
        sound: Whether none so far was NaN or infinite (minus infinity is a probability of 0). An answer with one that
            was has no tokens to judge.
    """

    def __init__(self, top_logprobs: int = 20) -> None:
        self.sound = True
        self._top_logprobs = top_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, logprobs: Any) -> tuple[Token, ...] | None:
        """The next tokens; None if there are none, or they are told in another form.

        Args:
            logprobs: Mappings or objects, ``{"content": [{token, logprob, bytes, top_logprobs}]}`` (OpenAI, vLLM,
                SGLang, llama.cpp's server, Fireworks, TGI), that list alone (Ollama), or ``{"tokens": [...],
                "token_logprobs": [...], "top_logprobs": [{}]}`` (legacy completions: Together, llama-cpp-python).
        """
        entries = logprobs
        if not isinstance(logprobs, list):
            legacy = _get(logprobs, "token_logprobs")
            entries = _get(logprobs, "content") if legacy is None else _legacy_entries(logprobs, legacy)
        if not isinstance(entries, list):
            return None
        tokens = []
        for entry in map(_fields, entries):
            text: Any = entry.get("token")
            logprob: Any = entry.get("logprob")
            if not (_is_told(text, logprob) and self._is_sound(logprob)):
                return None
            spelling = entry.get("bytes")
            if text != "" and spelling != []:
                text = text if spelling is None else self._spelled(text, spelling)
                top = self._alternatives(entry.get("top_logprobs")) if self._top_logprobs else ()
                tokens.append(Token(text, _clamped(logprob), top))
        return tuple(tokens) if self.sound else None

    def _is_sound(self, logprob: float) -> bool:
        self.sound = self.sound and logprob < math.inf  # of NaN no comparison is true
        return self.sound

    def _alternatives(self, told: Any) -> tuple[tuple[str, float], ...]:
        others: list[tuple[str, float]] = []
        for other in map(_fields, told[: self._top_logprobs] if isinstance(told, list) else ()):
            text: Any = other.get("token")
            logprob: Any = other.get("logprob")
            if _is_told(text, logprob) and self._is_sound(logprob):
                others.append((text, _clamped(logprob)))
        return tuple(others)

    def _spelled(self, text: str, spelling: Any) -> str:
        """What an entry adds to the answer; of an incomplete character, `text` is an escape such as ``\\xf0``."""
        try:
            return self._decoder.decode(bytes(spelling)) if isinstance(spelling, list | bytes) else text
        except (TypeError, ValueError):  # no bytes
            return text


def visible(tokens: Sequence[Token] | None, text: str) -> tuple[Token, ...] | None:
    """Without the tokens that follow the text: some servers list the stop string, too."""
    if tokens is None:
        return None
    spelled = "".join([token.text for token in tokens])
    if spelled == text or not spelled.startswith(text):
        return tuple(tokens)
    seen, length = [], 0
    for token in tokens:
        if length >= len(text):
            break
        seen.append(token)
        length += len(token.text)
    return tuple(seen)


def _legacy_entries(logprobs: Any, values: Sequence[Any]) -> list[dict[str, Any]]:
    texts, tops = _get(logprobs, "tokens") or (), _get(logprobs, "top_logprobs") or ()
    return [
        {
            "token": text,
            "logprob": value,
            "top_logprobs": [
                {"token": other, "logprob": its} for other, its in (top.items() if isinstance(top, Mapping) else ())
            ],
        }
        for text, value, top in zip_longest(texts, values, tops[: len(texts)])
    ]


def _is_told(text: Any, logprob: Any) -> bool:
    return isinstance(text, str) and isinstance(logprob, float | int)


def _clamped(logprob: float) -> float:
    """Rounding may exceed 0; vLLM writes -9999 where there is none, others -inf, of which no mean could be taken."""
    return float(logprob) if _LEAST <= logprob <= 0 else min(0.0, max(float(logprob), _LEAST))


def _fields(entry: Any) -> Mapping[str, Any]:
    """Of a mapping or an object; empty if it is neither."""
    return entry if isinstance(entry, dict) else getattr(entry, "__dict__", {})


def _get(thing: Any, key: str) -> Any:
    return thing.get(key) if isinstance(thing, Mapping) else getattr(thing, key, None)
