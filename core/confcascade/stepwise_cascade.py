"""A cascade of two models that write each answer in turn, step by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

from confcascade.asks import Chunk, Flow
from confcascade.attempts import OnError, OnExhausted, Outcome, Tried
from confcascade.cascade import Cascade, Messages, OnEnded, Query
from confcascade.errors import ConfigurationError
from confcascade.signals import Signal
from confcascade.stage import FittedStages, Stage
from confcascade.stepwise import Steps, stepwise_flow
from confcascade.thoughts import ThoughtReader

__all__ = ["Mode", "StepwiseCascade", "cascade_of"]

Mode: TypeAlias = Literal["query", "stepwise"]


class StepwiseCascade(Cascade):
    """A small and a large model that write each answer in turn: each step is the small one's if it is sure enough.

    The signals of the first stage decide. One that judges before generating (`Glimpse`, `Lookback`) is asked before
    each step, and what it lets through is streamed at once. One that judges an answer (`TokenProbability`, a learned
    scorer) is asked about each step that the small model has written; one that fails is thrown away, and the large
    model writes it. With several, all must pass.

    Requests with tools, with structured output or with images are answered by the large model alone.

    Args:
        stages: Two: the small model with its signals, and the large one.
        steps: What a step is, and who may end the answer; with a fitted policy, its own.
        on_error: With "escalate", the large model writes the rest if the small one fails; "raise" raises its error.
        on_exhausted: If the large model fails, "raise" raises `CascadeExhaustedError`, which is an instance of its
            error's class, too; "best" lets the small one write the rest, flagged ``degraded``.
        on_ended: As of `Cascade`.

    Raises:
        ConfigurationError: If the stages cannot work so: a model that cannot go on with a begun answer, say.
    """

    _in_steps = True

    @staticmethod
    def _is_whole(stage: Stage, signal: Signal) -> bool:
        """Whether a signal judges whole answers only."""
        return signal.rewords or signal.told or bool(signal.answer_layers(stage.model))

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        steps: Steps | None = None,
        on_error: OnError = "escalate",
        on_exhausted: OnExhausted = "raise",
        on_ended: OnEnded | None = None,
        **others: Any,
    ) -> None:
        self.steps = _steps(stages, steps)
        for name, default in (("on_cut", "escalate"), ("audit", 0.0)):
            if others.pop(name, default) != default:
                raise ConfigurationError(f"`{name}` is not for answers that are written step by step. Leave it out.")
        if not isinstance(self.steps, Steps):
            raise ConfigurationError(f"`steps` must be a Steps, such as Steps(delimiter='\\n'). Got {steps!r}.")
        super().__init__(stages, on_error=on_error, on_exhausted=on_exhausted, on_ended=on_ended, **others)
        if len(self.stages) != 2:
            raise ConfigurationError(
                f"Step by step, two models write in turn: give a small and a large one. Got {len(self.stages)}."
            )
        for stage in self.stages:
            if whole := next((signal for signal in stage.signals if self._is_whole(stage, signal)), None):
                raise ConfigurationError(
                    f"{whole!r} judges whole answers, and this cascade judges steps. It goes with "
                    'mode="query", or Cascade.'
                )
            if labelled := [name for name, value in stage.thresholds.items() if isinstance(value, Mapping)]:
                raise ConfigurationError(
                    f"Signal '{labelled[0]}' of stage '{stage.model.name}' has a threshold for each label, and steps "
                    "of an answer give none. Give it one number."
                )
            if stage.skip:
                raise ConfigurationError(
                    f"Stage '{stage.model.name}' has `skip`, which passes over the models between the first and the "
                    "last; step by step there are none. Leave it out."
                )
            if not stage.model.capability.continues:
                raise ConfigurationError(
                    f"Model '{stage.model.name}' cannot go on with an answer that another model has begun, which step "
                    "by step both must. Local models can (`TransformersModel`, `LlamaCppModel`), and servers that take "
                    "the beginning of an answer: say how to `OpenAICompatibleModel` by its argument `continues`, or to "
                    "`LangChainModel` or `LlamaIndexModel` around a model of theirs."
                )

    def _id_of(self, stages: Sequence[Stage]) -> str:
        """Of a cascade that decides alike, also about steps."""
        told = json.dumps([super()._id_of(stages), asdict(self.steps)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def _answered(self, query: Query, tried: Tried) -> Flow[Outcome]:
        request = query.request
        if query.only is None and not (request.judged_whole or request.media):
            return stepwise_flow(
                query.stages,
                request,
                steps=self.steps,
                on_error=self.on_error,
                on_exhausted=self.on_exhausted,
                policy_id=query.policy_id,
                tried=tried,
            )
        only = len(self.stages) - 1 if query.only is None else query.only
        return super()._answered(Query(**{**vars(query), "only": only}), tried)

    def stream(self, messages: Messages, **parameters: Any) -> Iterator[Chunk | Outcome]:
        """Answer one query: what stands is shown as it is written, thoughts apart."""
        shown = _Parted()
        with closing(super().stream(messages, **parameters)) as items:  # type: ignore[type-var]
            for item in items:
                yield from shown.add(item)

    async def astream(self, messages: Messages, **parameters: Any) -> AsyncIterator[Chunk | Outcome]:
        """`stream`, without blocking the event loop."""
        shown = _Parted()
        async with aclosing(super().astream(messages, **parameters)) as items:  # type: ignore[type-var]
            async for item in items:
                for each in shown.add(item):
                    yield each


def _steps(stages: Sequence[Stage], steps: Steps | None) -> Steps:
    """What was given; of a fitted policy its own, which must not be contradicted."""
    fitted = stages.policy.stepwise if isinstance(stages, FittedStages) else None
    if fitted is None:
        return Steps() if steps is None else steps
    own: Steps = fitted.load()
    if steps is not None and steps != own:
        raise ConfigurationError(
            f"The policy was fitted on answers with {own}, and `steps` says {steps}. Other steps make other answers: "
            "leave `steps` out, or fit again."
        )
    return own


def cascade_of(mode: Mode = "query", *, steps: Steps | None = None, **given: Any) -> Cascade:
    """A cascade of either kind from what a user may give.

    Args:
        mode: "query" for whole answers, "stepwise" for answers that are written in turn.
        steps: With "stepwise": what a step is; with a fitted policy, its own.
        **given: As of `Cascade.of`.

    Raises:
        ConfigurationError: If the arguments contradict each other, or the cascade cannot work.
    """
    if mode not in ("query", "stepwise"):
        raise ConfigurationError(f'`mode` must be "query" or "stepwise". Got {mode!r}.')
    if mode == "stepwise":
        return StepwiseCascade.of(steps=steps, **given)
    if steps is not None:
        raise ConfigurationError('`steps` goes with mode="stepwise". Leave it out, or add the mode.')
    return Cascade.of(**given)


class _Parted:
    """Takes a stream of raw text apart into thoughts and answer, as they come."""

    def __init__(self) -> None:
        self._reader = ThoughtReader()
        self._text = ""
        self._shown: int | None = None

    def add(self, item: Chunk | Outcome) -> Iterator[Chunk | Outcome]:
        """What is to be shown of it."""
        if isinstance(item, Chunk):
            yield from self._part(item.text, tokens=item.tokens)
            return
        yield from self._part("", last=True)
        yield item

    def _part(self, text: str, *, tokens: Any = (), last: bool = False) -> Iterator[Chunk]:
        self._text += text
        if self._shown is None:
            self._reader.add(text, last=last)
            thoughts, self._shown = self._reader.fresh(), self._reader.begun
        else:
            thoughts = ""
        piece = "" if self._shown is None else self._text[self._shown :]
        if self._shown is not None:
            self._shown = len(self._text)
        if piece or thoughts:
            yield Chunk(piece, tokens if piece else (), released=True, thoughts=thoughts)
