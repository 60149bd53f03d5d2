"""What a check finds at servers that behave as the providers and engines do, at models here, and over frameworks."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("openai")

from confcascade import (
    Architecture,
    Cascade,
    CascadeModel,
    ConfigurationError,
    Decoding,
    ModelError,
    OpenAICompatibleModel,
    Prices,
    SignalUnavailableError,
    Stage,
    StepwiseCascade,
    TokenProbability,
    Usage,
    Verbalized,
    diagnose,
)
from confcascade.extending import Measurement, Signal
from confcascade.testing import Reply, ScriptedModel

from ...providers import BEHAVIOURS

GREEDY = Decoding(temperature=0)
P_T = TokenProbability()
LAST = Stage(ScriptedModel("large", architecture=Architecture(1000, 1, 1)))


def checked(provider, signals=(P_T,), thresholds=None, *, decoding=GREEDY, question=None, **behaviour):
    """What is found of the first of two stages, and its server."""
    server, url = provider(**behaviour)
    model = OpenAICompatibleModel("m", base_url=url, max_retries=0, timeout_s=0.3 if behaviour.get("hangs_s") else 10)
    stage = Stage(model, signals, {"p_t": 0.8} if thresholds is None else thresholds, decoding=decoding)
    found = diagnose([stage, LAST], question=question)
    return found.stages[0], server


def kinds(stage, *levels):
    return {finding.kind for finding in stage.findings if finding.level in (levels or ("fails", "warning"))}


PROVIDERS = {
    # behaviour of the server: what can be done, what is wrong with it
    "OpenAI": ({"log-probabilities": True, "tool calls": True, "thoughts": False, "n": True}, set()),
    "OpenAI, reasoning": (
        {"log-probabilities": False, "thoughts": True, "usage": True},
        {"never_scored", "temperature_refused"},
    ),
    "Anthropic": ({"log-probabilities": False}, {"never_scored"}),
    "Gemini": ({"log-probabilities": False}, {"never_scored"}),
    "a model that may not": ({"log-probabilities": False}, {"never_scored"}),
    "DeepSeek V3.2": ({"log-probabilities": False}, {"never_scored"}),
    "DeepSeek V4": ({"log-probabilities": True, "thoughts": True}, set()),
    "LM Studio": ({"log-probabilities": False}, {"never_scored"}),
    "vLLM, thinking": ({"log-probabilities": True, "thoughts": True, "tool calls": True}, set()),
    "no parser, thinking": ({"log-probabilities": True, "thoughts": True}, set()),
    "-9999 everywhere": ({"log-probabilities": False}, {"no_logprobs"}),
    "constants": ({"log-probabilities": True}, {"constant_logprobs"}),
    "none when streamed": ({"log-probabilities": True}, {"stream_unscored"}),
    "others when streamed": ({"log-probabilities": True}, {"stream_differs"}),
    "no streams": ({"answers": True, "streamed": False}, {"no_stream"}),
    "no reasons": ({"answers": True}, {"no_finish_reason", "no_stream"}),
    "no usage in streams": ({"usage": False}, {"usage_missing"}),
    "no usage": ({"usage": False}, {"usage_missing"}),
    "odd reasons": ({"answers": True}, {"odd_finish_reason"}),
    "cuts look whole": ({"answers": True}, {"cut_looks_whole"}),
    "no limit holds": ({"answers": True}, {"limit_ignored"}),
    "one answer a call": ({"n": False}, set()),
    "no tools": ({"tool calls": False}, set()),
    "text instead of a call": ({"tool calls": None}, set()),
    "wrong key": ({"answers": False}, {"error"}),
    "unknown model": ({"answers": False}, {"error"}),
    "broken": ({"answers": False}, {"error"}),
    "OpenAI, tool calls scored": ({"tool calls": True}, set()),
    "OpenRouter, which drops what a model does not take": (
        {"log-probabilities": False, "tool calls": None, "n": False},
        {"never_scored"},
    ),
    "Ollama, a cloud model": ({"log-probabilities": False, "thoughts": True}, {"never_scored"}),
    "DeepSeek V3.2, without alternatives": ({"log-probabilities": False}, {"never_scored"}),
    "DeepSeek V3.2, 0 or -9999": ({"log-probabilities": False}, {"never_scored"}),
    "thoughts apart, not listed": ({"log-probabilities": True, "thoughts": True}, set()),
    "max_tokens refused": ({"answers": True, "n": True}, set()),
    "temperature refused": ({"answers": True}, {"temperature_refused"}),
    "no small limits": ({"answers": True, "tool calls": True, "n": True}, set()),
    "filtered": ({"answers": True}, {"unusable"}),
    "a web page": ({"answers": False}, {"error"}),
    "hangs": ({"answers": False}, {"error"}),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_providers(provider, name):
    """Each trap is found at the server that has it, and nothing is found at one that has none."""
    can, wrong = PROVIDERS[name]
    stage, server = checked(provider, **BEHAVIOURS[name])

    assert {key: stage.abilities[key].can for key in can} == can
    assert kinds(stage) == wrong
    assert stage.works == (not wrong & {"never_scored", "no_logprobs", "error"})
    assert PROVIDERS.keys() == BEHAVIOURS.keys()
    if "usage" in stage.abilities and stage.abilities["usage"].can:
        streamed = stage.abilities["streamed"].can
        assert stage.abilities["usage"].how == ("reported, whole and streamed" if streamed else "reported, whole")
    if "error" in wrong:
        assert len(server.bodies) == 1  # it is asked nothing more
        assert stage.then == "its queries escalate to 'large'"


@pytest.mark.parametrize(
    ("thoughts", "score"), [("no", 0.82), ("apart", 0.82), ("apart, own list", 0.82), ("in the text", 0.82)]
)
def test_the_score_is_that_of_the_live_cascade(provider, thoughts, score):
    """Of the answer alone, wherever the thoughts are; a thinking model is asked once more, with its own limit."""
    server, url = provider(thoughts=thoughts)
    stages = [
        Stage(OpenAICompatibleModel("m", base_url=url), [TokenProbability()], {"p_t": 0.8}, decoding=GREEDY),
        LAST,
    ]
    found = diagnose(stages).stages[0]
    live = Cascade(stages).run("Name three colours.").record.attempts[0]

    assert found.scores["p_t"].value == pytest.approx(live.scores["p_t"].value)
    assert found.scores["p_t"].value == pytest.approx(score, abs=0.01)
    assert found.scores["p_t"].passed is live.scores["p_t"].passed is True
    limits = [body.get("max_tokens") for body in server.bodies[:2]]
    assert limits == ([16, 2048] if thoughts == "in the text" else [16, 16])


def test_the_key_and_what_was_said_stay_out(provider):
    """Errors are told by type, status and code; a server that repeats the key repeats it to nobody."""
    server, url = provider(status=401)
    stage = Stage(OpenAICompatibleModel("m", base_url=url, api_key="sk-very-secret"))
    told = json.dumps(diagnose([stage]).as_dict())

    assert "401, invalid_api_key" in told
    assert "api_key_env" in told
    assert "secret" not in told
    assert server.bodies


def test_a_server_that_is_down_is_a_row():
    """And the cascade is told to escalate, or, if that is the last, to fail."""
    down = OpenAICompatibleModel("m", base_url="http://127.0.0.1:9/v1", name="down")
    first, last = diagnose([Stage(down, [TokenProbability()], {"p_t": 0.5}), Stage(down)]).stages

    assert kinds(first) == kinds(last) == {"error"}
    assert "Nothing answers there" in first.findings[0].text
    assert (first.then, last.then) == ("its queries escalate to 'down'", "queries that come to it fail")
    raising = Cascade([Stage(down, [TokenProbability()], {"p_t": 0.5}), LAST], on_error="raise")
    assert diagnose(raising).stages[0].then == "queries that come to it fail"


# ---------------------------------------------------------------------- traps of settings


def test_a_temperature_that_is_left_to_the_server(provider):
    """It samples then: of a judged stage that is a warning, of the last a note."""
    stage, _ = checked(provider, decoding=Decoding())
    assert kinds(stage) == {"default_temperature"}
    _, url = provider()
    (last,) = diagnose([Stage(OpenAICompatibleModel("m", base_url=url))]).stages
    assert not kinds(last)
    assert "default_temperature" in kinds(last, "note")


def test_labels_are_asked_for_and_thoughts_before_them_are_warned_of(provider):
    """The question is one of these labels; a model that thinks about it is told so, and how to stop."""
    signal = TokenProbability("ABCD")
    stage, server = checked(provider, [signal], thoughts="apart", answer=(("D", 0.9),))

    assert "A, B, C, D" in server.bodies[0]["messages"][0]["content"]
    assert server.bodies[0]["top_logprobs"] == 20
    assert stage.scores["p_t"].value == pytest.approx(0.9)
    assert kinds(stage) == {"thinks_with_labels"}
    assert "enable_thinking" in stage.findings[0].text
    assert not kinds(checked(provider, [signal], answer=(("D", 0.9),))[0])


def test_labels_without_alternatives(provider):
    """From which alone their probability is read."""
    stage, _ = checked(provider, [TokenProbability("ABCD")], listed=0, answer=(("D", 0.9),))
    assert "no_alternatives" in kinds(stage)


def test_thoughts_that_use_up_the_limit(provider):
    """The stage's own, if it has one."""
    stage, server = checked(provider, decoding=Decoding(temperature=0, max_tokens=8), thoughts="apart")
    assert "cut_in_thoughts" in kinds(stage)
    assert "8 tokens" in next(each.text for each in stage.findings if each.kind == "cut_in_thoughts")
    assert {body["max_tokens"] for body in server.bodies if not body.get("tools")} == {8, 1}


