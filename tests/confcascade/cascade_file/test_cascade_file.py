"""A cascade file is the cascade that one would write in Python, and says where it is not."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from confcascade import (
    Architecture,
    Cascade,
    ConfigurationError,
    Decoding,
    FormatProbability,
    Glimpse,
    KnowledgeProbe,
    LearnedScorer,
    OpenAICompatibleModel,
    PlannedModel,
    Prices,
    RetrievalScore,
    Stage,
    Steps,
    StepwiseCascade,
    TextRouter,
    TiesByLot,
    TokenProbability,
    TransformersModel,
    Verbalized,
)
from confcascade.asks import Generate
from confcascade.cascade_file import CascadeFile, PricesEntry
from confcascade.cascade_file.models import ArchitectureEntry, LocalModelEntry, OpenAIModelEntry
from confcascade.extending import build_stages
from confcascade.models.bundled import WEIGHTS, bundled_model
from confcascade.schema.signals import (
    SIGNAL_TYPES,
    FormatProbabilityEntry,
    KnowledgeProbeEntry,
    LearnedScorerEntry,
    RetrievalScoreEntry,
    TextRouterEntry,
    TokenProbabilityEntry,
    VerbalizedEntry,
)
from confcascade.types import Message, Request
from confcascade.types import Response as AnswerOf
from werkzeug import Response

DOCS = Path(__file__).parents[3] / "docs" / "cascade-files.md"

Write = Callable[..., Path]

TWO_SERVED = """
stages:
  - model: {openai: small, base_url: "http://localhost:1/v1"}
    signals: [p_t]
  - model: {openai: large, base_url: "http://localhost:1/v1"}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a text, or data as YAML, and gives the path."""

    def write(content: Any, name: str = "cascade.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture(autouse=True)
def openai_key(monkeypatch: pytest.MonkeyPatch):
    """Models of OpenAI's own server can be made; none is asked."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


# ---------------------------------------------------------------------- what it says


def test_three_lines_are_a_cascade(write: Write):
    """`models` and `threshold` are those of `build_stages`."""
    file = CascadeFile.load(write("models:\n- bundled:small\n- bundled:large\nthreshold: 0.9\n"))

    ours = Cascade(build_stages(models=["bundled:small", "bundled:large"], threshold=0.9))
    assert file.cascade().policy_id == ours.policy_id
    assert (file.cascade().on_error, file.cascade().on_exhausted) == ("escalate", "raise")


def test_stages_are_those_of_python(write: Write):
    """The demo's cascade, from a file: the same models, signals and thresholds, so the same policy."""
    from confcascade.demo import bundled_stages, policy

    chosen = policy()["stages"]
    file = CascadeFile.load(
        write(
            {
                "stages": [
                    {
                        "model": f"bundled:{chosen[0]['model']}",
                        "signals": [
                            {"type": "p_ik", "probe": f"bundled:{chosen[0]['model']}"},
                            {"type": "p_t", "aggregate": "min"},
                        ],
                        "thresholds": chosen[0]["thresholds"],
                        "prices": {"input_usd": 1, "output_usd": 2.5},
                    },
                    {"model": f"bundled:{chosen[1]['model']}"},
                ],
                "on_error": "raise",
                "on_exhausted": "best",
            }
        )
    )
    cascade = file.cascade()

    assert cascade.policy_id == Cascade(bundled_stages()).policy_id
    assert (cascade.on_error, cascade.on_exhausted) == ("raise", "best")
    assert [stage.prices for stage in cascade.stages] == [Prices(1, 2.5), None]
    assert file.make_stages() is file.make_stages()  # models are loaded once


SAYING_THE_SAME = [
    """
models: ["openai:a", "openai:b"]
threshold: 0.9
""",
    """
# another order, short forms written out
on_error: escalate
stages:
  - thresholds: {p_t: 0.9}
    signals: [p_t]
    model: openai:a
  - model: {openai: b, timeout_s: 60}
""",
    """
models: ["openai:a", {openai: b}]
threshold: {p_t: 0.9}
signals:
  - {type: token_probability, aggregate: mean}
""",
]
IN_TOML = """
[[stages]]
model = "openai:a"
signals = ["p_t"]
thresholds.p_t = 0.9
[[stages]]
model = {openai = "b"}
"""


def test_a_digest_is_of_what_is_said(write: Write):
    """However a file says it, in YAML or TOML, its digest is the same; and another for whatever it says else."""
    same = [CascadeFile.load(write(text)) for text in SAYING_THE_SAME]
    same.append(CascadeFile.load(write(IN_TOML, "cascade.toml")))
    other = [
        IN_TOML.replace("0.9", "0.8"),
        IN_TOML.replace('"b"', '"c"'),
        IN_TOML.replace('["p_t"]', '[{type = "p_t", aggregate = "min"}]'),
        'prompt = "plain"\n' + IN_TOML,
        'on_error = "raise"\n' + IN_TOML,
        IN_TOML + "rate_limit = {requests_per_minute = 3}",
    ]

    assert len({file.digest for file in same}) == 1
    assert len({file.cascade().policy_id for file in same}) == 1
    digests = [CascadeFile.load(write(text, "cascade.toml")).digest for text in other]
    assert len({same[0].digest, *digests}) == 1 + len(other)
    assert all(len(digest) == 64 for digest in digests)


def test_a_threshold_may_be_one_for_each_label(write: Write):
    """In both forms, as in Python; the policy's id is that of the same stages."""
    signal = TokenProbability(["yes", "no"], corrects=True)
    entry = {"type": "p_t", "labels": ["yes", "no"], "corrects": True}
    cuts = {"yes": 0.4, "no": "never"}
    given = [
        {"models": ["bundled:small", "bundled:large"], "signals": [entry], "threshold": {"p_t": cuts}},
        {
            "stages": [
                {"model": "bundled:small", "signals": [entry], "thresholds": {"p_t": cuts}},
                {"model": "bundled:large"},
            ]
        },
    ]
    ours = Cascade(build_stages(models=["bundled:small", "bundled:large"], signals=[signal], threshold={"p_t": cuts}))
    for each in given:
        cascade = CascadeFile.load(write(yaml.safe_dump(each))).cascade()
        assert dict(cascade.stages[0].thresholds) == {"p_t": cuts}
        assert cascade.policy_id == ours.policy_id


