"""A model's chat template, and the form of a conversation that it renders whole.

Templates differ: some refuse a system turn, want user and assistant to alternate, read content as a list of parts, want
a call's arguments as an object or as JSON, or know nothing of tools and leave calls out without a word. Which form a
template takes is tried, with marks in the place of what is said, once for each shape of a conversation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

from confcascade.errors import ConfigurationError, ModelError
from confcascade.types import Message, ToolCall

__all__ = ["ChatTemplate"]

_GIVEN = {"messages", "add_generation_prompt", "raise_exception"}  # variables that are no options
_SYSTEM = {"system", "developer"}  # roles of instructions
_SHAPES = 256  # of conversations whose form is remembered


class ChatTemplate:
    """Renders conversations in the form in which nothing of them is left out.

    Args:
        tokenizer: A `transformers` tokenizer that has a template.
        name: Of the model, for errors.
        options: Further arguments of the template.

    Attributes:
        behind: What it writes behind a question: the end of that turn, and the beginning of the answer's.

    Raises:
        ConfigurationError: If the template has no such arguments, or does not render a question.
    """

    def __init__(self, tokenizer: Any, *, name: str, options: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._options = dict(options)
        self._forms: dict[tuple[_Turn, ...], _Form | str] = {}  # by shape, or why there is none
        self._check_options()
        form = self._form(shape := (_Turn("user"),))
        if isinstance(form, str):
            raise ConfigurationError(f"The chat template of model '{name}' does not render a question: {form}.")
        (asked,) = _marked(shape)
        self.behind = self._apply(form, [asked]).rpartition(asked.content)[2]

    @property
    def tool_history(self) -> bool:
        """Whether it renders the calls of tools and their results that a conversation holds."""
        called = _Turn("assistant", text=False, calls=(True,))
        return isinstance(self._form((_Turn("user"), called, _Turn("tool", answers=(1, 0)))), _Form)

    @property
    def ends_turns_with_eos(self) -> bool:
        """Whether the tokenizer's end of text follows an assistant's turn."""
        shape = _Turn("user"), _Turn("assistant")
        form, eos = self._form(shape), self._tokenizer.eos_token
        if isinstance(form, str) or not eos:
            return False
        asked, said = _marked(shape)
        text = self._apply(form, [asked, said], add_generation_prompt=False)
        return text.rpartition(said.content)[2].lstrip().startswith(eos)

    @property
    def writes_date(self) -> bool:
        """Whether today's date is in the prompt."""
        shape = (_Turn("user"),)
        form = self._form(shape)
        assert isinstance(form, _Form)
        try:
            self._apply(form, _marked(shape), strftime_now="")  # what writes the date calls it
        except Exception:
            return True
        return False

    @property
    def date_option(self) -> str | None:
        """The argument that sets the date, by Llama's name for it, if there is one."""
        return "date_string" if "date_string" in self._variables() else None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the answer begins.

        Raises:
            ModelError: If the template renders a conversation of this shape in no form.
        """
        form = self._form(_shape(messages))
        if isinstance(form, str):
            raise ModelError(f"The chat template of model '{self._name}' cannot render this conversation: {form}.")
        try:
            return self._apply(form, messages)
        except Exception as error:  # whose text may quote the conversation
            raise ModelError(
                f"The chat template of model '{self._name}' cannot render this conversation: {type(error).__name__}."
            ) from error

    # ------------------------------------------------------------------ arguments

    def _variables(self) -> set[str]:
        """All that the templates read and do not set themselves."""
        from jinja2 import meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        found: set[str] = set()
        templates = self._tokenizer.chat_template
        for source in templates.values() if isinstance(templates, Mapping) else [templates]:
            found |= meta.find_undeclared_variables(_compile_jinja_template(source).environment.parse(source))
        return found

    def _check_options(self) -> None:
        try:
            known = self._variables() - _GIVEN | {"chat_template"}
        except Exception as error:
            raise ConfigurationError(
                f"The chat template of model '{self._name}' cannot be read: {_line(error)}."
            ) from error
        for option in self._options:
            if option not in known:
                close = get_close_matches(option, known, n=1)
                meant = f"did you mean {close[0]!r}?" if close else f"it reads {', '.join(sorted(known))}."
                raise ConfigurationError(
                    f"`template_options` has {option!r}, which the chat template of model '{self._name}' does not "
                    f"read; {meant}"
                )

    # ------------------------------------------------------------------ forms

    def _form(self, shape: tuple[_Turn, ...]) -> _Form | str:
        """The form with the fewest changes in which all of a conversation is rendered, or why there is none."""
        found = self._forms.get(shape)
        if found is None:
            while len(self._forms) >= _SHAPES:
                self._forms.pop(next(iter(self._forms)), None)
            self._forms[shape] = found = self._find(shape)
        return found

    def _find(self, shape: tuple[_Turn, ...]) -> _Form | str:
        marked, raised, left_out = _marked(shape), "", ""
        for form in _forms(shape, several=isinstance(self._tokenizer.chat_template, Mapping)):
            try:
                problem = _problem(self._apply(form, marked), marked)
            except Exception as error:
                raised = raised or _line(error)
                continue
            if problem is None:
                return form
            left_out = left_out or problem
        return left_out or raised

    def _apply(self, form: _Form, messages: Sequence[Message], **arguments: Any) -> str:
        given = {"add_generation_prompt": True, **self._options, **arguments}
        if form.tool_use:
            given |= {"chat_template": "tool_use", "tools": []}
        text: str = self._tokenizer.apply_chat_template(form(messages), tokenize=False, **given)
        return text


# ---------------------------------------------------------------------- shapes: what is tried


@dataclass(frozen=True)
class _Turn:
    """What a template may look at in a turn, but for what is said.

    Attributes:
        role: Of the turn.
        text: Whether it says anything.
        calls: For each call of a tool, whether it has arguments.
        answers: Turn and place of the call that a tool's result refers to.
    """

    role: str
    text: bool = True
    calls: tuple[bool, ...] = ()
    answers: tuple[int, int] | None = None


def _shape(messages: Sequence[Message]) -> tuple[_Turn, ...]:
    calls: dict[str | None, tuple[int, int]] = {
        call.id: (i, j) for i, each in enumerate(messages) for j, call in enumerate(each.tool_calls) if call.id
    }
    return tuple(
        _Turn(
            each.role,
            bool(each.content),
            tuple(bool(call.arguments) for call in each.tool_calls),
            calls.get(each.tool_call_id),
        )
        for each in messages
    )


def _marked(shape: Sequence[_Turn]) -> list[Message]:
    """A conversation of this shape in which every part can be told from all others."""
    return [
        Message(
            turn.role,
            f"kiwi{i}x" if turn.text else "",
            tuple(
                ToolCall(f"fig{i}x{j}x", {f"nut{i}x{j}x": f"oat{i}x{j}x"} if arguments else {}, f"call-{i}-{j}")
                for j, arguments in enumerate(turn.calls)
            ),
            None if turn.answers is None else "call-{}-{}".format(*turn.answers),
        )
        for i, turn in enumerate(shape)
    ]


def _problem(text: str, marked: Sequence[Message]) -> str | None:
    """What of a marked conversation is not in a rendered prompt, or is there in no form that a model knows."""
    for message in marked:
        if message.content not in text:
            return f"it leaves out the {message.role} turn's text"
        for call in message.tool_calls:
            parts = [call.name, *call.arguments, *call.arguments.values()]
            if not all(part in text for part in parts):
                return "it leaves out the calls of tools"
            if any(f"'{key}':" in text or f'\\"{key}' in text for key in call.arguments):
                return "it does not write the arguments of calls as JSON"  # but as Python, or as a string in JSON
    return None


def _line(error: Exception) -> str:
    """What an error says that was raised over marks, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".!") or type(error).__name__


