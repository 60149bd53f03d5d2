from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from confcascade import (
    ConfigurationError,
    Message,
    MissingExtraError,
    ModelError,
    OpenAICompatibleModel,
    Request,
    TransformersModel,
)
from confcascade.asks import Generate, Prefill, Verdict
from confcascade.extending import Capability, Chunk, LanguageModel, Prefilled, Response, Token
from confcascade.models import from_string
from confcascade.models.base import InThreads, Watcher
from confcascade.models.remote import thoughts_apart
from confcascade.testing import Reply, ScriptedModel, check_model

REQUEST = Request((Message("user", "q"),))


# ---------------------------------------------------------------------- capability


@pytest.mark.parametrize(
    ("capability", "prefill", "local"),
    [
        (Capability(), False, False),
        (Capability(logprobs=True, top_logprobs=20), False, False),
        (Capability(batch_size=8), False, True),
        (Capability(prompt_labels=True), True, True),
        (Capability(layers=4, hidden_size=2, batch_size=8), True, True),
        (Capability(layers=4, hidden_size=2, batch_size=1), True, True),
    ],
)
def test_what_a_model_can_tells_where_it_runs(capability: Capability, prefill: bool, local: bool):
    """Only a model in this process shows hidden states or answers in batches, and then it shares the machine."""
    assert (capability.prefill, capability.local) == (prefill, local)


@pytest.mark.parametrize("model", [OpenAICompatibleModel, TransformersModel, ScriptedModel], ids=lambda c: c.__name__)
def test_models_have_all_methods(model: type):
    """Every model of ours has what the protocol asks for."""
    protocol = {name for name in vars(LanguageModel) if not name.startswith("_")}

    assert all(hasattr(model, name) for name in protocol)
    assert isinstance(ScriptedModel("m"), LanguageModel)
    assert not isinstance(object(), LanguageModel)


# ---------------------------------------------------------------------- watcher


def watched(*verdicts: Verdict, live: bool = False) -> tuple[Watcher, list[int]]:
    """A watcher whose watch gives these verdicts, and how many tokens it was asked with."""
    asked: list[int] = []

    def watch(tokens: Sequence[Token]) -> Verdict:
        asked.append(len(tokens))
        return verdicts[len(asked) - 1]

    return Watcher(Generate(ScriptedModel("m"), REQUEST, watch=watch, live=live)), asked


TOKENS = [Token("x", -0.1)] * 9


@pytest.mark.parametrize("final", ["abort", "release"])
def test_a_verdict_is_final(final: Verdict):
    """A watch is asked until it decides, and never again."""
    watcher, asked = watched("hold", "hold", final)

    seen = [watcher.see(TOKENS[: i + 1]) for i in range(5)]

    assert seen == ["hold", "hold", final, final, final]
    assert asked == [1, 2, 3]
    assert watcher.verdict == final


def test_a_live_answer_is_not_watched():
    """What nothing can withdraw is released from the start."""
    watcher, asked = watched(live=True)

    assert watcher.verdict == watcher.see(TOKENS[:1]) == "release"
    assert asked == []


def test_an_unwatched_draft_is_held():
    """Without a watch, an answer is held to its end."""
    watcher = Watcher(Generate(ScriptedModel("m"), REQUEST))

    assert [watcher.see(TOKENS[: i + 1]) for i in range(3)] == ["hold"] * 3


# ---------------------------------------------------------------------- blocking