def test_thresholds_may_come_later(write: Write):
    """Without them there are stages, as for collecting answers, but no cascade; the error says what to write where."""
    file = CascadeFile.load(write(TWO_SERVED))

    assert [dict(stage.thresholds) for stage in file.make_stages()] == [{}, {}]
    with pytest.raises(
        ConfigurationError, match=r"cascade\.yaml, line 3, `stages\[0\]`.*needs a threshold for p_t"
    ) as e:
        file.cascade()
    assert "{'p_t': 0.9}" in str(e.value)
    with pytest.raises(ConfigurationError, match=r"line 1, `models\[0\]`.*Set `threshold`, such as 0\.9"):
        CascadeFile.load(write("models: [openai:a, openai:b]")).cascade()


def test_a_signal_of_the_last_stage_judges_nothing(write: Write):
    """It is there to be collected; without a threshold of its own it passes always, as the last stage does."""
    file = CascadeFile.load(write(f"{TWO_SERVED}    signals: [p_t]\n"))
    one, two = file.make_stages()

    assert (dict(one.thresholds), dict(two.thresholds)) == ({}, {"p_t": "always"})


@pytest.mark.parametrize("prompt", ["multiple-choice", {"system": "Be brief.", "user": "{question}"}, None])
def test_a_prompt_is_kept_as_written(write: Write, prompt: Any):
    """Whoever asks a data set's questions makes their text of it."""
    assert CascadeFile.load(write({"models": ["openai:a"], "prompt": prompt})).prompt == prompt


def test_thresholds_and_prices_are_told_without_loading_a_model(write: Write):
    """By the models' names, of folders that are not even there."""
    file = CascadeFile.load(
        write(
            """
            stages:
              - model: {local: ./nowhere, name: small}
                signals: [p_t]
                thresholds: {p_t: 0.9}
                prices: {input_usd: 1, output_usd: 2}
              - model: {local: ./nowhere, name: large}
            """
        )
    )
    assert file.thresholds == {"small": {"p_t": 0.9}, "large": {}}
    assert file.prices == {"small": Prices(1, 2)}


def test_rate_limits_are_by_the_models_name(write: Write):
    """Under the name that the model has in records; a model without a limit is not there."""
    limited = {"requests_per_minute": 60, "tokens_per_minute": 1e5}
    file = CascadeFile.load(
        write(
            {
                "stages": [
                    {"model": {"openai": "m", "name": "mine"}, "rate_limit": limited},
                    {"model": "openai:n", "rate_limit": {"requests_per_minute": 3}},
                    {"model": "openai:o"},
                ]
            }
        )
    )

    assert [stage.model.name for stage in file.make_stages()] == ["mine", "n", "o"]
    assert {name: limit.model_dump() for name, limit in file.rate_limits.items()} == {
        "mine": limited,
        "n": {"requests_per_minute": 3, "tokens_per_minute": None},
    }


# ---------------------------------------------------------------------- models and signals


def test_a_model_made_of_two(write: Write):
    """Plan escalation: three models of two, which share what is loaded, and are those of `PlannedModel`."""
    prompts = {"plan_prompt": "Plan: {question}", "plan_tokens": 9}
    path = write(
        {
            "stages": [
                {
                    "model": {"plan": "bundled:small", "execute": "bundled:small"},
                    "signals": ["p_t"],
                    "thresholds": {"p_t": 0.9},
                },
                {
                    "model": {"plan": {"bundled": "large"}, "execute": "bundled:small", "name": "by plan", **prompts},
                    "signals": ["p_t"],
                    "thresholds": {"p_t": 0.9},
                },
                {"model": "bundled:large"},
            ]
        }
    )
    file = CascadeFile.load(path)
    first, second, large = (stage.model for stage in file.make_stages())
    assert [first.name, second.name, large.name] == ["small+small", "by plan", "large"]
    assert first.planner is first.executor is second.executor
    assert (second.planner.name, second.plan_prompt, second.plan_tokens) == ("large", "Plan: {question}", 9)

    sure = [TokenProbability()], {"p_t": 0.9}
    ours = [
        Stage(PlannedModel(first.planner, first.planner), *sure),
        Stage(PlannedModel(large, first.planner, name="by plan", **prompts), *sure),
        Stage(large),
    ]
    assert file.cascade().policy_id == Cascade(ours).policy_id
    assert file.model("by plan").fingerprint == second.fingerprint


def test_prices_and_temperature_of_a_model_made_of_two(write: Write):
    """Prices are by the names of the two; a temperature that either has by itself is its own affair."""
    prices = {"a": {"input_usd": 1, "output_usd": 2}}
    served = {"openai": "b", "base_url": "http://localhost:1/v1", "options": {"temperature": 0.3}}
    first = {"openai": "a", "base_url": "http://localhost:1/v1"}
    model = {"plan": first, "execute": served, "prices": prices}
    file = CascadeFile.load(write({"models": [model]}))
    (stage,) = file.make_stages()
    assert stage.model.prices == {"a": Prices(1, 2)}
    assert stage.decoding == Decoding()
    other = CascadeFile.load(write({"models": [{"plan": first, "execute": first}]}))
    assert other.make_stages()[0].decoding == Decoding(temperature=0.0)
    wrong = {**model, "prices": {"c": prices["a"]}}
    with pytest.raises(ConfigurationError, match=r"`models\[0\]`: `prices` names 'c'"):
        CascadeFile.load(write({"models": [wrong]})).make_stages()


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever the command runs; a name that no folder has is one on the hub."""
    shutil.copytree(WEIGHTS / "small", tmp_path / "mine" / "tiny")
    monkeypatch.chdir("/")
    path = write(
        {
            "stages": [
                {
                    "model": {"local": "mine/tiny", "batch_size": 3, "max_new_tokens": 5},
                    "signals": [{"type": "p_ik", "probe": "mine/tiny/probe"}],
                    "thresholds": {"p_ik": 0.5},
                },
                {"model": f"local:{WEIGHTS / 'large'}"},
            ]
        }
    )
    cascade = CascadeFile.load(path).cascade()
    small, large = (stage.model for stage in cascade.stages)

    assert (small.name, large.name) == ("tiny", "large")
    assert small.fingerprint == bundled_model("small").fingerprint
    assert small.capability.batch_size == 3
    assert cascade.run("What is the job of Zugril Drosi?", max_tokens=2).record.attempts[0].scores["p_ik"].value > 0
    (loaded,) = CascadeFile.load(write({"models": [{"local": "."}]}, "mine/tiny/cascade.yaml")).make_stages()
    assert loaded.model.name == "tiny"
    with pytest.raises(ConfigurationError, match=r"line 1, `models\[0\]`: No causal .* loaded from 'nobody/knows'"):
        CascadeFile.load(write("models: [local:nobody/knows]")).make_stages()


def test_a_gguf_file_by_both_ways(write: Write, tmp_path: Path):
    """Paths are relative to the file; names are the GGUF's, without its ending."""
    for package in ("xllamacpp", "openai", "gguf", "accelerate"):
        pytest.importorskip(package)
    from confcascade.demo.gguf import write_gguf

    write_gguf(WEIGHTS / "small", tmp_path / "small.gguf")
    served = {"llamacpp": "small.gguf", "context": 512, "slots": 2, "max_new_tokens": 8, "name": "served"}
    path = write({"models": [served, {"local": "small.gguf", "gguf_cache": "kept"}], "threshold": 0.0})
    served_model, local = (stage.model for stage in CascadeFile.load(path).make_stages())

    assert (served_model.name, served_model.capability.batch_size, local.name) == ("served", 2, "small")
    assert [folder.name.split("-")[0] for folder in (tmp_path / "kept").iterdir()] == ["small"]
    cascade = CascadeFile.load(path).cascade()
    assert cascade.run("What is the job of Zugril Drosi?").record.attempts[0].scores["p_t"].value > 0
    served_model.close()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("llamacpp:absent.gguf", "There is no GGUF file"),
        ("local:absent.gguf", "There is no GGUF file"),
        ("m.gguf", 'Did you mean "llamacpp:m.gguf"'),
        ({"llamacp": "m.gguf"}, "did you mean `llamacpp`"),
        ({"llamacpp": "m.gguf", "contex": 1}, "did you mean `context`"),
        ({"llamacpp": "m.gguf", "options": {"messages": 1}}, "cannot set `messages`"),
        ({"local": "m", "quantization": "3bit"}, "8bit"),
        ({"local": str(WEIGHTS / "small"), "adapter": "./absent"}, "No adapter can be read from"),
    ],
)
def test_ways_in_that_cannot_work_are_told_with_their_place(write: Write, model: Any, told: str):
    for package in ("xllamacpp", "openai", "gguf", "accelerate", "peft"):
        pytest.importorskip(package)
    with pytest.raises(ConfigurationError, match=r"`models\[0\]") as raised:
        CascadeFile.load(write({"models": [model]})).make_stages()
    assert told in str(raised.value)


