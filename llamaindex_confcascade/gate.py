"""One gate between the stages of a cascade and everybody who listens to LlamaIndex.

LlamaIndex reports every LLM to the whole process: its `Dispatcher` to handlers of events and spans, each
`CallbackManager` to its own. A stage that was heard would be counted next to the cascade, which holds its tokens
already, and its events would show drafts. So the methods by which either reports return at once while a context
variable is set, and the variable is set while a stage runs. See docs/design/silent-stages.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, Token
from functools import wraps
from typing import Any, TypeVar

from llama_index.core.callbacks import CallbackManager
from llama_index_instrumentation.dispatcher import Dispatcher

from llamaindex_confcascade.instrumentation import counted_once
from llamaindex_confcascade.steps import asteps_with, holding, steps_with

__all__ = ["install_gate", "is_muted", "muted"]

F = TypeVar("F", bound=Callable[..., Any])

# One entry for each thing that runs for a stage's call. It is empty once the call is over, also in the contexts that
# were copied within it: a task that a call starts and leaves behind, such as the worker of a client's queue, is heard.
_muted: ContextVar[list[None] | None] = ContextVar("confcascade_muted", default=None)
_REPORTS = {
    Dispatcher: ("event", "aevent", "span_enter", "span_exit", "span_drop"),
    CallbackManager: ("on_event_start", "on_event_end", "start_trace", "end_trace"),
}


def is_muted() -> bool:
    """Whether this is code of a stage's call that is under way."""
    return bool(_muted.get())


def muted(method: F) -> F:
    """`method`, a stage's: nobody hears what LlamaIndex reports while it runs, or takes a step of its stream."""
    call: Any
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            running: list[None] = [None]  # its own, for it may never be started, and so never be closed
            return asteps_with(_muted, running, method(*args, **kwargs), running.pop)

    elif inspect.isgeneratorfunction(method):

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            running: list[None] = [None]  # its own, for it may never be started, and so never be closed
            return steps_with(_muted, running, method(*args, **kwargs), running.pop)

    elif inspect.iscoroutinefunction(method):

        @wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            token, running = _begin()
            try:
                return await method(*args, **kwargs)
            finally:
                _muted.reset(token)
                running.pop()

    else:

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            token, running = _begin()
            try:
                return method(*args, **kwargs)
            finally:
                _muted.reset(token)
                running.pop()

    return call  # type: ignore[no-any-return]


def _begin() -> tuple[Token[list[None] | None], list[None]]:
    """Begin a stage's call, or a call within it, which shares its mark: what resets the variable, and the mark."""
    running = _muted.get() or []
    running.append(None)
    return _muted.set(running), running


def install_gate() -> None:
    """Put the gate into LlamaIndex, for the whole process. Calling it again changes nothing."""
    for cls, names in _REPORTS.items():
        for name in names:
            method = vars(cls)[name]
            if not hasattr(method, "_confcascade_gate"):
                setattr(cls, name, _gated(method))
    if not hasattr(ThreadPoolExecutor.submit, "_confcascade_gate"):
        ThreadPoolExecutor.submit = _carrying(ThreadPoolExecutor.submit)  # type: ignore[method-assign]


def _gated(method: Callable[..., Any]) -> Callable[..., Any]:
    call: Any
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def call(self: Any, event: Any, **kwargs: Any) -> Any:
            return None if _muted.get() else await method(self, counted_once(event), **kwargs)

    elif method.__name__ == "event":

        @wraps(method)
        def call(self: Any, event: Any, **kwargs: Any) -> Any:
            return None if _muted.get() else method(self, counted_once(event), **kwargs)

    else:
        # the id of an event that nobody heard, for `on_event_start`
        unheard = "" if method.__name__ == "on_event_start" else None

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return unheard if _muted.get() else method(*args, **kwargs)

    call._confcascade_gate = True
    return call  # type: ignore[no-any-return]


def _carrying(submit: Callable[..., Any]) -> Any:
    """`submit`, whose jobs are a stage's if a stage submits them: a pool's threads have contexts of their own."""

    @wraps(submit)
    def carrying(self: Any, job: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not (running := _muted.get()):
            return submit(self, job, *args, **kwargs)

        def carried() -> Any:
            with holding(_muted, running):
                return job(*args, **kwargs)

        running.append(None)
        try:
            future = submit(self, carried)
        except BaseException:
            running.pop()
            raise
        future.add_done_callback(lambda _: running.pop())  # which may be after the call, if that is cancelled
        return future

    carrying._confcascade_gate = True  # type: ignore[attr-defined]
    return carrying


install_gate()
