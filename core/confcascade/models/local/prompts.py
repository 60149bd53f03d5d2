"""Requests as a local model reads them: rendered by its chat template, as tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.local.template import ChatTemplate
from confcascade.thoughts import opened_by
from confcascade.types import Request

__all__ = ["Prompts"]

_log = logging.getLogger("confcascade")
_LABELS = 256  # endings of prompts, times labels, whose tokens are remembered


class Prompts:
    """Renders and encodes requests for one model.

    Args:
        tokenizer: Its `transformers` tokenizer.
        name: Of the model, for errors.
        context: Most tokens of prompt and answer together; None if unknown.
        embedded: The token ids that the model's embedding has.
        template_options: Further arguments of the chat template.
        adds_special_tokens: Whether the tokenizer adds its special tokens to a rendered prompt.

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
    ) -> None:
        self.template_options = dict(template_options)
        self._tokenizer = tokenizer
        self._name = name
        self._context = context
        self._embedded = embedded
        self._adds_special_tokens = adds_special_tokens
        self._labels: dict[tuple[str, str], tuple[int, ...]] = {}
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

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a prompt's beginning, of whatever length."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]
        return ids

    def tokenize_piece(self, text: str) -> list[int]:
        """The tokens of a text by itself, without what surrounds it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
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
        if self._context is not None and len(ids) >= self._context:
            raise ModelError(
                f"The prompt has {len(ids)} tokens; the context of model '{self._name}' holds {self._context}."
            )
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