def test_a_question_of_the_users_is_asked_with_the_limit_that_it_has_live(provider):
    """And an answer that this limit cuts is warned of; without a limit none is sent."""
    stage, server = checked(provider, decoding=Decoding(temperature=0, max_tokens=3), question="Which three?")
    assert server.bodies[0]["messages"][0]["content"] == "Which three?"
    assert "cut" in kinds(stage)
    stage, server = checked(provider, question="Which three?")
    assert "max_tokens" not in server.bodies[0]
    assert not kinds(stage)


def test_what_keeps_answers_without_a_score_works(provider):
    """ "always" needs none."""
    stage, _ = checked(provider, thresholds={"p_t": "always"}, logprobs="none")
    assert stage.works
    assert "unscored" in kinds(stage, "note")


def test_what_a_server_refuses_is_learned_and_said(provider):
    """With the line that saves the refused calls; what was known before is not told again."""
    refuses = {"refuses": ("max_tokens", "temperature"), "thoughts": "hidden"}
    stage, _ = checked(provider, **refuses)
    assert "`unsupported: [max_tokens, temperature]`" in next(
        each.text for each in stage.findings if each.kind == "refused"
    )
    _, url = provider(**refuses)
    model = OpenAICompatibleModel("m", base_url=url, unsupported=["max_tokens", "temperature"])
    (known,) = diagnose([Stage(model)]).stages
    assert "refused" not in kinds(known, "note")


