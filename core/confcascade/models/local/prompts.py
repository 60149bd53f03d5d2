"""Requests as a local model reads them: rendered by its chat template, as tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from confcascade.errors import ModelError
from confcascade.types import Request

__all__ = ["Prompts"]


class Prompts:
    """Renders and encodes requests for one model.

    Args:
        tokenizer: Its `transformers` tokenizer.
        name: Of the model, for errors.
        context: Most tokens of prompt and answer together; None if unknown.
        embedded: The token ids that the model's embedding has.
        template_options: Further arguments of the chat template.
    """

    def __init__(
        self, tokenizer: Any, *, name: str, context: int | None, embedded: int, template_options: Mapping[str, Any]
    ) -> None:
        self.template_options = dict(template_options)
        self._tokenizer = tokenizer
        self._name = name
        self._context = context
        self._embedded = embedded
        self._labels: dict[tuple[str, str], tuple[int, ...]] = {}

    def with_options(self, name: str, template_options: Mapping[str, Any]) -> Prompts:
        """The same for another model of this tokenizer, with other options of the template."""
        other = copy.copy(self)
        other._name = name
        other.template_options = dict(template_options)
        other._labels = {}
        return other

    def render(self, request: Request) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        if self._tokenizer.chat_template is None:
            return "\n".join(message.content for message in request.messages)
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.template_options
        )
        return text

    def _tokenize(self, text: str) -> list[int]:
        # a rendered template brings its special tokens; raw text gets the tokenizer's own
        ids: list[int] = self._tokenizer(text, add_special_tokens=self._tokenizer.chat_template is None)["input_ids"]
        return ids

    def encode(self, text: str) -> list[int]:
        """The tokens of a rendered prompt that fits the context."""
        ids = self._tokenize(text)
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
        if key not in self._labels:
            before = self._tokenize(prompt)
            ids: dict[int, None] = {}
            for variant in (label, f" {label}"):
                after = self._tokenize(prompt + variant)
                if len(after) == len(before) + 1 and after[:-1] == before:
                    ids[after[-1]] = None
            if not ids:
                raise ModelError(
                    f"The label {label!r} is not a single token of model '{self._name}' after this prompt."
                )
            self._labels[key] = tuple(ids)
        return self._labels[key]