def test_a_served_cascade_decides_as_the_local_one(write: Write, served, yardstick):
    """Models behind a real server, by their addresses in a file."""
    pytest.importorskip("openai")
    cascade = CascadeFile.load(
        write(
            {
                "models": [{"openai": size, "base_url": served(size)} for size in ("small", "large")],
                "threshold": yardstick.threshold,
            }
        )
    ).cascade()
    outcomes = cascade.run_batch(yardstick.prompts, temperature=0, max_tokens=64)

    for expected, outcome in zip(yardstick.outcomes, outcomes, strict=True):
        yardstick.check(expected, outcome.text, outcome.record.as_dict())


def test_a_key_is_read_from_the_environment(write: Write, httpserver, monkeypatch: pytest.MonkeyPatch):
    """The variable that the file names holds it, and the server gets it."""
    pytest.importorskip("openai")
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    httpserver.expect_request("/v1/chat/completions", headers={"Authorization": "Bearer sk-mine"}).respond_with_json(
        answer
    )
    model = {"openai": "m", "base_url": httpserver.url_for("/v1"), "api_key_env": "MY_KEY"}
    path = write({"models": [model]})

    with pytest.raises(ConfigurationError, match=r"`models\[0\]`: `api_key_env` of model 'm' names no variable"):
        CascadeFile.load(path).make_stages()
    monkeypatch.setenv("MY_KEY", "sk-mine")
    file = CascadeFile.load(path)
    assert file.cascade().run("?").text == "yes"
    assert "sk-mine" not in repr(file) + repr(file.make_stages()) + file.model_dump_json()


SECRET = "sk-proj-do-not-show"


@pytest.mark.parametrize(
    "model",
    [
        {"openai": "m", "api_key": SECRET},
        {"openai": "m", "api_key_env": SECRET},
        {"openai": "m", "base_url": [SECRET]},
        {"openai": "m", "timeout_s": SECRET},
        {"openai": "m", "key": SECRET},
        {"openai": "m", "options": {"api_key": SECRET}},
        {"openai": "m", "options": {"extra_headers": {"Authorization": SECRET}}},
        {"openai": "m", "options": {"stream": SECRET}},
        {"openai": "m", "options": SECRET},
    ],
)
def test_a_key_in_the_file_is_not_shown(write: Write, model: dict[str, Any]):
    """An error about it tells where it is and what to write instead, and no traceback holds it."""
    with pytest.raises(ConfigurationError) as raised:
        CascadeFile.load(write({"models": [model]})).make_stages()

    assert SECRET not in "".join(traceback.format_exception(raised.value))
    if {"api_key", "extra_headers"} & {*model, *(model.get("options") or ())}:
        assert "api_key_env: MY_KEY" in str(raised.value)


