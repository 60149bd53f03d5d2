"""Signals in a file: a type alone, such as ``p_t``, or a mapping with `type` and options.

A signal joins by a class here and a line in `SIGNAL_TYPES`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from confcascade.models.bundled import bundled_folder
from confcascade.schema import Entry, existing, located, suggestion
from confcascade.signals import Signal
from confcascade.signals.format_probability import FormatProbability
from confcascade.signals.glimpse import Glimpse
from confcascade.signals.knowledge_probe import KnowledgeProbe
from confcascade.signals.learned import LearnedScorer, TextRouter
from confcascade.signals.retrieval_score import RetrievalScore
from confcascade.signals.ties_by_lot import TiesByLot
from confcascade.signals.token_probability import TokenProbability
from confcascade.signals.verbalized import Verbalized
from confcascade.signals.wording import REFUSALS, Wording

__all__ = [
    "SIGNAL_TYPES",
    "FormatProbabilityEntry",
    "GlimpseEntry",
    "KnowledgeProbeEntry",
    "LearnedScorerEntry",
    "LookbackEntry",
    "RetrievalScoreEntry",
    "SignalEntry",
    "SignalType",
    "TextRouterEntry",
    "TokenProbabilityEntry",
    "VerbalizedEntry",
    "WordingEntry",
]


class SignalType(Entry):
    """A signal with its options.

    The values of `type` are its name and, as a short form, the key of its thresholds.
    """

    type: str
    name: str

    between_steps: ClassVar[bool] = False  # whether it judges only steps of an answer
    _paths: ClassVar[tuple[str, ...]] = ()  # options that are paths

    @abstractmethod
    def load(self, folder: Path) -> Signal:
        """The signal; relative paths are relative to `folder`."""

    def moved(self, folder: Path, to: Path) -> Self:
        """The same for a file in another folder, `to`: relative paths lead where they did."""
        changed = {}
        for name in filter(partial(getattr, self), self._paths):
            path = existing(folder, getattr(self, name))
            if path.exists() and not Path(getattr(self, name)).expanduser().is_absolute():
                changed[name] = Path(os.path.relpath(path.resolve(), to.resolve())).as_posix()
        return self.model_copy(update=changed)


def _letters(value: Any) -> Any:
    return list(value) if isinstance(value, str) else value


def _with_ties(signal: Signal, ties: Literal["lot"] | None) -> Signal:
    return signal if ties is None else TiesByLot(signal)


class TokenProbabilityEntry(SignalType):
    """P(T), the probability that the model gave to its own answer (`TokenProbability`)."""

    type: Literal["token_probability", "p_t"]
    labels: Annotated[list[str], BeforeValidator(_letters, json_schema_input_type=str | list[str])] = Field(
        [], description='The answer labels of multiple choice, such as "ABCD"; by default free text.'
    )
    prefix: str | None = Field(
        None, description='With `labels`: what stands before them, such as "Answer:"; local answers are begun with it.'
    )
    aggregate: Literal["mean", "min", "product", "first"] = Field("mean", description="Over the tokens of free text.")
    first: int | None = Field(
        None, ge=1, description="Score only the first so many tokens: a stream goes on from there."
    )
    part: Literal["answer", "thoughts"] = Field("answer", description="Of what: of the answer, or of the thoughts.")
    after: str | None = Field(None, description='Score only what follows this text, such as "Answer:".')
    corrects: bool = Field(
        False,
        description="With `labels` and a threshold for each: an answer whose label fails is given one that passes.",
    )
    ties: Literal["lot"] | None = Field(
        None, description="`lot`: equal scores are told apart, so that `fit` can keep a part of them (`TiesByLot`)."
    )
    name: str = Field("p_t", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal."""
        del folder
        signal = TokenProbability(
            self.labels,
            prefix=self.prefix,
            aggregate=self.aggregate,
            first=self.first,
            part=self.part,
            after=self.after,
            corrects=self.corrects,
            name=self.name,
        )
        return _with_ties(signal, self.ties)


