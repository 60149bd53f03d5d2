"""What holds for every model: the contract of `LanguageModel`, checked on one request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from confcascade.answers import parted
from confcascade.asks import Chunk, Generate, LanguageModel, Prefill, Session
from confcascade.testing.scripted import words_of
from confcascade.types import Prefilled, Request, Response, Usage

__all__ = ["check_model"]


def check_model(model: LanguageModel, request: Request) -> None:
    """Check that `model` keeps the contract of `LanguageModel` on a request that it can answer.

    What it generates, streams and generates from a prefilled prompt, synchronously or not, must be the same answer. If
    it continues answers: so must what it writes in parts.

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
    if model.capability.engine:
        layers = model.capability.served_layers
        (served,) = model.prefill([Prefill(model, request, layers=layers)])
        assert isinstance(served, Prefilled), f"prefill must answer with Prefilled, gave {served!r}"
        shapes, size = {state.shape for state in served.hidden_states.values()}, model.capability.hidden_size
        assert shapes <= {(size,)}, f"a hidden state must have the shape ({size},), has {shapes}"
        assert served.apart, "a server reads the prompt again for the answer, so `Prefilled.apart` must be true"
    if model.capability.stops:
        _check_stops(model, request, whole)
    if model.capability.continues:
        _check_continues(model, request)
    answered = parted(request, whole).tokens or ()  # a watch reads those of the answer, once they have a text
    if any(token.text for token in answered[:-1] or answered):
        (*_, aborted) = model.stream(Generate(model, request, watch=lambda _: "abort"))
        assert isinstance(aborted, Response), f"the last item of an aborted stream must be the Response, is {aborted!r}"
        assert aborted.finish_reason == "aborted", "a watch that aborts must end the answer"


def _check_stops(model: LanguageModel, request: Request, whole: Response) -> None:
    """A pass ends behind the block where its gate says so, and one that it lets through changes nothing."""
    layers = tuple(sorted({1, model.capability.layers}))
    for ends in (True, False):
        shown: list[Mapping[int, Any]] = []

        def gate(hidden_states: Mapping[int, Any], shown: list[Any] = shown, ends: bool = ends) -> bool:
            shown.append(hidden_states)
            return not ends

        (read,) = model.prefill([Prefill(model, request, layers=layers, gate=gate)])
        assert isinstance(read, Prefilled), f"a prefill with a gate must answer with Prefilled, gave {read!r}"
        expected = [layers[:1]] if ends else [layers[: i + 1] for i in range(len(layers))]
        assert [tuple(sorted(states)) for states in shown] == expected, (
            "a gate must be shown the wanted layers one by one, from the lowest up, until it ends the pass"
        )
        if ends:
            depth = 1 / model.capability.layers
            assert read.depth == depth, f"a pass that ended behind block 1 has the depth {depth}, tells {read.depth}"
            assert tuple(read.hidden_states) == layers[:1], "a pass that was ended gives the hidden states up to there"
        else:
            assert read.depth is None, "a pass that went on to its end has no depth"
            (continued,) = model.generate([Generate(model, request, prefilled=read)])
            assert isinstance(continued, Response), f"behind a gate, generate gave {continued!r}"
            assert continued.text == whole.text, "generation behind a gate differs"
        read.close()


def _check_continues(model: LanguageModel, request: Request) -> None:
    """What was written is not repeated, and an answer in steps is the answer, if it is as probable each time."""

    sessions: list[Session] = []

    def given(written: str, until: str, session: Session | None = None) -> Generate:
        sessions.append(session or Session())
        return Generate(model, replace(request, written=written), session=sessions[-1], until=until)

    def one(ask: Generate) -> Response:
        (response,) = model.generate([ask])
        assert isinstance(response, Response), f"an answer that was begun must be continued, gave {response!r}"
        return response

    whole = one(given("", ""))
    pieces = [token.text for token in whole.tokens or ()]
    pieces = pieces if "".join(pieces) == whole.text else words_of(whole.text)
    # bytes that are no text cannot be written down, and gone on with
    if len(pieces) > 1 and whole.text.strip() and "\ufffd" not in whole.text:
        half = len(pieces) // 2
        written = "".join(pieces[:half])
        rest = one(given(written, "")).text
        assert _goes_on(whole, written + rest), f"{written!r} was continued with {rest!r}, the whole is {whole.text!r}"

        until = next(piece for piece in (*pieces[half - 1 : -1], *pieces) if piece.strip())
        first = one(given("", until))
        assert first.finish_reason == "step", f"{until!r} did not end a step of {whole.text!r}, gave {first!r}"
        last = first.tokens[-1].text if first.tokens else first.text[-1:]
        assert until in first.text, f"a step must end behind {until!r}, is {first.text!r}"
        assert until not in first.text.removesuffix(last), f"{first.text!r} goes on behind {until!r}"
        *chunks, streamed = model.stream(given("", until))
        assert isinstance(streamed, Response), f"the last item of a stream must be the Response, is {streamed!r}"
        assert (streamed.text, streamed.finish_reason) == (first.text, "step"), f"the step was streamed as {streamed!r}"
        text = "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
        assert text == first.text, f"the chunks {text!r} do not add up to the step {first.text!r}"

        session, answer, step = Session(), first.text, first
        while step.finish_reason == "step" and len(answer) < len(whole.text):
            step = one(given(answer, until, session))
            answer += step.text
        assert _goes_on(whole, answer), f"in steps the answer is {answer!r}, the whole is {whole.text!r}"
    for each in sessions:
        each.close()


def _goes_on(whole: Response, answer: str) -> bool:
    """Whether this is the whole answer, or goes on where the whole was cut."""
    return answer == whole.text or (whole.finish_reason == "length" and answer.startswith(whole.text))


def _counted(response: Response) -> Usage:
    """Without what a provider counts apart: what it reads from its cache depends on the calls before."""
    return replace(response.usage, input_details={}, output_details={})
