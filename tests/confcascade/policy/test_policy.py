"""A policy in a file: what it makes of the models that it is given, and what it refuses."""

import json
import warnings

import pytest
from confcascade import Cascade, ConfigurationError, TokenProbability
from confcascade.audit.of_policy import audit_of
from confcascade.calibration import Platt
from confcascade.extending import build_stages
from confcascade.guarantee import Certificate
from confcascade.policy import (
    CalibratedEntry,
    ExpectedGainEntry,
    FittedGroup,
    FittedStage,
    MadeFrom,
    Policy,
    Saving,
    question_key,
)
from confcascade.signals import Evidence
from confcascade.signals.calibrated import Calibrated, ExpectedGain
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Message, Request, Response, Token

PLATT = Platt.fit([0.1, 0.2, 0.6, 0.4, 0.8, 0.9] * 6, [0, 0, 1, 0, 1, 1] * 6, signal="p_t", space=(0, 1))
QUESTION = "How many?"


def script(name="small", answer=("4", 0.99)):
    return ScriptedModel(name, {QUESTION: answer})


SMALL, LARGE = script(), script("large", ("5", 0.99))


def made(**changes):
    """A policy of two models with one calibrated signal."""
    small = {
        "model": "small",
        "build": SMALL.fingerprint,
        "prompt_version": "v1",
        "signals": [{"type": "p_t"}],
        "identities": {"p_t": json.loads(json.dumps(TokenProbability().identity()))},
        "derived": [CalibratedEntry(type="calibrated", name="confidence", calibrator=PLATT.as_dict())],
        "thresholds": {"confidence": 0.5},
    }
    certificate = {
        "kind": "labels",
        "max_drop": 0.01,
        "confidence": 0.95,
        "test": "split",
        "n": 1000,
        "harms": 2,
        "benefits": 1,
        "loss": 0.001,
        "bound": 0.006,
        "date": "2026-11-22",
        "assumptions": ("The questions to come are like the examples.",),
    }
    return Policy(
        models=["small", "large"],
        stages=[
            FittedStage(**{**small, **changes}),
            FittedStage(model="large", build=LARGE.fingerprint, prompt_version="v1"),
        ],
        certificates=[Certificate(**certificate)],
        saving=Saving(unit="usd", cost=0.5, largest=1.0, share=0.5, low=0.4, high=0.6, spared=0.6),
        made_from=MadeFrom(questions=2, keyed_by="id", keys=""),
    )


def test_what_is_saved_is_read(tmp_path):
    policy = made()
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json").model_dump() == policy.model_dump()


def test_stages_judge_as_the_policy_says():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, large = made().make_stages([SMALL, LARGE], prompt_version="v1")
    (signal,) = small.signals
    assert isinstance(signal, Calibrated)
    assert (small.thresholds, large.thresholds) == ({"confidence": 0.5}, {})
    token = Token("4", -0.1)
    evidence = Evidence(Request((Message("user", "?"),)), None, (token,), Response("4", (token,)))
    assert signal.score(evidence).value == PLATT.predict([TokenProbability().score(evidence).value])[0]


def test_a_policy_may_have_a_threshold_for_each_label(tmp_path):
    """Saved, read, told and played; the answer that is kept is a corrected one."""
    signal, cuts = TokenProbability(["yes", "no"], corrects=True), {"yes": 0.4, "no": "never"}
    entry = {"type": "p_t", "labels": ["yes", "no"], "corrects": True}
    identity = json.loads(json.dumps(signal.identity()))
    small = ScriptedModel("small", {"q": Reply("no", 0.55, {"no": 0.55, "yes": 0.45})})
    policy = made(
        build=small.fingerprint, signals=[entry], identities={"p_t": identity}, derived=[], thresholds={"p_t": cuts}
    )
    policy.save(tmp_path / "policy.json")
    read = Policy.load(tmp_path / "policy.json")
    assert read.model_dump() == policy.model_dump()
    assert "if p_t >= 0.4 (yes), never (no)" in read.describe()
    outcome = Cascade(read.make_stages([small, LARGE], prompt_version="v1")).run("q")
    assert (outcome.text, outcome.stage) == ("yes", 0)
    plain = ScriptedModel("small", {"q": "yes"})
    with pytest.raises(ConfigurationError, match="another signal 'p_t' of 'small'"):
        policy.make_stages([plain, LARGE], signals=[TokenProbability(["yes", "no"])], prompt_version="v1")


def test_a_gain_is_made_of_its_parts():
    entry = ExpectedGainEntry(type="expected_gain", name="gain", own=PLATT.as_dict(), larger=PLATT.as_dict())
    small, _ = made(derived=[entry], thresholds={"gain": -0.1, "p_t": 0.2}).make_stages(
        [SMALL, LARGE], prompt_version="v1"
    )
    gain, raw = small.signals
    assert isinstance(gain, ExpectedGain)
    assert isinstance(raw, TokenProbability)


