"""Which part of a text is the answer, and which are the thoughts before it, by the marks of the models that think.

Servers with a reasoning parser tell the two apart. Without one, and from models in this process, both come as one text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

__all__ = ["CLOSERS", "Parted", "blanked", "may_open", "part"]

# By family, what opens thoughts at the beginning of a text, and what closes them. The tags: Qwen3, QwQ, DeepSeek,
# SmolLM3, GLM, Kimi K2, MiniMax, Nemotron, Phi-4, OLMo 3, Granite 3.3 and 4; <seed:think>: Seed; <mm:think>: MiniMax
# M3; <thought>: EXAONE Deep.
_TAG = r"(?:\w+[:|])?(?:think|thinking|thought)(?::\w+)?>"
_FAMILIES = (
    (rf"<{_TAG}", rf"</{_TAG}"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Cohere
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>"),  # Kimi K3
    (r"<\|channel>thought\b", r"<channel\|>"),  # Gemma 4
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    # gpt-oss, and where its special tokens are left out of the text
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>"
        r"(?:final[^<]*(?:<[^<>]*>[^<]*)?<\|message\|>|(?=commentary to=))",  # or a tool call begins
    ),
    (r"(?:assistant)?analysis(?=[A-Z]|.*assistantfinal)", r"assistantfinal"),
    # Granite 3; others say so, too, and mean no mark by it
    (r"Here(?: is|'s) my thought process:(?=.*Here(?: is|'s) my response:)", r"Here(?: is|'s) my response:"),
)  # fmt: skip
_WORD = 4  # letters of the shortest first word of a mark
_FIRST = frozenset("<[◁aH")  # what any opening begins with
_OPENINGS = (
    "<think>", "<thinking>", "<thought>", "<seed:think>", "<mm:think>", "[THINK]", "◁think▷", "<|START_THINKING|>",
    "<|open|>think<|sep|>", "<|channel>thought", "<|inner_prefix|>", "<|channel|>analysis<|message|>",
    "<|start|>assistant<|channel|>analysis<|message|>", "analysis", "assistantanalysis",
    "Here is my thought process:", "Here's my thought process:",
    "<response>", "<answer>", "<|START_RESPONSE|>", "<|START_TEXT|>", "<|open|>response<|sep|>",  # around the answer
)  # fmt: skip
# what begins so are thoughts once that which closes them has come
_UNDECIDED = r"(?:assistant)?analysis\S|Here(?: is|'s) my thought process:"
# A mark that closes what the prompt has opened. In quotes or backticks somebody speaks of it.
_SINGLE = (*_FAMILIES[:5], _FAMILIES[7])
_ALONE = rf"""(?<![`'"])(?:{"|".join(closing for _, closing in _SINGLE)})(?![`'"])"""
_OPENED = "|".join(opening for opening, _ in _SINGLE)
_FENCE = "```"
CLOSERS = ("</", "[/", "◁/", "|>", "assistantfinal", "my response:")
# what some models write around the answer that follows
_WRAPPERS = (
    (r"<response>", r"</response>"),  # Granite 3.3, Ernie
    (r"<answer>", r"</answer>"),  # Hunyuan
    (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    (r"<\|START_TEXT\|>", r"<\|END_TEXT\|>"),
    (r"<\|open\|>response<\|sep\|>", r"<\|close\|>response<\|sep\|>"),
)
_END = r"(?:\s*<\|[a-z_]+\|>)+\s*$"  # <|return|> and the like, where special tokens are in the text

_MARK = "|".join(each for pair in (*_FAMILIES[:8], *_WRAPPERS) for each in pair)  # any, but those that are words

_compiled = cache(re.compile)  # where it is needed, and not whenever confcascade is imported


@dataclass(frozen=True)
class Parted:
    """A text in two parts.

    Attributes:
        thoughts: What stands before the answer, without marks; "" where the model did not think aloud.
        answer: The rest; "" if the thoughts go on to the end.
        thinking: Whether the thoughts go on to the end, without the mark that closes them.
    """

    thoughts: str
    answer: str
    thinking: bool = False


def part(text: str) -> Parted:
    """The thoughts and the answer of a text, whole or as far as it has come.

    Thoughts begin the text with a family's mark, or end with it where the prompt has opened them.

    >>> part("<think>4, or 5?</think>\\n\\n4")
    Parted(thoughts='4, or 5?', answer='4', thinking=False)
    >>> part("4, or 5?</think>4").answer
    '4'
    """
    begun = text.lstrip()
    thoughts: list[str] = []
    if begun[:1] in _FIRST:
        rest: str | None = text
        while rest is not None and (found := _opened(rest)) is not None:
            start, closing = found
            end = closing.search(rest, start)
            thoughts.append(rest[start : end.start() if end else len(rest)].strip())
            rest = rest[end.end() :] if end else None
        if rest is None:
            return Parted("\n".join(thoughts), "", thinking=True)
        if thoughts:
            return Parted("\n".join(thoughts), _unwrapped(rest))
    if any(mark in text for mark in CLOSERS) and (end := _closed(text)) is not None:
        return Parted(text[: end.start()].strip(), _unwrapped(text[end.end() :]))
    return Parted("", text)


def blanked(text: str) -> str:
    """The same, with blanks in the place of marks."""
    shown: str = _compiled(_MARK).sub(lambda mark: " " * len(mark[0]), text)
    return shown


def may_open(text: str) -> bool:
    """Whether a text that has just begun may still turn out to begin with a mark: "<th", say, or a whole first word.

    Of an answer behind thoughts, also with one that some models write around it.
    """
    begun = text.lstrip()
    if begun[:1] not in _FIRST or (begun.isalpha() and len(begun) < _WORD):
        return False
    return any(opening.startswith(begun) for opening in _OPENINGS) or _compiled(_UNDECIDED).match(begun) is not None


def _opened(text: str) -> tuple[int, re.Pattern[str]] | None:
    """Where thoughts begin behind the mark that opens `text`, and what closes them."""
    for opening, closing in _FAMILIES:
        if (begun := _compiled(rf"\s*{opening}", re.DOTALL).match(text)) is not None:
            return begun.end(), _compiled(closing)
    return None


def _closed(text: str) -> re.Match[str] | None:
    """The mark that closes what the prompt has opened; none where both stand in a fence, for there it is an example."""
    for found in _compiled(_ALONE).finditer(text):
        fences = text.count(_FENCE, 0, found.start())
        if fences % 2 == 0 or not _compiled(_OPENED).search(text, text.rfind(_FENCE, 0, found.start()), found.start()):
            return found
    return None


def _unwrapped(answer: str) -> str:
    for opening, closing in _WRAPPERS:
        wrapped = _compiled(rf"\s*{opening}(.*?)(?:{closing}.*)?", re.DOTALL)
        if (found := wrapped.fullmatch(answer)) is not None:
            return found[1].strip()
    return _compiled(_END).sub("", answer).strip()
