"""`confcascade ask`: an answer, who gave it and why, as tables or JSON, and codes that a script can rely on."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import Message
from confcascade.cascade_file import CascadeFile
from confcascade.demo.world import World

TWO = "models:\n- bundled:small\n- bundled:large\nthreshold: 0.9\n"
# nothing listens there
UNREACHABLE = '{openai: far, base_url: "http://127.0.0.1:9/v1", max_retries: 0}'


@pytest.fixture
def cascade(tmp_path):
    """Writes a cascade file and gives its path."""

    def write(text):
        path = tmp_path / "cascade.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def questions():
    """Held-out questions: one that the small model answers, and one that it passes on."""
    from confcascade import Cascade
    from confcascade.extending import build_stages

    live = Cascade(build_stages(models=["bundled:small", "bundled:large"], threshold=0.9))
    prompts = [question.prompt for question in World().questions("test", ("facts",), per_task=30)]
    outcomes = live.run_batch(prompts)
    return [next((p, o) for p, o in zip(prompts, outcomes, strict=True) if o.record.stage == stage) for stage in (0, 1)]


def flat(text):
    """Without frames and line breaks."""
    return re.sub(r"[\s│┃]+", " ", text)


def test_help_shows_a_whole_file(confcascade, tmp_path):
    """The file in `--help` is one, as it stands."""
    shown = confcascade("ask", "--help").stdout
    for word in (
        "--cascade",
        "--prompt",
        "--context",
        "--choice",
        "--system",
        "--json",
        "--no-stream",
        "code 0",
        "1 if",
        "2 if",
    ):
        assert word in shown
    rows = shown.splitlines()
    first = next(i for i, row in enumerate(rows) if row.strip() == "models:")
    path = tmp_path / "cascade.yaml"
    path.write_text("\n".join(rows[first : first + 4]))
    assert len(CascadeFile.load(path).cascade().stages) == 2


@pytest.mark.parametrize(("stage", "how"), [(0, "--no-stream"), (1, "--stream")])
def test_an_answer_and_how_it_came_about(confcascade, cascade, questions, stage, how):
    """The answer first; then every attempt with its score against the threshold, and the cost in both accountings."""
    question, outcome = questions[stage]
    done = confcascade("ask", question, "--cascade", cascade(TWO), how)

    assert done.returncode == 0, done.stderr
    answer, shown = done.stdout.split("\n", 1)
    assert answer == outcome.text
    for attempt in outcome.record.attempts:
        assert attempt.reason in flat(shown)
        assert f"{attempt.usage.input_tokens} + {attempt.usage.output_tokens}" in shown
    assert f"Answered by {outcome.record.answered_by}, model {stage + 1} of 2" in shown
    every, answering = outcome.record.cost, outcome.record.cost_answering_stage
    assert f"every model that ran: {every.tokens} tokens, {every.flops / 1e6:.1f} MFLOP" in shown
    assert f"answering stage only: {answering.tokens} tokens, {answering.flops / 1e6:.1f} MFLOP" in shown


def test_json_is_the_answer_with_its_record(confcascade, cascade, questions):
    """For programs: nothing else is printed, and the record is that of the live cascade, times apart."""
    question, outcome = questions[1]
    path = cascade(TWO)
    done = confcascade("ask", "-", "--cascade", path, "--json", "--system", "", input=f"{question}\n")

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    live = CascadeFile.load(path).cascade().run([Message("system", ""), Message("user", question)])

    def timeless(record):
        text = json.dumps(record)
        return re.sub(r'"(seconds|latency_s)": [\d.e-]+', "", text)

    assert told["answer"] == live.text
    assert timeless(told["record"]) == timeless(live.record.as_dict())
    assert told["record"]["policy_id"] == outcome.record.policy_id


def test_a_question_is_put_as_its_prompt_says(confcascade, cascade, httpserver, tmp_path):
    """The file's prompt, the context, the choices and the system message reach the model, word for word."""
    pytest.importorskip("openai")
    reply = {"index": 0, "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [reply]}
    httpserver.expect_request("/v1/chat/completions").respond_with_json(answer)
    model = f'models: [{{openai: m, base_url: "{httpserver.url_for("/v1")}"}}]\n'
    own = 'prompt: {system: Be brief., user: "{context}: {question}"}\n'
    text = tmp_path / "text.txt"
    text.write_text("The {bell} rang.")

    def asked(*arguments):
        done = confcascade("ask", "Who?", "--no-stream", *arguments)
        assert done.returncode == 0, done.stderr
        sent = json.loads(httpserver.log[-1][0].data)
        return [(message["role"], message["content"]) for message in sent["messages"]]

    path = cascade(model + own)
    assert asked("--cascade", path, "--context", text) == [("system", "Be brief."), ("user", "The {bell} rang.: Who?")]
    chosen = asked("--cascade", path, "--prompt", "plain", "--choice", "A man", "--choice", "A dog", "--system", "{x}")
    assert chosen == [("system", "{x}"), ("user", "Who?\nA. A man\nB. A dog")]
    (message,) = asked("--cascade", cascade(model), "--prompt", "multiple-choice", "--choice", "X", "--choice", "Y",
                       "--subject", "bells")  # fmt: skip
    assert "about bells" in message[1]
    assert "A. X\nB. Y" in message[1]


def test_a_served_cascade_is_asked_as_told(confcascade, cascade, served, yardstick):
    """Behind a real server, greedy and no longer than wanted; prices become dollars."""
    pytest.importorskip("openai")
    stages = [f'- model: {{openai: {size}, base_url: "{served(size)}"}}' for size in ("small", "large")]
    priced = "  prices: {input_usd: 1, output_usd: 2}\n"
    judged = f"  signals: [p_t]\n  thresholds: {{p_t: {yardstick.threshold}}}\n"
    path = cascade(f"stages:\n{stages[0]}\n{priced}{judged}{stages[1]}\n{priced}")
    prompt, expected = yardstick.prompts[0], yardstick.outcomes[0]

    done = confcascade("ask", prompt, "--cascade", path, "--temperature", 0, "--max-tokens", 64, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    yardstick.check(expected, told["answer"], told["record"])
    usage = told["record"]["usage"]
    assert told["record"]["cost"]["usd"] == pytest.approx((usage["input_tokens"] + 2 * usage["output_tokens"]) / 1e6)
    done = confcascade("ask", prompt, "--cascade", path, "--temperature", 0, "--max-tokens", 1)
    assert " + 1 " in flat(done.stdout)
    assert "$0.0000" in done.stdout


@pytest.mark.parametrize("on_error", ["escalate", "raise"])
def test_no_answer_is_the_code_1(confcascade, cascade, on_error):
    """No model could be reached: one line that says why, and what was tried."""
    pytest.importorskip("openai")
    path = cascade(f"models: [{UNREACHABLE}]\non_error: {on_error}\n")
    done = confcascade("ask", "Who?", "--cascade", path)
    told = json.loads(confcascade("ask", "Who?", "--cascade", path, "--json").stdout)

    assert done.returncode == 1
    assert "No answer: " in done.stderr
    assert "APIConnectionError" in done.stderr
    assert "Traceback" not in done.stderr
    assert told["answer"] is None
    assert "APIConnectionError" in told["error"]
    assert [attempt["decision"] for attempt in told["attempts"]] == ["fail"]


def test_an_earlier_answer_is_told_as_such(confcascade, cascade, questions):
    """Where the last model fails, the rejected answer is given, and named so."""
    pytest.importorskip("openai")
    question, outcome = questions[0]
    path = cascade(f"models: ['bundled:small', {UNREACHABLE}]\nthreshold: 1\non_exhausted: best\n")
    done = confcascade("ask", question, "--cascade", path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{outcome.text}\n")
    assert "model 1 of 2, an answer that had been rejected" in flat(done.stdout)
    assert "every model that ran: " in done.stdout


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        (None, ["Who?"], "Which cascade? Give --cascade FILE"),
        (None, ["Who?", "--cascade", "nowhere.yaml"], "cannot be read: No such file"),
        ("models: ['bundled:small', 'bundled:large']\n", ["Who?"], "line 1, `models[0]`: a cascade needs a threshold"),
        ("models: ['bundled:small']\nthreshhold: 1\n", ["Who?"], "line 2, `threshhold`: unknown key; did you mean"),
        (TWO, [" "], "The question is empty"),
        (TWO, ["-"], "The question is empty"),
        (TWO, ["Who?", "--prompt", "multiple-choice"], "Here --subject, --choice and --context give such values."),
        (TWO + "prompt: multiple\n", ["Who?"], "line 5, `prompt`: There is no prompt 'multiple'"),
        (TWO + "prompt: {user: '{quesion}'}\n", ["Who?"], "line 5, `prompt`: Prompt 'own' has the field {quesion}"),
    ],
)
def test_what_cannot_work_is_the_code_2(confcascade, cascade, text, arguments, says):
    """One line that says what to do, brackets and all."""
    where = [] if text is None else ["--cascade", cascade(text)]
    done = confcascade("ask", *arguments, *where, input="")

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["ask", "collect", "convert", "demo", "evaluate", "fit", "fit-mixture"])
def test_help_is_whole_in_80_columns(command):
    """No name of an option and no word is cut off."""
    from confcascade.cli import app
    from typer.testing import CliRunner

    for arguments in ([], [command]):
        shown = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"}).output
        assert "--help" in shown
        assert "…" not in shown
        assert not re.search(r"[\w:)]\.\.\.\n", shown)