def test_options_and_what_is_unsupported_reach_the_server(write: Write, httpserver):
    """A reasoning model by a file: effort, thoughts switched off, its limit under the new name, no temperature."""
    pytest.importorskip("openai")
    bodies = []

    def answer(request: Any) -> Any:
        bodies.append(request.get_json())
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return Response(json.dumps(whole), content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    text = f"""models:
  - openai: m
    base_url: {httpserver.url_for("/v1")}
    options: {{reasoning_effort: low, chat_template_kwargs: {{enable_thinking: false}}}}
    unsupported: [max_tokens, temperature]
    continues: continue_final_message
    reads: prompt_logprobs
"""
    file = CascadeFile.load(write(text))
    file.cascade().run("?", max_tokens=9, temperature=0)

    (body,) = bodies
    body.pop("messages")
    assert {key: value for key, value in body.items() if not key.startswith("stream")} == {
        "model": "m",
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_tokens": 9,
    }
    other = CascadeFile.load(write(text.replace("low", "high")))
    assert file.digest != other.digest
    assert file.make_stages()[0].model.fingerprint != other.make_stages()[0].model.fingerprint
    assert file.make_stages()[0].model.capability.reads
    with pytest.raises(ConfigurationError, match="`reads` of model 'm' is vLLM's"):
        CascadeFile.load(write(text.replace("continue_final_message", "trailing"))).make_stages()


@pytest.mark.parametrize(
    ("entry", "made_by", "other_names"),
    [
        (OpenAIModelEntry, OpenAICompatibleModel, {"model": "openai", "api_key": None}),
        # no code is run that comes with weights; what else `transformers` takes is not for files
        (
            LocalModelEntry,
            TransformersModel.from_pretrained,
            {"name_or_path": "local", "trust_remote_code": None, "loading": None},
        ),
        (TokenProbabilityEntry, TokenProbability, {}),
        (RetrievalScoreEntry, RetrievalScore, {}),
        (KnowledgeProbeEntry, KnowledgeProbe.load, {"folder": "probe"}),
        (FormatProbabilityEntry, FormatProbability, {}),
        (TextRouterEntry, TextRouter.load, {}),
        (LearnedScorerEntry, LearnedScorer.load, {}),
        (ArchitectureEntry, Architecture, {"outside_blocks": None}),  # of models whose passes can be ended
        (PricesEntry, Prices, {}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_file_can_say_what_python_can(entry: Any, made_by: Any, other_names: dict[str, str | None]):
    """Every argument has its key, with the same default."""
    arguments = inspect.signature(made_by).parameters.values()
    keys = {other_names.get(each.name, each.name): each.default for each in arguments}
    keys.pop(None, None)
    own = set(entry.model_fields) - {"type", "ties"}  # in Python a signal around the other, `TiesByLot`
    if getattr(made_by, "__name__", "") == "load":  # what was saved keeps its name
        own.discard("name")

    assert own == set(keys)
    for key, default in keys.items():
        field = entry.model_fields[key]
        assert field.is_required() == (default is inspect.Parameter.empty)
        if field.is_required() or key in (
            "labels",
            "scores",
            "template_options",
            "generation_options",
        ):  # None or empty here
            continue
        assert field.default == (list(default) if isinstance(default, tuple) else default)


def test_signals_as_they_are_made(write: Write, tmp_path: Path):
    """Options reach the signal; short and long names are the same type."""
    signals = [
        {"type": "token_probability", "labels": "ABCD", "name": "choice"},
        {"type": "p_t", "labels": ["yes", "no"], "name": "verdict"},
        {"type": "p_t", "aggregate": "min", "after": "Answer:"},
        {"type": "retrieval", "aggregate": "margin", "scores": [-1, 1], "k": 2},
    ]
    labels = [False, True] * 30
    router = TextRouter.fit([f"question {i}" for i in range(60)], labels)
    scorer = LearnedScorer.fit(["question"] * 60, [f"answer {i}" for i in range(60)], labels)
    router.save(tmp_path / "own" / "router")
    scorer.save(tmp_path / "own" / "scorer")
    signals += [
        "p_format",
        {"type": "router", "folder": "own/router"},
        {"type": "learned_scorer", "folder": "own/scorer"},
    ]
    (stage,) = CascadeFile.load(write({"stages": [{"model": "openai:a", "signals": signals}]})).make_stages()

    ours = [
        TokenProbability("ABCD", name="choice"),
        TokenProbability(["yes", "no"], name="verdict"),
        TokenProbability(aggregate="min", after="Answer:"),
        RetrievalScore("margin", scores=(-1, 1), k=2),
        FormatProbability(),
        router,
        scorer,
    ]
    assert [(each.name, each.identity()) for each in stage.signals] == [(each.name, each.identity()) for each in ours]


def test_stated_confidences(write: Write):
    """Each style with its options, under the short name too; options that do not go together are named."""
    signals: list[Any] = [
        "stated",
        {"type": "verbalized", "style": "two-step", "name": "afterwards"},
    ]
    (stage,) = CascadeFile.load(write({"stages": [{"model": "openai:a", "signals": signals}]})).make_stages()
    ours = [Verbalized(), Verbalized("two-step", name="afterwards")]
    assert [(each.name, each.identity()) for each in stage.signals] == [(each.name, each.identity()) for each in ours]
    drawn = [{"type": "stated", "ties": "lot"}, {"type": "p_t", "ties": "lot"}]
    (stage,) = CascadeFile.load(write({"stages": [{"model": "openai:a", "signals": drawn}]})).make_stages()
    ours = [TiesByLot(Verbalized()), TiesByLot(TokenProbability())]
    assert [(each.name, each.identity()) for each in stage.signals] == [(each.name, each.identity()) for each in ours]
    guesses = VerbalizedEntry.model_validate({"type": "verbalized", "style": "top-k", "k": 2})
    assert guesses.load(Path()).identity() == Verbalized("top-k", k=2).identity()
    with pytest.raises(ConfigurationError, match="goes with style"):
        CascadeFile.load(
            write({"stages": [{"model": "openai:a", "signals": [{"type": "stated", "k": 2}]}]})
        ).make_stages()


def test_types_of_signals_are_told_apart():
    """No two types share a name; the short one is the key of thresholds."""
    names = [name for kind in SIGNAL_TYPES for name in kind.model_fields["type"].annotation.__args__]  # type: ignore[union-attr]

    assert len(set(names)) == len(names)
    assert all(kind.model_fields["name"].default in names for kind in SIGNAL_TYPES)


# ---------------------------------------------------------------------- what it cannot be


def stages(*stage: str) -> str:
    return "stages:\n" + "".join(f"- {each}\n" for each in stage)


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("models: [openai:a]\ntreshold: 1\n", 2, "treshold", "unknown key; did you mean `threshold`?"),
        (stages("model: openai:a", "modle: openai:b"), 3, "stages[1].modle", "did you mean `model`?"),
        (stages("signals: []"), 2, "stages[0].model", "is missing."),
        ("on_error: raise\n", None, None, "give either `models` (smallest first, with `threshold`) or `stages`."),
        (f"models: [openai:a]\n{stages('model: openai:b')}", None, None, "give either `models`"),
        (f"{stages('model: openai:b')}threshold: 1\n", 3, "threshold", "each stage has its own"),
        (f"signals: [p_t]\n{stages('model: openai:b')}", 1, "signals", "each stage has its own"),
        ("models: []\n", 1, "models", "at least 1 item"),
        ("models: openai:a\n", 1, "models", "must be a valid list"),
        ("models:\n- openai:a\n- opnai:b\n", 3, "models[1]", "no provider `opnai`; did you mean `openai`?"),
        ("models: [gpt-4o]\n", 1, "models[0]", 'Did you mean "openai:gpt-4o"?'),
        ("models: ['openai:']\n", 1, "models[0]", "The name after the colon is missing."),
        ("models: [3]\n", 1, "models[0]", "must be a string such as"),
        ("models: [{opanai: a}]\n", 1, "models[0]", "did you mean `openai`?"),
        ("models: [{openai: a, local: b}]\n", 1, "models[0]", "exactly one of the keys"),
        ("models:\n- plan: openai:a\n", 2, "models[0].execute", "is missing"),
        ("models:\n- {plan: openai:a,\n   execute: opnai:b}\n", 3, "models[0].execute", "did you mean `openai`?"),
        (
            "models:\n- {plan: openai:a,\n   execute: {plan: openai:a}}\n",
            3,
            "models[0].execute",
            "cannot be made of two",
        ),
        ("models: [{openai: a, plan: openai:b}]\n", 1, "models[0]", "or made of two by `plan` and `execute`; drop one"),
        (
            "models:\n- {plan: openai:a, execute: openai:b,\n   plan_token: 3}\n",
            3,
            "models[0].plan_token",
            "`plan_tokens`?",
        ),
        (
            "models:\n- {plan: openai:a, execute: openai:b,\n   plan_prompt: Plan!}\n",
            3,
            "models[0].plan_prompt",
            "must have a place for {question}",
        ),
        (
            "models:\n- {plan: openai:a, execute: openai:b,\n   prices: {a: {input_usd: 1}}}\n",
            3,
            "models[0].prices.a.output_usd",
            "is missing",
        ),
        ("models: [bundled:tiny]\n", 1, "models[0]", "must be 'small', 'medium' or 'large'. Got 'bundled:tiny'."),
        ("models:\n- local: a\n  dtype: int8\n", 3, "models[0].dtype", "'bfloat16'. Got 'int8'."),
        ("models:\n- local: a\n  trust_remote_code: true\n", 3, "models[0].trust_remote_code", "unknown key"),
        ("models:\n- openai: a\n  max_retries: '3'\n", 3, "models[0].max_retries", "must be a valid integer."),
        ("models:\n- openai:a\n- openai:a\n", 3, "models[1]", "two models are called 'a'"),
        ("models: [openai:a, openai:b]\nthreshold: high\n", 2, "threshold", "must be a number such as 0.9"),
        ("models: [openai:a, openai:b]\nthreshold: true\n", 2, "threshold", "must be a number such as 0.9"),
        ("models: [openai:a, openai:b]\nthreshold: .inf\n", 2, "threshold", "must be a number such as 0.9"),
        ("models: [openai:a, openai:b]\nthreshold:\n  p_t: x\n", 3, "threshold.p_t", "must be a number such as 0.9"),
        ("models: [openai:a, openai:b]\nthreshold:\n  p_q: 1\n", 3, "threshold.p_q", "did you mean `p_t`?"),
        ("models: [openai:a, openai:b]\nthreshold:\n  p_t: {a: x}\n", 3, "threshold.p_t.a", "must be a number such"),
        (
            "models: [openai:a, openai:b]\nthreshold: 1\nsignals: [p_t, retrieval]\n",
            2,
            "threshold",
            "such as {'p_t': 0.9, 'retrieval': 0.9}.",
        ),
        (stages("{model: openai:a,\n   signals: [p_q]}"), 3, "stages[0].signals[0]", "did you mean `p_t`?"),
        (stages("{model: openai:a,\n   signals: p_t}"), 3, "stages[0].signals", "must be a valid list"),
        (stages("{model: openai:a,\n   signals: [p_ik]}"), 3, "stages[0].signals[0].probe", "is missing"),
        (stages("{model: openai:a,\n   signals: [{aggregate: min}]}"), 3, "stages[0].signals[0]", "{type: p_t"),
        (
            stages("{model: openai:a,\n   signals: [{type: p_t, aggregate: max}]}"),
            3,
            "stages[0].signals[0].aggregate",
            "must be 'mean', 'min', 'product' or 'first'. Got 'max'.",
        ),
        (
            stages("{model: openai:a, signals: [p_t,\n   {type: p_t, aggregate: min}]}"),
            3,
            "stages[0].signals[1]",
            "two signals are called 'p_t'",
        ),
        (stages("{model: openai:a,\n   thresholds: {p_t: 1}}"), 3, "stages[0].thresholds.p_t", "has no signals"),
        (stages("{model: openai:a,\n   prices: {input_usd: 1}}"), 3, "stages[0].prices.output_usd", "is missing"),
        (
            stages("{model: openai:a,\n   prices: {input_usd: -1, output_usd: 1}}"),
            3,
            "stages[0].prices.input_usd",
            "must be greater than or equal to 0",
        ),
        (
            stages("{model: openai:a,\n   rate_limit: {requests_per_minute: 0}}"),
            3,
            "stages[0].rate_limit.requests_per_minute",
            "must be greater than 0",
        ),
        ("models: [openai:a]\non_error: retry\n", 2, "on_error", "must be 'escalate' or 'raise'. Got 'retry'."),
        ("models: [openai:a]\nprompt: [a]\n", 2, "prompt", "must be the name of a prompt"),
    ],
)
def test_a_mistake_is_told_with_its_place(write: Write, text: str, line: int | None, key: str | None, says: str):
    """One line: the file, the line, the key, and what is wrong with it."""
    path = write(text)
    with pytest.raises(ConfigurationError) as raised:
        CascadeFile.load(path)

    told = str(raised.value)
    assert told.startswith(f"{path}, line {line}, `{key}`: " if key else f"{path}: "), told
    assert says in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("models: [openai:a, openai:b]\nthreshold: 1.5\n", 2, "threshold", "must be a number in [0, 1]"),
        ("models: [openai:a, openai:b]\nthreshold:\n  p_t: {a: 1}\n", 3, "threshold.p_t", "takes one threshold"),
        (
            stages("{model: openai:a, signals: [p_t],\n   thresholds: {p_t: 2}}"),
            3,
            "stages[0].thresholds.p_t",
            "[0, 1]",
        ),
        (
            stages("{model: openai:a,\n   signals: [{type: p_t, labels: AA}]}"),
            3,
            "stages[0].signals[0]",
            "at least two different",
        ),
        (
            stages("{model: openai:a,\n   signals: [{type: p_ik, probe: 'bundled:small'}]}"),
            3,
            "stages[0].signals[0]",
            "KnowledgeProbe reads hidden states",
        ),
        (
            stages("{model: 'bundled:large',\n   signals: [{type: p_ik, probe: 'bundled:small'}]}"),
            3,
            "stages[0].signals[0]",
            "This probe was trained for model 'small'",
        ),
        (
            stages("{model: openai:a,\n   signals: [{type: p_ik, probe: nowhere}]}"),
            3,
            "stages[0].signals[0]",
            "nowhere' holds no probe",
        ),
    ],
)
def test_what_cannot_work_is_told_with_its_place(write: Write, text: str, line: int, key: str, says: str):
    """What only a signal or a model knows, they say, and the file says where."""
    path = write(text)
    with pytest.raises(ConfigurationError) as raised:
        CascadeFile.load(path).make_stages()

    assert str(raised.value).startswith(f"{path}, line {line}, `{key}`: "), raised.value
    assert says in str(raised.value)


