"""Which number made of an answer's token probabilities tells right answers from wrong ones best.

A language model gives every token that it writes a probability. A cascade needs one number for the whole answer: is
this one safe to keep? `TokenProbability` takes the geometric mean by default. That is one choice of many, and this
benchmark compares some thirty on real answers:

- of the chosen tokens: mean, minimum, product, first, the last k, and the lowest mean of any k tokens in a row (one bad
  step may be lost in the mean of two hundred tokens, and show in the mean of its neighbours);
- of what follows an answer mark ("Answer:", "answer is", "####", ``\\boxed{``): the result of a worked solution alone;
- of the alternatives at each token: the entropy, and the margin between the first and the second;
- and what form alone tells, without any probability: the length, and whether there is an answer mark. An answer that
  was cut off at the limit of tokens is hardly ever right; so every set with such answers is shown a second time without
  them, or else an aggregate would look good that only tells that an answer has no end.

First real answers with five alternatives for every token are recorded, from any OpenAI-compatible server that tells
them (llama.cpp's and vLLM's do) or a folder with a `transformers` model. A run that was stopped goes on where it was:

    python benchmarks/aggregates.py collect --data DIR --set gsm8k --questions 300 \\
        --model qwen2.5-coder-0.5b --server http://127.0.0.1:8080/v1 --out small.jsonl

Then they are compared, as many recordings as there are:

    python benchmarks/aggregates.py compare small.jsonl large.jsonl --data DIR --out results

DIR holds the questions, one folder a set (see `aggregates_sets`): ``gsm8k/test.jsonl.gz``, ``popqa/popqa_a.jsonl.gz``,
``arc_challenge/arc_challenge.json.gz``, ``mbpp/sanitized-mbpp.json``. If it holds
``verbalized_mmlu_pro/llama_even.csv.gz`` (made from github.com/Linwei94/LLM-Calibration-Study), answers of four Llamas
to MMLU-Pro are compared, too: of these only the arithmetic mean and the length were published.

The AUROC is the chance that a right answer scores higher than a wrong one; 0.5 is worthless. Intervals are of the
bootstrap over questions, 95 %, and so are those of the differences from the mean, drawn in pairs: all aggregates see
the same draws. The best of so many is best by luck as well, so `compare` also takes what is best in one recording and
says what it is worth in the others of its kind.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from aggregates_sets import SETS, record
from confcascade import OpenAICompatibleModel, TransformersModel
from confcascade.bench.metrics.ranking import risk_coverage
from confcascade.bench.recording import Row, read_rows
from confcascade.bench.recording.importers import read_verbalized
from confcascade.graders.grade import is_right
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
DRAWS = 2000
KINDS = {"popqa": "short", "arc": "short", "gsm8k": "reasoning", "gsm8k-steps": "reasoning", "mbpp": "code"}
FINISHED = ", finished"
SHORT = 24  # tokens
LEAST = 40  # answers of a set, below which its figures are left out
MARK = re.compile(r"####|\\boxed\{|\b[Aa]nswer(?: is\b|:)")


# ---------------------------------------------------------------------- one answer


@dataclass(frozen=True)
class Told:
    """What a model told of its answer: the tokens' log-probabilities, and the most probable alternatives of each."""

    row: Row

    @cached_property
    def logprobs(self) -> Numbers:
        return np.array([token.logprob for token in self.row.tokens or ()])

    @cached_property
    def top(self) -> Numbers:
        """Probabilities of the alternatives, the greatest first: (tokens, alternatives)."""
        found = [sorted((math.exp(lp) for _, lp in token.top), reverse=True) for token in self.row.tokens or ()]
        return np.array(found)

    @cached_property
    def rest(self) -> Numbers:
        """Probability of each position's tokens that were not told."""
        rest: Numbers = np.clip(1 - self.top.sum(axis=1), 0, 1)
        return rest

    @cached_property
    def entropies(self) -> Numbers:
        """Of each position, in nats, at least: none of the tokens not told is likelier than the last that was."""
        return _surprise(self.top) - self.rest * np.log(np.maximum(self.top[:, -1], 1e-30))

    @cached_property
    def lumped(self) -> Numbers:
        """The same with all tokens that were not told taken for a single one."""
        return _surprise(np.column_stack([self.top, self.rest]))

    @cached_property
    def renormalised(self) -> Numbers:
        """The same of the alternatives alone, as if there were no others."""
        return _surprise(self.top / self.top.sum(axis=1, keepdims=True))

    @cached_property
    def margins(self) -> Numbers:
        """The greatest probability of each position above the second."""
        margins: Numbers = self.top[:, 0] - self.top[:, 1]
        return margins

    @cached_property
    def span(self) -> Numbers:
        """Log-probabilities of what follows the last answer mark, on its line; of the whole answer without one.

        Tokens without a letter or digit (spaces, "$", "}") are left out: they follow from the form.
        """
        text = "".join(token.text for token in self.row.tokens or ())
        marks = list(MARK.finditer(text))
        if not marks:
            return self.logprobs
        start = marks[-1].end()
        rest = re.match(r"[^}]*" if marks[-1][0].endswith("{") else r"\W*[^\n]*", text[start:])
        end = start + (rest.end() if rest else 0)
        kept, position = [], 0
        for i, token in enumerate(self.row.tokens or ()):
            begin, position = position, position + len(token.text)
            if any(c.isalnum() for c in text[max(begin, start) : min(position, end)]):
                kept.append(i)
        return self.logprobs[kept] if kept else self.logprobs

    @property
    def marked(self) -> bool:
        return self.span is not self.logprobs


