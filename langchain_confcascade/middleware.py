"""A cascade as middleware of LangChain's agents: a second door to the same chat model. Needs `langchain`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse

from langchain_confcascade.chat_model import ConfidenceCascadeLLM

__all__ = ["ConfidenceCascadeMiddleware"]


class ConfidenceCascadeMiddleware(AgentMiddleware):
    """Lets a cascade answer every model call of an agent, in place of the agent's own model.

    For agents that are built elsewhere; where you build the agent, give it a `ConfidenceCascadeLLM` as its model.

    Args:
        **parameters: Those of `ConfidenceCascadeLLM`.

    Raises:
        ConfigurationError: If the cascade cannot work.
    """

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        self.llm = ConfidenceCascadeLLM(**parameters)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        return handler(request.override(model=self.llm))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(request.override(model=self.llm))