def test_a_stage_that_could_never_pass_on_is_no_cascade(write: Write):
    """What `Cascade` itself refuses is told with the file."""
    path = write(stages("model: openai:a", "model: openai:b"))

    with pytest.raises(ConfigurationError, match=r"cascade\.yaml: Stage 'a' has no signal"):
        CascadeFile.load(path).cascade()


def test_all_mistakes_are_told_at_once(write: Write):
    """In the order of their lines, one a line."""
    path = write("on_error: retry\nstages:\n- model: gpt\n- {model: openai:a, signals: [x]}\n", "a.yaml")
    with pytest.raises(ConfigurationError) as raised:
        CascadeFile.load(path)

    places = [told.split(":")[0].removeprefix(f"{path}, ") for told in str(raised.value).splitlines()]
    assert places == ["line 1, `on_error`", "line 3, `stages[0].model`", "line 4, `stages[1].signals[0]`"]


def test_without_a_file_the_key_alone_is_told():
    """One can validate data that came from elsewhere; relative paths are then those of the process."""
    file = CascadeFile.model_validate({"models": ["openai:a", "openai:b"]})

    with pytest.raises(ConfigurationError, match=r"^A cascade, `models\[0\]`: a cascade needs a threshold"):
        file.cascade()


# ---------------------------------------------------------------------- straight to the last stage


