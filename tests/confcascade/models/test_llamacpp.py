"""`LlamaCppModel` against `TransformersModel` on the same weights in float32, and its life."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")
pytest.importorskip("openai")
pytest.importorskip("gguf")

from confcascade import (
    Cascade,
    ConfigurationError,
    LlamaCppModel,
    Lookback,
    Message,
    MissingExtraError,
    ModelError,
    Request,
    Stage,
    StepMixture,
    TokenProbability,
    Verbalized,
    from_string,
)
from confcascade.asks import Generate, Session
from confcascade.demo.gguf import write_gguf
from confcascade.models.bundled import WEIGHTS, bundled_model
from confcascade.testing import check_model

TEMPLATE_OF_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|user|>{{ message.content }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# the prompt opens the thoughts, and those of the last message are dropped, as DeepSeek-R1's template does
TEMPLATE_OF_THOUGHTS = (
    "{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}{% else %}<|assistant|>"
    "{{ (message.content.split('</think>') | last) | trim }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
ROUNDING = 1e-3  # thirty times what sums in another order differ by (docs/design/real-server.md)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(WEIGHTS / "small", path)
    return path


@pytest.fixture(scope="module")
def model(path):
    with LlamaCppModel(path, context=1024, max_new_tokens=64) as model:
        yield model


def request(text, **parameters):
    return Request((Message("user", text),), **parameters)


def test_it_keeps_the_contract_of_a_language_model(model, yardstick):
    """Greedy by itself: nobody asked for a temperature."""
    check_model(model, request(yardstick.prompts[0]))


@pytest.mark.parametrize("template", [None, TEMPLATE_OF_THOUGHTS], ids=["plain", "thoughts"])
def test_what_was_written_stands_behind_the_prompt_as_it_is(path, tmp_path, monkeypatch, template):
    """Nothing of it is trimmed, closed or dropped, blanks and marks included; and the response is raw text."""
    file, opened = path, ""
    if template is not None:
        shutil.copytree(WEIGHTS / "small", tmp_path / "thinking")
        (tmp_path / "thinking" / "chat_template.jinja").write_text(template)
        file, opened = tmp_path / "thinking.gguf", "<think>\n"
        write_gguf(tmp_path / "thinking", file)
    with LlamaCppModel(file, context=256, slots=1, options={"verbose": True}) as model:
        for written in ("Let me see.\n\n", " A ", "Hm.\n</think>\n\nThe ", "<think>\nHm.\n</think>\n\n"):
            ask = Generate(model, request("Who?", written=written, max_tokens=3), session=Session())
            told = model._create(model._call(ask))  # type: ignore[attr-defined]
            (response,) = model.generate([ask])

            prompt = told.model_extra["__verbose"]["prompt"].removeprefix("<|bos|>")
            assert prompt == f"<|user|>Who?<|assistant|>{opened}{written}"
            assert (response.text, response.thoughts) == (told.choices[0].text, "")


def test_an_answer_in_steps_reads_nothing_twice(model, yardstick):
    """Nothing is written behind a step, so the next call finds all but the last token in the cache of its slot."""
    asked, written, steps = request(yardstick.prompts[-1]), "", []
    (whole,) = model.generate([Generate(model, asked, session=Session())])
    assert len(whole.tokens) > 4
    until = whole.tokens[len(whole.tokens) // 2].text
    while not steps or (steps[-1].finish_reason == "step" and len(steps) < 9):
        (step,) = model.generate([Generate(model, replace(asked, written=written), until=until)])
        steps.append(step)
        written += step.text

    assert len(steps) > 1
    assert written == whole.text
    assert all("".join(token.text for token in step.tokens) == step.text for step in steps)
    for step in steps[1:]:
        assert step.usage.input_tokens - step.usage.input_details["cache_read"] <= 2
    assert not any(step.usage.estimated for step in steps)
    assert sum(step.usage.output_tokens for step in steps) == whole.usage.output_tokens


def test_it_answers_and_decides_as_the_same_weights_in_transformers(model, yardstick):
    """One by one, in batches over its slots, and streamed."""
    cascade = Cascade([Stage(model, [TokenProbability()], {"p_t": yardstick.threshold}), Stage(bundled_model("large"))])
    batch = cascade.run_batch(yardstick.prompts)
    for expected, outcome in zip(yardstick.outcomes, batch, strict=True):
        assert outcome.text.removeprefix(" ") == expected.text
        assert outcome.record.stage == expected.record.stage
        ours, theirs = (each.record.attempts[0].scores["p_t"].value for each in (outcome, expected))
        assert ours == pytest.approx(theirs, abs=ROUNDING)
    *chunks, streamed = cascade.stream(yardstick.prompts[0])
    assert "".join(chunk.text for chunk in chunks) == streamed.text == batch[0].text


def test_it_knows_what_it_costs_and_holds(model):
    """The numbers are those of `TransformersModel`: FLOPs of both ways can be compared."""
    assert model.architecture == replace(bundled_model("small").architecture, outside_blocks=0)  # no pass is ended
    assert model.capability.local
    assert (model.capability.batch_size, model.capability.context_window, model.name) == (4, 1024, "small")
    assert not model.capability.prefill


def test_sampling_is_from_the_whole_distribution(model):
    """With a temperature so high that all tokens are alike, none of llama.cpp's own cuts is left."""
    answers = model.generate([Generate(model, request("Who?", temperature=50.0, max_tokens=24))] * 4)

    assert min(token.logprob for answer in answers for token in answer.tokens) < -6  # beyond its top 40 and min-p


