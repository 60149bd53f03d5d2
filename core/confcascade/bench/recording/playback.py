"""A recording played through the live cascade: models that say again what they said, signals that judge again so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill
from confcascade.bench.recording.row import RecordedScore, Row
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, ModelError, SignalUnavailableError
from confcascade.models.base import InThreads, Watcher
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.types import Cost, Prefilled, Request, Response, Usage

__all__ = ["PlaybackModel", "PlaybackSignal"]

LAYER = 1  # the first at which its hidden states are asked for


def _last_message(request: Request) -> str:
    return request.messages[-1].content


class PlaybackModel(InThreads):
    """A model that answers from a recording, in every respect as it once did, but at once.

    Its tokens, labels and errors are the recorded ones, so `TokenProbability` and the like judge them anew; scores
    that cannot be computed again (a probe's, for one) come through `signal`.  Parameters of a request such as
    ``max_tokens`` change nothing.

    Args:
        name: Which model of the recording it is.
        rows: The recording; rows of other models are passed over. Of two of the same question the later holds.
        key: The id of the question that a request asks; by default the text of its last message.
        architecture: For costs in FLOPs.

    Raises:
        ConfigurationError: If the recording has no row of it.

    >>> from confcascade.cascade import Cascade
    >>> from confcascade.stage import Stage
    >>> rows = [Row(question="q1", model="small", answer="4", scores={"sure": RecordedScore(value=0.8)})]
    >>> rows += [Row(question="q1", model="large", answer="5")]
    >>> small, large = PlaybackModel("small", rows), PlaybackModel("large", rows)
    >>> Cascade([Stage(small, [small.signal("sure")], {"sure": 0.7}), Stage(large)]).run("q1").text
    '4'
    """

    def __init__(
        self,
        name: str,
        rows: Iterable[Row],
        *,
        key: Callable[[Request], str] = _last_message,
        architecture: Architecture | None = None,
    ) -> None:
        self._rows = {row.question: row for row in rows if row.model == name}
        if not self._rows:
            raise ConfigurationError(f"The recording has no row of model '{name}'.")
        self._name = name
        self._key = key
        self._architecture = architecture
        kinds: dict[str, RecordedScore] = {}
        early: set[str] = set()
        for row in self._rows.values():
            for signal, score in row.scores.items():
                kinds.setdefault(signal, score)
                if score.upper or score.lower is not None:
                    early.add(signal)
        self._kinds, self._early = kinds, early
        # what a pass over the prompt shows: in the place of a hidden state, the scores that were made of it
        probed = [name for name, score in kinds.items() if score.phase == "pre" and score.prefill]
        self._depths = {name: _one_depth(name, self._rows.values()) for name in kinds}
        # each a layer of its own, those first that are known first
        self._probed = tuple(sorted(probed, key=lambda name: (self._depths[name] or math.inf, name)))
        labelled = any(row.labels for row in self._rows.values())
        prefills = labelled or any(score.prefill for score in kinds.values())
        told = {row.tokens is not None for row in self._rows.values() if row.usable}
        self._capability = Capability(
            logprobs=None if len(told) != 1 or (labelled and told == {False}) else told == {True},
            top_logprobs=20,
            layers=max(LAYER, len(self._probed)) if prefills else 0,
            hidden_size=len(self._probed) if prefills else 0,
            stops=any(depth is not None for depth in self._depths.values()),
            batch_size=256,
        )

    def __repr__(self) -> str:
        return f"PlaybackModel({self._name!r}, {len(self._rows)} questions)"

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    def row(self, request: Request) -> Row:
        """What the recording has on a request.

        Raises:
            ModelError: If the question is not in it.
        """
        question = self._key(request)
        if question not in self._rows:
            shown = question if len(question) <= 60 else question[:57] + "..."
            raise ModelError(f"The recording of model '{self._name}' has no question '{shown}'.")
        return self._rows[question]

    def signal(self, name: str) -> PlaybackSignal:
        """One of its recorded signals, for a `Stage` of this model.

        Raises:
            ConfigurationError: If the recording has no such signal.
        """
        if name not in self._kinds:
            raise ConfigurationError(
                f"Signal '{name}' of model '{self._name}' is not in the recording, which has {sorted(self._kinds)}."
            )
        kind = self._kinds[name]
        at = self._probed.index(name) if name in self._probed else None
        scored = [row for row in self._rows.values() if name in row.scores and row.scores[name].value is not None]
        labelled = all("label" in row.scores[name].details or row.predicted is not None for row in scored)
        corrects = any("probabilities" in row.scores[name].details for row in scored)
        return PlaybackSignal(
            self,
            name,
            kind,
            early=name in self._early,
            at=at,
            depth=self._depths[name],
            labelled=labelled,
            corrects=corrects,
        )

    # ------------------------------------------------------------------ as a LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return [self._or_error(self._prefill, ask) for ask in asks]

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return [self._or_error(lambda ask: list(self.stream(ask))[-1], ask) for ask in asks]

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        row, watcher = self.row(ask.request), Watcher(ask)
        if row.error is not None:
            raise ModelError(row.error)
        if row.tokens is None or not ask.logprobs:
            yield Chunk(row.answer, released=watcher.verdict == "release")
            usage, told_cost = _of_answer(row), _told_cost(row)
            yield Response(row.answer, None, usage, row.finish_reason, thoughts=row.thoughts, cost=told_cost)
            return
        tokens = tuple(replace(token, top=token.top[: ask.top_logprobs]) for token in row.tokens)
        shown = ""
        for count, token in enumerate(tokens, start=1):
            verdict = watcher.see(tokens[:count])
            shown += token.text
            yield Chunk(token.text, (token,), released=verdict == "release")
            if verdict == "abort":
                cost = _told_cost(row)
                whole = _of_answer(row)
                told = whole.output_tokens - len(tokens) if cost is not None else row.before_answer
                usage = replace(whole, output_tokens=min(told + count, whole.output_tokens), input_details={})
                yield Response(shown, tokens[:count], usage, "aborted", thoughts=row.thoughts, cost=cost)
                return
        usage, told_cost = _of_answer(row), _told_cost(row)
        yield Response(row.answer, tokens, usage, row.finish_reason, thoughts=row.thoughts, cost=told_cost)

    def _prefill(self, ask: Prefill) -> Prefilled:
        row = self.row(ask.request)
        scores = [row.scores[name].value if name in row.scores else None for name in self._probed]
        apart = row.gate_input_tokens > 0
        read = row.gate_input_tokens if apart else row.usage.input_tokens
        usage, state = (
            Usage(read, row.gate_output_tokens, row.usage.estimated),
            np.array([math.nan if s is None else s for s in scores]),
        )
        states: dict[int, Any] = {}
        for layer in sorted(ask.layers):
            states[layer] = state
            if ask.gate is not None and not ask.gate(dict(states)):
                return Prefilled(usage, states, depth=self._depths[self._probed[layer - LAYER]])
        return Prefilled(
            usage=usage,
            hidden_states=states,
            apart=apart,
            label_logprobs={label: row.labels[label] for label in ask.labels if label in row.labels},
        )

    @staticmethod
    def _or_error(answer: Callable[[Any], Any], ask: Any) -> Any:
        try:
            return answer(ask)
        except Exception as error:
            return error


def _one_depth(name: str, rows: Iterable[Row]) -> float | None:
    """That of all recorded scores of a signal; None if they differ, as older ones do, which have none."""
    depths = {row.scores[name].depth for row in rows if name in row.scores}
    return depths.pop() if len(depths) == 1 else None


def _of_answer(row: Row) -> Usage:
    """What the answer used, without a call of its own that had read the prompt before."""
    used = row.usage
    return replace(
        used,
        input_tokens=used.input_tokens - row.gate_input_tokens,
        output_tokens=used.output_tokens - row.gate_output_tokens,
    )


def _told_cost(row: Row) -> Cost | None:
    """Of an answer that several models made; one that is ended early is charged as if it had been finished."""
    if row.flops is None and row.usd is None:
        return None
    return Cost(row.flops, row.usage.total_tokens, row.usd)


class PlaybackSignal(Signal):
    """A signal whose scores are read from a recording; `PlaybackModel.signal` makes it.

    A score that was missing is missing again, and the bounds along an answer are the recorded ones; when the lower one
    was reached is not recorded, so a draft that was shown before its end is shown from its first token.
    """

    space = (-math.inf, math.inf)  # whatever it was

    def __init__(
        self,
        model: PlaybackModel,
        name: str,
        kind: RecordedScore,
        *,
        early: bool,
        at: int | None,
        depth: float | None,
        labelled: bool,
        corrects: bool,
    ) -> None:
        self.name = name
        self.phase = kind.phase  # type: ignore[misc]  # of each signal its own here
        self.early = early
        self.labelled = labelled
        self.corrects = corrects
        self.logprobs = early  # bounds hold for a number of tokens, which only known tokens have
        self._model = model
        self._prefill = kind.prefill
        self._at = at
        self._depth = depth

    def __repr__(self) -> str:
        return f"PlaybackSignal({self.name!r}, model={self._model.name!r})"

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        del model
        return (LAYER + (self._at or 0),) if self._prefill else ()

    def known_at(self, model: LanguageModel) -> int | None:
        if self._depth is None:
            return None
        return max(self.layers(model), default=0)

    def check(self, model: LanguageModel) -> None:
        if model is not self._model:
            raise ConfigurationError(
                f"{self!r} judges that recorded model alone. Make one with `signal` of the stage's own model."
            )

    def identity(self) -> Mapping[str, Any]:
        return {"signal": "PlaybackSignal", "model": self._model.name}

    def score(self, evidence: Evidence) -> Measurement:
        if self._at is not None:  # as a probe would: from what the pass over the prompt showed
            state = evidence.prefilled.hidden_states.get(LAYER + self._at) if evidence.prefilled else None
            value = math.nan if state is None else float(state[self._at])
            if math.isnan(value):
                raise SignalUnavailableError("the recording has no score")
            return Measurement(value)
        row = self._model.row(evidence.request)
        recorded = row.scores.get(self.name)
        if recorded is None or recorded.value is None:
            why = recorded.details.get("unavailable") if recorded else None
            raise SignalUnavailableError(str(why or "the recording has no score"))
        label = {} if row.predicted is None else {"label": row.predicted}  # as its grader read it, else the signal
        return Measurement(recorded.value, {**label, **recorded.details})

    def gives(self, response: Response, label: str) -> Response:
        return response.replace(text=label)  # the answer was nothing but one

    def bounds(self, evidence: Evidence) -> tuple[float, float]:
        row = self._model.row(evidence.request)
        recorded = row.scores.get(self.name)
        low, high = self.space
        if recorded is not None:
            come = row.before_answer + len(evidence.tokens) if evidence.tokens else 0
            for tokens, bound in recorded.upper:
                if tokens <= come:
                    high = bound
            if come and recorded.lower is not None:
                low = recorded.lower
        return low, high
