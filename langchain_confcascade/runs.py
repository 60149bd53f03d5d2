"""Each attempt as a run of its own, under the cascade's, in the user's tracers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from uuid import UUID

from confcascade import Attempt, ModelError
from confcascade.extending import Response
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
    BaseCallbackManager,
    CallbackManager,
)
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers._streaming import _StreamingCallbackHandler, _V2StreamingCallbackHandler
from langchain_core.utils.uuid import uuid7

from langchain_confcascade.convert import Asked, changed

__all__ = ["CascadeRun", "areported", "current_run", "feeds_stream", "reported", "under"]

current_run: ContextVar[CascadeRun | None] = ContextVar("confcascade_run", default=None)


@dataclass
class CascadeRun:
    """The run of one call of a cascade, as far as its attempts need it.

    Attempts are reported once the cascade has decided, as runs of type chain: usage, which tracers add up over the
    runs of models, is counted once, and nothing that streams can show a draft.

    Attributes:
        id: Of the cascade's run.
        handlers: Those that runs below it inherit or find in their context, but for the ones that feed a stream to its
            reader.
        tags: Inherited.
        metadata: Inherited, but for what describes the cascade as a model.
    """

    id: UUID
    handlers: list[BaseCallbackHandler]
    tags: list[str]
    metadata: dict[str, Any]
    _open: tuple[Any, Asked] | None = None  # the core's stream, and what it answers

    @classmethod
    def of(cls, manager: BaseRunManager | BaseCallbackManager | None, run_id: UUID | None = None) -> CascadeRun | None:
        """The run behind a manager; None if nobody listens.

        Args:
            manager: Of the run, or of the one to begin.
            run_id: Of the one to begin.
        """
        if manager is None or not manager.handlers:
            return None
        handlers = [
            handler for handler in (*manager.inheritable_handlers, *_of_the_context(manager)) if hears_attempts(handler)
        ]
        if not handlers:
            return None
        metadata = {key: value for key, value in manager.inheritable_metadata.items() if not key.startswith("ls_")}
        return cls(run_id or manager.run_id, handlers, list(manager.inheritable_tags), metadata)  # type: ignore[union-attr]

    @classmethod
    def under_way(cls, manager: BaseRunManager | None) -> CascadeRun | None:
        """The run behind a manager, or if there is none, the one that LangChain's own code is on its way from."""
        run = current_run.get()
        return run if manager is None or (run is not None and run.id == manager.run_id) else cls.of(manager)

    @classmethod
    def to_begin(cls, config: RunnableConfig) -> tuple[CascadeRun | None, RunnableConfig]:
        """The run that a stream with this config will begin, and the config that makes it begin so.

        LangChain does not tell `_stream` its run: the id is chosen, and the handlers are found, before.
        """
        manager = CallbackManager.configure(
            config.get("callbacks"), inheritable_tags=config.get("tags"), inheritable_metadata=config.get("metadata")
        )
        run = cls.of(manager, config.get("run_id") or uuid7())
        return (run, config) if run is None else (run, {**config, "callbacks": manager, "run_id": run.id})

    def streams(self, items: Any, asked: Asked) -> None:
        """`items`, the core's generator, answers what was asked."""
        self._open = items, asked

    def leave(self) -> None:
        """Close the core's stream, and report its attempts: while LangChain's run, which is theirs, is still open."""
        if self._open is not None:
            items, asked = self._open
            items.close()
            self.report(asked)

    async def aleave(self) -> None:
        """`leave`, for an asynchronous stream."""
        if self._open is not None:
            items, asked = self._open
            await items.aclose()
            self.report(asked)

    def report(self, asked: Asked) -> None:
        """One run below this for each attempt at a query that has ended; once, however often it is called."""
        for attempt, response in _attempts(asked):
            self._report(self.handlers, asked, attempt, response, uuid7())

    async def areport(self, asked: Asked) -> None:
        """`report`, for asynchronous handlers, too; each that may block is called in a thread, once for an attempt."""
        for attempt, response in _attempts(asked):
            run_id, inline, blocking, awaited = uuid7(), *_by_how(self.handlers)
            if inline:
                self._report(inline, asked, attempt, response, run_id)
            loop, told = asyncio.get_running_loop(), (asked, attempt, response, run_id)
            calls = [partial(copy_context().run, self._report, [each], *told) for each in blocking]
            if len(calls) == 1:
                await loop.run_in_executor(None, calls[0])
            elif calls:
                await asyncio.gather(*(loop.run_in_executor(None, call) for call in calls))
            if awaited:
                await self._areport(awaited, asked, attempt, response, run_id)

    def _report(
        self,
        handlers: list[BaseCallbackHandler],
        asked: Asked,
        attempt: Attempt,
        response: Response | None,
        run_id: UUID,
    ) -> None:
        manager = CallbackManager(**self._child(attempt, handlers))
        inputs = {"messages": list(asked)}
        run = manager.on_chain_start(None, inputs, name=f"attempt:{attempt.model}", run_id=run_id)
        if attempt.error is not None:
            run.on_chain_error(ModelError(attempt.error))
        else:
            run.on_chain_end(_outputs(attempt, response))

    async def _areport(
        self,
        handlers: list[BaseCallbackHandler],
        asked: Asked,
        attempt: Attempt,
        response: Response | None,
        run_id: UUID,
    ) -> None:
        manager = AsyncCallbackManager(**self._child(attempt, handlers))
        inputs = {"messages": list(asked)}
        run = await manager.on_chain_start(None, inputs, name=f"attempt:{attempt.model}", run_id=run_id)
        if attempt.error is not None:
            await run.on_chain_error(ModelError(attempt.error))
        else:
            await run.on_chain_end(_outputs(attempt, response))

    def _child(self, attempt: Attempt, handlers: list[BaseCallbackHandler]) -> dict[str, Any]:
        return {
            "handlers": handlers,
            "inheritable_handlers": handlers,
            "parent_run_id": self.id,
            "tags": self.tags,
            "metadata": {**self.metadata, **attempt.attributes()},
        }


