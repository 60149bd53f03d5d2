"""A `ChatResponse` whose dearest fields are made when somebody reads them, in whatever way.

Most callers read the text of an answer, and neither its record nor its log-probabilities. Attributes are looked for
in the instance's own mapping, where these two are not yet. Everything else that reads a pydantic object (dumps, events,
pickles, copies, comparisons, `vars`) asks it for its ``__dict__``, which makes them. From then on it is a
`ChatResponse` like any other, its class included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LogProb
from llama_index.core.bridge.pydantic import BaseModel

from llamaindex_confcascade.made import made

__all__ = ["late_response"]

_values, _private = (vars(BaseModel)[name] for name in ("__dict__", "__pydantic_private__"))
_LATE = ("logprobs", "additional_kwargs")
_MAKE = "make"

Late = tuple[list[list[LogProb]] | None, dict[str, Any]]


def late_response(message: ChatMessage, raw: Any, delta: str | None, make: Callable[[], Late]) -> ChatResponse:
    """A response of these fields; `make` gives its log-probabilities and its ``additional_kwargs``, and may wait."""
    response = made(_LateResponse, message=message, raw=raw, delta=delta)
    response.model_fields_set.update(_LATE)
    _private.__set__(response, {_MAKE: make})
    return response


class _LateResponse(ChatResponse):
    """One that is not complete."""

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        _complete(self)
        values: dict[str, Any] = _values.__get__(self)
        return values

    def __getattr__(self, name: str) -> Any:
        if name in _LATE:
            _complete(self)
            return _values.__get__(self)[name]
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from type checkers

    # what looks at the class before it reads: each is that of a `ChatResponse`, once this is one

    def __eq__(self, other: Any) -> bool:
        _complete(self)
        if isinstance(other, _LateResponse):
            _complete(other)
        return bool(self == other)

    __hash__ = None  # type: ignore[assignment]  # as of any pydantic object that can be changed

    def __copy__(self) -> Any:
        return _complete(self).__copy__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        return _complete(self).__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        return _complete(self).__getstate__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _complete(self).__reduce_ex__(protocol)

    def __repr_name__(self) -> str:
        return ChatResponse.__name__


def _complete(response: ChatResponse) -> ChatResponse:
    """Make what it lacks. Two threads that read at once make the same."""
    if (private := _private.__get__(response)) is not None:
        logprobs, beside = private[_MAKE]()
        _values.__set__(response, {**_values.__get__(response), "logprobs": logprobs, "additional_kwargs": beside})
        _private.__set__(response, None)
        object.__setattr__(response, "__class__", ChatResponse)
    return response