def test_one_question_that_fails_fails_alone(model):
    too_long = request("Who? " * 2000)
    broken, answer = model.generate([Generate(model, too_long), Generate(model, request("Who?"))])

    assert isinstance(broken, Exception)
    assert answer.tokens


def test_a_single_slot_is_no_api(path):
    with LlamaCppModel(path, context=256, slots=1) as model:
        assert model.capability.batch_size == 1
        assert model.capability.local


def test_a_proxy_of_the_environment_is_not_asked(path, monkeypatch):
    """Which would have been told the prompt, and cannot reach this machine's own address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    with LlamaCppModel(path, context=256, slots=1) as model:
        (answer,) = model.generate([Generate(model, request("Who?", max_tokens=2))])
        later = asyncio.run(model.aanswer(Generate(model, request("Who?", max_tokens=2))))

    assert answer.text == later.text
    assert answer.tokens


def test_tools_that_the_template_leaves_out_pass_the_model_over(path, tmp_path):
    """llama.cpp would ask the model without them, in silence."""
    told = []
    for name, template in {"plain": None, "tools": TEMPLATE_OF_TOOLS}.items():
        file = path
        if template is not None:
            folder = tmp_path / name
            shutil.copytree(WEIGHTS / "small", folder)
            (folder / "chat_template.jinja").write_text(template)
            file = tmp_path / f"{name}.gguf"
            write_gguf(folder, file)
        with LlamaCppModel(file, context=256, slots=1) as model:
            told.append((model.capability.tools, model.capability.tool_history))

    assert told == [(False, False), (True, True)]


def test_template_options_that_the_template_does_not_read_are_refused(path):
    with pytest.raises(ConfigurationError, match=r"'enable_thinkin', which the chat template of 'small.gguf' does not"):
        LlamaCppModel(path, template_options={"enable_thinkin": False})


def test_template_options_reach_the_template(path, monkeypatch):
    """What the template makes of an option is in the prompt."""
    plain = LlamaCppModel(path, context=256, slots=1)
    with plain:
        (before,) = plain.generate([Generate(plain, request("Who?"))])
    options = LlamaCppModel(path, context=256, slots=1, template_options={"add_generation_prompt": False})
    with options:
        assert options.fingerprint != plain.fingerprint
    assert before.usage.input_tokens > 0


def test_two_models_side_by_side_and_each_stops_by_itself(path, model):
    """Closed by hand, by a block's end and by the garbage collector; the other goes on."""
    other = LlamaCppModel(path, context=256, slots=1)
    address = other._base_url.removesuffix("/v1")
    assert urllib.request.urlopen(f"{address}/health").status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):  # nobody else on this machine may ask
        urllib.request.urlopen(f"{address}/v1/chat/completions", data=b"{}")
    gone = weakref.ref(other)
    del other
    gc.collect()

    assert gone() is None
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=5)
    assert model.generate([Generate(model, request("Who?"))])[0].tokens