REFUSED = {
    "another model": (
        lambda: made().make_stages([script("other"), LARGE]),
        "was not fitted on model 'other', but on small",
    ),
    "a missing model": (lambda: made().make_stages([LARGE]), "asks model 'small', which is not among"),
    "two alike": (lambda: made().make_stages([SMALL, SMALL, LARGE]), "Two models have the same name"),
    "another build": (
        lambda: made(build="older").make_stages([SMALL, LARGE]),
        "fitted on build older of 'small'; this is build",
    ),
    "another prompt": (
        lambda: made().make_stages([SMALL, LARGE], prompt_version="v2"),
        "answers to prompt v1 .*prompt v2",
    ),
    "another signal": (
        lambda: made(signals=[{"type": "p_t", "aggregate": "min"}]).make_stages([SMALL, LARGE], prompt_version="v1"),
        "another signal 'p_t' of 'small': its `aggregate` was 'mean' and is now 'min'",
    ),
    "no such signal": (
        lambda: made(signals=[]).make_stages([SMALL, LARGE], prompt_version="v1"),
        "does not say how to make it: hand it over in `signals`",
    ),
    "a threshold beside it": (
        lambda: build_stages(models=[SMALL, LARGE], policy=made(), threshold=0.9),
        "A `policy` brings signals and thresholds",
    ),
    "no file": (lambda: Policy.load("nowhere.json"), "'nowhere.json' cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:This policy's promise")
@pytest.mark.parametrize("case", REFUSED)
def test_what_nothing_is_promised_of_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "scores were of other tokens"),
        ({"stages": []}, "stages"),
        ({"models": ["large"]}, "must be different ones of its models"),
        ({"surprise": 1}, "unknown key"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path, change, message):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(made().model_dump_json(by_alias=True)), **change}))
    with pytest.raises(ConfigurationError, match=f"{message}"):
        Policy.load(path)


def test_signals_may_be_handed_over():
    """In the place of those described, of every model or by its name."""
    for signals in ([TokenProbability()], {"small": [TokenProbability()]}):
        small, _ = made(signals=[]).make_stages([SMALL, LARGE], prompt_version="v1", signals=signals)
        assert small.signals[0].name == "confidence"


def test_what_cannot_be_checked_is_said_once():
    with pytest.warns(UserWarning, match="not known here is the build of 'small' and the prompt") as told:
        made(build=None).make_stages([SMALL, LARGE])
    assert len(told) == 1


def test_a_model_that_the_policy_leaves_out_is_not_used():
    """ "Skip the middle one", and "use one model"."""
    policy = made()
    with_middle = policy.model_copy(update={"models": ["small", "middle", "large"]})
    stages = with_middle.make_stages([SMALL, script("middle"), LARGE], prompt_version="v1")
    assert [stage.model.name for stage in stages] == ["small", "large"]
    alone = with_middle.model_copy(update={"stages": policy.stages[1:]})
    assert [stage.model.name for stage in alone.make_stages([LARGE], prompt_version="v1")] == ["large"]
    assert "Policy: ask large alone." in alone.describe()


@pytest.mark.filterwarnings("ignore:This policy's promise")
def test_both_integrations_take_a_policy(tmp_path):
    """From a file or as it is: they answer as the core does, and tell the confidence."""
    langchain_confcascade = pytest.importorskip("langchain_confcascade")
    llamaindex_confcascade = pytest.importorskip("llamaindex_confcascade")
    path = tmp_path / "policy.json"
    made().save(path)
    for policy in (path, str(path), made()):
        chat = langchain_confcascade.ConfidenceCascadeLLM(models=[SMALL, LARGE], policy=policy)
        record = chat.invoke(QUESTION).response_metadata["confcascade"]
        llm = llamaindex_confcascade.ConfidenceCascadeLLM(models=[SMALL, LARGE], policy=policy)
        other = llm.complete(QUESTION).additional_kwargs["confcascade"]
        assert record["answered_by"] == other["answered_by"] == "small"
        assert record["policy_id"] == other["policy_id"]
        assert record["attempts"][0]["confidence"] == record["attempts"][0]["scores"]["confidence"]["value"] > 0.5