def _surprise(p: Numbers) -> Numbers:
    """The sum of -p log p over each row."""
    surprise: Numbers = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    return surprise


def lowest(values: Numbers, k: int) -> float:
    """The lowest mean of any k values in a row; of fewer than k, their mean."""
    if len(values) <= k:
        return float(values.mean())
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return float((sums[k:] - sums[:-k]).min() / k)


Aggregate = Callable[[Told], float]
# higher = more likely right; of log-probabilities the logarithm will do, for the AUROC sees the order alone
AGGREGATES: Mapping[str, Aggregate] = {
    "mean (default)": lambda told: told.logprobs.mean(),
    "mean, arithmetic": lambda told: np.exp(told.logprobs).mean(),
    "min": lambda told: told.logprobs.min(),
    "product": lambda told: told.logprobs.sum(),
    "first": lambda told: told.logprobs[0],
    "lowest 4": lambda told: lowest(told.logprobs, 4),
    "lowest 8": lambda told: lowest(told.logprobs, 8),
    "lowest 16": lambda told: lowest(told.logprobs, 16),
    "lowest 32": lambda told: lowest(told.logprobs, 32),
    "last 4": lambda told: told.logprobs[-4:].mean(),
    "last 8": lambda told: told.logprobs[-8:].mean(),
    "last 16": lambda told: told.logprobs[-16:].mean(),
    "last 32": lambda told: told.logprobs[-32:].mean(),
    "after the mark, mean": lambda told: told.span.mean(),
    "after the mark, min": lambda told: told.span.min(),
    "after the mark, product": lambda told: told.span.sum(),
    "after the mark, product, else min": lambda told: told.span.sum() if told.marked else told.logprobs.min(),
    "entropy, mean": lambda told: -told.entropies.mean(),
    "entropy, greatest": lambda told: -told.entropies.max(),
    "entropy, sum": lambda told: -told.entropies.sum(),
    "entropy, worst 4": lambda told: lowest(-told.entropies, 4),
    "entropy, worst 8": lambda told: lowest(-told.entropies, 8),
    "entropy, worst 16": lambda told: lowest(-told.entropies, 16),
    "entropy, worst 32": lambda told: lowest(-told.entropies, 32),
    "entropy, rest as one: mean": lambda told: -told.lumped.mean(),
    "entropy, rest as one: greatest": lambda told: -told.lumped.max(),
    "entropy, five alone: mean": lambda told: -told.renormalised.mean(),
    "entropy, five alone: greatest": lambda told: -told.renormalised.max(),
    "margin, mean": lambda told: told.margins.mean(),
    "margin, least": lambda told: told.margins.min(),
    # what form alone tells: an answer that was cut off, or has no answer mark, is hardly ever right
    "mean, those cut off last": lambda told: told.logprobs.mean() if told.row.finish_reason != "length" else -1e9,
    "min up to 24 tokens, else mean; those cut off last": lambda told: (
        -1e9
        if told.row.finish_reason == "length"
        else (told.logprobs.min() if len(told.logprobs) <= SHORT else told.logprobs.mean())
    ),
    "answer mark or not": lambda told: float(told.marked),
    "length (shorter is better)": lambda told: -float(len(told.logprobs)),
}
DEFAULT, ARITHMETIC, LENGTH = "mean (default)", "mean, arithmetic", "length (shorter is better)"