def test_a_closed_model_says_so(path):
    with LlamaCppModel(path, context=256, slots=1) as model:
        pass
    model.close()
    (answer,) = model.generate([Generate(model, request("Who?"))])

    assert isinstance(answer, ModelError)
    assert "'small' was closed" in str(answer)


def test_a_copy_in_another_process_starts_its_own(path, model):
    copy = pickle.loads(pickle.dumps(model))
    with copy:
        assert copy._base_url != model._base_url
        assert (copy.fingerprint, copy.capability) == (model.fingerprint, model.capability)


def test_python_ends_while_it_answers(path):
    """Even in the middle of a stream, nothing keeps the interpreter from ending."""
    script = (
        "import sys; from confcascade import *; from confcascade.asks import Generate\n"
        "m = from_string('llamacpp:' + sys.argv[1])\n"
        "stream = m.stream(Generate(m, Request((Message('user', 'Who?'),), max_tokens=500), live=True))\n"
        "print(next(stream).text)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, path], env=environment, timeout=100, capture_output=True)

    assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"slots": 0}, "`slots` must be a whole number of at least 1. Got 0"),
        ({"context": 10**6}, "holds 256 tokens|holds [0-9]+ tokens. Got `context=1000000`"),
        ({"kv_type": "f8"}, "`kv_type` must be one of float32, float16"),
        ({"kv_type": "q8_0"}, "needs `flash_attention=True`"),
        ({"options": {"messages": []}}, "`options` of model 'small' cannot set `messages`"),
    ],
)
def test_settings_out_of_range_are_refused(path, settings, told):
    with pytest.raises(ConfigurationError, match=told):
        LlamaCppModel(path, **settings)


def test_broken_files_are_refused_quickly(path, tmp_path):
    """Missing, of another kind, cut in its weights or its last tensor, or an architecture that nobody knows."""
    data = path.read_bytes()
    broken = {
        "text": b"GIF89a",
        "cut": data[: len(data) // 2],
        "last": data[:-100],
        "odd": data.replace(b"llama", b"lhama"),
    }
    started = time.monotonic()
    for name, content in broken.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(ConfigurationError, match=name):
            from_string(f"llamacpp:{tmp_path / name}.gguf")
    with pytest.raises(ConfigurationError, match="There is no GGUF file"):
        LlamaCppModel(tmp_path / "absent.gguf")
    assert time.monotonic() - started < 20


def test_without_the_wheel_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match=r'pip install "confcascade\[llamacpp\]"'):
        LlamaCppModel(path)


# ---------------------------------------------------------------------- without log-probabilities


@pytest.mark.parametrize("style", ["one-step", "two-step", "top-k"])
def test_stated_confidence(model, style, caplog):
    """Judged by text alone no log-probability is asked for; models that were not taught to state any escalate."""
    asked = []
    generate = model.generate

    def watched(asks):
        asked.extend(asks)
        return generate(asks)

    model.generate = watched
    try:
        cascade = Cascade([Stage(model, [Verbalized(style)], {"stated": 0.5}), Stage(bundled_model("large"))])
        outcomes = cascade.run_batch(["Compute 13+48.", "Compute 2+2."], max_concurrency=2)
    finally:
        del model.generate
    assert asked
    assert not any(ask.logprobs for ask in asked)
    for outcome in outcomes:
        score = outcome.record.attempts[0].scores.get("stated")
        assert outcome.record.answered_by == ("large" if score is None or not score.passed else model.name)


def test_it_tells_nothing_of_a_prompt(model):
    """llama.cpp's server has log-probabilities of generated tokens only, so it cannot judge another's step."""
    mixture = StepMixture((0.5, 0.5), (-2.0, -0.1), (0.5, 0.2), 500, -100.0, quantity="max_logprob")

    assert not model.capability.reads
    with pytest.raises(ConfigurationError, match=r"TokenProbability\(\)"):
        Lookback(mixture).check(model)
