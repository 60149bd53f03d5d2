"""A stage's methods beneath LlamaIndex's own decorators, whose work is to report what nobody hears of a stage.

`llm_chat_callback`, `llm_completion_callback` and the dispatcher's `span` prepare spans, events and payloads before
they report them, and while a stage runs, the gate drops all of it. Only what LlamaIndex itself has put around a method
is left out; the LLM, its fields and whatever else is around its methods are as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher

__all__ = ["bare"]


def bare(llm: LLM, method: str) -> Callable[..., Any]:
    """The method of `llm` as it is called by a cascade, of which nobody is to hear.

    It is whole where the decorators do more than report: where they wait for the LLM's rate limiter, or give it the
    callback manager that it lacks.
    """
    if (
        method in llm.__dict__
        or type(llm).__getattribute__ is not object.__getattribute__
        or getattr(llm, "rate_limiter", None) is not None
        or not isinstance(llm.callback_manager, CallbackManager)
    ):
        return getattr(llm, method)  # type: ignore[no-any-return]
    function = _beneath(type(llm), method)
    return getattr(llm, method) if function is None else partial(function, llm)


def _beneath(kind: type, method: str) -> Callable[..., Any] | None:
    """What the decorators of LlamaIndex's are around; None if there are none, or others are around them."""
    for cls in kind.__mro__:
        if (whole := vars(cls).get(method)) is not None:
            return _undecorated(whole)
    return None


@lru_cache(maxsize=512)
def _undecorated(whole: Any) -> Callable[..., Any] | None:
    function = whole
    while (inner := _inner(function)) is not None:
        function = inner
    return function if function is not whole and isinstance(function, FunctionType) else None


def _inner(function: Any) -> Any:
    """What a decorator of LlamaIndex's is around; None if `function` is not made by one."""
    if getattr(getattr(function, "_self_wrapper", None), "__code__", None) in _SPANS:  # an object of wrapt's
        return function.__wrapped__
    code = getattr(function, "__code__", None)
    if isinstance(function, FunctionType) and code in _CALLBACKS and function.__closure__ is not None:
        return function.__closure__[code.co_freevars.index("f")].cell_contents
    return None


def _whole(_: Any, prompt: Any) -> None:
    """To be decorated, so that the decorators' functions are known, whatever the version."""


async def _awhole(_: Any, prompt: Any) -> None:
    """Likewise."""


def _fresh(function: Any) -> Any:
    """A copy: decorators write on what they decorate."""
    return FunctionType(function.__code__, globals())


def _codes() -> tuple[frozenset[CodeType], frozenset[CodeType]]:
    """Of the functions that LlamaIndex's decorators make: those for spans, and those for callbacks around an ``f``."""
    span = get_dispatcher(__name__).span
    spanned = [getattr(span(_fresh(each)), "_self_wrapper", None) for each in (_whole, _awhole)]
    spans = (getattr(each, "__code__", None) for each in spanned)
    made = [wrap()(_fresh(each)) for wrap in (llm_chat_callback, llm_completion_callback) for each in (_whole, _awhole)]
    codes = {each.__code__ for each in made if "f" in each.__code__.co_freevars}
    return frozenset(filter(None, spans)), frozenset(codes)


_SPANS, _CALLBACKS = _codes()
