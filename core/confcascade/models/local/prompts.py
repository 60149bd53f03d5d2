"""Requests as a local model reads them: rendered by its chat template, as tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.local.detokenizer import marks_of, special_of
from confcascade.models.local.identity import digest_of_words
from confcascade.models.local.template import ChatTemplate
from confcascade.thoughts import opened_by
from confcascade.types import Request

__all__ = ["Prompt", "Prompts"]

_log = logging.getLogger("confcascade")
_LEAD = 32  # characters before a text that its first tokens may hang on
_LABELS = 256  # endings of prompts, times labels, whose tokens are remembered


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model reads it, up to where its answer begins.

    Attributes:
        text: As rendered.
        ids: Its tokens.
        opened: The mark with which it has opened the thoughts, if it has.
    """

    text: str
    ids: Sequence[int]
    opened: str


class Prompts:
    """Renders and encodes requests for one model.

    Args:
        tokenizer: Its `transformers` tokenizer.
        name: Of the model, for errors.
        context: Most tokens of prompt and answer together; None if unknown.
        embedded: The token ids that the model's embedding has.
        template_options: Further arguments of the chat template.
        adds_special_tokens: Whether the tokenizer adds its special tokens to a rendered prompt.
        own: A prompt that is written in another way than by the chat template; None if it is not.

    Attributes:
        template: The chat template; None where prompts are completed as raw text.

    Raises:
        ConfigurationError: If the template has no such arguments, or does not render a question.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        context: int | None,
        embedded: int,
        template_options: Mapping[str, Any],
        adds_special_tokens: Callable[[str], bool],
        own: Callable[[Request], str | None],
    ) -> None:
        self.template_options = dict(template_options)
        self._tokenizer = tokenizer
        self._name = name
        self._context = context
        self._embedded = embedded
        self._adds_special_tokens = adds_special_tokens
        self._own = own
        self._labels: dict[tuple[str, str], tuple[int, ...]] = {}
        self._marks = {mark: token for token, mark in marks_of(tokenizer).items()}
        special = sorted(special_of(tokenizer), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        has_template = tokenizer.chat_template is not None
        if template_options and not has_template:
            raise ConfigurationError(f"`template_options` are given, and model '{name}' has no chat template.")
        self.template = ChatTemplate(tokenizer, name=name, options=template_options) if has_template else None
        if self.template is not None and self.template.writes_date:
            fixed = 'template_options={"date_string": "26 Jul 2024"} fixes it.' if self.template.date_option else ""
            _log.warning(
                "The chat template of model '%s' writes today's date into every prompt, so hidden states, and what was "
                "fitted on them, are of another prompt tomorrow. %s",
                name,
                fixed,
            )

    def render(self, request: Request) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        if (own := self._own(request)) is not None:
            return own + request.begun
        if self.template is not None:
            return self.template.render(request.messages) + request.begun
        if any(message.tool_calls for message in request.messages):
            raise ModelError(f"Model '{self._name}' completes raw text, and cannot read the calls of tools.")
        return "\n".join(message.content for message in request.messages) + request.begun

    def opened(self, request: Request, text: str) -> str:
        """The mark with which the rendered prompt `text` has opened the thoughts, if it has."""
        behind = self.template.behind if self.template is not None else ""
        turn = behind if text.removesuffix(request.begun).endswith(behind) else ""
        return opened_by(text, turn + request.begun) or opened_by(text, request.begun)

    @cached_property
    def vocabulary(self) -> str:
        """Twelve hexadecimal digits of how text becomes tokens."""
        return digest_of_words(self._tokenizer)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a prompt's beginning, of whatever length."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]
        return ids

    def encode(self, text: str) -> list[int]:
        """The tokens of a rendered prompt that fits the context."""
        ids = self.tokenize(text)
        if not ids:
            raise ModelError("The prompt has no tokens.")
        if max(ids) >= self._embedded:  # on a GPU, the pass would end the process's use of it
            raise ModelError(
                f"The prompt has the token {self._tokenizer.convert_ids_to_tokens(max(ids))!r}, id {max(ids)}; model "
                f"'{self._name}' knows the ids below {self._embedded}. Its tokenizer must be that of the model: resize "
                "the model's embedding after adding tokens."
            )
        self.check(ids)
        return ids

    def check(self, ids: Sequence[int]) -> None:
        """Whether a prompt, and what is written behind it, leave room in the context; raises ModelError if not."""
        if self._context is not None and len(ids) >= self._context:
            raise ModelError(
                f"The prompt has {len(ids)} tokens; the context of model '{self._name}' holds {self._context}."
            )

    def encode_behind(self, before: str, text: str) -> list[int]:
        """The tokens of what was written, by any model, behind a text.

        No text can end the turn or begin another: of the special tokens, only marks of thoughts are read as such.
        """
        ids: list[int] = []
        for piece in self._pieces(text):
            mark = self._marks.get(piece)
            ids += self._plain(before, piece) if mark is None else [mark]
            before += piece
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        """What is tokenized apart: special tokens that are marks, and others in two, so that they are none."""
        start = 0
        for found in self._special.finditer(text) if self._special is not None else ():
            cut = (found.start(), found.end()) if found[0] in self._marks else (found.start() + 1,)
            for end in cut:
                yield from filter(None, [text[start:end]])
                start = end
        yield from filter(None, [text[start:]])

    def _plain(self, before: str, text: str) -> list[int]:
        """The tokens of a text behind another: some tokenizers add a blank to what they are given alone."""
        for lead in (before[-_LEAD:], "\n", ""):
            whole, known = (
                self._tokenizer(each, add_special_tokens=False)["input_ids"] for each in (lead + text, lead)
            )
            if whole[: len(known)] == known:
                break
        ids: list[int] = whole[len(known) :]
        return ids

    def label_ids(self, prompt: str, label: str) -> tuple[int, ...]:
        """The tokens that say `label` right after `prompt`, with and without a space: found in context, never alone."""
        key = prompt[-32:], label
        found = self._labels.get(key)
        if found is None:
            before = self.tokenize(prompt)
            ids: dict[int, None] = {}
            for variant in (label, f" {label}"):
                after = self.tokenize(prompt + variant)
                if len(after) == len(before) + 1 and after[:-1] == before:
                    ids[after[-1]] = None
            if not ids:
                raise ModelError(
                    f"The label {label!r} is not a single token of model '{self._name}' after this prompt."
                )
            while len(self._labels) >= _LABELS:  # raw completions end in as many ways as there are prompts
                self._labels.pop(next(iter(self._labels)), None)
            self._labels[key] = found = tuple(ids)
        return found
