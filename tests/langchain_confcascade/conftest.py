"""What the tests of the chat model share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chat_openai(served: Callable[[str], str]) -> Callable[..., Any]:
    """Makes LangChain's `ChatOpenAI` of a served bundled model: ``chat_openai("small")``. Greedy."""
    httpx = pytest.importorskip("httpx")
    langchain_openai = pytest.importorskip("langchain_openai")

    def make(size: str, **parameters: Any) -> Any:
        # a client of its own: langchain-openai shares asynchronous clients by address, over event loops
        client = httpx.AsyncClient(verify=False, timeout=60)
        return langchain_openai.ChatOpenAI(
            model=size, base_url=served(size), api_key="none", temperature=0, http_async_client=client, **parameters
        )

    return make
