"""LlamaIndex's `HuggingFaceLLM` as a local model: its class drops the log-probabilities that its model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from confcascade import Request, TransformersModel
from confcascade.extending import Generate
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.asking import seen_from, wanting, ways_of

__all__ = ["HuggingFaceModel", "loaded_name", "remedy_for"]


# what `generate_kwargs` may say of a model that is greedy anyway; a token for padding decides nothing in a batch of one
_OF_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p"}
_HARMLESS = {"do_sample", "pad_token_id"}
_DEFAULT = "StabilityAI/stablelm-tuned-alpha-3b"  # `HuggingFaceLLM`'s


class HuggingFaceModel(TransformersModel):
    """A `HuggingFaceLLM` as a `LanguageModel` of the core: its weights and tokenizer, and its way to write prompts.

    Greedy, as all local models, unless a call has a temperature. Hidden states can be read, so that P(IK) works, too.

    Args:
        native: The LLM, never changed; `takes` says whether it can be one.
        name: What records call it; by default as it is called itself.
    """

    def __init__(self, native: Any, name: str = "") -> None:
        name, most = name or loaded_name(native), native.max_new_tokens
        super().__init__(native._model, native._tokenizer, name=name, max_new_tokens=most)
        self.native = native

    @staticmethod
    def is_one(llm: LLM) -> bool:
        """Whether `llm` is a `HuggingFaceLLM`."""
        return any(cls.__name__ == "HuggingFaceLLM" for cls in type(llm).__mro__)

    @classmethod
    def takes(cls, llm: LLM) -> bool:
        """Whether `llm` is one, and set up in no way that a local model does not follow.

        That is, without `stopping_ids`, and without `generate_kwargs` other than ``do_sample=False``: with these it is
        asked itself, and returns no log-probabilities.
        """
        return cls.is_one(llm) and not _unfollowed(llm)

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's own."""
        return self.native.metadata  # type: ignore[no-any-return]

    def _asked(self, ask: Generate) -> Generate:
        return super()._asked(wanting(ask))

    def _own_prompt(self, request: Request) -> str:
        """As the LLM's own `chat` and `complete` write it. (Its `stream_complete` ignores `completion_to_prompt`.)"""
        llm = seen_from(self.native, getattr(request.native, "settings", {}))
        way, *_ = ways_of(llm, request)
        prompt: str = way.prompt
        if way.kind == "chat":
            return str(llm.messages_to_prompt(way.messages))
        if way.formatted:
            return prompt
        if (wrapper := llm.query_wrapper_prompt) is not None:
            prompt = wrapper.format(query_str=prompt)
        if llm.completion_to_prompt is not None:
            prompt = llm.completion_to_prompt(prompt)
        return prompt

    def _adds_special_tokens(self, prompt: str) -> bool:
        """As the LLM does, but not twice where the prompt brings the first."""
        begins = getattr(self.tokenizer, "bos_token", None)
        return not (begins and prompt.startswith(begins))


def loaded_name(llm: Any) -> str:
    """The name of a `HuggingFaceLLM`'s model; its `model_name` is a default where it was given the model itself."""
    loaded = Path(str(getattr(llm._model, "name_or_path", "") or "")).name
    return loaded if loaded and llm.model_name == _DEFAULT else str(llm.model_name)


def remedy_for(llm: Any) -> str:
    """What lets a `HuggingFaceLLM` that is not taken as a local model return log-probabilities; "" for other LLMs."""
    if not HuggingFaceModel.is_one(llm) or not (unfollowed := _unfollowed(llm)):
        return ""
    return (
        f"It does without {', '.join(unfollowed)}: it is then run as a local model, greedily. `stop` and `temperature` "
        "can go along with a call."
    )


def _unfollowed(llm: Any) -> list[str]:
    """What a local model does not follow."""
    given = getattr(llm, "generate_kwargs", None) or {}
    follows = _HARMLESS | (_OF_SAMPLING if given.get("do_sample") is False else set())
    left = [key for key in given if key not in follows or (key == "do_sample" and given[key] is not False)]
    found = [f"generate_kwargs {sorted(left)}"] if left else []
    return found + (["stopping_ids"] if getattr(llm, "stopping_ids", None) else [])
