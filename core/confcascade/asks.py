"""What a flow may ask of the world, whom it asks, and what it is answered.

A flow is a generator: it yields a tuple of asks and is sent a tuple of `Answer`, one for each, in order. It never
awaits, never reads a clock and never touches a model; a driver does. A driver that leaves a flow before its end throws
`Left` into it.

    def flow() -> Flow[str]:
        (answer,) = yield (Generate(model, request),)
        return answer.unwrap().text
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from confcascade.cost import Architecture
from confcascade.errors import ModelError
from confcascade.quick_init import quick_init
from confcascade.types import Prefilled, Request, Response, Token, Usage

__all__ = [
    "Answer",
    "Ask",
    "Capability",
    "Chunk",
    "Flow",
    "Gate",
    "Generate",
    "LanguageModel",
    "Left",
    "Prefill",
    "Progress",
    "SelfBatching",
    "Session",
    "Verdict",
    "Watch",
    "ask",
]

T = TypeVar("T")
Verdict = Literal["hold", "release", "abort"]


class Watch(Protocol):
    """Decides from the answer's tokens so far, without thoughts, whether it can still be withdrawn.

    A verdict other than "hold" is final: "abort" means that the finished answer would be rejected, "release" that it
    would be accepted, whatever tokens follow.
    """

    def __call__(self, tokens: Sequence[Token]) -> Verdict: ...


class Gate(Protocol):
    """Decides from hidden states, while a prompt is being read, whether the pass goes on."""

    def __call__(self, hidden_states: Mapping[int, Any]) -> bool:
        """Called each time that one more of the wanted layers is known, from the lowest up.

        Args:
            hidden_states: As of `Prefilled`, of the layers that are known so far.

        Returns:
            Whether the pass goes on; after False it is not called again in this pass.
        """


class Session:
    """What one model has read of one conversation, kept from ask to ask so that nothing is read twice.

    A flow makes it and gives it along with asks, the model keeps its KV cache in it, and the driver closes it when the
    flow has ended. Asks with one session come one after another.

    Attributes:
        state: The model's own; None if it has read nothing, or keeps nothing.
    """

    def __init__(self) -> None:
        self.state: Any = None

    def close(self) -> None:
        """Free what is kept."""
        self.state = None


class Progress:
    """How far a model has come with an ask, for whoever accounts for one that gave no answer.

    Attributes:
        paid: What has been used before the call that is under way, or by one whose answer is of no use; None for
            nothing.
        asked: What that call asks, in the place of the ask itself; None if it is that.
        busy_s: Seconds that were computed for it, its share of those that several shared, where the model knows.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.paid: Usage | None = None
        self.asked: Generate | None = None

    def now(self, asked: Generate, paid: Usage) -> None:
        """It asks this next, after calls that used `paid`."""
        self.paid, self.asked = (self.paid or Usage()) + paid, asked


@quick_init
@dataclass(frozen=True)
class Prefill:
    """One forward pass over the prompt, and over what has been written of the answer.

    Answered with: `Prefilled`.

    Attributes:
        model: Who is asked.
        request: The question.
        layers: Blocks (1 to their number) whose output at the last prompt token is wanted.
        labels: Answer labels whose first-token log-probabilities are wanted.
        session: What the model has read before; only what is new is read.
        tokens: Whether the log-probabilities of the written text's new tokens are wanted (with a `session`).
        following: Whether it is wanted what the model expects next.
        progress: Of a model that pays for the reading.
        gate: Ends the pass where nobody needs the rest. For models with `Capability.stops`, which may go on all the
            same, as with a `session`; `Prefilled.depth` tells whether it has ended.
    """

    model: LanguageModel
    request: Request
    layers: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    session: Session | None = None
    tokens: bool = False
    following: bool = False
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)
    gate: Gate | None = field(default=None, repr=False, compare=False)