IN_TURN = (
    "mode: stepwise\nmodels: [bundled:small, bundled:large]\nsignals: [{type: p_t, aggregate: min}]\n"
    'threshold: 0.75\nsteps: {delimiter: "\\n"}\n'
)
MIXED = "Vodis has 57 shells, finds 88, loses 39. How many shells?"  # the second step is hard for the small model


def test_an_answer_that_is_written_in_turn(confcascade, cascade):
    """The answer; then each model, each step with its author, score and threshold, and the cost in both accountings."""
    path = cascade(IN_TURN)
    outcome = CascadeFile.load(path).cascade().run(MIXED)
    assert len({step.author for step in outcome.record.steps}) == 2

    done = confcascade("ask", MIXED, "--cascade", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(outcome.text + "\n")
    shown = flat(done.stdout[len(outcome.text) :])
    for step in outcome.record.steps:
        thrown = "" if step.kept else "thrown away "
        assert f"{step.index + 1} {step.author} {thrown}{step.reason} {step.tokens}" in shown
    assert "Steps of the answer: small 2, large 1" in shown
    every, kept = outcome.record.cost, outcome.record.cost_answering_stage
    assert f"every model that ran: {every.tokens} tokens, {every.flops / 1e6:.1f} MFLOP" in shown
    assert f"what was kept only: {kept.tokens} tokens, {kept.flops / 1e6:.1f} MFLOP" in shown

    done = confcascade("ask", MIXED, "--cascade", path, "--json")
    steps = [step for attempt in json.loads(done.stdout)["record"]["attempts"] for step in attempt["steps"]]
    assert sorted(step["reason"] for step in steps) == sorted(step.reason for step in outcome.record.steps)


def test_a_stage_that_is_a_cascade_shows_its_steps(confcascade, cascade):
    """It answered as one model; below it, who wrote what."""
    inner = cascade(IN_TURN)
    path = inner.rename(inner.with_name("inner.yaml")).with_name("cascade.yaml")
    path.write_text("models: [bundled:small, {cascade: inner.yaml}]\nthreshold: 0.999\n")
    done = confcascade("ask", MIXED, "--cascade", path)
    assert done.returncode == 0, done.stderr
    assert "Answered by small+large, model 2 of 2" in flat(done.stdout)
    assert "2 small thrown away p_t" in flat(done.stdout)
