"""Which part of a text is the answer, and which are the thoughts before it, by the marks of the models that think.

Servers with a reasoning parser tell the two apart. Without one, and from models in this process, both come as one text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from confcascade.quick_init import quick_init

__all__ = [
    "CLOSERS",
    "Parted",
    "ThoughtReader",
    "answer_at",
    "blanked",
    "calls_by_header",
    "closed_after",
    "is_mark",
    "may_open",
    "opened_by",
    "part",
]

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
    # gpt-oss, until the channel of the answer or a tool call; and where its special tokens are left out of the text
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)<\|message\|>",
        r"(?:<\|end\|>)?(?=<\|start\|>assistant to=|(?:<\|start\|>assistant)?<\|channel\|>"
        r"(?:final|commentary to=|(?:analysis|commentary)<\|message\|>))",
    ),
    (r"(?:assistant)?analysis(?=[A-Z]|.*assistantfinal)", r"assistantfinal"),
    # Granite 3; others say so, too, and mean no mark by it
    (r"Here(?: is|'s) my thought process:(?=.*Here(?: is|'s) my response:)", r"Here(?: is|'s) my response:"),
)  # fmt: skip
# of the families from the second to the eighth, what closes thoughts, as a model writes it
_CLOSINGS = (
    "[/THINK]", "◁/think▷", "<|END_THINKING|>", "<|close|>think<|sep|>", "<channel|>", "<|inner_suffix|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)  # fmt: skip
_WORD = 4  # letters of the shortest first word of a mark
_FIRST = frozenset("<[◁aH")  # what any opening begins with
_OPENINGS = (
    "<think>", "<thinking>", "<thought>", "<seed:think>", "<mm:think>", "[THINK]", "◁think▷", "<|START_THINKING|>",
    "<|open|>think<|sep|>", "<|channel>thought", "<|inner_prefix|>", "<|channel|>analysis<|message|>",
    "<|start|>assistant<|channel|>analysis<|message|>", "analysis", "assistantanalysis",
    "<|channel|>commentary<|message|>", "<|channel|>final<|message|>", "<|start|>assistant to=",
    "Here is my thought process:", "Here's my thought process:",
    "<response>", "<answer>", "<|START_RESPONSE|>", "<|START_TEXT|>", "<|open|>response<|sep|>",  # around the answer
)  # fmt: skip
# what begins so are thoughts once that which closes them has come; of gpt-oss, the whole header says what follows
_UNDECIDED = (
    r"(?:assistant)?analysis\S|Here(?: is|'s) my thought process:"
    r"|(?:<\|start\|>[^<]*)?<\|channel\|>(?:(?!<\|message\|>).)*\Z"
)
# A mark that closes what the prompt has opened. In quotes or backticks somebody speaks of it.
_SINGLE = (*_FAMILIES[:5], _FAMILIES[7])
_ALONE = rf"""(?<![`'"])(?:{"|".join(closing for _, closing in _SINGLE)})(?![`'"])"""
_OPENED = "|".join(opening for opening, _ in _SINGLE)
_FENCE = "```"
_WORDS = tuple(closing for _, closing in _FAMILIES[8:])
_MAY_CLOSE = r"[<\[◁](?:\S|(?<=assistant) |(?<=commentary) )*\Z"
_WORDS_ONLY = r"(?:(?!<[|/\w｜]|\[/?[A-Z]|◁).)*"  # no tag or mark
_LONGEST = 80  # characters of a mark
CLOSERS = ("</", "[/", "◁/", "|>", "assistantfinal", "my response:")
# what some models write around the answer that follows; of a tag, only behind thoughts
_WRAPPERS = (
    (r"<response>", ("</response>",)),  # Granite 3.3, Ernie
    (r"<answer>", ("</answer>",)),  # Hunyuan
    (r"<\|START_RESPONSE\|>", ("<|END_RESPONSE|>",)),
    (r"<\|START_TEXT\|>", ("<|END_TEXT|>",)),
    (r"<\|open\|>response<\|sep\|>", ("<|close|>response<|sep|>",)),
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>final[^<]*(?:<[^<>]*>[^<]*)?<\|message\|>",
        ("<|return|>", "<|end|>"),
    ),
)
_TAGS = _WRAPPERS[:2]
_END = r"(?:\s*<\|[a-z_]+\|>)+\s*$"  # <|return|> and the like, where special tokens are in the text
_CALL_HEADER = r"<\|start\|>assistant to=|(?:<\|start\|>assistant)?<\|channel\|>commentary to="  # gpt-oss's


def _any_of(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, texts))


# any mark, but those that are words
_MARK = "|".join(
    [each for pair in _FAMILIES[:8] for each in pair]
    + [each for opening, closing in _WRAPPERS for each in (opening, _any_of(closing))]
)
# marks of several special tokens, with every one of them
_SPELLED = (
    *_OPENINGS, "<|end|><|start|>assistant<|channel|>final<|message|><|return|>", "<channel|>",
    "<|close|>response<|sep|>",
)  # fmt: skip

_compiled = cache(re.compile)  # where it is needed, and not whenever confcascade is imported


@quick_init
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
    for mark in CLOSERS:
        if mark in text:
            if (end := _closed(text)) is not None:
                return Parted(text[: end.start()].strip(), _unwrapped(text[end.end() :]))
            break
    return Parted("", text)


def answer_at(text: str) -> int:
    """The first character of the answer (`part`); the length of a text without one.

    >>> answer_at("<think>4, or 5?</think>4")
    23
    """
    answer = part(text).answer
    if not answer.strip():
        return len(text)
    at = text.rfind(answer)
    while at > 0:
        before = part(text[:at])
        if not before.thinking and not before.answer.strip():
            return at
        at = text.rfind(answer, 0, at + len(answer) - 1)
    return 0


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