class VerbalizedEntry(SignalType):
    """Confidence that the model states in words (`Verbalized`)."""

    _paths: ClassVar[tuple[str, ...]] = ("trained",)
    type: Literal["verbalized", "stated"]
    style: Literal["one-step", "two-step", "top-k"] = Field("one-step", description="How the model is asked for it.")
    k: int | None = Field(None, ge=1, description="With `top-k`: how many guesses; 4 by default.")
    instruction: str | None = Field(None, min_length=1, description="With `one-step`: other words that ask for it.")
    trained: str | None = Field(
        None,
        min_length=1,
        description="Instead of all that: folder of a model that was trained to state it, relative to the file; it is "
        "asked in the words of its card.",
    )
    ties: Literal["lot"] | None = Field(
        None, description="`lot`: equal scores are told apart, so that `fit` can keep a part of them (`TiesByLot`)."
    )
    name: str = Field("stated", min_length=1, description="Key of thresholds and records.")

    @model_validator(mode="after")
    def _trained_or_told(self) -> VerbalizedEntry:
        if self.trained is not None and (self.style != "one-step" or self.k is not None or self.instruction):
            raise located("a trained model is asked in the words of its card: leave out style, k and instruction")
        return self

    def load(self, folder: Path) -> Signal:
        """The signal."""
        if self.trained is not None:
            signal = Verbalized.load(existing(folder, self.trained), name=self.name)
        else:
            signal = Verbalized(self.style, k=self.k, instruction=self.instruction, name=self.name)
        return _with_ties(signal, self.ties)


