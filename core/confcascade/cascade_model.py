"""A cascade as a model: a stage of a larger cascade, or one of the models of a recording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from confcascade.asks import Capability, Chunk, Generate, Prefill
from confcascade.attempts import Outcome
from confcascade.cascade import Cascade
from confcascade.cost import Architecture
from confcascade.drivers import run_many
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.base import InThreads
from confcascade.types import Prefilled, Response

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
        answers: list[Any] = [None] * len(asks)
        flows = [self.cascade.flow(ask.request) for ask in asks]
        with closing(run_many(flows, _CONCURRENCY)) as ended:  # type: ignore[type-var]
            for index, outcome in ended:
                answers[index] = outcome if isinstance(outcome, Exception) else _response(outcome)
        return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        with closing(self.cascade.stream(ask.request)) as items:  # type: ignore[type-var]
            for item in items:
                if isinstance(item, Outcome):
                    yield _response(item)
                else:
                    yield Chunk(item.text, item.tokens, ask.live, item.calls_tool, item.native, item.thoughts)


def _response(outcome: Outcome) -> Response:
    record = outcome.record
    return outcome.response.replace(usage=record.usage, cost=record.cost, steps=record.steps)