def may_open_mark(text: str) -> bool:
    """`may_open`, but for marks that are words, with which an answer may begin as well."""
    return not text.strip()[:1].isalpha() and may_open(text)


def is_mark(token: str) -> bool:
    """Whether a special token is a mark of thoughts, or a part of one."""
    return _compiled(_MARK).fullmatch(token) is not None or (
        token[:1] in "<[◁" and any(token in mark for mark in _SPELLED)
    )


def opened_by(prompt: str, turn: str = "") -> str:
    """The mark that has opened the thoughts in a rendered prompt; "" if none has.

    Args:
        prompt: It ends with the mark; or, a mark in `turn` begins a line or follows a tag, and then come words only.
        turn: The end of the prompt, as far as nobody asked it: the beginning of the answer's turn.
    """
    openings = "|".join(opening for opening, _ in _FAMILIES[:8])
    if found := _compiled(rf"(?:{openings})\s*\Z").search(prompt, max(0, len(prompt) - _LONGEST)):
        return found[0]
    found = _compiled(rf"(?:\A|[\n>\]])\s*({openings}){_WORDS_ONLY}\Z", re.DOTALL).search(turn)
    return f"{found[1]}\n" if found else ""  # a mark may end at a word boundary


def closed_after(opened: str) -> str:
    """What follows `opened` (`opened_by`) where there are no thoughts: the mark that closes them, in Qwen3's lines.

    >>> closed_after("<think>\\n")
    '\\n</think>\\n\\n'
    """
    mark = opened.strip()
    tag = _compiled(_FAMILIES[0][0]).fullmatch(mark)
    pairs = zip(_FAMILIES[1:8], _CLOSINGS, strict=True)
    found = (closing for (opening, _), closing in pairs if _compiled(rf"(?:{opening})\Z").match(mark))
    closing = f"</{mark[1:]}" if tag else next(found, "")
    return f"\n{closing}\n\n" if closing and opened.endswith("\n") else closing


def calls_by_header(answer: str) -> bool:
    """Whether an answer is a call of a tool in gpt-oss's form, which names the tool before its text."""
    return _compiled(_CALL_HEADER).match(answer.lstrip()) is not None


class ThoughtReader:
    """Follows a text whose beginning is known, and says where the answer begins as soon as that is sure.

    Args:
        opened: The mark with which the prompt has opened the thoughts (`opened_by`).

    Attributes:
        begun: Where the answer begins, in characters of what was added; None as long as that is open.
        thinking: Whether what came last belongs to the thoughts.
        thoughts: Without marks, as of `Parted`.
        closers: What closes the answer, where something was opened around it.
    """

    def __init__(self, opened: str = "") -> None:
        self.begun: int | None = None
        self.thinking = False
        self.thoughts = ""
        self.closers: tuple[str, ...] = ()
        self._rest = opened  # what is undecided, or the thoughts so far
        self._at = -len(opened)  # where it begins
        self._closing: re.Pattern[str] | None = None
        self._told = 0  # characters of `thoughts` that `fresh` has given
        self._parts: list[str] = []

    def add(self, text: str, *, last: bool = False) -> None:
        """Take what follows; after the `last`, everything is decided."""
        self._rest += text
        while self.begun is None and (self._close(text) if self.thinking else self._open(last)):
            text = self._rest
        if last and self.thinking:
            self._tell(self._rest)
            self._closing = None

    def fresh(self) -> str:
        """The thoughts that are new since the last call; all of them together are `thoughts`."""
        if self.thinking and self._closing is not None and self._closing.pattern not in _WORDS:
            self._tell(self._rest[: self.sure - self._at])
        told, self._told = self._told, len(self.thoughts)
        return self.thoughts[told:]

    @property
    def sure(self) -> int:
        """Up to which character of what was added all is thoughts: what follows may begin the mark that closes them."""
        held = _compiled(_MAY_CLOSE).search(self._rest, max(0, len(self._rest) - _LONGEST))
        return self._at + (held.start() if held else len(self._rest))

    def _tell(self, text: str) -> None:
        self.thoughts = "\n".join([*self._parts, text.strip()])

    def _take(self, characters: int) -> None:
        self._rest = self._rest[characters:]
        self._at += characters

    def _close(self, text: str) -> bool:
        """Whether the thoughts have come to their end."""
        tail = self._rest[-len(text) - _LONGEST :]
        if self._closing is None or not any(mark in tail for mark in CLOSERS):
            return False
        if (end := self._closing.search(self._rest)) is None:
            return False
        self._tell(self._rest[: end.start()])
        self._parts.append(self._rest[: end.start()].strip())
        self._take(end.end())
        self.thinking = False
        return True

    def _open(self, last: bool) -> bool:
        """Whether thoughts begin, or the answer, here."""
        if not last and (not self._rest.strip() or may_open(self._rest)):
            return False
        if (found := _opened(self._rest)) is not None:
            start, self._closing = found
            self._take(start)
            self.thinking = True
            return True
        for opening, closers in _WRAPPERS if self._parts else _WRAPPERS[len(_TAGS) :]:
            if (wrapper := _compiled(rf"\s*{opening}", re.DOTALL).match(self._rest)) is not None:
                self._take(wrapper.end())
                self.closers = closers
                if not (last or self._rest.strip()):
                    return False  # the first word of the answer is still to come
                break
        if self._parts or self.closers:
            self._take(len(self._rest) - len(self._rest.lstrip()))
        self.begun = self._at
        return True


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
        wrapped = _compiled(rf"\s*{opening}(.*?)(?:(?:{_any_of(closing)}).*)?", re.DOTALL)
        if (found := wrapped.fullmatch(answer)) is not None:
            return found[1].strip()
    return _compiled(_END).sub("", answer).strip()