@pytest.mark.filterwarnings("ignore:This policy's promise")
@pytest.mark.parametrize("framework", ["langchain_confcascade", "llamaindex_confcascade"])
def test_a_share_to_audit_guards_the_policys_promise(framework, tmp_path, monkeypatch):
    """`audit=0.5` beside a policy: against its certificate, not against nothing."""
    integration = pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    llm = integration.ConfidenceCascadeLLM(models=[SMALL, LARGE], policy=made(), audit=0.5)
    cascade = llm.cascade if framework == "langchain_confcascade" else llm._cascade
    assert cascade.auditor.audit.bounds == {"accuracy": 0.01}


def of_groups():
    """Thresholds of two groups, and the largest model for a third."""
    base, strict = made(), made(thresholds={"confidence": "never"})
    alone = base.stages[1:]
    (promise,) = base.certificates
    return Policy.model_validate(
        base.model_dump()
        | {
            "stages": alone,
            "certificates": [promise.model_copy(update={"group": name, "groups": 3}) for name in ("law", "art")],
            "groups": {
                "law": FittedGroup(stages=base.stages, saving=base.saving),
                "art": FittedGroup(stages=strict.stages, saving=base.saving),
                "physics": FittedGroup(stages=alone, saving=base.saving.model_copy(update={"share": 0.0})),
            },
        }
    )


def test_a_group_is_an_ordinary_policy(tmp_path):
    """Read from a file: its own stages, its own promise; where nothing is promised, the largest model alone."""
    of_groups().save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    assert policy.model_dump() == of_groups().model_dump()
    law, art, physics = (policy.for_group(name) for name in ("law", "art", "physics"))
    assert [each.stages[0].thresholds for each in (law, art, physics)] == [
        {"confidence": 0.5},
        {"confidence": "never"},
        {},
    ]
    assert [[promise.group for promise in each.certificates] for each in (law, art, physics)] == [["law"], ["art"], []]
    assert not law.groups
    assert law._folder == tmp_path
    assert "On questions of the group 'art'" in art.describe()
    assert "Policy: ask large alone." in physics.describe()
    other = policy.for_group("chess", unknown="largest")
    assert ([stage.model for stage in other.stages], other.certificates, other.saving.share) == (["large"], [], 0)
    text = policy.describe()
    assert "a cascade for each of 3 groups, or large alone" in text
    assert "Promised of 2 of 3 groups, all at once" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_groups().for_group("chess"), "not fitted on a group 'chess'.* It knows law, art, physics"),
        (lambda: made().for_group("law"), "decides all groups alike: leave the group 'law' out"),
        (
            lambda: of_groups().make_stages([SMALL, LARGE]),
            'each of 3 groups of questions: say which, with `group="law"`',
        ),
        (lambda: build_stages(models=[SMALL, LARGE], policy=of_groups()), "say which"),
        (lambda: build_stages(models=[SMALL, LARGE], threshold=0.9, group="law"), "A `group` goes with a `policy`"),
    ],
)
def test_a_group_that_is_not_there_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"certificates": []},  # of stages that smaller models answer
        {"stages": made().model_dump()["stages"]},
    ],
)
def test_groups_without_a_promise_are_no_policy(change):
    with pytest.raises(ValueError, match=r"promises nothing of the group 'law'|has the largest model as its stage"):
        Policy.model_validate(of_groups().model_dump() | change)


@pytest.mark.filterwarnings("ignore:This policy's promise")
def test_both_integrations_take_the_policy_of_a_group(tmp_path, monkeypatch):
    """By its name, each with its own thresholds; an audit guards the group's promise."""
    langchain_confcascade = pytest.importorskip("langchain_confcascade")
    llamaindex_confcascade = pytest.importorskip("llamaindex_confcascade")
    path = tmp_path / "policy.json"
    of_groups().save(path)
    for group, answering in (("law", "small"), ("art", "large"), ("physics", "large")):
        (tmp_path / group).mkdir()
        monkeypatch.chdir(tmp_path / group)  # of two groups an audit has two files
        given = {"models": [SMALL, LARGE], "policy": path, "group": group}
        chat = langchain_confcascade.ConfidenceCascadeLLM(**given)
        record = chat.invoke(QUESTION).response_metadata["confcascade"]
        llm = llamaindex_confcascade.ConfidenceCascadeLLM(**given)
        other = llm.complete(QUESTION).additional_kwargs["confcascade"]
        assert record["answered_by"] == other["answered_by"] == answering
        assert record["policy_id"] == other["policy_id"]
        assert len(record["attempts"]) == (1 if group != "art" else 2)
        for framework in (langchain_confcascade, llamaindex_confcascade):
            if group == "physics":
                with pytest.raises(ConfigurationError, match="nothing to audit"):
                    framework.ConfidenceCascadeLLM(**given, audit=0.5)
            else:
                framework.ConfidenceCascadeLLM(**given, audit=0.5)
                audit = audit_of(Policy.load(path).for_group(group), 0.5)
                assert audit.bounds == {"accuracy": 0.01}
        for framework in (langchain_confcascade, llamaindex_confcascade):
            with pytest.raises(ConfigurationError, match="say which"):
                framework.ConfidenceCascadeLLM(models=[SMALL, LARGE], policy=path)


