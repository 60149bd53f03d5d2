"""Servers that behave as one provider or engine does, by the table in docs/checking-a-cascade.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from ...providers import Provider


@pytest.fixture
def provider(httpserver: HTTPServer, monkeypatch) -> Callable[..., tuple[Provider, str]]:
    """``provider(logprobs="none")``: a server that does so, and its ``base_url``."""
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    count = iter(range(100))

    def make(**behaviour: Any) -> tuple[Provider, str]:
        made, path = Provider(**behaviour), f"/{next(count)}/v1"
        httpserver.expect_request(f"{path}/chat/completions", method="POST").respond_with_handler(made.respond)
        return made, httpserver.url_for(path)

    return make