@quick_init
@dataclass(frozen=True)
class Generate:
    """An answer to the request.

    Answered with: `Response`.

    Attributes:
        model: Who is asked.
        request: The question.
        prefilled: Where to continue from; without it, the model reads the prompt itself.
        logprobs: Whether the tokens' log-probabilities are wanted.
        top_logprobs: How many alternatives at each position.
        watch: Ends or releases the answer early; None if only the whole can be judged.
        live: Nothing can withdraw this answer, unless it is empty: stream it as it comes.
        final: Nothing can take its place either, if it is empty or fails: stream its thoughts, too.
        session: What the model has read before. The response is then raw text, thoughts and their marks included.
        until: The response ends behind the token with which this text is complete, and its `finish_reason` is then
            "step"; the text is part of it. "" for none. For models with `Capability.continues`. Of several asks in one
            call, a model may end those that are left over with "paused", to be asked again for what follows.
        followed: A signal may ask something else in the conversation that this answers (`Signal.follows_up`).
        aside: It is asked for a signal, about an answer: nobody is shown what comes.
        layers: Blocks whose output at the last prompt token is wanted with the answer (`Response.hidden_states`). For
            models with `Capability.states_with_answer`; such an answer comes whole.
        progress: Of a model that asks others; theirs, too, of an ask that is made of this one by `dataclasses.replace`.
    """

    model: LanguageModel
    request: Request
    prefilled: Prefilled | None = None
    logprobs: bool = True
    top_logprobs: int = 0
    watch: Watch | None = None
    live: bool = False
    final: bool = False
    session: Session | None = None
    until: str = ""
    followed: bool = False
    aside: bool = False
    layers: tuple[int, ...] = ()
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)


Ask: TypeAlias = Prefill | Generate


@quick_init
@dataclass(frozen=True)
class Answer(Generic[T]):
    """A value, or the error that came instead.

    Attributes:
        value: What was asked for.
        error: Why it did not come.
        elapsed_s: Seconds from the call to its answer.
        busy_s: This ask's share of those seconds: of a call for eight queries, an eighth.
        usage: What an ask that ended in an error has cost, as far as it is known.
    """

    value: T | None = None
    error: Exception | None = None
    elapsed_s: float = 0.0
    busy_s: float = 0.0
    usage: Usage | None = None

    def unwrap(self) -> T:
        """The value; raises the error inside the flow, which then decides."""
        if isinstance(self.error, StopIteration | StopAsyncIteration):  # which no generator lets through
            raise ModelError("The model raised StopIteration: it has no more answers.") from self.error
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # an answer without error has one


class Left(BaseException):
    """Thrown into a flow that nobody waits for any more.

    Attributes:
        answers: To the open asks, as far as they have come: a `Response` of what was said so far, or no value.
    """

    def __init__(self, answers: Sequence[Answer[Any]] = ()) -> None:
        super().__init__()
        self.answers = tuple(answers)


Flow: TypeAlias = Generator[tuple[Ask, ...], tuple[Answer[Any], ...], T]


def ask(one: Ask) -> Generator[tuple[Ask, ...], tuple[Answer[Any], ...], Answer[Any]]:
    """Ask a single thing: ``answer = yield from ask(Generate(...))``."""
    (answer,) = yield (one,)
    return answer


