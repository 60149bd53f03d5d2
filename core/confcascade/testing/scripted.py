"""A model that follows a script: what a test wants it to say, as a real model would say it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confcascade.asks import Capability, Chunk, Generate, Prefill
from confcascade.cost import Architecture
from confcascade.errors import ModelError
from confcascade.models.base import Watcher
from confcascade.models.remote import check_continues
from confcascade.tools import json_problem
from confcascade.types import Position, Prefilled, Request, Response, Token, ToolCall, Usage

__all__ = ["Reply", "ScriptedModel", "words_of"]


@dataclass(frozen=True)
class Reply:
    """What a `ScriptedModel` says to one query.

    Attributes:
        text: The answer.
        probability: Of its tokens (one per word): one number for all or one for each; None gives no log-probabilities.
        labels: Probability of each label as the first token.
        hidden: Hidden state of the last prompt token, the same at every layer.
        error: Raised instead of generating.
        after: With `error`, how many words are generated before it.
        delay_s: Seconds before the answer.
        tool_calls: Calls to make: `text` is then how the model writes them, whose tokens are told but never shown.
        max_logit: Greatest raw logit where each token stands: one number for all or one for each; by default the
            token's log-probability.
        entropy: Of what the model expects next, in nats; by default -log of the next token's probability.
    """

    text: str
    probability: float | Sequence[float] | None = 0.99
    labels: Mapping[str, float] = field(default_factory=dict)
    hidden: Sequence[float] = ()
    error: Exception | None = None
    after: int = 0
    delay_s: float = 0.0
    tool_calls: Sequence[ToolCall] = ()
    max_logit: float | Sequence[float] | None = None
    entropy: float | None = None

    @property
    def words(self) -> list[str]:
        return re.findall(r"\s*\S+", self.text)

    @property
    def tokens(self) -> tuple[Token, ...] | None:
        if self.probability is None:
            return None
        words = self.words
        p = [self.probability] * len(words) if isinstance(self.probability, int | float) else self.probability
        top = tuple((label, math.log(value)) for label, value in self.labels.items())
        return tuple(
            Token(word, math.log(value), top if i == 0 else ())
            for i, (word, value) in enumerate(zip(words, p, strict=True))
        )

    def token(self, index: int, text: str) -> Token:
        """The one at a place in its words, or a text that another wrote there, as this model sees it.

        Where there are fewer probabilities, the last one stands for all that follow.
        """
        p = _at(self.probability, index)
        logprob = math.log(0.99 if p is None else p)
        logit = _at(self.max_logit, index)
        return Token(text, logprob, max_logit=logprob if logit is None else logit)


def _at(values: float | Sequence[float] | None, index: int) -> float | None:
    if values is None or isinstance(values, int | float):
        return values
    return values[min(index, len(values) - 1)] if values else None


class _State:
    """Stands for a KV cache; counts how many are open.

    Attributes:
        read: Of the answer, the text that is in it; None before the prompt is.
    """

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self.read: str | None = None
        self.open = True
        model.open_caches += 1
        model.most_open_caches = max(model.most_open_caches, model.open_caches)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._model.open_caches -= 1

    __del__ = close  # a session that is closed lets go of it


class ScriptedModel:
    """A model that follows a script; real in every other respect: it streams, batches, prefills and obeys watches.

    It tells log-probabilities only if asked for them, and refuses to continue from a prefill that was closed. One that
    continues answers gives the rest of its reply behind what was written; if another wrote that, the reply goes on with
    the step of the same number. What a function makes of a request with `Request.written` is what follows, unless it
    begins with what was written. In a session, only the words that are new are read, and paid for.

    Args:
        name: Its name.
        script: Replies by the last message's text (a `Reply`, a text, or a pair of text and probability), or a function
            from `Request` to one. A query that is not in the script is answered with ``"NAME: QUERY"``.
        hidden_size: Dimension of the hidden states; 0 means that it gives none.
        logprobs: See `Capability`; False gives none, whatever the script says.
        batch_size: See `Capability`.
        tools: Whether it can be given tools.
        structured: Whether it can be asked for structured output; its text is then judged as JSON.
        architecture: For costs in FLOPs.
        continues: See `Capability`; with a `hidden_size`, it keeps what it has read in sessions.

    Attributes:
        calls: Every call: a tuple of the asks that came together.
        open_caches: Prefilled prompts and sessions that nobody has closed.
        most_open_caches: The most there ever were.
    """

    def __init__(
        self,
        name: str,
        script: Mapping[str, Any] | Callable[[Request], Any] | None = None,
        *,
        hidden_size: int = 0,
        logprobs: bool | None = True,
        batch_size: int = 1,
        tools: bool = False,
        structured: bool = False,
        architecture: Architecture | None = None,
        continues: bool = False,
    ) -> None:
        self._name = name
        self._script = script or {}
        self._architecture = architecture
        self._capability = Capability(
            logprobs=logprobs,
            top_logprobs=20 if logprobs else 0,
            layers=4 if hidden_size else 0,
            hidden_size=hidden_size,
            batch_size=batch_size,
            tools=tools,
            structured=structured,
            continues=continues,
        )
        self.calls: list[tuple[Prefill | Generate, ...]] = []
        self.open_caches = 0
        self.most_open_caches = 0

    def __repr__(self) -> str:
        return f"ScriptedModel({self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return f"scripted-{self._name}"

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def architecture(self) -> Architecture | None:
        return self._architecture

    def reply(self, request: Request) -> Reply:
        """What the script says to `request`."""
        query = request.messages[-1].content
        said = self._script(request) if callable(self._script) else self._script.get(query, f"{self._name}: {query}")
        if isinstance(said, str):
            return Reply(said)
        return said if isinstance(said, Reply) else Reply(*said)

    # ------------------------------------------------------------------ LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        import numpy as np

        self.calls.append(tuple(asks))
        found: list[Prefilled | Exception] = []
        for ask in asks:
            check_continues(ask)
            reply = self.reply(ask.request)
            state = np.asarray(reply.hidden, dtype=np.float32)
            new, prompt = self._newly_read(ask)
            written = ask.request.written
            before = len(words_of(written[: len(written) - len(new)]))
            following: Position | None = None
            if ask.following:
                token = reply.token(len(words_of(written)), "")
                entropy = -token.logprob if reply.entropy is None else reply.entropy
                following = Position(entropy, token.max_logit)
            found.append(
                Prefilled(
                    usage=Usage(prompt + len(words_of(new)), 0),
                    hidden_states=dict.fromkeys(ask.layers, state),
                    label_logprobs={label: math.log(reply.labels.get(label, 1e-9)) for label in ask.labels},
                    tokens=tuple(reply.token(before + i, word) for i, word in enumerate(words_of(new)) if ask.tokens),
                    following=following,
                    state=None if self._keeps(ask) else _State(self),
                )
            )
        return found

    def _keeps(self, ask: Prefill | Generate) -> bool:
        return ask.session is not None and self._capability.continues and self._capability.prefill

    def _newly_read(self, ask: Prefill | Generate) -> tuple[str, int]:
        """What of the text before its own is new to this model, and how many tokens of the prompt are."""
        written, prompt = ask.request.written, _prompt_tokens(ask.request)
        if not self._keeps(ask):
            return written, prompt
        assert ask.session is not None
        if ask.session.state is None:
            ask.session.state = _State(self)
        read, ask.session.state.read = ask.session.state.read, written
        if read is None:
            return written, prompt
        same = next((i for i, pair in enumerate(zip(read, written, strict=False)) if pair[0] != pair[1]), None)
        return written[min(len(read), len(written)) if same is None else same :], 0

    def generate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        self.calls.append(tuple(asks))
        answers: list[Response | Exception] = []
        for ask in asks:
            try:
                *_, response = self._stream(ask)
            except Exception as error:
                answers.append(error)
            else:
                assert isinstance(response, Response)
                answers.append(response)
        return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        self.calls.append((ask,))
        yield from self._stream(ask)

    async def aprefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        return self.prefill(asks)

    async def agenerate(self, asks: Sequence[Generate]) -> list[Response | Exception]:
        await asyncio.sleep(max(self.reply(ask.request).delay_s for ask in asks))
        return self.generate(asks)

    async def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        await asyncio.sleep(self.reply(ask.request).delay_s)
        for item in self.stream(ask):
            await asyncio.sleep(0)
            yield item

    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        check_continues(ask)
        reply = self.reply(ask.request)
        if ask.prefilled is not None and not ask.prefilled.state.open:
            raise ModelError("This prefill was closed.")
        if reply.delay_s:
            try:
                asyncio.get_running_loop()  # the asynchronous methods have waited already
            except RuntimeError:
                time.sleep(reply.delay_s)
        new, prompt = self._newly_read(ask)
        prompt, watcher = prompt + len(words_of(new)), Watcher(ask)
        words, tokens = self._rest(reply, ask)
        limit = len(words) if ask.request.max_tokens is None else ask.request.max_tokens
        for i, word in enumerate(words[:limit]):
            if reply.error is not None and i >= reply.after:
                raise reply.error
            if self._keeps(ask):
                ask.session.state.read += word  # type: ignore[union-attr]
            verdict = watcher.see(tokens[: i + 1]) if tokens is not None else watcher.verdict
            shown = "" if reply.tool_calls else word
            yield Chunk(shown, () if tokens is None else tokens[i : i + 1], released=verdict == "release")
            if verdict == "abort":
                text = "".join(words[: i + 1])
                yield Response(text, tokens and tokens[: i + 1], Usage(prompt, i + 1), "aborted")
                return
            if ask.until and ask.until in "".join(words[: i + 1]):
                yield Response("".join(words[: i + 1]), tokens and tokens[: i + 1], Usage(prompt, i + 1), "step")
                return
        if reply.error is not None:
            raise reply.error
        reason = "length" if limit < len(words) else "tool_calls" if reply.tool_calls else "stop"
        text, wanted = "" if reply.tool_calls else "".join(words[:limit]), ask.request.output
        yield Response(
            text,
            tokens and tokens[:limit],
            Usage(prompt, min(limit, len(words))),
            reason,
            tool_calls=tuple(reply.tool_calls),
            problem=None if wanted is None else json_problem(text, wanted),
        )

    def _rest(self, reply: Reply, ask: Generate) -> tuple[list[str], tuple[Token, ...] | None]:
        """What follows what was written, in words and, where they are told, in tokens."""
        told = reply.tokens if ask.logprobs and self._capability.logprobs is not False else None
        tokens = None if told is None else [replace(token, top=token.top[: ask.top_logprobs]) for token in told]
        if not self._capability.continues:
            return reply.words, None if tokens is None else tuple(tokens)
        written, until = ask.request.written, ask.until or "\n\n"
        start = len(written) if reply.text.startswith(written) else 0
        if not start and written and not callable(self._script):
            steps = reply.text.split(until)
            start = len(until.join([*steps[: written.count(until)], ""]))
        words: list[str] = []
        kept: list[Token] = []
        at = 0
        for i, word in enumerate(words_of(reply.text, until)):
            at += len(word)
            if at > start:
                words.append(word[max(0, start - at + len(word)) :])
                if tokens is not None:
                    kept.append(replace(tokens[i], text=words[-1], max_logit=reply.token(i, "").max_logit))
        return words, None if tokens is None else tuple(kept)


def words_of(text: str, until: str = "\n\n") -> list[str]:
    """Words with the blanks before them, but a delimiter or blanks at the end stand behind one: they add up to it."""
    words = re.findall(r"\s*\S+", text)
    rest = text[len("".join(words)) :]
    if rest and words:
        words[-1] += rest
    elif rest:
        words = [rest]
    for i in range(1, len(words) if not until.strip() else 0):
        if words[i].startswith(until):
            words[i - 1], words[i] = words[i - 1] + until, words[i].removeprefix(until)
    return words


def _prompt_tokens(request: Request) -> int:
    return sum(len(message.content.split()) + 1 for message in request.messages)