def test_a_limit_that_is_too_small_for_a_server_is_no_failure_of_the_stage(provider):
    """It is asked again with a larger one, and that a limit can be an error is noted."""
    stage, server = checked(provider, least=100)
    assert stage.works
    assert {body["max_tokens"] for body in server.bodies if not body.get("tools")} == {16, 2048, 1}
    assert "cut_fails" in kinds(stage, "note")


def test_an_answer_that_no_cascade_keeps(provider):
    """Filtered, or empty once what the model stated of itself is taken off."""
    stage, _ = checked(provider, finish={"stop": "content_filter"})
    assert kinds(stage) == {"unusable"}
    stated = {"thresholds": {"stated": 0.5}, "answer": (("<confidence>0.9</confidence>", 0.9),)}
    stage, _ = checked(provider, [Verbalized()], **stated)
    assert stage.scores["stated"].value == pytest.approx(0.9)
    assert "empty answer" in next(each.text for each in stage.findings if each.kind == "unusable")


# ---------------------------------------------------------------------- costs


def test_costs_in_both_senses(provider):
    """Of the check, every call of it; of a typical query, by stage, and with the stages before it."""
    server, url = provider()
    small = Stage(OpenAICompatibleModel("small", base_url=url), [TokenProbability()], {"p_t": 0.8}, Prices(1, 2))
    large = Stage(OpenAICompatibleModel("large", base_url=url), prices=Prices(10, 20))
    found = diagnose([small, large], typical=Usage(1000, 100))

    said = sum(3 if body.get("tools") else 1 if body["max_tokens"] == 1 else 5 for body in server.bodies[:5])
    assert len(server.bodies) == 10
    assert found.stages[0].usage == Usage(100, said)
    assert found.stages[0].cost.usd == pytest.approx((100 + 2 * said) / 1e6)
    assert found.cost.usd == pytest.approx(11 * (100 + 2 * said) / 1e6)
    assert [stage.typical.usd for stage in found.stages] == pytest.approx([0.0012, 0.012])
    assert [found.answered_by(i).usd for i in (0, 1)] == pytest.approx([0.0012, 0.0132])
    assert found.break_even == pytest.approx(0.1)
    assert json.loads(json.dumps(found.as_dict()))["typical"]["break_even"] == pytest.approx(0.1)