def test_a_file_says_what_skips(write: Write):
    """`skip` is the stage's, and told without loading a model."""
    file = CascadeFile.load(
        write(
            stages(
                "{model: 'bundled:small', signals: [{type: p_ik, probe: 'bundled:small'}, p_t],"
                " thresholds: {p_ik: 0.5, p_t: 0.9}, skip: {p_ik: 0.2}}",
                "model: bundled:large",
            )
        )
    )
    assert file.skips == {"small": {"p_ik": 0.2}}
    assert [stage.skip for stage in file.make_stages()] == [{"p_ik": 0.2}, {}]
    file.cascade()


@pytest.mark.parametrize(
    ("skip", "message"),
    [("{p_q: 0.2}", "did you mean"), ("{p_ik: 0.6}", "at most the threshold"), ("{p_t: 0.2}", "judge before")],
)
def test_a_skip_that_cannot_be_is_refused_with_its_line(write: Write, skip: str, message: str):
    """At the latest when the stages are made, and before a question is asked."""
    text = stages(
        "{model: 'bundled:small', signals: [{type: p_ik, probe: 'bundled:small'}, p_t],"
        f" thresholds: {{p_ik: 0.5, p_t: 0.9}}, skip: {skip}}}",
        "model: bundled:large",
    )
    with pytest.raises(ConfigurationError, match=rf"line \d+, `stages\[0\].skip.*{message}"):
        CascadeFile.load(write(text)).make_stages()


# ---------------------------------------------------------------------- for editors, and for readers


def test_files_of_the_page_are_cascade_files(write: Write):
    """What the documents show as YAML and TOML can be loaded as it stands."""
    blocks = re.findall(r"```(yaml|toml)\n(.*?)```", DOCS.read_text(), re.DOTALL)

    assert {kind for kind, _ in blocks} == {"yaml", "toml"}
    for kind, text in blocks:
        CascadeFile.load(write(text, f"cascade.{kind}"))


@pytest.mark.parametrize("text", [*SAYING_THE_SAME, TWO_SERVED, "models: ['bundled:small']\nthreshold: {p_t: never}"])
def test_the_schema_takes_what_can_be_loaded(text: str):
    """An editor that checks against it shows no mistake where there is none."""
    jsonschema = pytest.importorskip("jsonschema")

    jsonschema.validate(yaml.safe_load(text), CascadeFile.model_json_schema())


@pytest.mark.parametrize(
    "text",
    [
        "treshold: 1",
        "models: [3]",
        "models: [{openai: a, api_key: b}]",
        "models: ['openai:a']\nsignals: [p_q]",
        "models: ['openai:a']\nthreshold: high",
        "models: ['openai:a']\non_error: x",
        stages("{model: openai:a, thresholds: {p_t: x}}"),
    ],
)
def test_the_schema_refuses_what_cannot(text: str):
    """And does show one where there is one."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(CascadeFile.model_json_schema()))

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schema)


def test_stages_hold_what_a_file_says():
    """Whatever a `Stage` has, a file's stage has, too."""
    from confcascade.cascade_file import StageEntry

    assert {field.name for field in fields(Stage)} == set(StageEntry.model_fields) - {"rate_limit"} | {
        "check"
    }  # a function


def test_one_model_is_loaded_alone(tmp_path):
    """By its name in records, as the file says; the others need not be at hand."""
    pytest.importorskip("torch")
    path = tmp_path / "cascade.yaml"
    path.write_text("models: [bundled:small, {local: ./nowhere, name: large}]\n")
    file = CascadeFile.load(path)
    assert file.model().name == file.model("small").name == "small"
    with pytest.raises(ConfigurationError, match=r"no model 'larg'; did you mean `large`\?"):
        file.model("larg")
    with pytest.raises(ConfigurationError, match="nowhere"):
        file.model("large")


def test_a_pickled_file_loads_its_models_where_it_arrives(tmp_path):
    """What it says travels, with its lines for errors and its folder for paths; no model does."""
    path = tmp_path / "cascade.yaml"
    path.write_text("models: [bundled:small, bundled:large]\nthreshold: 0.5\n")
    file = CascadeFile.load(path)
    stages = file.make_stages()
    again = pickle.loads(pickle.dumps(file))
    assert again.digest == file.digest
    assert len(pickle.dumps(file)) < 10_000
    assert [stage.model.name for stage in again.make_stages()] == ["small", "large"]
    assert again.make_stages()[0].model is not stages[0].model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold: 0.9", "line 3, `threshold`: a `policy` brings its own signals and thresholds; drop `threshold`"),
        ("signals: [p_t]", "line 3, `signals`: a `policy` brings its own"),
    ],
)
def test_a_policy_stands_in_the_place_of_thresholds(tmp_path, text, message):
    path = tmp_path / "cascade.yaml"
    path.write_text(f"models: ['bundled:small', 'bundled:large']\npolicy: policy.json\n{text}\n")
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        CascadeFile.load(path)


def test_a_group_goes_with_a_policy(tmp_path):
    path = tmp_path / "cascade.yaml"
    path.write_text("models: ['bundled:small', 'bundled:large']\nthreshold: 0.9\ngroup: law\n")
    with pytest.raises(ConfigurationError, match="line 3, `group`: goes with a `policy`"):
        CascadeFile.load(path)
    path.write_text("models: ['bundled:small', 'bundled:large']\nthreshold: 0.9\n")
    with pytest.raises(ConfigurationError, match="A `group` goes with a `policy`"):
        CascadeFile.load(path).cascade(group="law")