# ---------------------------------------------------------------------- a set of answers


@dataclass(frozen=True)
class Answers:
    """One model's answers to one set, scored.

    Attributes:
        set: Name of the question set; ", finished" of those that were not cut off at the limit.
        model: Whose.
        kind: Of the answers; those of finished ones apart.
        right: Whether each was.
        scores: By aggregate.
        tokens: Median length of an answer.
        cut: Share that was cut off at the limit of tokens.
        marked: Share with an answer mark.
    """

    set: str
    model: str
    kind: str
    right: NDArray[np.bool_]
    scores: Mapping[str, Numbers]
    tokens: float
    cut: float
    marked: float

    @property
    def name(self) -> str:
        return f"{self.set}, {self.model}"


def answers(set_: str, model: str, rows: Sequence[Row]) -> Answers:
    """What the aggregates make of recorded answers."""
    told = [Told(row) for row in rows]
    return Answers(
        set_,
        model,
        KINDS[set_.removesuffix(FINISHED)] + FINISHED * set_.endswith(FINISHED),
        np.array([is_right(row.grade) for row in rows if row.grade is not None]),
        {name: np.array([float(aggregate(each)) for each in told]) for name, aggregate in AGGREGATES.items()},
        float(np.median([len(each.logprobs) for each in told])),
        float(np.mean([row.finish_reason == "length" for row in rows])),
        float(np.mean([each.marked for each in told])),
    )


def recorded(paths: Sequence[Path]) -> Iterator[Answers]:
    """Of every set and model in the recordings; where some answers were cut off, of the finished ones again."""
    rows = [row for path in paths for row in read_rows(path) if row.grade is not None and row.tokens]
    for set_, model in dict.fromkeys((row.group or "", row.model) for row in rows):
        own = [row for row in rows if (row.group, row.model) == (set_, model)]
        if len(own) < LEAST:
            print(f"{set_}, {model}: {len(own)} answers are too few, and left out.", file=sys.stderr)
            continue
        yield answers(set_, model, own)
        finished = [row for row in own if row.finish_reason != "length"]
        if LEAST <= len(finished) < len(own):
            yield answers(set_ + FINISHED, model, finished)


def published(data: Path) -> Iterator[Answers]:
    """MMLU-Pro by four Llamas: chains of thought with their arithmetic mean and their length."""
    path = data / "verbalized_mmlu_pro" / "llama_even.csv.gz"
    if not path.exists():
        return
    rows = [row for row in read_verbalized(path) if "mean_token_probability" in row.scores]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        length = np.array([float(row.usage.output_tokens) for row in own])
        mean = np.array([row.scores["mean_token_probability"].value or 0.0 for row in own])
        right = np.array([is_right(row.grade or 0.0) for row in own])
        scores = {ARITHMETIC: mean, LENGTH: -length}
        yield Answers("MMLU-Pro", model, "reasoning", right, scores, float(np.median(length)), math.nan, math.nan)


# ---------------------------------------------------------------------- what an aggregate is worth