class reported:  # noqa: N801  # as a context manager, and cheaper than a generator is for one
    """However the block ends, which asks: the attempts are reported if they have not been."""

    def __init__(self, run: CascadeRun | None, asked: Asked) -> None:
        self._run, self._asked = run, asked

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.report(self._asked)


class areported:  # noqa: N801
    """`reported`, for asynchronous handlers, too; a call that was cancelled or left does not wait for them."""

    def __init__(self, run: CascadeRun | None, asked: Asked) -> None:
        self._run, self._asked = run, asked

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if self._run is None:
            return
        if error is None or isinstance(error, Exception):
            await self._run.areport(self._asked)
        else:
            self._run.report(self._asked)


def feeds_stream(handler: BaseCallbackHandler) -> bool:
    """Whether it brings a stream to its reader."""
    kind: Any = type(handler)
    return _kind_feeds_stream(kind)


@cache
def _kind_feeds_stream(kind: type[BaseCallbackHandler]) -> bool:
    # once for a class: to look for a protocol's methods in every handler of every call takes longer than all the rest
    return issubclass(kind, _StreamingCallbackHandler | _V2StreamingCallbackHandler)


# what an attempt's run tells
_HEARD = ("on_chain_start", "on_chain_end", "on_chain_error")


def hears_attempts(handler: BaseCallbackHandler) -> bool:
    """Whether it is told of attempts: none that ignores chains or does nothing of them, nor one that feeds a stream."""
    if handler.ignore_chain or feeds_stream(handler):
        return False
    kind: Any = type(handler)
    return _kind_hears_chains(kind) or not vars(handler).keys().isdisjoint(_HEARD)


@cache
def _kind_hears_chains(kind: type[BaseCallbackHandler]) -> bool:
    silent = BaseCallbackHandler, AsyncCallbackHandler
    return any(getattr(kind, name) not in [getattr(each, name) for each in silent] for name in _HEARD)


def _by_how(handlers: list[BaseCallbackHandler]) -> tuple[list[BaseCallbackHandler], ...]:
    """As LangChain's asynchronous runs call them: those called where we are, those called in a thread, the awaited."""
    inline, blocking, awaited = list[BaseCallbackHandler](), list[BaseCallbackHandler](), list[BaseCallbackHandler]()
    for handler in handlers:
        if any(inspect.iscoroutinefunction(getattr(handler, name)) for name in _HEARD):
            awaited.append(handler)
        else:
            (inline if handler.run_inline else blocking).append(handler)
    return inline, blocking, awaited


def _of_the_context(manager: BaseRunManager | BaseCallbackManager) -> list[BaseCallbackHandler]:
    """Handlers that no run inherits, because LangChain attaches them to every run of a context (`collect_runs`)."""
    if len(manager.handlers) == len(manager.inheritable_handlers):
        return []
    from langchain_core.tracers.context import _configure_hooks  # here, because langchain_core imports it late too

    found = [variable.get() for variable, inherited, *_ in _configure_hooks if not inherited]
    inherited = manager.inheritable_handlers
    return [
        handler
        for handler in manager.handlers
        if any(handler is each for each in found) and not any(handler is each for each in inherited)
    ]


class under:  # noqa: N801
    """While LangChain's own code is on the way to `_stream`, which learns here what its run is."""

    def __init__(self, run: CascadeRun | None) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._token = current_run.set(self._run)

    def __exit__(self, *_: object) -> None:
        current_run.reset(self._token)


def _attempts(asked: Asked) -> Iterator[tuple[Attempt, Response | None]]:
    ended, asked.ended = asked.ended, None
    if ended is None:  # refused before anything was asked, or reported already
        return iter(())
    return zip(ended.record.attempts, ended.responses, strict=True)


def _outputs(attempt: Attempt, response: Response | None) -> dict[str, Any]:
    """What an attempt's run gives: what was said, and of an answer written in turn who wrote which step, and why."""
    steps = {"steps": [step.as_dict() for step in attempt.steps]} if attempt.steps else {}
    return {"output": _message(response), **steps}


def _message(response: Response | None) -> AIMessage | None:
    """What the stage said, without its accounts, which are the attempt's."""
    if response is None:
        return None
    if not isinstance(response.native, AIMessage):
        return AIMessage(content=response.text)
    return changed(response.native, {"id": None, "usage_metadata": None, "response_metadata": {}})