# ---------------------------------------------------------------------- forms: how a template is asked


@dataclass(frozen=True)
class _Form:
    """How a conversation is handed to a template; by default as it is.

    Attributes:
        systems: Which system turns stay such; the text of the others goes to the user's turn.
        merged: Turns of one role that follow each other become one, with a blank line between.
        parts: Content is a list of parts, as processors of images want it.
        json_arguments: A call's arguments are JSON, not an object.
        short_ids: Ids of calls have nine letters and digits, as Mistral's.
        split: What a turn says and each of its calls become turns of their own, the calls' results right after them.
        tool_use: The template of that name is taken, where a tokenizer has several.
    """

    systems: str = "all"
    merged: bool = False
    parts: bool = False
    json_arguments: bool = False
    short_ids: bool = False
    split: bool = False
    tool_use: bool = False

    def __call__(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The conversation in this form."""
        turns = list(messages)
        if self.systems != "all":
            kept = self.systems == "first"
            roles = ["system" if kept and i == 0 else "user" for i in range(len(turns))]
            turns = [
                replace(turn, role=role) if turn.role in _SYSTEM else turn
                for turn, role in zip(turns, roles, strict=True)
            ]
        if self.merged:
            turns = _merged(turns)
        if self.split:
            turns = _split(turns)
        return _written(turns, self._content, self._arguments, _short if self.short_ids else str)

    def _content(self, text: str) -> Any:
        if not self.parts:
            return text
        return [{"type": "text", "text": text}] if text else []

    def _arguments(self, arguments: Mapping[str, Any]) -> Any:
        return json.dumps(arguments, ensure_ascii=False) if self.json_arguments else dict(arguments)


def _forms(shape: Sequence[_Turn], several: bool) -> list[_Form]:
    """The forms that make a difference to a conversation, those with the fewest changes first."""
    no, either = (False,), (False, True)
    calls = either if any(turn.calls for turn in shape) else no
    split = either if any(turn.calls and (turn.text or len(turn.calls) > 1) for turn in shape) else no
    systems = ("all", "first", "none") if any(turn.role in _SYSTEM for turn in shape) else ("all",)
    named = either if several and (calls is either or any(turn.role == "tool" for turn in shape)) else no
    merged = either if len(shape) > 1 else no
    forms = [
        form
        for form in itertools.starmap(_Form, itertools.product(systems, merged, either, calls, calls, split, named))
        if form.systems == "all" or form.merged
    ]

    def changes(form: _Form) -> int:
        return sum((form.merged, form.parts, form.json_arguments, form.short_ids, form.split, form.tool_use)) + (
            "all",
            "first",
            "none",
        ).index(form.systems)

    return sorted(forms, key=changes)


def _merged(messages: Sequence[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role != "tool":
            text = "\n\n".join(each for each in (turns[-1].content, message.content) if each)
            turns[-1] = replace(message, content=text, tool_calls=turns[-1].tool_calls + message.tool_calls)
        else:
            turns.append(message)
    return turns


def _split(messages: Sequence[Message]) -> list[Message]:
    results: dict[str | None, list[Message]] = {}
    called = {call.id for message in messages for call in message.tool_calls}
    for message in messages:
        if message.role == "tool" and message.tool_call_id in called:
            results.setdefault(message.tool_call_id, []).append(message)
    turns: list[Message] = []
    for message in messages:
        if message.role == "tool" and message.tool_call_id in results:
            continue
        if message.content or not message.tool_calls:
            turns.append(replace(message, tool_calls=()))
        for call in message.tool_calls:
            turns += [replace(message, content="", tool_calls=(call,)), *results.get(call.id, ())]
    return turns


_Convert: TypeAlias = Callable[[Any], Any]


def _written(
    messages: Sequence[Message], content: _Convert, arguments: _Convert, shown: _Convert
) -> list[dict[str, Any]]:
    """Mappings as templates read them, which is OpenAI's form."""
    names: dict[str, str] = {}  # of the tools, by the calls' ids
    fresh = (f"call_{i}" for i in itertools.count())
    return [_one(message, content, arguments, shown, names, fresh) for message in messages]


def _one(
    message: Message,
    content: _Convert,
    arguments: _Convert,
    shown: _Convert,
    names: dict[str, str],
    fresh: Iterator[str],
) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": content(message.content)}
    if message.tool_calls:
        told["tool_calls"] = []
        for call in message.tool_calls:
            which = call.id or next(fresh)
            names[which] = call.name
            function = {"name": call.name, "arguments": arguments(call.arguments)}
            told["tool_calls"].append({"type": "function", "id": shown(which), "function": function})
    if message.tool_call_id is not None:
        told["tool_call_id"] = shown(message.tool_call_id)
        if message.tool_call_id in names:
            told["name"] = names[message.tool_call_id]
    return told


def _short(which: str) -> str:
    """The same nine letters and digits for the same id."""
    import hashlib

    return hashlib.sha256(which.encode()).hexdigest()[:9]
