"""The command from end to end: on the bundled models, and on a server whose calls are counted."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from werkzeug import Response

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
BUNDLED = """
stages:
  - model: bundled:small
    signals:
      - {type: p_ik, probe: "bundled:small"}
      - {type: p_t, aggregate: min}
  - model: bundled:large
"""


@pytest.fixture
def files(tmp_path):
    """A folder with a data set of 30 questions and a cascade file."""
    from confcascade.demo.world import World

    questions = World().questions("test", ("facts", "sums"), per_task=15)
    rows = [{"question": each.prompt, "reference": each.reference, "group": each.task} for each in questions]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "cascade.yaml").write_text(BUNDLED)
    return tmp_path


def test_help_names_every_option(confcascade):
    """`--help` tells what each option takes, how it ends, and shows an example."""
    shown = confcascade("collect", "--help").stdout
    for word in (
        *("--out", "--cascade", "--format", "--prompt", "--grader", "--limit", "--max-usd", "--max-concurrency"),
        *("--max-tokens", "--temperature", "--retry-errors", "--no-text", "- bundled:small", "--grader numeric"),
    ):
        assert word in shown


def test_it_collects_and_goes_on(confcascade, files):
    """Bundled models by a cascade file; a larger sample adds to a smaller one, and other ways to ask are refused."""
    rec = files / "out" / "rec.jsonl"
    given = ["collect", "questions.jsonl", "-o", rec, "--cascade", "cascade.yaml", "--grader"]
    done = confcascade(*given, "normalized", "--limit", 10, cwd=files)
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stdout
    assert f"Next: confcascade evaluate {rec} --threshold p_ik=0.9 --threshold p_t=0.9\n" in done.stdout
    assert "20 to ask" in done.stderr
    first = rec.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert {row["model"] for row in rows} == {"small", "large"}
    assert all(set(row["scores"]) == ({"p_ik", "p_t"} if row["model"] == "small" else {"p_t"}) for row in rows)
    assert all("grade" in row and row["group"] in ("facts", "sums") for row in rows)

    shown = confcascade("evaluate", rec, "-o", "report", "--threshold", "p_t=0.9", "--no-plots", cwd=files)
    assert shown.returncode == 0, shown.stderr
    assert "saved" in shown.stdout
    figures = json.loads((files / "report" / "figures.json").read_text())
    assert figures["unit"] == "flops"  # by the sizes that were noted
    assert figures["alone"][0]["cost"]["flops"] < figures["alone"][1]["cost"]["flops"]

    done = confcascade(*given, "normalized", "--limit", 12, cwd=files)
    assert done.returncode == 0, done.stderr
    assert rec.read_text().startswith(first)
    assert rec.read_text().count("\n") == 24

    refused = confcascade(*given, "normalized", "--prompt", "open-ended", cwd=files)
    assert refused.returncode == 2
    assert "('plain': user" in refused.stderr
    assert "('open-ended': system" in refused.stderr

    refused = confcascade(*given, "exact", cwd=files)
    assert refused.returncode == 2
    assert 'grader.grader was "normalized" and is now "exact"' in refused.stderr
    assert "Traceback" not in refused.stderr
    assert rec.read_text().count("\n") == 24


def test_a_warning_is_a_sentence(confcascade, files):
    """Without the place in our code."""
    (files / "twice.jsonl").write_text('{"question": "a", "reference": "b"}\n' * 2)
    done = confcascade("collect", "twice.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", cwd=files)
    told = "Warning: 1 of 2 rows of 'twice.jsonl' repeat an earlier one, word for word: the question is asked once, and"
    assert done.stderr.replace("\n", " ").startswith(told)
    assert ".py:" not in done.stderr


def test_one_part_of_a_file_of_several(confcascade, files):
    """The error names the option, and the option takes it; another part is another data set."""
    lists = {name: [{"question": f"{name} {i}?", "reference": "a"} for i in range(3)] for name in ("dev", "test")}
    (files / "parts.json").write_text(json.dumps(lists))
    given = ["collect", "parts.json", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "exact"]
    refused = confcascade(*given, cwd=files)
    assert refused.returncode == 2
    assert "holds several lists, dev, test: say which as `part`" in refused.stderr
    done = confcascade(*given, "--part", "test", cwd=files)
    assert done.returncode == 0, done.stderr
    prompts = {json.loads(line)["prompt"] for line in (files / "rec.jsonl").read_text().splitlines()}
    assert prompts == {f"test {i}?" for i in range(3)}
    refused = confcascade(*given, "--part", "dev", cwd=files)
    assert refused.returncode == 2
    assert "was collected otherwise: part" in refused.stderr


def test_a_grader_must_be_named(confcascade, files):
    """Unless every question has choices; it shows before a model is loaded."""
    done = confcascade("collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", cwd=files)
    assert done.returncode == 2
    assert "Name a grader with --grader" in done.stderr
    assert not (files / "rec.jsonl").exists()


@pytest.fixture
def counted(files, monkeypatch):
    """A cascade file of a priced model on a server that writes down what it is asked; the path of that list."""
    pytest.importorskip("openai")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import kill_collect

    log = files / "asked.log"
    with kill_collect.server(log) as port:
        model = {"openai": "m", "base_url": f"http://127.0.0.1:{port}/v1"}
        stage = {"model": model, "prices": {"input_usd": 0, "output_usd": 1_000}}  # of 16 tokens: 1.6 cents
        (files / "cascade.yaml").write_text(json.dumps({"stages": [stage]}))
        yield log


def test_the_cap_ends_it_with_3(confcascade, files, counted):
    """And says what was spent and how to go on."""
    given = ["collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "contains"]
    given += ["--max-tokens", 16]
    done = confcascade(*given, "--max-usd", 0.1, cwd=files)
    assert done.returncode == 3, done.stderr
    assert "beyond $0.1: $0.0960 are spent, 24 rows to go. Raise --max-usd to go on." in done.stdout
    assert len(counted.read_text().splitlines()) == 6
    done = confcascade(*given, "--max-usd", 1, cwd=files)
    assert done.returncode == 0, done.stderr
    assert len(counted.read_text().splitlines()) == len(set(counted.read_text().splitlines())) == 30


def test_ctrl_c_loses_no_call(confcascade, files, counted):
    """What is under way is finished and kept: of all that the model was asked nothing is asked again."""
    rows = [{"question": f"Question {i}?", "reference": "word"} for i in range(400)]
    (files / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["collect", "many.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "contains"]
    process = subprocess.Popen(
        [sys.executable, "-m", "confcascade.cli", *given, "--max-concurrency", "4"],
        cwd=files,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )
    while process.poll() is None and not (counted.exists() and len(counted.read_text().splitlines()) > 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "is finished and kept" in errors
    assert "The same command goes on where it was." in said
    recorded = (files / "rec.jsonl").read_text().count("\n")
    assert 20 < recorded < 400
    assert recorded == len(counted.read_text().splitlines())
    done = confcascade(*given, cwd=files)
    assert done.returncode == 0, done.stderr
    calls = counted.read_text().splitlines()
    assert len(calls) == len(set(calls)) == 400


def test_a_server_at_fault_is_no_success(confcascade, files):
    """Though every question was asked by the time it showed: code 1, and the reason."""
    pytest.importorskip("openai")
    (files / "pages.py").write_text(WEB_PAGES)
    given = ["collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "contains"]
    with subprocess.Popen([sys.executable, files / "pages.py"], stdout=subprocess.PIPE, text=True) as pages:
        address = f"http://127.0.0.1:{pages.stdout.readline().strip()}"
        stage = {"model": {"openai": "m", "base_url": address}}
        (files / "cascade.yaml").write_text(json.dumps({"stages": [stage]}))
        done = confcascade(*given, cwd=files)
        few = confcascade(*given[:2], "-o", "few.jsonl", *given[4:], "--limit", 3, cwd=files)
        pages.kill()
    assert done.returncode == 1, done.stderr
    assert "failed 20 times in a row" in done.stdout
    for told in (done.stdout, few.stdout):
        assert "sent a web page instead of a chat completion. Is its `base_url` right?" in told
        assert "Next:" not in told
    assert "m: 3 errors, at last ModelError" in few.stdout


WEB_PAGES = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Page(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_limits_and_temperatures_that_a_model_refuses(confcascade, files, httpserver):
    """`collect` and `ask` send both to a reasoning model, which takes the limit under another name: no error."""
    pytest.importorskip("openai")
    bodies = []

    def answer(request):
        bodies.append(body := request.get_json())
        if param := next((name for name in ("max_tokens", "temperature") if name in body), None):
            told = f"Unsupported parameter: '{param}' is not supported. Use 'max_completion_tokens' instead."
            error = {"message": told, "param": param, "code": "unsupported_parameter"}
            return Response(json.dumps({"error": error}), 400, content_type="application/json")
        choice = {"index": 0, "message": {"role": "assistant", "content": "Lyon"}, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return Response(json.dumps(whole), content_type="application/json")

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    stage = {"model": {"openai": "m", "base_url": httpserver.url_for("/v1")}}
    (files / "cascade.yaml").write_text(json.dumps({"stages": [stage]}))
    given = ["--cascade", "cascade.yaml", "--max-tokens", 64, "--temperature", 0]
    collected = confcascade(
        "collect", "questions.jsonl", "-o", "rec.jsonl", *given, "--grader", "contains", "--limit", 3, cwd=files
    )
    asked = confcascade("ask", "Which?", *given, "--no-stream", cwd=files)

    assert (collected.returncode, asked.returncode) == (0, 0), collected.stderr + asked.stderr
    assert "error" not in collected.stdout
    assert asked.stdout.startswith("Lyon\n")
    for done in (collected, asked):
        assert done.stderr.count("refuses temperature=0.0 in one kind of call") == 1
    answered = [body for body in bodies if not {"max_tokens", "temperature"} & body.keys()]
    assert [body["max_completion_tokens"] for body in answered] == [64] * 4
    assert "Answers: at most 64 tokens." in collected.stdout  # and not greedy, which the server was not


def test_the_table_names_its_models():
    """In 80 columns, too; and what was not scored is counted, with the reason."""
    from confcascade import Usage
    from confcascade.bench.collecting.collect import Tally
    from confcascade.bench.recording import RecordedScore, Row
    from confcascade.cli.collect import _table
    from rich.console import Console

    tallies = {model: Tally(wanted=2000) for model in ("Qwen/Qwen3-4B", "gpt-4o-mini")}
    score = RecordedScore(value=None, details={"unavailable": "it told none"})
    for model, tally in tallies.items():
        row = Row(question="q", model=model, answer="a", grade=1, scores={"p_t": score}, usage=Usage(900_000, 9))
        tally.add(row, 0.001)
        assert (tally.unscored, tally.why_unscored) == ({"p_t": 1}, {"p_t": "it told none"})
    console = Console(file=io.StringIO(), width=80)
    console.print(_table(tallies))
    for part in ("Qwen/Qwen3-4B", "gpt-4o-mini", "1/2000", "accuracy", "100.0%", "$0.0010", "latency"):
        assert part in console.file.getvalue()
    assert "errors" not in console.file.getvalue()


def test_bars_on_a_terminal(tmp_path):
    """For each model how far it is, its dollars and its errors."""
    from confcascade import ModelError, Prices, Stage
    from confcascade.bench.collecting.collect import collect
    from confcascade.bench.questions.prompts import PROMPTS
    from confcascade.bench.recording import RecordingWriter
    from confcascade.cli.progress import Shown
    from confcascade.graders import ExactMatch
    from confcascade.graders.example import Example
    from confcascade.testing import Reply, ScriptedModel
    from rich.console import Console

    model = ScriptedModel("m", lambda request: Reply("", error=ModelError("no")) if "q1" in repr(request) else "yes")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RecordingWriter(tmp_path / "rec.jsonl") as writer, Shown(console) as shown:
        examples = [Example(f"q{i}") for i in range(8)]
        stages = [Stage(model, prices=Prices(0, 1e6))]
        collect(examples, stages, writer, prompt=PROMPTS["plain"], grader=ExactMatch(), progress=shown)
    drawn = console.file.getvalue()
    for part in ("8/8", "/s", "$7.00", "1 error"):
        assert part in drawn


def test_a_model_that_answers_nothing_ends_it_with_one(confcascade, httpserver, tmp_path):
    """Two of two questions are too long for its server: no twenty in a row, and yet nothing to evaluate."""
    refusal = {"error": {"message": "context length", "code": "context_length_exceeded"}}
    httpserver.expect_request("/v1/chat/completions").respond_with_json(refusal, status=400)
    model = f"{{openai: m, base_url: '{httpserver.url_for('/v1')}', api_key_env: NO_KEY}}"
    (tmp_path / "cascade.yaml").write_text(f"decoding: {{max_tokens: 8}}\nmodels:\n- {model}\n")
    (tmp_path / "q.jsonl").write_text('{"question": "a", "reference": "b"}\n{"question": "c", "reference": "d"}\n')
    given = ["collect", "q.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "exact"]

    done = confcascade(*given, cwd=tmp_path, env={"NO_KEY": "none"})

    assert done.returncode == 1, done.stderr
    assert "m answered no question, so this recording cannot be evaluated" in done.stdout
    assert "Answers: greedy, at most 8 tokens." in done.stdout
    told = json.loads((tmp_path / "rec.jsonl.meta.json").read_text())
    assert told["identity"]["models"]["m"]["decoding"] == {"temperature": 0.0, "max_tokens": 8}
    (sent, *_) = [json.loads(request.data) for request, _ in httpserver.log if request.method == "POST"]
    assert (sent["temperature"], sent["max_tokens"]) == (0, 8)


IN_TURN = 'mode: stepwise\nmodels: [bundled:small, bundled:large]\nsignals: [glimpse]\nsteps: {delimiter: "\\n"}\n'


def test_a_grid_of_cascades_that_write_step_by_step(confcascade, files):
    """Each threshold is a model of its own, between the two; more may be added later, and no report replays them."""
    (files / "cascade.yaml").write_text(IN_TURN)
    given = ["collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "normalized"]
    done = confcascade(*given, "--limit", 5, "--thresholds", "0.999,0.9", cwd=files)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (files / "rec.jsonl").read_text().splitlines()]
    names = ["small", "small+large@0.999", "small+large@0.9", "large"]
    assert sorted(row["model"] for row in rows if row["question"] == rows[0]["question"]) == sorted(names)
    assert "Next:" not in done.stdout
    judged = {row["model"] for row in rows if row.get("scores")}
    assert judged == {"small"}

    done = confcascade(*given, "--limit", 5, "--thresholds", "0.999,0.9,always", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "5 to ask" in done.stderr
    answers = {}
    for line in (files / "rec.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers.setdefault(row["model"], {})[row["question"]] = row["answer"]
    assert answers["small+large@always"] == answers["small"]

    refused = confcascade("evaluate", "rec.jsonl", "--cascade", "cascade.yaml", "--no-plots", cwd=files)
    assert refused.returncode == 2
    assert "replays whole answers" in refused.stderr


@pytest.mark.parametrize(
    ("text", "thresholds", "told"),
    [
        ("models: [bundled:small, bundled:large]\n", "0.9", "A grid of thresholds is for `mode: stepwise`"),
        (IN_TURN, "0.9,0.9", "has one twice"),
        (IN_TURN, "0.9,high", "must be a number"),
        (IN_TURN, "2", "must be a number in [0, 1]"),
        (IN_TURN.replace("glimpse", "glimpse, p_t"), "0.9", "must be a mapping"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(confcascade, files, text, thresholds, told):
    """Before anyone is asked."""
    (files / "cascade.yaml").write_text(text)
    given = ["collect", "questions.jsonl", "-o", "rec.jsonl", "--cascade", "cascade.yaml", "--grader", "normalized"]
    done = confcascade(*given, "--thresholds", thresholds, cwd=files)
    assert done.returncode == 2
    assert told in done.stderr.replace("\n", " ")
    assert not (files / "rec.jsonl").exists()
