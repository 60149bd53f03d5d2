"""For tests, ours and others': a model that follows a script, and checks that hold for every model and signal."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from confcascade.answers import parted
from confcascade.asks import Capability, Chunk, Generate, LanguageModel, Prefill
from confcascade.cost import Architecture
from confcascade.errors import ModelError
from confcascade.models.base import Watcher
from confcascade.tools import json_problem
from confcascade.types import Prefilled, Request, Response, Token, ToolCall, Usage

__all__ = ["Reply", "ScriptedModel", "check_model", "same_record"]


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
    """

    text: str
    probability: float | Sequence[float] | None = 0.99
    labels: Mapping[str, float] = field(default_factory=dict)
    hidden: Sequence[float] = ()
    error: Exception | None = None
    after: int = 0
    delay_s: float = 0.0
    tool_calls: Sequence[ToolCall] = ()

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


class _State:
    """Stands for a KV cache; counts how many are open."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self.open = True
        model.open_caches += 1
        model.most_open_caches = max(model.most_open_caches, model.open_caches)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._model.open_caches -= 1


class ScriptedModel:
    """A model that follows a script; real in every other respect: it streams, batches, prefills and obeys watches.

    It tells log-probabilities only if asked for them, and refuses to continue from a prefill that was closed.

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

    Attributes:
        calls: Every call: a tuple of the asks that came together.
        open_caches: Prefilled prompts that nobody has closed.
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
            reply = self.reply(ask.request)
            state = np.asarray(reply.hidden, dtype=np.float32)
            found.append(
                Prefilled(
                    usage=Usage(_prompt_tokens(ask.request), 0),
                    hidden_states=dict.fromkeys(ask.layers, state),
                    label_logprobs={label: math.log(reply.labels.get(label, 1e-9)) for label in ask.labels},
                    state=_State(self),
                )
            )
        return found

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
        reply = self.reply(ask.request)
        if ask.prefilled is not None and not ask.prefilled.state.open:
            raise ModelError("This prefill was closed.")
        if reply.delay_s:
            try:
                asyncio.get_running_loop()  # the asynchronous methods have waited already
            except RuntimeError:
                time.sleep(reply.delay_s)
        prompt, watcher = _prompt_tokens(ask.request), Watcher(ask)
        words, tokens = reply.words, self._tokens(reply, ask)
        limit = len(words) if ask.request.max_tokens is None else ask.request.max_tokens
        for i, word in enumerate(words[:limit]):
            if reply.error is not None and i >= reply.after:
                raise reply.error
            verdict = watcher.see(tokens[: i + 1]) if tokens is not None else watcher.verdict
            shown = "" if reply.tool_calls else word
            yield Chunk(shown, () if tokens is None else tokens[i : i + 1], released=verdict == "release")
            if verdict == "abort":
                text = "".join(words[: i + 1])
                yield Response(text, tokens and tokens[: i + 1], Usage(prompt, i + 1), "aborted")
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

    def _tokens(self, reply: Reply, ask: Generate) -> tuple[Token, ...] | None:
        if not ask.logprobs or self._capability.logprobs is False or reply.tokens is None:
            return None
        return tuple(replace(token, top=token.top[: ask.top_logprobs]) for token in reply.tokens)


def _prompt_tokens(request: Request) -> int:
    return sum(len(message.content.split()) + 1 for message in request.messages)