@pytest.mark.parametrize("provider", ["local", "llamacpp"])
def test_a_model_is_called_by_the_name_it_is_given_by_not_by_what_a_link_leads_to(tmp_path, provider):
    """The hub's cache links names to blobs, which are called by their hash; Python calls the model by its name, too."""
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "m.Q4.gguf").symlink_to("blob")
    path = tmp_path / "cascade.yaml"
    path.write_text(f"models: [{provider}:m.Q4.gguf, openai:large]\nthreshold: 1\n")

    assert list(CascadeFile.load(path).decodings) == ["m.Q4", "large"]


def test_a_policy_that_is_not_there_is_named_with_its_line(tmp_path):
    path = tmp_path / "cascade.yaml"
    path.write_text("models: ['bundled:small', 'bundled:large']\npolicy: policy.json\n")
    file = CascadeFile.load(path)
    assert file.policy_path == tmp_path / "policy.json"
    with pytest.raises(ConfigurationError, match=r"line 2, `policy`: The policy '.*policy.json' cannot be read"):
        file.cascade()


def test_only_whole_drafts_are_fitted_and_evaluated(write):
    """Recordings count a draft that was cut off as not usable, so neither promise nor report is about such a file."""
    file = CascadeFile.load(write("models: [bundled:small, bundled:large]\nthreshold: 0.9\non_cut: keep\n"))

    assert file.on_cut == "keep"
    with pytest.raises(ConfigurationError, match=r"on_cut.*A report counts drafts that were cut off as not usable"):
        file.only_whole("A report")


@pytest.mark.parametrize("written", ["494e6", "494000000", "494M", "0.494B", '"0.494 b"', "494_000_000"])
def test_a_number_of_parameters_is_read_as_people_write_it(tmp_path, written):
    """YAML itself reads only one of these as a number."""
    model = f"{{openai: m, architecture: {{parameters: {written}, layers: 24, hidden_size: 896}}}}"
    (tmp_path / "c.yaml").write_text(f"models:\n- {model}\n")

    assert CascadeFile.load(tmp_path / "c.yaml").architectures["m"].parameters == 494_000_000


@pytest.mark.parametrize("written", ["half a billion", "0", "0.5", "-494e6", ".nan"])
def test_what_is_not_one_is_refused(tmp_path, written):
    model = f"{{openai: m, architecture: {{parameters: {written}, layers: 24, hidden_size: 896}}}}"
    (tmp_path / "c.yaml").write_text(f"models:\n- {model}\n")

    with pytest.raises(ConfigurationError, match=r"c\.yaml.*parameters"):
        CascadeFile.load(tmp_path / "c.yaml")


# ---------------------------------------------------------------------- decoding


def decodings(write: Write, text: str) -> dict[str, dict[str, Any]]:
    return {name: each.settings for name, each in CascadeFile.load(write(text)).decodings.items()}


def test_served_models_are_greedy_where_the_file_says_nothing(write: Write):
    """Local ones are so by themselves; options may say a temperature, and a server may take none."""
    told = decodings(
        write,
        "models:\n- bundled:small\n- openai:a\n- {openai: b, options: {temperature: 0.7}}\n"
        "- {openai: c, unsupported: [temperature]}\n",
    )
    assert told == {"small": {}, "a": {"temperature": 0.0}, "b": {}, "c": {}}


def test_a_stage_says_what_it_does_otherwise(write: Write):
    told = decodings(
        write,
        "decoding: {max_tokens: 64, seed: 1}\nstages:\n- model: openai:a\n"
        "- {model: openai:b, decoding: {max_tokens: 512, temperature: null}}\n",
    )
    assert told == {"a": {"temperature": 0.0, "max_tokens": 64, "seed": 1}, "b": {"max_tokens": 512, "seed": 1}}


def test_live_stages_decode_so(write: Write):
    file = CascadeFile.load(write("decoding: {max_tokens: 64}\nthreshold: 0.9\nmodels: [openai:a, openai:b]\n"))
    assert [stage.decoding.settings for stage in file.cascade().stages] == [{"temperature": 0.0, "max_tokens": 64}] * 2


@pytest.mark.parametrize("wrong", ["{temperature: -1}", "{max_tokens: 0}", "{top_p: 2}", "{heat: 1}", "greedy"])
def test_what_is_no_setting_is_refused_with_its_place(write: Write, wrong: str):
    with pytest.raises(ConfigurationError, match="decoding"):
        CascadeFile.load(write(f"models: [openai:a]\ndecoding: {wrong}\n"))


