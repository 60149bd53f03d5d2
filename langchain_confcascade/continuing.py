"""How a LangChain chat model goes on with an answer that has been begun, where its class can say that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from confcascade import ConfigurationError, Request
from confcascade.extending import Continues, Generate, body_fields, carried_problem, final_fields
from langchain_core.messages import AIMessage, BaseMessage

from langchain_confcascade.convert import asked_messages

__all__ = ["Continuing"]

_TRIMMED = {"ChatAnthropic", "ChatAnthropicVertex"}  # their providers refuse a last message that ends in a blank
# LangChain's own word for the first leaves no room for the second
_AS_IT_GOES = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@dataclass(frozen=True)
class Continuing:
    """What a model is told beside a query, for an answer that is written step by step.

    Attributes:
        how: Its server continues answers; None if it does not.
        trims: Whether what was written is sent without the blanks at its end.
        counts: Whether its server can be asked for the usage as it goes.
    """

    how: Continues | None
    trims: bool = False
    counts: bool = False

    @classmethod
    def of(cls, how: Any, chat: Any, name: str, *, plain: bool, counts: bool) -> Continuing:
        """For a chat model.

        Args:
            how: As the user says.
            chat: The model.
            name: Its name, for errors.
            plain: Whether it asks for chat completions, and one model only.
            counts: Whether it takes the word for usage in streams.

        Raises:
            ConfigurationError: If its class cannot say `how`.
        """
        names = {kind.__name__ for kind in type(chat).__mro__}
        carried = _carried(names) if plain else ()
        if (cannot := carried_problem(how, carried, type(chat).__name__)) is not None:
            raise ConfigurationError(f"`continues` of model '{name}' {cannot}.")
        return cls(how, bool(names & _TRIMMED), counts and how == "continue_final_message")

    def messages(self, request: Request) -> list[BaseMessage]:
        """What it is asked, and what has been written of the answer."""
        messages = asked_messages(request)
        if written := request.written.rstrip() if self.trims else request.written:
            messages.append(AIMessage(written, additional_kwargs=final_fields(self.how)))
        return messages

    def so_far(self, ask: Generate) -> bool:
        """Whether usage is told as it goes: a stream of one step is left before its end."""
        return self.counts and bool(ask.until)

    def body(self, ask: Generate, *, streamed: bool) -> dict[str, Any]:
        """What the body of a call says further."""
        fields = body_fields(self.how) if ask.request.written else {}
        return fields | (_AS_IT_GOES if streamed and self.so_far(ask) else {})


def _carried(names: Collection[str]) -> tuple[Continues, ...]:
    """What its messages and parameters can say, by the names of its classes."""
    if "BaseChatOpenAI" in names:  # whose messages lose `prefix`
        return "continue_final_message", "trailing"
    return ("prefix",) if "ChatMistralAI" in names else ("trailing",)