def check_model(model: LanguageModel, request: Request) -> None:
    """Check that `model` keeps the contract of `LanguageModel` on a request that it can answer.

    What it generates, streams and generates from a prefilled prompt, synchronously or not, must be the same answer.

    Raises:
        AssertionError: Naming what does not hold.
    """
    assert isinstance(model, LanguageModel), f"{model!r} lacks a method of LanguageModel"
    (whole,) = model.generate([Generate(model, request)])
    assert isinstance(whole, Response), f"generate must answer with a Response, gave {whole!r}"
    *chunks, last = model.stream(Generate(model, request))
    assert isinstance(last, Response), f"the last item of a stream must be the Response, is {last!r}"
    assert (last.text, _counted(last)) == (whole.text, _counted(whole)), f"stream answered {last}, generate {whole}"
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
    assert text == last.text, f"the chunks {text!r} do not add up to the answer {last.text!r}"
    assert not any(isinstance(chunk, Chunk) and chunk.released for chunk in chunks), (
        "chunks were released without leave"
    )

    async def asynchronously() -> list[Any]:
        (answered,) = await model.agenerate([Generate(model, request)])
        return [answered, [item async for item in model.astream(Generate(model, request))][-1]]

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop of its own
        for answered in pool.submit(asyncio.run, asynchronously()).result():
            assert isinstance(answered, Response), f"an asynchronous answer is {answered!r}"
            assert (answered.text, _counted(answered)) == (whole.text, _counted(whole)), (
                f"asynchronously it answered {answered}, synchronously {whole}"
            )
    (*_, live) = model.stream(Generate(model, request, live=True))
    assert isinstance(live, Response), f"the last item of a live stream must be the Response, is {live!r}"
    assert live.text == whole.text, f"a live stream answered {live.text!r}, generate {whole.text!r}"
    if model.capability.logprobs:
        assert whole.tokens, "logprobs are promised, tokens are missing"
        assert all(token.logprob <= 1e-6 for token in whole.tokens), "a log-probability is positive"
        told, wanted = "".join(token.text for token in whole.tokens), whole.text
        if whole.thought_tokens is not None:  # parted already: without thoughts and blanks
            told, wanted = told.strip(), whole.answer.strip()
        assert told == wanted, "the tokens do not add up to the answer"
    if model.capability.prefill:
        layer = model.capability.layers
        (prefilled,) = model.prefill([Prefill(model, request, layers=(layer,) if layer else ())])
        assert isinstance(prefilled, Prefilled), f"prefill must answer with Prefilled, gave {prefilled!r}"
        if layer:
            shape, size = prefilled.hidden_states[layer].shape, model.capability.hidden_size
            assert shape == (size,), f"a hidden state must have the shape ({size},), has {shape}"
        (continued,) = model.generate([Generate(model, request, prefilled=prefilled)])
        assert isinstance(continued, Response), f"from a prefill, generate gave {continued!r}"
        assert (continued.text, _counted(continued)) == (whole.text, _counted(whole)), (
            "generation from a prefill differs"
        )
        prefilled.close()
        prefilled.close()  # closing twice is harmless
    answered = parted(request, whole).tokens or ()  # a watch reads those of the answer, once they have a text
    if any(token.text for token in answered[:-1] or answered):
        (*_, aborted) = model.stream(Generate(model, request, watch=lambda _: "abort"))
        assert isinstance(aborted, Response), f"the last item of an aborted stream must be the Response, is {aborted!r}"
        assert aborted.finish_reason == "aborted", "a watch that aborts must end the answer"


def _counted(response: Response) -> Usage:
    """Without what a provider counts apart: what it reads from its cache depends on the calls before."""
    return replace(response.usage, input_details={}, output_details={})


def same_record(first: Any, second: Any, tolerance: float = 1e-4) -> bool:
    """Whether two records (`Record.as_dict`) are equal, except for measured times and what was read from a cache.

    What failed attempts have cost is left out, too: of a stream that broke it is known what had come.

    Args:
        tolerance: Of scores: padding in a batch changes the last digits of floating-point sums.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = (set(first) | set(second)) - {"latency_s", "seconds", "reason", "input_details"}
        if any(each.get("decision") == "fail" for each in (first, *first.get("attempts", ()))):
            keys -= {"usage", "cost"}
        return all(key in first and key in second and same_record(first[key], second[key], tolerance) for key in keys)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(
            same_record(a, b, tolerance) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
    return bool(first == second)
