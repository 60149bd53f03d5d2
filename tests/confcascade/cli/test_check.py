"""`confcascade check`: what each stage can do, in 80 columns or as JSON, and codes that a script can rely on."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("openai")

from confcascade import ConfigurationError, Prices, Stage, TokenProbability, diagnose
from confcascade.cli import app
from confcascade.cli.check import _show
from confcascade.testing import ScriptedModel

TWO = "models:\n- bundled:small\n- bundled:large\n"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the command in this process on a cascade file of this text, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(text, *arguments):
        path = tmp_path / "cascade.yaml"
        path.write_text(text)
        return CliRunner().invoke(app, ["check", str(path), *arguments])

    return run


def flat(text):
    return re.sub(r"\s+", " ", text)


def test_help_teaches(confcascade):
    """What is asked, which traps are found, and what the codes mean."""
    shown = confcascade("check", "--help", env={"COLUMNS": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    shown = flat(shown)
    for words in (
        "--question",
        "--typical",
        "--json",
        "up to eight short calls",
        "all zero",
        "code 0",
        "with 1 if",
        "with 2 if",
    ):
        assert words in shown


def test_bundled_models_on_a_screen_of_80_columns(check):
    """Everything is there, and no line is longer."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = check(TWO + "threshold: 0.9\n")

    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    shown = flat(done.stdout)
    assert "small, 1 of 2: works" in shown
    assert "log-probabilities yes, with 20 alternatives for each token" in shown
    assert "hidden states yes, of block 4 of 4" in shown
    assert "keeps an answer with p_t >= 0.9, else escalates to 'large'" in shown
    assert re.search(r"once 'small' keeps \d+\.\d% of them", shown)


def test_a_file_without_thresholds_can_be_checked(check):
    """As for collecting the answers by which they are chosen."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = check(TWO, "--json", "--typical", "1000,1")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["stages"][0]["scores"]["p_t"]["threshold"] is None
    assert "no threshold yet" in told["stages"][0]["then"]
    assert told["typical"]["usage"]["input_tokens"] == 1000


def test_a_server_that_is_down_is_a_row_and_the_code_1(check):
    """Not a traceback; as JSON, too."""
    down = 'models:\n- {openai: far, base_url: "http://127.0.0.1:9/v1"}\n'
    done = check(down)
    assert done.exit_code == 1
    assert "far, 1 of 1: cannot work" in done.stdout
    assert "Nothing answers there" in flat(done.stdout)
    assert re.search(r"this check no tokens, \d+\.\d s one query cost unknown so it", flat(done.stdout))
    assert "Traceback" not in done.output
    done = check(down, "--json")
    assert done.exit_code == 1
    (finding,) = json.loads(done.stdout)["stages"][0]["findings"]
    assert (finding["level"], finding["kind"]) == ("fails", "error")


def test_a_warning_is_no_failure(check, httpserver):
    """The code is 0; the prompt of the file puts the question."""
    token = {"token": "red", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    choice = {"index": 0, "message": {"role": "assistant", "content": "red"}, "finish_reason": "done"}
    choice["logprobs"] = {"content": [token]}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    httpserver.expect_request("/v1/chat/completions").respond_with_json(answer)
    served = f'{{openai: m, base_url: "{httpserver.url_for("/v1")}", name: NAME}}'
    file = f"models: [{served.replace('NAME', 'a')}, {served.replace('NAME', 'b')}]\nthreshold: 0.5\n"
    done = check(file + 'prompt: {user: "Q: {question}"}\n', "--question", "Which colour?")

    assert done.exit_code == 0, done.output
    assert "'done', which is not known here" in flat(done.stdout)
    assert json.loads(httpserver.log[0][0].data)["messages"] == [{"role": "user", "content": "Q: Which colour?"}]


def test_long_names_are_not_cut():
    """As those of hubs are; costs stand beside what they are of."""
    names = (
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF-Q4_K_M",
        "accounts/fireworks/models/deepseek-v4-pro-0813-" + "x" * 60,
    )
    small, large = map(ScriptedModel, names)
    stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}, Prices(1, 2)), Stage(large, prices=Prices(10, 20))]
    shown = StringIO()
    _show(Console(width=80, file=shown), diagnose(stages))

    assert max(map(len, shown.getvalue().splitlines())) <= 80
    assert "…" not in shown.getvalue()
    joined = re.sub(r"\s+", "", shown.getvalue())
    assert f"elseescalatesto'{names[1]}'" in joined
    assert "onequery$0.000700soit" in joined
    assert "onequery$0.007000,withthestagesbeforeit$0.007700" in joined


@pytest.mark.parametrize("typical", ["500", "a,b", "-1,5", "1,2,3"])
def test_what_is_no_number_of_tokens_is_refused(check, typical):
    done = check(TWO, "--typical", typical)
    assert isinstance(done.exception, ConfigurationError)
    assert "--typical takes two numbers of tokens" in str(done.exception)
