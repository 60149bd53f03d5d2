"""How a LlamaIndex LLM goes on with an answer that has been begun, where its class can say that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confcascade import ConfigurationError
from confcascade.extending import Continues, Generate, body_fields, carried_problem
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM

from llamaindex_confcascade.asking import Way, seen_from

__all__ = ["Continuing"]

_TRIMMED = {"Anthropic"}  # their providers refuse a last message of the assistant that ends in a blank


@dataclass(frozen=True)
class Continuing:
    """What an LLM is told beside a query, for an answer that is written step by step.

    Attributes:
        how: Its server continues answers; None if it does not.
        trims: Whether what was written is sent without the blanks at its end.
    """

    how: Continues | None
    trims: bool = False

    @classmethod
    def of(cls, how: Any, llm: LLM, name: str, *, chats: bool, is_openai: bool) -> Continuing:
        """For an LLM.

        Args:
            how: As the user says.
            llm: It.
            name: Its name, for errors.
            chats: Whether its server takes messages.
            is_openai: Whether its parameters reach the body of a chat completion.

        Raises:
            ConfigurationError: If its class cannot say `how`.
        """
        carried: tuple[Continues, ...] = ("continue_final_message", "trailing") if is_openai else ("trailing",)
        if (cannot := carried_problem(how, carried if chats else (), type(llm).__name__)) is not None:
            raise ConfigurationError(f"`continues` of model '{name}' {cannot}.")
        return cls(how, not _TRIMMED.isdisjoint(kind.__name__ for kind in type(llm).__mro__))

    def behind(self, way: Way, written: str) -> Way:
        """A way to chat, with what has been written of the answer as the last message."""
        if not (text := written.rstrip() if self.trims else written):
            return way
        return way._replace(messages=[*way.messages, ChatMessage(role=MessageRole.ASSISTANT, content=text)])

    def so_far(self, ask: Generate) -> bool:
        """Whether usage is told as it goes: a stream of one step is left before its end."""
        return bool(ask.until) and self.how == "continue_final_message"

    def stream_options(self, ask: Generate) -> dict[str, Any]:
        """What is asked of a stream beside its usage at the end."""
        return {"continuous_usage_stats": True} if self.so_far(ask) else {}

    def told(self, way: Way, ask: Generate, options: dict[str, Any]) -> Way:
        """The way to ask for what follows; takes what `options` say of the body."""
        fields = body_fields(self.how) if ask.request.written else {}
        if not fields:
            return way
        own = getattr(way.llm, "additional_kwargs", None) or {}  # they come before a call's own parameters
        body = {**(own.get("extra_body") or {}), **(options.pop("extra_body", None) or {}), **fields}
        return way._replace(llm=seen_from(way.llm, {"additional_kwargs": {**own, "extra_body": body}}))