def test_a_question_is_known_again():
    """By its text, whatever its case and white space."""
    assert question_key("How many? ") == question_key("how\n MANY?") != question_key("How much?")
    import base64

    keys = base64.b64encode(question_key("a") + question_key("b")).decode()
    made_from = MadeFrom(questions=2, keyed_by="id", keys=keys)
    assert made_from.overlap([question_key("A"), question_key("c")]) == 1


DECODED = {"temperature": 0.0, "max_tokens": 64}


def test_what_decodes_otherwise_is_refused_when_the_cascade_is_built():
    """Whatever the framework: a core model's options, LangChain's fields, LlamaIndex's default of 0.1."""
    from confcascade.decoding import Decoding
    from confcascade.models.openai import OpenAICompatibleModel
    from langchain_openai import ChatOpenAI
    from llama_index.llms.openai import OpenAI

    from langchain_confcascade import ConfidenceCascadeLLM as OfLangChain
    from llamaindex_confcascade import ConfidenceCascadeLLM as OfLlamaIndex

    policy = made(build=None, decoding=DECODED)
    small, large = policy.stages
    stages = [small.model_copy(update={"model": "gpt-4o-mini"}), large]
    policy = policy.model_copy(update={"models": ["gpt-4o-mini", "large"], "stages": stages})

    def of_core(**own):
        model = OpenAICompatibleModel("gpt-4o-mini", base_url="http://localhost", options=own)
        return build_stages(models=[model, LARGE], policy=policy)

    def of_langchain(**own):
        chat = ChatOpenAI(model="gpt-4o-mini", api_key="none", **own)
        return OfLangChain(models=[chat, LARGE], policy=policy).cascade.stages

    def of_llamaindex(**own):
        llm = OpenAI(model="gpt-4o-mini", api_key="none", **own)
        return OfLlamaIndex(models=[llm, LARGE], policy=policy).cascade.stages

    for built in (of_core, of_langchain, of_llamaindex):
        with pytest.warns(UserWarning, match="not known here") as said:
            stages = built(**DECODED)
        assert "temperature" not in str(said[0].message)
        with pytest.raises(ConfigurationError, match=r"with temperature 0\.0; here it is 1\.0"):
            built(**DECODED | {"temperature": 1})
        with pytest.raises(ConfigurationError, match="with max_tokens 64; here it is 512"):
            built(**DECODED | {"max_tokens": 512})
    assert of_core()[0].decoding == Decoding(**DECODED)
    assert stages[0].decoding == Decoding()  # LlamaIndex's own settings are what is wanted
    with pytest.warns(UserWarning, match=r"the temperature of 'gpt-4o-mini' \(fitted with 0\.0\) and the max_tokens"):
        of_langchain()


def test_another_temperature_is_named_though_the_build_has_it_in_it():
    """A policy that `collect` made of core models, and LangChain's class, whose fingerprint is of all its settings."""
    from langchain_openai import ChatOpenAI

    from langchain_confcascade import ConfidenceCascadeLLM

    chat = ChatOpenAI(model="small", api_key="none", temperature=0.7)
    with pytest.raises(ConfigurationError, match=r"with temperature 0\.0; here it is 0\.7"):
        ConfidenceCascadeLLM(models=[chat, LARGE], policy=made(decoding=DECODED))


def test_a_policy_of_core_models_goes_with_the_same_models_of_langchain():
    """Whether they are the same cannot be known, so it is said; another setting of one class is another build."""
    from langchain_openai import ChatOpenAI

    from langchain_confcascade import ConfidenceCascadeLLM

    def fitted_on(build):
        chat = ChatOpenAI(model="small", api_key="none", temperature=0.0)
        return ConfidenceCascadeLLM(models=[chat, LARGE], policy=made(build=build, decoding=DECODED))

    with pytest.warns(UserWarning, match="not known here is the build of 'small'"):
        assert fitted_on("0123456789ab").cascade.stages[0].model.name == "small"
    with pytest.raises(ConfigurationError, match="fitted on build langchain:0123456789ab of 'small'"):
        fitted_on("langchain:0123456789ab")


def test_a_policy_without_settings_is_read_and_asks_nothing():
    """As those of older versions are."""
    told = json.loads(made().model_dump_json())
    for stage in told["stages"]:
        del stage["decoding"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, _ = Policy.model_validate(told).make_stages([SMALL, LARGE], prompt_version="v1")
    assert not small.decoding.settings
