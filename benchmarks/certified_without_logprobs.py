"""A cascade over a server that tells no log-probabilities, certified: the small model says itself how sure it is.

    python benchmarks/certified_without_logprobs.py collect OUT --small SMALL --large LARGE --data DATA
    python benchmarks/certified_without_logprobs.py run OUT --small SMALL --large LARGE --data DATA

Both models stand behind a server of OpenAI's chat API that refuses log-probabilities, as those of reasoning models do.
`collect` asks both each question. `run` fits a policy on the first of them, and asks the last ones once more, live, in
the cascade that it certified: its decisions must be those of the replay. Nothing certified is an end, too, with code 1.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Cascade, Message, Promise, Request, Stage, Verbalized, fit
from confcascade.asks import Generate, LanguageModel
from confcascade.bench.collecting import collect as ask
from confcascade.bench.fitting import NotCertified, describe_fit, material_of, replayable
from confcascade.bench.questions import PROMPTS, read_examples
from confcascade.bench.recording import Columns, Row
from confcascade.bench.replay import PolicyStage, replay
from confcascade.bench.replay.replay import NOT_ASKED
from confcascade.bench.training.verbalized.figures import figures_of
from confcascade.demo.world import World
from confcascade.graders import grader_from_string
from confcascade.graders.example import Example
from confcascade.models import from_string
from confcascade.models.openai import OpenAICompatibleModel
from stated_confidence import rows_of

PROMPT = PROMPTS["plain"]
DECISIONS = {"accept": 0, "escalate": 1, "fail": 2}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Small = Annotated[str, typer.Option(help="llamacpp:FILE, local:PLACE or bundled:SIZE.")]
Data = Annotated[Path, typer.Option(help="Questions with references.")]
How = Annotated[str, typer.Option(help="two-step, one-step, top-k; or the folder of a model that was trained to.")]
Limit = Annotated[int, typer.Option(help="Most tokens of an answer.")]


class Mute(ThreadingHTTPServer):
    """A server of models, each under its name, which refuses (and counts) calls for log-probabilities."""

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.turn, self.refused = models, threading.Lock(), 0


class _Handler(BaseHTTPRequestHandler):
    server: Mute

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("logprobs") or asked.get("stream"):
            self.server.refused += bool(asked.get("logprobs"))
            what = "logprobs" if asked.get("logprobs") else "stream"
            self._send(400, {"error": {"message": f"'{what}' is not supported with this model.", "param": what}})
            return
        model = self.server.models[asked["model"]]
        request = Request(
            tuple(Message(each["role"], each["content"]) for each in asked["messages"]),
            max_tokens=asked.get("max_tokens"),
            temperature=asked.get("temperature"),
        )
        with self.server.turn:
            (answer,) = model.generate([Generate(model, request, logprobs=False)])
        if isinstance(answer, Exception):
            self._send(500, {"error": {"message": str(answer)}})
            return
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
        read, written = answer.usage.input_tokens, answer.usage.output_tokens
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        self._send(200, {**head, "choices": [choice], "usage": usage})

    def _send(self, code: int, told: Mapping[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def served(*names: str) -> Iterator[tuple[Mute, list[OpenAICompatibleModel]]]:
    """Models of strings behind such a server, and its clients."""
    with ExitStack() as stack:
        loaded = [from_string(name) for name in names]
        for each in loaded:
            if hasattr(each, "close"):
                stack.callback(each.close)
        server = Mute({each.name: each for each in loaded})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield (
            server,
            [
                OpenAICompatibleModel(
                    each.name, base_url=url, api_key="none", timeout_s=3600, architecture=each.architecture
                )
                for each in loaded
            ],
        )


def _signal(how: str) -> Verbalized:
    return Verbalized(how) if how in ("two-step", "one-step", "top-k") else Verbalized.load(how)  # type: ignore[arg-type]


@app.command()
def prepare(out: Path) -> None:
    """Write questions of the bundled models' world: to learn to state a confidence on, and to ask."""
    out.mkdir(parents=True, exist_ok=True)
    tasks = ("facts", "letters", "reading", "refusals")
    asked = [World().questions(part, tasks, per_task=400) for part in ("calibration", "test")]
    for name, found in (("learn", World().questions("fit", tasks, per_task=400)), ("ask", [*asked[0], *asked[1]])):
        rows = [{"question": each.prompt, "reference": each.reference, "group": each.task} for each in found]
        random.Random(0).shuffle(rows)
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        typer.echo(f"{out / name}.jsonl: {len(rows)}")


