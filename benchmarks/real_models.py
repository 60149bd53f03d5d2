"""The paper's experiment on real pretrained models: what is asked, recorded, and made of it.

    python benchmarks/real_models.py collect OUT --data DIR --weights DIR    # hours; goes on where it was
    python benchmarks/real_models.py score OUT --data DIR --weights DIR      # P(IK), cross-fitted: minutes
    python benchmarks/real_models.py report                                  # the tables, from the recordings kept here
    python benchmarks/real_models.py live OUT --data DIR --weights DIR       # live cascades decide as the recording

The models are Qwen2.5-Coder-Instruct of 0.5B and 1.5B parameters and SmolLM2-135M-Instruct, from their GGUF files. The
folder of data holds `gsm8k/train.jsonl.gz`, `popqa/popqa_a.jsonl.gz` and `arc_challenge/arc_challenge.json.gz`, as they
are published; the other sets are made here (`real_models_sets`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Stage, TransformersModel
from confcascade.bench.collecting import Collected
from confcascade.bench.collecting import collect as ask
from confcascade.bench.questions.splitting import sample
from confcascade.bench.recording import Row, read_rows
from confcascade.bench.recording.parquet import write_parquet
from confcascade.bench.recording.row import NOT_KEPT
from confcascade.bench.training import StateCache, read_states
from confcascade.bench.training.probes import layers_of
from confcascade.bench.training.states import key_of
from confcascade.cli.progress import Shown
from confcascade.extending import Evidence, LanguageModel, Measurement, Signal
from confcascade.graders.example import Example
from confcascade.types import Request
from numpy.typing import NDArray
from real_models_live import compared, lines, probe_of
from real_models_scores import Material, gate_of, scored
from real_models_sets import SETS, QuestionSet
from real_models_tables import SPLITS, Recorded, tables
from rich.console import Console

RECORDINGS = Path(__file__).parent / "recordings" / "real_models"
FILES = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen0.5b": "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    "qwen1.5b": "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
}
KEPT_STATES = "states"
DEPTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def load(name: str, weights: Path) -> TransformersModel:
    """A model by its short name."""
    return TransformersModel.from_pretrained(weights / FILES[name], name=name, dtype="float32")


def note(out: Path, model: TransformersModel) -> None:
    """Write down what a model is, so that costs can be counted without it."""
    path = out / "models.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    told[model.name] = {
        "file": FILES[model.name],
        "fingerprint": model.fingerprint,
        "architecture": asdict(model.architecture),
    }
    path.write_text(json.dumps({name: told[name] for name in FILES if name in told}, indent=1) + "\n")


class KeepStates(Signal):
    """Keeps the hidden states of every prompt, in the pass that its answer goes on from; decides nothing.

    Args:
        cache: Where they are kept.
    """

    name = KEPT_STATES
    phase = "pre"

    def __init__(self, cache: StateCache) -> None:
        self.cache = cache
        self.waiting: dict[str, NDArray[np.float32]] = {}

    def check(self, model: LanguageModel) -> None:
        """It goes with local models only."""

    def identity(self) -> dict[str, Any]:
        return {"signal": "KeepStates"}

    def layers(self, model: LanguageModel) -> tuple[int, ...]:
        return self.cache.layers

    def score(self, evidence: Evidence) -> Measurement:
        assert evidence.prefilled is not None
        states = [np.asarray(evidence.prefilled.hidden_states[layer], np.float32) for layer in self.cache.layers]
        self.waiting[key_of(evidence.request)] = np.stack(states)
        return Measurement(1.0)

    def flush(self, least: int = 64) -> None:
        """Write what waits, if it is so much."""
        waiting = {key: states for key, states in self.waiting.items() if key not in self.cache}
        if len(waiting) >= least:
            self.cache.append(list(waiting), np.stack(list(waiting.values())))
            self.waiting.clear()


@app.command()
def collect(
    out: Annotated[Path, typer.Argument(help="Folder of recordings and hidden states; what is there is gone on with.")],
    data: Annotated[Path, typer.Option(help="Folder of public data sets.", exists=True)],
    weights: Annotated[Path, typer.Option(help="Folder of the GGUF files.", exists=True)],
    sets: Annotated[str, typer.Option(help="With commas.")] = ",".join(SETS),
    models: Annotated[str, typer.Option(help="With commas.")] = ",".join(FILES),
    limit: Annotated[int, typer.Option(help="Questions of each set, drawn by a hash.")] = 1000,
    states: Annotated[bool, typer.Option(help="Keep hidden states of the prompts.")] = True,
) -> None:
    """Ask every model every question, and keep the hidden states of the prompts."""
    console = Console(stderr=True)
    for name in models.split(","):
        model = load(name, weights)
        out.mkdir(parents=True, exist_ok=True)
        note(out, model)
        for asked in (SETS[each] for each in sets.split(",")):
            console.print(f"{name}, {asked.name}")
            (out / asked.name).mkdir(parents=True, exist_ok=True)
            _collect(out / asked.name, model, asked, asked.examples(data, limit), console, states=states)


def _collect(
    folder: Path,
    model: TransformersModel,
    asked: QuestionSet,
    examples: list[Example],
    console: Console,
    *,
    states: bool,
) -> None:
    """One model's answers to one set."""
    keep = None
    if states:
        keep = KeepStates(StateCache(folder / f"{model.name}.states", model, layers_of(model, DEPTHS)))
    with Shown(console) as shown:

        def progress(told: Collected, row: Row | None) -> None:
            shown(told, row)
            if keep is not None:
                keep.flush()

        found = ask(
            examples,
            [Stage(model, [*([] if keep is None else [keep]), *asked.signals])],
            folder / f"{model.name}.jsonl",
            prompt=asked.prompt,
            grader=asked.grader,
            keep_text=asked.ours,
            keep_tokens=False,
            progress=progress,
            max_tokens=asked.max_tokens,
        )
    tally = found.tallies[model.name]
    console.print(f"{model.name}, {asked.name}: {tally.n} answers, {tally.accuracy:.1%} right")
    if keep is not None:
        keep.flush(least=1)
        # of answers that were recorded when a run was killed
        read_states(model, [Request(asked.prompt.messages(each)) for each in examples], keep.cache)