@dataclass(frozen=True)
class Worth:
    """An aggregate's AUROC on a set, and its distance from the mean's, with 95 % intervals.

    ``kept_half`` is the accuracy of the half of the answers that scores highest.
    """

    set: str
    model: str
    kind: str
    aggregate: str
    n: int
    right: int
    auroc: float
    low: float
    high: float
    kept_half: float
    above_mean: float | None = None
    above_mean_low: float | None = None
    above_mean_high: float | None = None


def areas(of: Answers, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Numbers]:
    """The AUROC of every aggregate: first as found, then of draws of the questions, the same for all aggregates."""
    rng, n = np.random.default_rng(seed), len(of.right)
    weight = np.stack([np.ones(n), *(np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(draws))])
    right, wrong = weight[:, of.right], weight[:, ~of.right]
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    found = {}
    for name, score in of.scores.items():
        over = np.sign(score[of.right][:, None] - score[~of.right][None, :]) / 2 + 0.5  # ties half
        found[name] = ((right @ over) * wrong).sum(axis=1) / np.maximum(pairs, 1)
    return found


def interval(drawn: Numbers) -> tuple[float, float]:
    """95 % of the draws."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def worths(of: Answers) -> list[Worth]:
    """Of every aggregate; none where all answers are right, or all wrong."""
    if not 0 < of.right.sum() < len(of.right):
        return []
    found, listed = areas(of), []
    for name, area in found.items():
        above: tuple[float, ...] = ()
        if DEFAULT in found and name != DEFAULT:
            distance = area - found[DEFAULT]
            above = (float(distance[0]), *interval(distance[1:]))
        counts = len(of.right), int(of.right.sum())
        kept = 1 - risk_coverage(of.right, of.scores[name])[len(of.right) // 2 - 1]
        bounds = interval(area[1:])
        listed.append(Worth(of.set, of.model, of.kind, name, *counts, float(area[0]), *bounds, float(kept), *above))
    return listed


def by_kind(sets: Sequence[Answers]) -> Iterator[tuple[str, list[Answers], dict[str, Numbers]]]:
    """Each kind with its sets and, by aggregate, the mean of their AUROC less the default's; first as found."""
    whole = [each for each in sets if DEFAULT in each.scores]
    for kind in dict.fromkeys(each.kind for each in whole):
        own = [each for each in whole if each.kind == kind and 0 < each.right.sum() < len(each.right)]
        drawn = [areas(each, seed=i) for i, each in enumerate(own)]
        if own:
            yield (
                kind,
                own,
                {name: np.mean([area[name] - area[DEFAULT] for area in drawn], axis=0) for name in AGGREGATES},
            )


def carried_over(sets: Sequence[Answers]) -> Iterator[tuple[str, str, str, float, float, float]]:
    """What is best in one recording, on others of its kind: AUROC there, the default's, the best's there."""
    whole = [each for each in sets if DEFAULT in each.scores]
    for one in whole:
        for other in whole:
            if one.kind == other.kind and one.name != other.name:
                here, there = areas(one, draws=0), areas(other, draws=0)
                best = max(here, key=lambda name: float(here[name][0]))
                top = max(float(area[0]) for area in there.values())
                yield one.name, other.name, best, float(there[best][0]), float(there[DEFAULT][0]), top


# ---------------------------------------------------------------------- tables


def table(listed: Sequence[Answers], found: Sequence[Worth]) -> Iterator[str]:
    """Aggregates by sets, in Markdown."""
    at = {(worth.set, worth.model, worth.aggregate): worth for worth in found}
    shown = [each for each in listed if any(key[:2] == (each.set, each.model) for key in at)]
    yield "| aggregate | " + " | ".join(each.name for each in shown) + " |"
    yield "|---|" + "---:|" * len(shown)
    facts = {
        "answers": [f"{len(each.right):,}" for each in shown],
        "right": [f"{each.right.mean():.1%}" for each in shown],
        "tokens, median": [f"{each.tokens:.0f}" for each in shown],
        "cut off": ["–" if math.isnan(each.cut) else f"{each.cut:.0%}" for each in shown],
        "with an answer mark": ["–" if math.isnan(each.marked) else f"{each.marked:.0%}" for each in shown],
    }
    for fact, cells in facts.items():
        yield f"| *{fact}* | " + " | ".join(cells) + " |"
    for aggregate in AGGREGATES:
        worth = [at.get((each.set, each.model, aggregate)) for each in shown]
        yield f"| {aggregate} | " + " | ".join(_cell(each) for each in worth) + " |"