@app.command()
def collect(
    out: Path,
    small: Small,
    large: Small,
    data: Data,
    how: How = "two-step",
    grader: Annotated[str, typer.Option()] = "numeric",
    max_tokens: Limit = 48,
    keep_text: Annotated[bool, typer.Option(help="Where the questions' licence allows it.")] = False,
) -> None:
    """Ask both models every question."""
    out.mkdir(parents=True, exist_ok=True)
    examples = list(read_examples(data, "auto"))
    with served(small, large) as (_, models), typer.progressbar(length=2 * len(examples)) as bar:
        ask(
            examples,
            [Stage(models[0], [_signal(how)]), Stage(models[1])],
            out / "answers.jsonl",
            prompt=PROMPT,
            grader=grader,
            keep_text=keep_text,
            keep_tokens=False,
            max_concurrency=2,
            max_tokens=max_tokens,
            progress=lambda _, row: bar.update(row is not None),
        )


@app.command()
def run(
    out: Path,
    small: Small,
    large: Small,
    data: Data,
    how: How = "two-step",
    grader: Annotated[str, typer.Option(help="As collected.")] = "numeric",
    max_tokens: Limit = 48,
    live: Annotated[int, typer.Option(min=1, help="The last of the data, asked live and not fitted on.")] = 50,
    max_drop: Annotated[float, typer.Option(help="What is promised.")] = 0.1,
) -> None:
    """Fit on the first questions, and run what is certified on the last."""
    examples = list(read_examples(data, "auto"))
    rows = rows_of(next(iter(sorted(out.glob("answers.jsonl.gz"))), out / "answers.jsonl"))
    last = examples[len(examples) - live :]
    new = {example.id for example in last}
    with served(small, large) as (server, models):
        sizes = {each.name: each.architecture for each in models}
        names = [each.name for each in models]
        for line in described(rows, names):
            typer.echo(line)
        fitted = fit(
            material_of([row for row in rows if row.question not in new], architectures=sizes, models=names),
            Promise(max_drop),
            architectures=sizes,
        )
        typer.echo("\n" + describe_fit(fitted))
        if isinstance(fitted, NotCertified):
            raise typer.Exit(1)
        fitted.policy.save(out / "policy.json")
        cascade = Cascade(fitted.policy.make_stages(models, prompt_version=PROMPT.version, signals=[_signal(how)]))
        columns = Columns.of(row for row in rows if row.question in new)
        table, same = lived(cascade, fitted.policy, columns, last, grader, max_tokens, sizes)
        typer.echo("\n" + "\n".join(table))
        typer.echo(f"Calls for log-probabilities that the server refused: {server.refused}.")
    if not same:
        raise typer.Exit(1)


def described(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """How right the models are, and how true what the small one states is."""
    stated = figures_of([row for row in rows if row.model == names[0]], "stated")
    largest = figures_of([row for row in rows if row.model == names[-1]], "stated")
    if stated is None or largest is None:
        return
    yield f"{stated.n} questions: {names[0]} is right on {stated.accuracy:.1%}, {names[-1]} on {largest.accuracy:.1%}."
    area = "" if stated.auroc is None else f" AUROC {stated.auroc:.3f} ({stated.low:.3f} to {stated.high:.3f}),"
    off = "" if stated.ece is None else f" ECE {stated.ece:.3f},"
    yield f"Stated confidence:{area}{off} {stated.scored} of {stated.n} can be read."


def lived(
    cascade: Any,
    policy: Any,
    columns: Columns,
    examples: Sequence[Example],
    grader: str,
    max_tokens: int,
    sizes: Mapping[str, Any],
) -> tuple[list[str], bool]:
    """What the cascade does live and replayed, as a table, and whether every decision and grade is the same."""
    more, stages = replayable(columns, policy)
    played = replay(more, stages, architectures=sizes)
    alone = replay(columns, [PolicyStage(policy.models[-1])], architectures=sizes)
    order = {question: at for at, question in enumerate(columns.questions)}
    judge, outcomes, differing = grader_from_string(grader), [], 0
    for example in examples:
        outcome, at = cascade.run(PROMPT.messages(example), max_tokens=max_tokens), order[example.id]
        grade = judge.grade(example, outcome.text).value or 0.0
        decided = [DECISIONS[attempt.decision] for attempt in outcome.record.attempts]
        was = [int(each) for each in played.decision[at] if each != NOT_ASKED]
        differing += decided != was or grade != played.grade[at]
        outcomes.append((outcome.record.stage, grade, outcome.record.cost.flops or 0.0))
    stage, grade, flops = map(np.array, zip(*outcomes, strict=True))
    n, large = len(examples), alone.cost.flops
    lines = [
        f"| {n} further questions | kept | right | large alone | FLOPs saved |",
        "|---|---|---|---|---|",
        f"| live | {np.mean(stage == 0):.0%} | {grade.mean():.1%} | {alone.grade.mean():.1%} "
        f"| {1 - flops.sum() / large.sum():.1%} |",
        f"| replayed | {np.mean(played.stage == 0):.0%} | {played.grade.mean():.1%} | {alone.grade.mean():.1%} "
        f"| {1 - played.cost.flops.sum() / large.sum():.1%} |",
        "",
        f"Decided or graded otherwise live than replayed: {differing} of {n}.",
    ]
    return lines, differing == 0


if __name__ == "__main__":
    app()