@app.command()
def score(
    out: Annotated[Path, typer.Argument(help="Folder of `collect`.", exists=True)],
    data: Annotated[Path, typer.Option(help="As of `collect`.", exists=True)],
    weights: Annotated[Path, typer.Option(help="As of `collect`.", exists=True)],
    kept: Annotated[Path, typer.Option(help="Where the recordings are written.")] = RECORDINGS,
    sets: Annotated[str, typer.Option(help="With commas: those that have been collected.")] = ",".join(SETS),
) -> None:
    """Train probes, score every question by one that did not see it, and write the recordings: scores, no texts."""
    wanted = [SETS[each] for each in sets.split(",")]
    console = Console(stderr=True)
    kept.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {asked.name: [] for asked in wanted}
    names = [name for name in FILES if any((out / asked.name / f"{name}.jsonl").exists() for asked in wanted)]
    for i, name in enumerate(names):
        read = [asked for asked in wanted if (out / asked.name / f"{name}.states").exists()]
        model = load(name, weights) if read else None
        known: dict[str, Row] = {}
        if model is not None:
            layers = model.capability.layers
            blocks, larger = layers_of(model, DEPTHS), names[i + 1 :]
            materials = [Material.read(out, asked, model, larger, data, blocks) for asked in read]
            for material in materials:
                others = [each for each in materials if each is not material]
                found = scored(material, others, layers, lambda what: console.print(f"{name}, {what}"))  # noqa: B023
                known |= {row.question: row for row in found}
        for asked in wanted:
            path = out / asked.name / f"{name}.jsonl"
            for row in read_rows(path) if path.exists() else ():
                rows[asked.name].append(known.get(row.question, row))
    for asked_name, found in rows.items():
        if found:
            write_parquet([_without_texts(row) for row in found], kept / f"{asked_name}.parquet")
    (kept / "models.json").write_text((out / "models.json").read_text())


def _without_texts(row: Row) -> Row:
    """Scores, grades, ids, tokens and times; of answers only that there was one."""
    scores = {name: score for name, score in row.scores.items() if name != KEPT_STATES}
    return row.model_copy(
        update={
            "scores": scores,
            "prompt": None,
            "reference": None,
            "predicted": None,
            "answer": NOT_KEPT if row.answer.strip() else "",
        }
    )


@app.command()
def report(
    kept: Annotated[Path, typer.Option(help="Folder of the recordings.", exists=True)] = RECORDINGS,
    splits: Annotated[int, typer.Option(min=1, help="Random halves of each recording.")] = SPLITS,
) -> None:
    """Print every table as Markdown."""
    for title, found in tables(Recorded.read(kept), splits):
        typer.echo(f"\n**{title}**\n")
        for line in found:
            typer.echo(line)


@app.command()
def live(
    out: Annotated[Path, typer.Argument(help="Folder of `collect`.", exists=True)],
    data: Annotated[Path, typer.Option(help="As of `collect`.", exists=True)],
    weights: Annotated[Path, typer.Option(help="As of `collect`.", exists=True)],
    asked: Annotated[str, typer.Option(help="The set.")] = "printed",
    small: Annotated[str, typer.Option(help="The first model.")] = "qwen0.5b",
    large: Annotated[str, typer.Option(help="The last model.")] = "qwen1.5b",
    limit: Annotated[int, typer.Option(help="Questions, drawn by a hash; no probe has seen them.")] = 200,
    threshold: Annotated[float, typer.Option(help="Of P(IK) and P(T).")] = 0.7,
) -> None:
    """Ask questions live, through the core, LangChain and LlamaIndex, and compare with the replay of the recording."""
    console = Console(stderr=True)
    models = load(small, weights), load(large, weights)
    layers = layers_of(models[0], DEPTHS)
    material = Material.read(out, SETS[asked], models[0], [large], data, layers)
    examples = sample(material.questions, limit)
    gate = gate_of(layers, models[0].capability.layers)
    probe = probe_of(material, [each.id for each in examples], models[0], gate)
    for line in lines(compared(material, examples, models, probe, threshold, console.print)):
        typer.echo(line)


if __name__ == "__main__":
    app()