def _cell(worth: Worth | None) -> str:
    if worth is None:
        return "–"
    sure = worth.above_mean_low is not None and worth.above_mean_high is not None
    mark = "**" if sure and (worth.above_mean_low or 0) > 0 else ""
    return f"{mark}{worth.auroc:.2f}{mark} ({worth.low:.2f}–{worth.high:.2f})"


def kinds_table(sets: Sequence[Answers]) -> Iterator[str]:
    """By kind of answer: how far above the default's an aggregate's AUROC lies, the mean over its sets."""
    kinds = list(by_kind(sets))
    yield "| aggregate | " + " | ".join(f"{kind} ({len(own)} recordings)" for kind, own, _ in kinds) + " |"
    yield "|---|" + "---:|" * len(kinds)
    for name in AGGREGATES:
        if name != DEFAULT:
            cells = []
            for _, _, above in kinds:
                low, high = interval(above[name][1:])
                cells.append(f"{above[name][0]:+.3f} ({low:+.3f} to {high:+.3f})")
            yield f"| {name} | " + " | ".join(cells) + " |"


# ---------------------------------------------------------------------- command line

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0])
Data = Annotated[Path | None, typer.Option(help="The folder of the data sets.")]


@app.command()
def collect(
    data: Annotated[Path, typer.Option(help="The folder of the data sets.")],
    out: Annotated[Path, typer.Option(help="The recording, a .jsonl file; what it holds is not asked again.")],
    model: Annotated[str, typer.Option(help="Name of the model, for the server and the recording.")],
    set_: Annotated[list[str], typer.Option("--set", help=f"Which questions: {', '.join(SETS)}. Repeatable.")],
    server: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, up to /v1.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Or a folder with a transformers model.")] = None,
    questions: Annotated[int, typer.Option(help="Most questions of a set.")] = 300,
    concurrency: Annotated[int, typer.Option(help="Questions at a time: the server's slots, or a batch.")] = 12,
) -> None:
    """Record real answers with five alternatives for every token."""
    if (server is None) == (folder is None) or not set(set_) <= set(SETS):
        raise typer.BadParameter(f"Give either --server or --folder, and sets among {', '.join(SETS)}.")
    if folder is not None:
        asked = TransformersModel.from_pretrained(folder, name=model, batch_size=concurrency)
    else:
        asked = OpenAICompatibleModel(model, base_url=server, api_key="none", timeout_s=1800)
    for name in set_:
        for done, wanted in record(SETS[name](data), asked, out, questions=questions, concurrency=concurrency):
            print(f"\r{name}: {done}/{wanted}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)


@app.command()
def compare(
    recordings: Annotated[list[Path], typer.Argument(help="Made by `collect`.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="A folder for aggregates.csv and aggregates.json.")] = None,
) -> None:
    """Print the tables, in Markdown."""
    sets = [*recorded(recordings), *(published(data) if data is not None else ())]
    found = [worth for each in sets for worth in worths(each)]
    print("AUROC; bold: surely above the mean's, taken alone.\n")
    print("\n".join(table(sets, found)))
    print("\nAbove the mean's AUROC, by kind of answer:\n")
    print("\n".join(kinds_table(sets)))
    print("\n| chosen on | tried on | aggregate | AUROC | the mean's | the best there |")
    print("|---|---|---|---:|---:|---:|")
    for *names, area, default, best in carried_over(sets):
        print(f"| {' | '.join(names)} | {area:.2f} | {default:.2f} | {best:.2f} |")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = [asdict(worth) for worth in found]
        (out / "aggregates.json").write_text(json.dumps(rows, indent=1) + "\n")
        with (out / "aggregates.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    app()
