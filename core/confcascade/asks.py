"""What a flow may ask of the world, and what it is answered.

A flow is a generator: it yields a tuple of asks and is sent a tuple of `Answer`, one for each, in order. It never
awaits, never reads a clock and never touches a model; a driver does.

    def flow() -> Flow[str]:
        (answer,) = yield (Generate(model, request),)
        return answer.unwrap().text
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from confcascade.types import Prefilled, Request, Token

if TYPE_CHECKING:
    from confcascade.models import LanguageModel

__all__ = ["Answer", "Ask", "Flow", "Generate", "Prefill", "Verdict", "Watch", "ask"]

T = TypeVar("T")
Verdict = Literal["hold", "release", "abort"]


class Watch(Protocol):
    """Decides from the tokens so far whether an answer can still be withdrawn.

    A verdict other than "hold" is final: "abort" means that the finished answer would be rejected, "release" that it
    would be accepted, whatever tokens follow.
    """

    def __call__(self, tokens: Sequence[Token]) -> Verdict: ...


@dataclass(frozen=True)
class Prefill:
    """One forward pass over the prompt.

    Answered with: `Prefilled`.

    Attributes:
        model: Who is asked.
        request: The question.
        layers: Blocks (1 to their number) whose output at the last prompt token is wanted.
        labels: Answer labels whose first-token log-probabilities are wanted.
    """

    model: LanguageModel
    request: Request
    layers: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()


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
        live: Nothing can withdraw this answer: stream it as it comes.
    """

    model: LanguageModel
    request: Request
    prefilled: Prefilled | None = None
    logprobs: bool = True
    top_logprobs: int = 0
    watch: Watch | None = None
    live: bool = False


Ask: TypeAlias = Prefill | Generate


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A value, or the error that came instead.

    Attributes:
        value: What was asked for.
        error: Why it did not come.
        elapsed_s: Seconds from the call to its answer.
        busy_s: This ask's share of those seconds: of a call for eight queries, an eighth.
    """

    value: T | None = None
    error: Exception | None = None
    elapsed_s: float = 0.0
    busy_s: float = 0.0

    def unwrap(self) -> T:
        """The value; raises the error inside the flow, which then decides."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # an answer without error has one


Flow: TypeAlias = Generator[tuple[Ask, ...], tuple[Answer[Any], ...], T]


def ask(one: Ask) -> Generator[tuple[Ask, ...], tuple[Answer[Any], ...], Answer[Any]]:
    """Ask a single thing: ``answer = yield from ask(Generate(...))``."""
    (answer,) = yield (one,)
    return answer