class Local(InThreads, ScriptedModel):  # type: ignore[misc]
    """Notes which threads it computes in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threads: set[int] = set()

    def prefill(self, asks: Sequence[Prefill]) -> list[Prefilled | Exception]:
        self.threads.add(threading.get_ident())
        return super().prefill(asks)

    def _stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        for item in super()._stream(ask):
            self.threads.add(threading.get_ident())
            yield item


def local(**reply: Any) -> Local:
    said = Reply(**{"text": "one two three", "hidden": (1, 2), **reply})
    return Local("m", {"q": said}, hidden_size=2, batch_size=2)


def test_a_blocking_model_keeps_the_contract():
    """The asynchronous half that `InThreads` adds gives the same answers as the synchronous one."""
    check_model(local(), REQUEST)


async def test_a_blocking_model_computes_in_other_threads():
    """Nothing of it runs in the thread of the event loop."""
    model = local()
    (prefilled,) = await model.aprefill([Prefill(model, REQUEST, (1,))])
    await model.agenerate([Generate(model, REQUEST, prefilled=prefilled)])  # type: ignore[arg-type]
    items = [item async for item in model.astream(Generate(model, REQUEST))]

    assert [getattr(item, "text", None) for item in items] == ["one", " two", " three", "one two three"]
    assert model.threads
    assert threading.get_ident() not in model.threads


async def test_a_blocking_models_errors_arrive():
    """An exception in the middle of a stream reaches whoever reads it."""
    model = local(error=ModelError("cut"), after=2)
    stream = model.astream(Generate(model, REQUEST))

    assert [(await anext(stream)).text for _ in range(2)] == ["one", " two"]
    with pytest.raises(ModelError, match="cut"):
        await anext(stream)


async def test_a_blocking_stream_can_be_left():
    """A reader who leaves ends the model's own stream."""
    closed = threading.Event()

    class Closing(Local):
        def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
            try:
                yield from super().stream(ask)
            finally:
                closed.set()

    model = Closing("m", {"q": "one two three"}, batch_size=2)
    stream = model.astream(Generate(model, REQUEST))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)

    assert closed.is_set()


# ---------------------------------------------------------------------- strings


def test_a_string_becomes_a_model(monkeypatch):
    """ "openai:NAME" is a model of OpenAI's; everything after the first colon is its name."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    model = from_string("openai:ft:gpt-4o-mini:mine")

    assert isinstance(model, OpenAICompatibleModel)
    assert model.name == "ft:gpt-4o-mini:mine"


@pytest.mark.parametrize(
    "wrong", ["", ":", "gpt-4o", "openai:", "local:", "llamacpp:", "OpenAI:gpt-4o", "hf:qwen", "bundled:"]
)
def test_other_strings_are_refused(wrong: str):
    """Every other string is an error that shows it, and the forms there are."""
    with pytest.raises(ConfigurationError) as raised:
        from_string(wrong)

    assert f'Got "{wrong}"' in str(raised.value)
    assert '"bundled:SIZE", "local:FOLDER_OR_NAME", "llamacpp:FILE.gguf" or "openai:NAME"' in str(raised.value)


def test_a_bare_gguf_file_is_told_its_two_ways_in():
    with pytest.raises(ConfigurationError, match=r'Did you mean "llamacpp:m\.gguf" or "local:m\.gguf"\?'):
        from_string("m.gguf")


def test_a_string_becomes_a_bundled_model():
    """ "bundled:SIZE" is the demo's model, weights and settings; there is no fourth size."""
    pytest.importorskip("torch")
    from confcascade.models.bundled import bundled_model

    model, own = from_string("bundled:small"), bundled_model("small")

    assert (model.name, model.capability, model.fingerprint) == (own.name, own.capability, own.fingerprint)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"small, medium, large\. Got 'tiny'"):
        from_string("bundled:tiny")


@pytest.mark.parametrize(
    ("model", "module"), [("openai:gpt-4o", "openai"), ("local:qwen", "torch"), ("llamacpp:m.gguf", "xllamacpp")]
)
def test_a_missing_package_is_named(monkeypatch, model: str, module: str):
    """Where the extra is not installed, the error names the pip command."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError, match="pip install"):
        from_string(model)


@pytest.mark.parametrize(
    ("fields", "content", "thoughts"),
    [
        ({"reasoning_content": "hm"}, "4", "hm"),  # SGLang, llama.cpp, DeepSeek
        (SimpleNamespace(reasoning="hm", content="4"), "4", "hm"),  # vLLM, OpenRouter
        ({"thinking": "hm"}, "4", "hm"),  # Ollama
        ({}, [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}], "hm"),
        ({}, [SimpleNamespace(type="thinking", thinking="hm")], "hm"),
        ({}, [{"type": "reasoning", "reasoning": "hm"}], "hm"),
        ({"reasoning": {"effort": "low"}, "reasoning_content": ""}, "4", ""),
        (None, None, ""),
    ],
)
def test_thoughts_are_read_where_each_server_puts_them(fields, content, thoughts):
    """By every client alike; what is no text is none."""
    assert thoughts_apart(fields, content) == thoughts