@quick_init
@dataclass(frozen=True)
class Capability:
    """What a model can tell about itself and its answers, as far as it is known before asking.

    Attributes:
        logprobs: Log-probabilities of the tokens it generates; None if only an answer will tell.
        top_logprobs: Most alternatives it tells at each position.
        layers: Number of its blocks, if it gives hidden states; 0 means none.
        hidden_size: Their dimension.
        engine: The kind of server that gives the hidden states, such as "vllm": each reading of a prompt is then a call
            of its own, which is paid for. "" where they are computed in this process.
        served_layers: Of an `engine`, the blocks whose hidden states it gives, in its order.
        normalised: Whether the state of the last block comes behind the model's final norm.
        states_with_answer: Whether an `engine` gives the prompt's states with an answer, too (`Generate.layers`).
        stops: Whether a pass over a prompt ends where its gate says so (`Prefill.gate`).
        prompt_labels: Whether it answers `Prefill` even if it gives no hidden states: with labels' log-probabilities.
        batch_size: How many asks it answers in one call. A model of 1 that does not prefill is behind an API, and asked
            for many answers at once, unless it is `in_process`; any other computes in this process, one call at a time.
        tools: Whether it can be given tools; one that cannot is never asked without them instead.
        tool_history: Whether it reads the calls of tools that a conversation holds; one that does not is never asked
            without them instead.
        structured: Whether it can be asked for structured output.
        media: Whether it is given the framework's own messages, and so what they hold beyond text.
        context_window: Most tokens of prompt and answer together; None if unknown.
        remedy: What to do where it returns no log-probabilities, in one sentence, if its adapter knows.
        set_per_call: Whether it takes settings such as a temperature with each call; else it may know them only as its
            own, and be set where it is made.
        in_process: That it computes in this process, where `batch_size` and prefilling do not say so.
        continues: Whether it goes on writing an answer that has been begun, by itself or another (`Request.written`),
            and ends where asked to (`Generate.until`). With `prefill`, it also keeps what it has read (`Session`).
        reads: Whether it tells the log-probabilities of what was written (`Prefill.tokens`) although it tells nothing
            else of a prompt, as some servers do. It keeps nothing: each reading is paid for as a whole.
    """

    logprobs: bool | None = False
    top_logprobs: int = 0
    layers: int = 0
    hidden_size: int = 0
    engine: str = ""
    served_layers: tuple[int, ...] = ()
    normalised: bool = False
    states_with_answer: bool = False
    stops: bool = False
    prompt_labels: bool = False
    batch_size: int = 1
    tools: bool = False
    tool_history: bool = True
    structured: bool = False
    media: bool = False
    context_window: int | None = None
    remedy: str = ""
    set_per_call: bool = True
    in_process: bool = False
    continues: bool = False
    reads: bool = False

    @property
    def prefill(self) -> bool:
        """Whether it reads prompts in this process, and so answers every `Prefill`.

        A server that gives hidden states (`engine`) answers only those that ask for `layers`.
        """
        return (self.layers > 0 and not self.engine) or self.prompt_labels

    @property
    def local(self) -> bool:
        """Whether it computes in this process, and so shares the machine with all others that do."""
        return self.in_process or self.batch_size > 1 or self.prefill


@quick_init
@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer.

    Attributes:
        text: What it adds to the answer.
        tokens: Its tokens, where the model tells their log-probabilities.
        released: Nothing can withdraw it, nor what follows: it may be shown.
        calls_tool: It adds to a call of a tool, which is an answer even without text.
        native: The framework's own chunk, carried through untouched.
        thoughts: What it adds to the thoughts, where they are told apart from the text.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    released: bool = False
    calls_tool: bool = False
    native: Any = None
    thoughts: str = ""

    def as_released(self) -> Chunk:
        """The same, which may be shown."""
        return Chunk(self.text, self.tokens, True, self.calls_tool, self.native, self.thoughts)


@runtime_checkable
class LanguageModel(Protocol):
    """A model as the drivers see it: lists of asks in, lists of answers out, in the same order.

    A method may raise for all asks of a call, or return an exception in the place of one answer.  The stream methods
    yield `Chunk` objects and, last, the `Response`.  Whoever generates obeys the ask's watch (`Watcher`).
    """

    @property
    def name(self) -> str:
        """Shown in records, and part of a policy's id."""

    @property
    def capability(self) -> Capability:
        """What it can tell."""

    @property
    def architecture(self) -> Architecture | None:
        """For costs in FLOPs; None if unknown."""

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        """Read prompts, no more than `Capability.batch_size` of them; only called if it can."""

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        """Answer, no more than `Capability.batch_size` asks."""

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        """Answer piece by piece: the same answer as `generate` gives."""

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        """`prefill`, without blocking the event loop."""

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        """`generate`, without blocking the event loop."""

    def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        """`stream`, without blocking the event loop."""


@runtime_checkable
class SelfBatching(Protocol):
    """A model that batches asks by itself, whoever brings them, so that each may come on its own."""

    def submit(self, ask: Ask) -> Future[Any]:
        """Let it answer, and return at once; the result is a value, or an exception as a value.

        Cancelling the future gives the answer up.
        """
