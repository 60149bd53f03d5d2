"""What models state of their answers as they come: how much of it can be read, and how true it is.

    python benchmarks/stated_confidence.py collect OUT --model llamacpp:FILE.gguf --data DATA --grader contains
    python benchmarks/stated_confidence.py report OUT
    python benchmarks/stated_confidence.py sums FILE.jsonl

Asks in each of the three ways of `Verbalized`, and records beside it P(T) of the same answers. A run that was stopped
goes on where it was. The report is of all recordings in OUT. `sums` writes questions that a model of 100 million
parameters gets right now and then.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from confcascade import Stage, TokenProbability, Verbalized
from confcascade.bench.collecting import collect as ask
from confcascade.bench.questions import read_examples
from confcascade.bench.questions.prompts import prompt_from
from confcascade.bench.questions.splitting import sample
from confcascade.bench.recording import Row, read_rows
from confcascade.bench.training.verbalized.figures import ConfidenceFigures, figures_of
from confcascade.demo.world import World
from confcascade.models import from_string

BRIEFLY = "Answer with the number only."
# digits, operation, digits
EASY = [(1, "+", 1), (2, "+", 1), (2, "+", 2), (1, "-", 1), (2, "-", 1), (2, "-", 2), (1, "*", 1), (2, "*", 1)]
HARD = [(2, "+", 2), (3, "+", 3), (3, "-", 3), (2, "*", 1), (3, "*", 1), (2, "*", 2)]
STYLES = ("one-step", "two-step", "top-k")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def collect(
    out: Path,
    model: Annotated[str, typer.Option(help="local:NAME or llamacpp:FILE.")],
    data: Annotated[Path, typer.Option(help="Questions with references.")],
    grader: Annotated[str, typer.Option()] = "contains",
    prompt: Annotated[str, typer.Option()] = "plain",
    styles: Annotated[str, typer.Option(help="With commas.")] = ",".join(STYLES),
    limit: Annotated[int, typer.Option(help="Questions, drawn by a hash.")] = 300,
    max_tokens: Annotated[int, typer.Option()] = 96,
    keep_text: Annotated[bool, typer.Option(help="Keep questions and answers, where their licence allows it.")] = False,
) -> None:
    """Ask."""
    out.mkdir(parents=True, exist_ok=True)
    asked = from_string(model)
    examples = sample(list(read_examples(data, "auto")), limit)
    for style in styles.split(","):
        signal = Verbalized(style)  # type: ignore[arg-type]
        with typer.progressbar(length=len(examples), label=style) as bar:
            ask(
                examples,
                [Stage(asked, [signal, TokenProbability()])],
                out / f"{asked.name}.{data.stem}.{style}.jsonl",
                prompt=prompt_from(prompt),
                grader=grader,
                keep_text=keep_text,
                keep_tokens=False,
                max_tokens=max_tokens,
                progress=lambda _, row, bar=bar: bar.update(row is not None),
            )


@app.command()
def sums(
    out: Path,
    questions: Annotated[int, typer.Option(help="At most 500.")] = 140,
    seed: Annotated[int, typer.Option()] = 0,
    without: Annotated[Path | None, typer.Option(help="A file of sums, none of which is drawn again.")] = None,
    hard: Annotated[bool, typer.Option(help="Of more digits.")] = False,
    stories: Annotated[bool, typer.Option(help='"Megon has 31 shells, finds 2." instead.')] = False,
) -> None:
    """Write sums of one step, from "What is 7 * 1?" to "What is 84 - 37?", each once."""
    known = set() if without is None else {json.loads(line)["question"] for line in without.read_text().splitlines()}
    drawn = _stories(seed) if stories else _sums(HARD if hard else EASY, random.Random(seed))
    new = (row for row in drawn if row["question"] not in known)
    out.write_text("".join(json.dumps(row) + "\n" for row, _ in zip(new, range(questions), strict=False)))


def _sums(kinds: Sequence[tuple[int, str, int]], rng: random.Random) -> Iterator[dict[str, str]]:
    """Without end, none twice; grouped by operation and digits."""
    seen = set()
    while True:
        first, sign, second = rng.choice(kinds)
        low, high = sorted(rng.randrange(10 ** (digits - 1), 10**digits) for digits in (first, second))
        value = {"+": high + low, "-": high - low, "*": high * low}[sign]
        text = f"What is {high} {sign} {low}? {BRIEFLY}"
        if text not in seen:
            seen.add(text)
            yield {"question": text, "reference": str(value), "group": f"{first} {sign} {second} digits"}


def _stories(seed: int) -> Iterator[dict[str, str]]:
    """The bundled models' sums of one step, in words."""
    for each in World().questions("test", ("sums",), per_task=2000, seed=seed):
        if each.prompt.count(",") == 1:
            yield {"question": f"{each.prompt} {BRIEFLY}", "reference": each.reference, "group": "story"}


@app.command()
def report(out: Path) -> None:
    """Print a table of all recordings."""
    typer.echo(
        "| model, questions | asked | answers | right | can be read | most frequent | ECE | AUROC (95 %) | P(T) |"
    )
    typer.echo("|---|---|---|---|---|---|---|---|---|")
    for path in sorted(each for each in out.glob("*.jsonl*") if each.suffix in (".jsonl", ".gz")):
        rows = rows_of(path)
        name, questions, style = path.name.split(".jsonl")[0].rsplit(".", 2)
        stated, p_t = figures_of(rows, "stated"), figures_of(rows, "p_t")
        if stated is None or p_t is None:
            continue
        values = Counter(row.scores["stated"].value for row in rows if row.scores["stated"].value is not None)
        most = ", ".join(f"{value:g} ({count / stated.n:.0%})" for value, count in values.most_common(3)) or "-"
        typer.echo(
            f"| {name}, {questions} | {style} | {stated.n} | {stated.accuracy:.1%} | {stated.scored / stated.n:.0%} "
            f"| {most} | {'-' if stated.ece is None else f'{stated.ece:.3f}'} | {_area(stated)} | {_area(p_t)} |"
        )


def rows_of(path: Path) -> list[Row]:
    """Of a recording, also a packed one."""
    if path.suffix != ".gz":
        return list(read_rows(path))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [Row.model_validate_json(line) for line in lines]


def _area(figures: ConfidenceFigures) -> str:
    if figures.auroc is None or not figures.scored:
        return "-"
    return f"{figures.auroc:.3f} ({figures.low:.3f} to {figures.high:.3f})"


if __name__ == "__main__":
    app()