def test_costs_that_nobody_knows_are_none(provider):
    """And never 0."""
    stage, _ = checked(provider)
    assert stage.typical.usd is stage.typical.flops is None
    assert "no_prices" in kinds(stage, "note")


def test_what_signals_ask_further_is_charged():
    """A statement in a second turn is part of what the check costs, and its score is there."""
    replies = {"Which?": Reply("red, green"), Verbalized("two-step").instruction: Reply("0.9")}
    model = ScriptedModel("small", lambda request: replies.get(request.messages[-1].content, Reply("0.9")))
    stage = Stage(model, [Verbalized("two-step")], {"stated": 0.5})
    first = diagnose([stage, LAST], question="Which?").stages[0]

    assert first.scores["stated"].value == pytest.approx(0.9)
    asked = [ask for call in model.calls for ask in call]
    assert first.usage.output_tokens == 2 + 1 + 2 + 1  # whole, statement, streamed, cut
    assert len(asked) == 4


# ---------------------------------------------------------------------- models here, servers there, and frameworks


def test_a_scripted_model_that_shows_its_prompt():
    """Its hidden states and labels are seen, and signals before the answer judge by them."""
    said = Reply("D", labels={"D": 0.7}, hidden=[1.0, 2.0])
    model = ScriptedModel("small", lambda request: said, hidden_size=2, continues=True)
    first = diagnose([Stage(model, [TokenProbability("ABCD")], {"p_t": 0.5}), LAST]).stages[0]

    assert first.abilities["hidden states"].how == "yes, of block 4 of 4, 2 numbers each"
    assert first.scores["p_t"].value == pytest.approx(0.7)
    assert model.open_caches == 0


def test_models_that_write_in_turn():
    """What is kept are steps, and signals that judge only between them are not asked for a whole answer."""
    small, large = ScriptedModel("small", continues=True), ScriptedModel("large", continues=True)
    found = diagnose(StepwiseCascade([Stage(small, [TokenProbability()], {"p_t": 0.5}), Stage(large)]))
    assert [stage.then for stage in found.stages] == [
        "writes each step with p_t >= 0.5; 'large' writes the others",
        "writes the steps that are not kept",
    ]


def test_a_cascade_as_a_stage_tells_its_own_costs():
    """Which no architecture and no prices of its stage could say."""
    inner = CascadeModel(Cascade([Stage(ScriptedModel("inner"), prices=Prices(1, 1))]))
    (stage,) = diagnose([Stage(inner)]).stages
    assert stage.cost.usd == pytest.approx(stage.usage.total_tokens / 1e6)
    assert "no_prices" not in kinds(stage, "note")


