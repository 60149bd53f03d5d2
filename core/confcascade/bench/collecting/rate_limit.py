"""Between flows and the APIs that answer them: the pace that a provider allows, and patience while it is busy.

How many calls are under way at a time follows the server (`concurrency`).

The time of an answer is the provider's: neither the wait for one's turn counts nor the tries that failed (those aside
that a client makes by itself and does not tell of).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from confcascade.asks import Answer, Ask, Capability, Chunk, Flow, Generate, LanguageModel, Prefill
from confcascade.bench.collecting.concurrency import Concurrency, timed_out
from confcascade.errors import ConfcascadeError, ConfigurationError, status_of
from confcascade.models.remote import estimated_usage
from confcascade.types import Prefilled, Response, Usage

__all__ = ["CollectStoppedError", "Pace", "PacedModel", "RateLimiter", "RateLimits"]

T = TypeVar("T")
AskT = TypeVar("AskT", Prefill, Generate)
AnswerT = TypeVar("AnswerT", Prefilled, Response)

_TRIES = 7  # with waits of 1, 2, 4, ... seconds between them: two minutes, longer than limits per minute last
_LONGEST_S = 60.0
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # HTTP states that another try may heal


_BUSY = frozenset({429, 503, 529})  # HTTP states of a server that has enough to do
_STOPPED = "Collecting was stopped before this call was made."


class CollectStoppedError(ConfcascadeError):
    """A call that was waiting for its turn when collecting was stopped. It was not made."""


@runtime_checkable
class _Served(LanguageModel, Protocol):
    """A model whose server can be asked how many answers it writes at a time."""

    @property
    def timeout_s(self) -> float: ...

    def slots(self) -> int | None: ...

    def unretried(self) -> LanguageModel: ...


class RateLimits(Protocol):
    """What a provider allows; None is no limit."""

    @property
    def requests_per_minute(self) -> float | None: ...

    @property
    def tokens_per_minute(self) -> float | None: ...


class Pace:
    """When the next call may begin, so that no minute sees more than is allowed.

    Calls are spread evenly, a call of many tokens keeping the next away for longer: providers count over less than a
    minute, too, and a burst at its beginning would be refused. For many threads.

    Args:
        requests_per_minute: Most calls; None is no limit.
        tokens_per_minute: Most tokens, of prompts and answers together; None is no limit.
        clock: Seconds.

    Raises:
        ConfigurationError: If a limit is not above 0.

    >>> pace = Pace(requests_per_minute=60, clock=lambda: 0.0)
    >>> pace.reserve(tokens=10), pace.reserve(tokens=10), pace.reserve(tokens=10)
    (0.0, 1.0, 2.0)
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and not limit > 0:
                raise ConfigurationError(f"`{name}` must be above 0, or None for no limit. Got {limit!r}.")
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._by_requests = self._by_tokens = -float("inf")  # when each limit lets the next call begin

    def reserve(self, tokens: float) -> float:
        """Take the next turn, for a call of about so many tokens: seconds until it."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._by_requests, self._by_tokens)
            self._by_requests = begin + self._request_s
            self._by_tokens = begin + tokens * self._token_s
            return begin - now

    def correct(self, tokens: float) -> None:
        """So many tokens more than was thought at `reserve` (or fewer, if below 0)."""
        with self._lock:
            self._by_tokens += tokens * self._token_s

    def hold(self, seconds: float) -> None:
        """Let nobody begin for so long: the provider said that it is too much."""
        with self._lock:
            self._by_requests = max(self._by_requests, self._clock() + seconds)


class PacedModel:
    """A model behind an API, asked no faster than its limits, and again after errors that pass.

    Errors that pass are lost connections, time-outs and the HTTP states 408, 409, 425, 429, 500, 502, 503, 504 and 529
    (whichever client raises them); an exhausted quota (429 as well) does not. ``Retry-After`` is obeyed up to a minute,
    and holds up all calls to the model. A call that times out twice though no other was under way is given up.

    Args:
        model: Asked in `prefill` and `generate` only: that is all that collecting needs.
        limits: What the provider allows.
        stop: Once set, whoever waits gives up with `CollectStoppedError`.
        max_concurrency: Most calls at a time; fewer where the server answers no more of them (`Concurrency`).
        first_wait_s: Before the second try; doubled for each further one, and drawn between half and the whole.
    """

    def __init__(
        self,
        model: LanguageModel,
        limits: RateLimits | None,
        stop: threading.Event,
        *,
        max_concurrency: int = 16,
        first_wait_s: float = 1.0,
    ) -> None:
        # a client's own tries would go behind all others in the server's queue, and hide that calls time out
        self._model = model.unretried() if isinstance(model, _Served) else model
        self._served = self._model if isinstance(self._model, _Served) else None
        self._max_concurrency = max_concurrency
        self._asked_slots = threading.Lock()
        self._concurrency: Concurrency | None = None
        self._pace = Pace(limits.requests_per_minute, limits.tokens_per_minute) if limits is not None else Pace()
        self._stop = stop
        self._first_wait_s = first_wait_s
        self._answer_tokens = 0.0  # of the longest answer yet
        self.served_s: dict[int, float] = {}  # by the id of an ask in progress

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def capability(self) -> Capability:
        return self._model.capability

    @property
    def architecture(self) -> Any:
        return self._model.architecture

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return [self._one(ask, 1, self._model.prefill) for ask in asks]

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return [self._one(ask, ask.request.max_tokens or self._answer_tokens, self._model.generate) for ask in asks]

    def _one(
        self, ask: AskT, written: float, call: Callable[[Sequence[AskT]], Sequence[AnswerT | Exception]]
    ) -> AnswerT | Exception:
        tokens = estimated_usage(ask, "", ()).input_tokens + written
        late_alone = 0
        for tried in range(1, _TRIES + 1):
            self._wait(self._pace.reserve(tokens))
            if not self._turns.wait(self._stop):
                raise CollectStoppedError(_STOPPED)
            begun, alone = time.monotonic(), self._turns.limit < 2
            try:
                (answer,) = call([replace(ask, model=self._model)])
            except Exception as error:
                answer = error
            except BaseException:
                self._turns.over(begun)
                raise
            self.served_s[id(ask)] = time.monotonic() - begun
            failed = answer if isinstance(answer, Exception) else None
            self._turns.over(begun, failed, refused=failed is not None and status_of(failed) in _BUSY)
            late_alone += alone and failed is not None and timed_out(failed)
            if not isinstance(answer, Exception):
                self._answer_tokens = max(self._answer_tokens, answer.usage.output_tokens)
                self._pace.correct(answer.usage.total_tokens - tokens)
                return answer
            self._pace.correct(-tokens)
            wait = _wait_of(answer, self._first_wait_s * 2 ** (tried - 1))
            if wait is None or tried == _TRIES or late_alone > 1:
                return answer
            self._pace.hold(wait)
        raise AssertionError("the last try returns")  # pragma: no cover

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise CollectStoppedError(_STOPPED)

    @property
    def _turns(self) -> Concurrency:
        """Made with the first call: the server is asked for its slots."""
        with self._asked_slots:
            if self._concurrency is None:
                slots = None if self._served is None else self._served.slots()
                timeout_s = None if self._served is None else self._served.timeout_s
                self._concurrency = Concurrency(
                    self._model.name, self._max_concurrency, slots=slots, timeout_s=timeout_s
                )
            return self._concurrency

    # ------------------------------------------------------------------ the rest of a LanguageModel

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return self._model.stream(ask)

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return await self._model.aprefill(asks)

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return await self._model.agenerate(asks)

    def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        return self._model.astream(ask)


def _wait_of(error: Exception, otherwise_s: float) -> float | None:
    """Seconds until another try makes sense; None if none does."""
    response, status = getattr(error, "response", None), status_of(error)
    if status is None:
        lost = isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ in _LOST
        return _drawn(otherwise_s) if lost else None
    if status not in _PASSING or getattr(error, "code", None) == "insufficient_quota":
        return None
    told: Any = (getattr(response, "headers", None) or {}).get("retry-after")
    try:
        return min(_LONGEST_S, max(0.0, float(told)))
    except (TypeError, ValueError):  # none, or a date
        return _drawn(otherwise_s)


_LOST = frozenset(
    {"APIConnectionError", "APITimeoutError", "ConnectError", "ReadError", "ReadTimeout", "ConnectTimeout"}
)


def _drawn(seconds: float) -> float:
    return random.uniform(0.5, 1) * min(_LONGEST_S, seconds)  # so that threads do not come back together


class RateLimiter:
    """The way from flows to models: models behind an API are paced, and what answers used is added up.

    Args:
        limits: By the name of the model.
        stop: Once set, calls that wait for their turn are not made.
        max_concurrency: Most calls to one model at a time; fewer where its server answers no more of them.

    Attributes:
        used: Tokens by the name of the model: of every answer, those to a signal or a grader included.
        given_up: Whoever takes the rows wants no more of them.
    """

    def __init__(
        self,
        limits: Mapping[str, RateLimits] | None = None,
        stop: threading.Event | None = None,
        *,
        max_concurrency: int = 16,
    ) -> None:
        self._max_concurrency = max_concurrency
        self.limits = dict(limits or {})
        self.stop = stop or threading.Event()
        self.used: dict[str, Usage] = {}
        self.given_up = False
        self._paced: dict[int, PacedModel] = {}

    def play(self, flow: Flow[T]) -> Flow[T]:
        """`flow`, its asks going this way.

        Raises:
            CollectStoppedError: If a call of it was not made; it is not told, for it might make an answer of that.
        """
        try:
            asks = next(flow)
            while True:
                sent = tuple(self._sent(ask) for ask in asks)
                answers = yield sent
                for answer in answers:
                    if isinstance(answer.error, CollectStoppedError):
                        flow.close()
                        raise answer.error
                asks = flow.send(tuple(map(self._received, sent, answers)))
        except StopIteration as ended:
            result: T = ended.value
            return result

    def _sent(self, ask: Ask) -> Ask:
        model = ask.model
        if model.capability.local or isinstance(model, PacedModel):
            return ask
        if id(model) not in self._paced:
            limits = self.limits.get(model.name)
            self._paced[id(model)] = PacedModel(model, limits, self.stop, max_concurrency=self._max_concurrency)
        return replace(ask, model=self._paced[id(model)])

    def _received(self, ask: Ask, answer: Answer[Any]) -> Answer[Any]:
        if isinstance(answer.value, Response) or (isinstance(answer.value, Prefilled) and answer.value.apart):
            self.used[ask.model.name] = self.used.get(ask.model.name, Usage()) + answer.value.usage
        if not isinstance(ask.model, PacedModel):
            return answer
        seconds = ask.model.served_s.pop(id(ask), 0.0)  # 0 if it was not made
        return replace(answer, elapsed_s=seconds, busy_s=seconds)