class WordingEntry(SignalType):
    """Whether an answer is free of some wordings, such as refusals (`Wording`)."""

    type: Literal["wording"]
    patterns: list[str] = Field(list(REFUSALS), min_length=1, description="Regular expressions; by default refusals.")
    name: str = Field("wording", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal."""
        del folder
        return Wording(self.patterns, name=self.name)


class KnowledgeProbeEntry(SignalType):
    """P(IK), what a trained probe reads from the hidden state of a local or served model (`KnowledgeProbe`)."""

    _paths: ClassVar[tuple[str, ...]] = ("probe",)
    type: Literal["knowledge_probe", "p_ik"]
    probe: str = Field(
        min_length=1,
        description='Folder of the probe, relative to the file, or "bundled:small" for a bundled model\'s.',
    )
    with_answer: bool = Field(
        False, description="Judge after the answer, by the state that came with it in one call (vLLM)."
    )
    name: Literal["p_ik"] = "p_ik"

    def load(self, folder: Path) -> Signal:
        """The probe, read."""
        bundled, _, size = self.probe.partition("bundled:")
        place = existing(folder, self.probe) if bundled or not size else bundled_folder(size) / "probe"
        return KnowledgeProbe.load(place, with_answer=self.with_answer)


class RetrievalScoreEntry(SignalType):
    """How well the retrieved passages match the query (`RetrievalScore`)."""

    type: Literal["retrieval_score", "retrieval"]
    aggregate: Literal["top", "mean", "margin"] = Field("top", description="How the scores become one number.")
    k: int = Field(3, ge=1, description="How many passages the mean is taken over.")
    scores: list[float] | None = Field(
        None, min_length=2, max_length=2, description="Range of the retriever's scores, such as [-1, 1]."
    )
    name: str = Field("retrieval", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal."""
        del folder
        ends = {} if self.scores is None else {"scores": (self.scores[0], self.scores[1])}
        return RetrievalScore(self.aggregate, k=self.k, name=self.name, **ends)


class FormatProbabilityEntry(SignalType):
    """How probable it is that the answer begins as it was told to, the paper's signal (`FormatProbability`)."""

    type: Literal["format_probability", "p_format"]
    opening: str = Field("Answer", description="What answers are to begin with, a single token of the model.")
    name: str = Field("p_format", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal."""
        del folder
        return FormatProbability(self.opening, name=self.name)


class TextRouterEntry(SignalType):
    """What a trained classifier reads from the question alone (`TextRouter`)."""

    _paths: ClassVar[tuple[str, ...]] = ("folder",)
    type: Literal["text_router", "router"]
    folder: str = Field(min_length=1, description="Where it was saved, relative to the file.")
    name: Literal["router"] = "router"

    def load(self, folder: Path) -> Signal:
        """The router, read."""
        return TextRouter.load(existing(folder, self.folder))


class LearnedScorerEntry(SignalType):
    """What a trained classifier reads from question and answer (`LearnedScorer`)."""

    _paths: ClassVar[tuple[str, ...]] = ("folder",)
    type: Literal["learned_scorer", "scorer"]
    folder: str = Field(min_length=1, description="Where it was saved, relative to the file.")
    name: Literal["scorer"] = "scorer"

    def load(self, folder: Path) -> Signal:
        """The scorer, read."""
        return LearnedScorer.load(existing(folder, self.folder))


class GlimpseEntry(SignalType):
    """How sure the model is of the very next token, before each step or before the answer (`Glimpse`)."""

    type: Literal["glimpse"]
    name: str = Field("glimpse", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal."""
        del folder
        return Glimpse(name=self.name)


class LookbackEntry(SignalType):
    """How sure the small model is of the step before, whoever wrote it (`Lookback`); with ``mode: stepwise``."""

    between_steps: ClassVar[bool] = True
    _paths: ClassVar[tuple[str, ...]] = ("mixture",)
    type: Literal["lookback"]
    mixture: str = Field(min_length=1, description="File of the mixture, `StepMixture.save`, relative to the file.")
    name: str = Field("lookback", min_length=1, description="Key of thresholds and records.")

    def load(self, folder: Path) -> Signal:
        """The signal, its mixture read."""
        from confcascade.signals.lookback import Lookback

        return Lookback(existing(folder, self.mixture), name=self.name)


SIGNAL_TYPES: tuple[type[SignalType], ...] = (
    TokenProbabilityEntry,
    KnowledgeProbeEntry,
    RetrievalScoreEntry,
    FormatProbabilityEntry,
    TextRouterEntry,
    LearnedScorerEntry,
    VerbalizedEntry,
    WordingEntry,
    GlimpseEntry,
    LookbackEntry,
)


def _names(kind: type[SignalType]) -> tuple[str, ...]:
    """What `type` may say: the name, and its short form."""
    names: tuple[str, ...] = kind.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
    return names


_BY_NAME = {name: kind for kind in SIGNAL_TYPES for name in _names(kind)}


def _mapping(value: Any) -> Any:
    """A signal's type alone as a mapping, the short form of the type as its name."""
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping) or "type" not in value:
        raise located("must be the type of a signal, such as `p_t`, or a mapping such as {type: p_t, aggregate: min}")
    kind = value["type"]
    if not isinstance(kind, str) or kind not in _BY_NAME:
        raise located(f"there is no signal of type {kind!r}; {suggestion(kind, list(_BY_NAME))}")
    return {**value, "type": _names(_BY_NAME[kind])[0]}


def _tag(value: Any) -> str:
    return f"<{value['type'] if isinstance(value, Mapping) else value.type}>"


if TYPE_CHECKING:
    SignalEntry: TypeAlias = SignalType
else:
    _AnySignal = Annotated[
        Union[tuple(Annotated[kind, Tag(f"<{_names(kind)[0]}>")] for kind in SIGNAL_TYPES)],  # noqa: UP007
        Discriminator(_tag),
    ]
    _TypeAlone = Literal[tuple(_BY_NAME)]
    SignalEntry = Annotated[_AnySignal, BeforeValidator(_mapping, json_schema_input_type=_TypeAlone | _AnySignal)]