class Gate(Signal):
    """Judges the prompt's hidden state, as a probe does."""

    phase = "pre"
    name = "p_ik"

    def layers(self, model):
        return (2,)

    def check(self, model):
        pass

    def score(self, evidence):
        if evidence.prefilled is None:
            raise SignalUnavailableError("the model showed no hidden state")
        return Measurement(0.9)

    def identity(self):
        return {}


def test_hidden_states_that_do_not_come(monkeypatch):
    """A gate that needs them never keeps an answer; where they come, it has its score."""
    model = ScriptedModel("small", {}, hidden_size=2)
    stages = [Stage(model, [Gate()], {"p_ik": 0.5}), LAST]
    assert diagnose(stages).stages[0].scores["p_ik"].value == pytest.approx(0.9)
    monkeypatch.setattr(model, "prefill", lambda asks: [ModelError("It has none.") for _ in asks])
    first = diagnose(stages).stages[0]

    assert first.abilities["hidden states"].can is False
    assert kinds(first, "fails") == {"error"}
    assert "needs hidden states, and reading them fails" in first.findings[0].text
    assert first.then == "its queries escalate to 'large'"


def test_a_server_that_does_not_continue(provider):
    """It says that it would, and begins anew; one that is not known to is not asked."""
    _, url = provider(answer=(("Red,", 0.9), (" green", 0.9)))
    (stage,) = diagnose([Stage(OpenAICompatibleModel("m", base_url=url, continues="trailing"))]).stages
    assert stage.abilities["continues"].how == "no: it began the answer anew"
    assert kinds(stage) == {"not_continued"}
    assert checked(provider)[0].abilities["continues"].can is None


def test_what_cannot_be_checked():
    """Nothing, and a model that nobody has made yet."""
    with pytest.raises(ConfigurationError, match="no stage to check"):
        diagnose([])
    with pytest.raises(ConfigurationError, match="Got str; a Cascade"):
        diagnose([Stage("bundled:small")])


def test_llama_cpps_own_server(served):
    """A real one: log-probabilities, streams and usage are there, and nothing is wrong with it."""
    models = [OpenAICompatibleModel(size, base_url=served(size)) for size in ("small", "large")]
    stage = Stage(models[0], [TokenProbability()], {"p_t": 0.5}, decoding=GREEDY)
    found = diagnose([stage, Stage(models[1], decoding=GREEDY)], question="How does Nebros Krurer earn a living?")

    assert found.works
    for stage in found.stages:
        assert stage.abilities["log-probabilities"].can
        assert stage.abilities["streamed"].how == "yes, with log-probabilities"
        assert stage.abilities["usage"].can
        assert stage.abilities["n"].can
        assert not kinds(stage)


def test_cascades_of_frameworks(provider):
    """Through LangChain's and LlamaIndex's own classes, the same trap is found."""
    langchain_openai = pytest.importorskip("langchain_openai")
    openai_like = pytest.importorskip("llama_index.llms.openai_like")
    import langchain_confcascade
    import llamaindex_confcascade

    for behaviour, works in (({}, True), ({"logprobs": "none"}, False), ({"logprobs": "zeros"}, False)):
        _, url = provider(**behaviour)
        chats = [
            langchain_openai.ChatOpenAI(model=name, base_url=url, api_key="none", temperature=0)
            for name in ("small", "large")
        ]
        llms = [
            openai_like.OpenAILike(
                model=name, api_base=url, api_key="none", is_chat_model=True, is_function_calling_model=True
            )
            for name in ("small", "large")
        ]
        for cascade in (
            langchain_confcascade.ConfidenceCascadeLLM(models=chats, threshold=0.5).cascade,
            llamaindex_confcascade.ConfidenceCascadeLLM(models=llms, threshold=0.5).cascade,
        ):
            found = diagnose(cascade)
            assert found.works is works
            assert kinds(found.stages[0], "fails") == (set() if works else {"never_scored"})
            assert found.stages[1].works
            assert found.stages[0].abilities["tool calls"].can is not False or not works
            assert (cascade.run("Name three colours.").record.answered_by == found.stages[0].model) is works
