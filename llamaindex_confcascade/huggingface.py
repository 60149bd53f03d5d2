"""LlamaIndex's `HuggingFaceLLM` as a local model: its class drops the log-probabilities that its model has."""

from __future__ import annotations

import copy
from typing import Any

from confcascade import Request, TransformersModel
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.model import core_messages

__all__ = ["HuggingFaceModel"]


class HuggingFaceModel(TransformersModel):
    """A `HuggingFaceLLM` as a `LanguageModel` of the core: its weights and tokenizer, and its way to write prompts.

    Greedy, as all local models, unless a call has a temperature. Hidden states can be read, so that P(IK) works, too.

    Args:
        native: The LLM, never changed; `takes` says whether it can be one.
    """

    def __init__(self, native: Any) -> None:
        tokenizer = native._tokenizer
        default = getattr(native, "_tokenizer_messages_to_prompt", None)
        if native.messages_to_prompt != default:
            # a prompt of the user's own brings no special tokens, as one of a chat template does
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = None
        super().__init__(native._model, tokenizer, name=native.model_name, max_new_tokens=native.max_new_tokens)
        self.native = native

    @staticmethod
    def takes(llm: LLM) -> bool:
        """Whether `llm` is one, and set up in no way that a local model does not follow.

        That is, without `generate_kwargs` and `stopping_ids`: with these it is asked itself, and tells no
        log-probabilities.
        """
        is_one = any(cls.__name__ == "HuggingFaceLLM" for cls in type(llm).__mro__)
        return is_one and not getattr(llm, "generate_kwargs", None) and not getattr(llm, "stopping_ids", None)

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's own."""
        return self.native.metadata  # type: ignore[no-any-return]

    def render(self, request: Request) -> str:
        prompt: str = self.native.messages_to_prompt(core_messages(request))
        return prompt