def test_stages_that_only_ask_in_another_way_share_their_weights(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model, thinking, is loaded once, with a name, limit and options of its own; others are loaded."""
    folder = tmp_path / "thinker"
    shutil.copytree(WEIGHTS / "small", folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking %} Think.{% endif %}")
    loaded = []
    load = TransformersModel.from_pretrained
    monkeypatch.setattr(
        TransformersModel, "from_pretrained", lambda *args, **kwargs: loaded.append(args) or load(*args, **kwargs)
    )
    path = write(f"""
models:
  - {{local: {folder}, name: quick, max_new_tokens: 8, template_options: {{enable_thinking: false}}}}
  - {{local: {folder}, name: thinking}}
  - {{local: {folder}, name: half, dtype: bfloat16}}
threshold: 0.5
""")
    quick, thinking, half = (stage.model for stage in CascadeFile.load(path).make_stages())

    assert len(loaded) == 2
    assert isinstance(quick, TransformersModel)
    assert isinstance(thinking, TransformersModel)
    assert thinking.model is quick.model
    assert half.model is not quick.model  # type: ignore[attr-defined]
    assert thinking.fingerprint == TransformersModel.from_pretrained(folder).fingerprint != quick.fingerprint
    (short,) = quick.generate([Generate(quick, Request(Message.parse("A long story, please.")))])
    assert isinstance(short, AnswerOf)
    assert short.usage.output_tokens <= 8
    assert [model.name for model in (quick, thinking, half)] == ["quick", "thinking", "half"]


# ---------------------------------------------------------------------- step by step, and cascades in cascades

IN_TURN = "mode: stepwise\nmodels: [bundled:small, bundled:large]\nsignals: [glimpse]\n"
MIXED = "Vodis has 57 shells, finds 88, loses 39. How many shells?"


def test_a_file_says_that_two_models_write_in_turn(write: Write):
    """The cascade is the one that one would write in Python."""
    file = CascadeFile.load(
        write(IN_TURN + 'threshold: 0.9\nsteps: {delimiter: "\\n", final: large}\non_error: raise\n')
    )
    cascade = file.cascade()
    python = StepwiseCascade.of(
        models=["bundled:small", "bundled:large"],
        signals=[Glimpse()],
        threshold=0.9,
        steps=Steps(delimiter="\n", final="large"),
        on_error="raise",
    )
    assert isinstance(cascade, StepwiseCascade)
    assert (cascade.steps, cascade.on_error, cascade.policy_id) == (python.steps, "raise", python.policy_id)
    assert file.steps is not None
    assert file.steps.load() == python.steps
    assert CascadeFile.load(write(IN_TURN + "threshold: 0.9\n")).cascade().steps == Steps()  # type: ignore[attr-defined]


def test_a_digest_is_also_of_the_mode_and_the_steps(write: Write):
    """What is written out is the same as what is left to the defaults; files without the mode keep their digests."""

    def digest(more: str) -> str:
        return CascadeFile.load(write(IN_TURN + more)).digest

    assert digest("") != digest('steps: {delimiter: "\\n"}')
    assert digest("steps: {}") == digest('steps: {max_steps: 64, final: author, delimiter: "\\n\\n"}')
    assert digest("") != CascadeFile.load(write(IN_TURN.replace("mode: stepwise\n", ""))).digest


def test_a_grid_of_thresholds_is_of_the_same_models(write: Write):
    """Loaded once; the file needs no threshold of its own."""
    file = CascadeFile.load(write(IN_TURN))
    high, low = file.grid([0.9, 0.5])
    assert [cascade.stages[0].thresholds for cascade in (high, low)] == [{"glimpse": 0.9}, {"glimpse": 0.5}]
    assert all(a.model is b.model for a, b in zip(high.stages, low.stages, strict=True))
    with pytest.raises(ConfigurationError, match=r"a cascade needs a threshold for glimpse here"):
        file.cascade()
    whole = CascadeFile.load(write("models: [bundled:small, bundled:large]\nthreshold: 0.9\n"))
    with pytest.raises(ConfigurationError, match="is for `mode: stepwise`"):
        whole.grid([0.9])
    assert not hasattr(whole.cascade(), "steps")


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("models: [bundled:small, bundled:large]\nsteps: {}\n", 2, "steps", "goes with `mode: stepwise`"),
        (IN_TURN + "steps: {delimter: x}\n", 4, "steps.delimter", "did you mean `delimiter`?"),
        (IN_TURN + "steps: {delimiter: ''}\n", 4, "steps.delimiter", "at least 1 character"),
        (IN_TURN + "steps: {max_steps: 0}\n", 4, "steps.max_steps", "greater than or equal to 1"),
        (IN_TURN + "steps: {final: small}\n", 4, "steps.final", "must be 'author' or 'large'"),
        (IN_TURN + "on_cut: keep\n", 4, "on_cut", "is not for answers that are written step by step"),
        ("mode: stepwise\nmodels: [bundled:small]\n", 2, "models", "name two. Got 1"),
        ("mode: steps\nmodels: [bundled:small, bundled:large]\n", 1, "mode", "must be 'query' or 'stepwise'"),
        (
            IN_TURN.replace("mode: stepwise\n", "").replace("glimpse", "{type: lookback, mixture: m.json}"),
            *(2, "signals[0]", "lookback judges the steps of an answer, and goes with `mode: stepwise`"),
        ),
        (
            "mode: stepwise\nstages:\n- model: bundled:small\n  signals: [glimpse]\n  thresholds: {glimpse: 0.9}\n"
            "  skip: {glimpse: 0.1}\n- model: bundled:large\n",
            *(6, "stages[0].skip", "drop `skip`"),
        ),
    ],
)
def test_what_is_of_the_other_mode_is_told_with_its_place(write: Write, text: str, line: int, key: str, says: str):
    with pytest.raises(ConfigurationError) as raised:
        CascadeFile.load(write(text))
    assert f"line {line}, `{key}`: " in str(raised.value)
    assert says in str(raised.value)


def test_models_that_cannot_write_in_turn_are_told_with_the_mode(write: Write):
    """And a policy that is not there, given beside the file."""
    path = write(
        "mode: stepwise\nmodels: [bundled:small, {openai: m, base_url: 'http://localhost:1/v1'}]\nthreshold: 0.9\n"
    )
    with pytest.raises(ConfigurationError, match=r"line 1, `mode`: Model 'm' cannot go on"):
        CascadeFile.load(path).cascade()
    with pytest.raises(ConfigurationError, match=r"'policy.json' cannot be read"):
        CascadeFile.load(path).cascade(policy="policy.json")
    with pytest.raises(ConfigurationError, match=r"line 1, `mode`: A report replays whole answers"):
        CascadeFile.load(path).only_whole("A report")


def test_a_cascade_of_another_file_is_a_model(write: Write, tmp_path: Path):
    """By its path, relative to the file; its models' names, joined, are its own, and its record has their steps."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "turns.yaml").write_text(IN_TURN + 'threshold: 0.999\nsteps: {delimiter: "\\n"}\n')
    file = CascadeFile.load(write("models: [bundled:small, {cascade: inner/turns.yaml}]\nthreshold: 0.999\n"))
    assert list(file.thresholds) == ["small", "small+large"]
    outcome = file.cascade().run(MIXED)
    assert outcome.record.answered_by == "small+large"
    assert {step.author for step in outcome.record.steps} <= {"small", "large"}
    assert outcome.record.steps
    named = CascadeFile.load(
        write("models: [bundled:small, {cascade: inner/turns.yaml, name: turns}]\nthreshold: 1.0\n")
    )
    assert named.make_stages()[-1].model.name == "turns"


def test_what_is_wrong_in_a_file_in_a_file_is_told_with_both_places(write: Write, tmp_path: Path):
    """Also if it is not there, or contains itself."""
    (tmp_path / "inner.yaml").write_text("models: [bundled:small]\nthresold: 0.9\n")
    for name, says in (
        ("inner.yaml", r"line 1, `models\[1\].cascade`: .*inner.yaml, line 2, `thresold`: unknown key"),
        ("none.yaml", r"line 1, `models\[1\].cascade`: The cascade file .*none.yaml' cannot be read"),
        ("cascade.yaml", r"'cascade.yaml' would contain itself"),
    ):
        path = write(f"models: [bundled:small, {{cascade: {name}}}]\nthreshold: 0.9\n")
        path = path.rename(tmp_path / "cascade.yaml")
        with pytest.raises(ConfigurationError, match=says):
            CascadeFile.load(path)
