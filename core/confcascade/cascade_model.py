"""A cascade as a model: a stage of a larger cascade, or one of the models of a recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from confcascade.asks import Capability, Chunk, Generate, Prefill
from confcascade.attempts import Outcome
from confcascade.cascade import Cascade
from confcascade.cost import Architecture
from confcascade.drivers import run_many
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.base import InThreads, Watcher
from confcascade.trace import trace
from confcascade.types import Prefilled, Response, Token

__all__ = ["CascadeModel"]

_CONCURRENCY = 16  # of calls to APIs, of one call of this model


class CascadeModel(InThreads):
    """A cascade that is asked as one model.

    Its response has the cost of every model that ran, and the steps of an answer that was written in turn.

    Args:
        cascade: Which answers; of whole answers (`Cascade`) or step by step (`StepwiseCascade`).
        name: Shown in records; by default the names of its models, joined by "+".

    Raises:
        ConfigurationError: If `cascade` is not one.
    """

    def __init__(self, cascade: Cascade, *, name: str | None = None) -> None:
        if not isinstance(cascade, Cascade):
            raise ConfigurationError(f"`cascade` must be a Cascade or a StepwiseCascade. Got {type(cascade).__name__}.")
        self.cascade = cascade
        self._name = "+".join(stage.model.name for stage in cascade.stages) if name is None else name
        models = [stage.model.capability for stage in cascade.stages]
        last = models[-1]
        local = [each.batch_size for each in models if each.local]
        windows = [each.context_window for each in models if each.context_window is not None]
        self._capability = Capability(
            logprobs=None,
            top_logprobs=min(each.top_logprobs for each in models),
            batch_size=max(local, default=1),
            tools=last.tools,
            tool_history=last.tool_history,
            structured=last.structured,
            context_window=min(windows, default=None),
            in_process=bool(local),
        )

    def __repr__(self) -> str:
        return f"CascadeModel({self.cascade!r}, name={self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def architecture(self) -> Architecture | None:
        """None: its models differ, and each response carries its own cost."""
        return None

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of all that decides its answers."""
        told = [self.cascade.policy_id, *(getattr(stage.model, "fingerprint", None) for stage in self.cascade.stages)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        problem = f"Model '{self._name}' is a cascade, and shows nothing before it answers."
        return [ModelError(problem) for _ in asks]

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        answers: list[Any] = [self._watched(ask) if ask.watch is not None else None for ask in asks]
        others = [i for i, answer in enumerate(answers) if answer is None]
        flows = [self.cascade.flow(asks[i].request) for i in others]
        with closing(run_many(flows, _CONCURRENCY)) as ended:  # type: ignore[type-var]
            for index, outcome in ended:
                answers[others[index]] = outcome if isinstance(outcome, Exception) else _response(outcome)
        return answers

    def _watched(self, ask: Generate) -> Response | Exception:
        """An answer that may be ended early."""
        try:
            *_, response = self.stream(ask)
        except Exception as error:
            return error
        assert isinstance(response, Response)
        return response

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        watcher, text, tokens = Watcher(ask), "", list[Token]()
        items = self.cascade.stream(ask.request)
        with closing(items):  # type: ignore[type-var]
            with trace() as told:  # its flow begins with the first item
                item = next(items)
            while isinstance(item, Chunk):
                text, tokens = text + item.text, [*tokens, *item.tokens]
                verdict = watcher.see(tokens, text) if item.tokens else watcher.verdict
                yield replace(item, released=verdict == "release")
                if verdict == "abort":
                    break
                item = next(items)
        if isinstance(item, Outcome):
            yield _response(item)
        else:
            (record,) = told.records  # of a query that was left
            yield Response(text, tuple(tokens), record.usage, "aborted", cost=record.cost, steps=record.steps)


def _response(outcome: Outcome) -> Response:
    record = outcome.record
    return outcome.response.replace(usage=record.usage, cost=record.cost, steps=record.steps)
