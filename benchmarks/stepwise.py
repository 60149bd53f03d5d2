"""Routing within an answer: the smaller model writes a step where it is sure, the larger one where it is not.

Compared on the same questions: each model by itself, the cascade of whole answers, and answers that both write in turn,
by what decides about a step:

- ``lookback``: how sure the small model is of the last step, by its greatest raw logits (STEER);
- ``glimpse``: how sure it is of the next step's first token (GlimpRouter);
- ``draft``: the probability of the step that it has just written, which is thrown away if too low (the mean of the
  tokens' log-probabilities; ``weakest``: the least probable token);
- ``scorer``: the same, judged by a scorer that was learned from its steps and whether their answers were right;
- ``random``: a coin for each step; ``blind``, a coin for each question: what is to be expected of the models' own
  answers.

    python benchmarks/stepwise.py collect OUT --pair bundled
    python benchmarks/stepwise.py collect OUT --pair qwen --small SMALL.gguf --large LARGE.gguf --data DIR
    python benchmarks/stepwise.py report OUT --pair bundled --write docs/papers/steer

`bundled` is the small and the large of the bundled models on sums of two and three steps whose operands no training sum
contains; `qwen` is any two local models on GSM8K (DIR holds ``gsm8k/test.jsonl.gz`` and ``train.jsonl.gz``), such as
Qwen2.5-Coder 0.5B and 1.5B.

Thresholds are fixed before the questions are asked: quantiles of the scores that the small model's own steps have on
other questions (``fit``), and so is the scorer learned there. A run that was stopped goes on where it was. Compute is
in FLOPs, and counts all: steps that were thrown away, and what a model reads of the other's text.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import LearnedScorer, Stage, TokenProbability, TransformersModel
from confcascade.asks import Generate, LanguageModel, Session
from confcascade.attempts import Outcome
from confcascade.bench.metrics.significance import mean_interval, paired_difference
from confcascade.bench.questions.gsm8k import example as gsm8k_example
from confcascade.demo import bundled_model
from confcascade.demo.world import World
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.graders import Numeric
from confcascade.signals import Evidence, Measurement, Signal
from confcascade.signals.glimpse import Glimpse
from confcascade.signals.step_mixture import StepMixture, step_confidence
from confcascade.stepwise import Steps
from confcascade.stepwise_cascade import StepwiseCascade
from confcascade.types import Message, Request, Response

ORDER = ["small", "large", "blind", "query", "draft", "weakest", "scorer", "lookback", "glimpse", "random"]
NAMES = {
    "small": "small model alone",
    "large": "large model alone",
    "blind": "whole answers, a coin",
    "query": "whole answers, P(T)",
    "draft": "draft, mean",
    "weakest": "draft, weakest token",
    "scorer": "draft, learned scorer",
    "lookback": "lookback (STEER)",
    "glimpse": "glimpse",
    "random": "a coin for each step",
}
QUANTILES = (0.2, 0.4, 0.6, 0.8)
NOTHING = -1e9  # a threshold that every score passes
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# ---------------------------------------------------------------------- signals of the benchmark's own


class MaxLogit(Signal):
    """c of STEER itself, in place of its posterior, which rises with it: thresholds on either keep the same steps."""

    name = "lookback"
    space = (-math.inf, math.inf)
    phase = "pre"
    following = True
    between_steps = True

    def check(self, model: LanguageModel) -> None:
        pass

    def score(self, evidence: Evidence) -> Measurement:
        if evidence.tokens:
            return Measurement(step_confidence(evidence.tokens))
        if evidence.prefilled is None or evidence.prefilled.following is None:
            raise SignalUnavailableError("nothing was read")
        return Measurement(evidence.prefilled.following.max_logit or 0.0)

    def identity(self) -> dict[str, Any]:
        return {"type": "max logit"}


class Coin(Signal):
    """A number between 0 and 1 that depends on nothing but the question and what is written so far."""

    name = "random"
    phase = "pre"

    def check(self, model: LanguageModel) -> None:
        pass

    def score(self, evidence: Evidence) -> Measurement:
        seed = f"{evidence.request.messages[-1].content}|{evidence.request.written}"
        return Measurement(random.Random(seed).random())

    def identity(self) -> dict[str, Any]:
        return {"type": "coin"}


# ---------------------------------------------------------------------- the two pairs


@dataclass(frozen=True)
class Question:
    """One, and its right answer."""

    id: str
    text: str
    reference: str


@dataclass(frozen=True)
class Pair:
    """Two models, their questions, and how they are asked."""

    small: TransformersModel
    large: TransformersModel
    steps: Steps
    max_tokens: int
    fit: Sequence[Question]
    test: Sequence[Question]

    def request(self, question: Question) -> Request:
        return Request((Message("user", question.text),), max_tokens=self.max_tokens)

    def is_right(self, question: Question, answer: str) -> bool:
        if self.max_tokens <= 64:
            return answer.rsplit("Answer:", 1)[-1].strip().rstrip(".") == question.reference
        from confcascade.graders import Example

        grade = Numeric().grade(Example(question.text, references=(question.reference,)), answer)
        return bool(grade.value)


def bundled(questions: int, fit: int) -> Pair:
    """Sums of at least two steps."""

    def sums(split: Any, count: int) -> list[Question]:
        asked = World().questions(split, tasks=("sums",), per_task=4 * count)
        several = [q for q in asked if q.prompt.count(", ") >= 2]
        return [Question(str(i), q.prompt, q.reference) for i, q in enumerate(several[:count])]

    test, others = sums("test", questions), sums("fit", fit)
    return Pair(bundled_model("small"), bundled_model("large"), Steps("\n"), 64, others, test)


def local(small: str, large: str, data: Path, questions: int, fit: int) -> Pair:
    """GSM8K, asked as its authors' models are asked to reason; the fit questions are of the training set."""

    def asked(name: str, count: int) -> list[Question]:
        with gzip.open(data / "gsm8k" / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        random.Random(0).shuffle(rows)
        found = [gsm8k_example(row) for row in rows[:count]]
        end = "\nPlease reason step by step, and put your final answer within \\boxed{}."
        return [Question(f"{name}-{i}", each.question + end, each.references[0]) for i, each in enumerate(found)]

    def model(path: str) -> TransformersModel:
        return TransformersModel.from_pretrained(path, dtype="bfloat16", batch_size=50)

    return Pair(model(small), model(large), Steps(), 400, asked("train", fit), asked("test", questions))


# ---------------------------------------------------------------------- asking


def watched_signals() -> list[Signal]:
    """Those that see every step of the small model's."""
    weakest = TokenProbability(aggregate="min", name="weakest")
    return [MaxLogit(), Glimpse(), TokenProbability(name="draft"), weakest]


def collected(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by question, of a file that may be packed."""
    packed = path.with_name(f"{path.name}.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines() if packed.exists() else []
    lines += path.read_text().splitlines() if path.exists() else []
    return {row["question"]: row for row in map(json.loads, lines)}


def ask(path: Path, pair: Pair, questions: Sequence[Question], signals: Sequence[Signal], thresholds: Any) -> None:
    """Answer the questions that the file does not hold; each row is written when its answer is there."""
    known = collected(path)
    open_ = [question for question in questions if question.id not in known]
    if not open_:
        return
    cascade = StepwiseCascade([Stage(pair.small, signals, thresholds), Stage(pair.large)], steps=pair.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, typer.progressbar(length=len(open_), label=path.stem) as bar:

        def keep(index: int, outcome: Outcome | Exception) -> None:
            if isinstance(outcome, Exception):
                raise outcome
            question = open_[index]
            file.write(json.dumps(row_of(question, outcome, pair)) + "\n")
            file.flush()
            bar.update(1)

        cascade.run_batch([pair.request(question) for question in open_], on_result=keep)


def row_of(question: Question, outcome: Outcome, pair: Pair) -> dict[str, Any]:
    record, tokens = outcome.record, outcome.response.tokens or ()
    return {
        "question": question.id,
        "right": pair.is_right(question, outcome.text),
        "flops": record.cost.flops,
        "kept_flops": record.cost_answering_stage.flops,
        "seconds": record.cost.seconds,
        "p_t": math.exp(np.mean([token.logprob for token in tokens])) if tokens else None,
        "finish_reason": outcome.response.finish_reason,
        "steps": [
            [
                int(step.author != pair.small.name),
                int(step.kept),
                step.tokens,
                {n: s.value for n, s in step.scores.items()},
            ]
            for step in record.steps
        ],
        "text": outcome.text,
    }


def steps_of(row: dict[str, Any], delimiter: str) -> list[str]:
    """The steps of an answer by one model."""
    parts = row["text"].split(delimiter)
    return [part + delimiter for part in parts[:-1]] + parts[-1:]


def fitted(folder: Path, pair: Pair) -> tuple[dict[str, list[float]], LearnedScorer | None]:
    """From the small model's own steps: the scores of each signal, and a scorer."""
    rows = collected(folder / "fit.jsonl")
    scores: dict[str, list[float]] = {}
    texts: list[tuple[str, str, bool, str]] = []
    for question in pair.fit:
        row = rows[question.id]
        for *_, told in row["steps"]:
            for name, value in told.items():
                if value is not None:
                    scores.setdefault(name, []).append(value)
        texts += [
            (question.text, step, row["right"], question.id) for step in steps_of(row, pair.steps.delimiter) if step
        ]
    asked, steps, labels, groups = zip(*texts, strict=True)
    if len(set(labels)) < 2:
        return scores, None
    scorer = LearnedScorer.fit(asked, steps, labels, groups=groups)
    scores["scorer"] = [float(value) for value in scorer.predict(asked, steps)]
    return scores, scorer


@app.command()
def collect(
    out: Path,
    pair: Annotated[str, typer.Option(help="bundled, or a name for two other models.")] = "bundled",
    small: Annotated[str, typer.Option(help="The small model: a folder or a GGUF file.")] = "",
    large: Annotated[str, typer.Option(help="The large model.")] = "",
    data: Annotated[Path, typer.Option(help="The folder of the question sets.")] = Path(),
    questions: Annotated[int, typer.Option(help="To compare on.")] = 500,
    fit: Annotated[int, typer.Option(help="For thresholds and the scorer.")] = 200,
    only: Annotated[str, typer.Option(help="Signals, with commas; empty for all.")] = "",
    quantiles: Annotated[str, typer.Option(help="Shares of steps below the thresholds, with commas.")] = "",
) -> None:
    """Ask all configurations."""
    two = bundled(questions, fit) if pair == "bundled" else local(small, large, data, questions, fit)
    folder = out / pair
    watched = watched_signals()
    passing = {signal.name: max(NOTHING, signal.space[0]) for signal in watched}
    alone = replace(two, large=two.small)  # who writes a step that repeats an earlier one
    ask(folder / "fit.jsonl", alone, two.fit, watched, passing)
    before = {signal.name: passing[signal.name] for signal in watched if signal.phase == "pre"}  # nothing is redone
    ask(folder / "small.jsonl", alone, two.test, [s for s in watched if s.name in before], before)
    ask(folder / "large.jsonl", two, two.test, [Coin()], {"random": "never"})
    scores, scorer = fitted(folder, two)
    signals: dict[str, Signal] = {signal.name: signal for signal in (*watched, Coin())}
    if scorer is not None:
        signals["scorer"] = scorer
    wanted = only.split(",") if only else [name for name in signals if name in scores or name == "random"]
    for quantile in map(float, quantiles.split(",")) if quantiles else QUANTILES:
        for name in wanted:
            threshold = quantile if name == "random" else float(np.quantile(scores[name], quantile))
            ask(folder / f"{name}@{quantile:g}.jsonl", two, two.test, [signals[name]], {name: threshold})


# ---------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Point:
    """A configuration's figures, in the order of the questions.

    Attributes:
        method: What decides.
        setting: Its threshold, as the share of the small model's steps that lie below it; "" for a model alone.
        right: Whether each answer was.
        flops: All that ran.
        written: Of only the tokens that were kept, each once, by whoever wrote it: what is left of the cost if nobody
            pays for reading and for steps that are thrown away.
        by_large: Share of the answers' tokens that the large model wrote.
    """

    method: str
    setting: str
    right: Any
    flops: Any
    written: Any
    by_large: float


def points(folder: Path) -> list[Point]:
    """All that was collected, and the cascade of whole answers replayed on the two models' own."""
    names = sorted({path.name.partition(".jsonl")[0] for path in folder.glob("*.jsonl*")} - {"fit"})
    rows = {name: collected(folder / f"{name}.jsonl") for name in names}
    rows = {name: found for name, found in rows.items() if len(found) >= len(rows["large"])}
    ids = list(rows["large"])
    each = {
        name: sum(r["kept_flops"] for r in rows[name].values()) / sum(_tokens(r) for r in rows[name].values())
        for name in ("small", "large")
    }  # FLOPs of a token of its own answers, the prompt's share included

    def point(name: str) -> Point:
        asked = [rows[name][i] for i in ids]
        method, _, setting = name.partition("@")
        large = [sum(tokens for by, kept, tokens, _ in row["steps"] if by and kept) for row in asked]
        small = [sum(tokens for by, kept, tokens, _ in row["steps"] if kept and not by) for row in asked]
        return Point(
            method,
            setting,
            np.array([row["right"] for row in asked]),
            np.array([row["flops"] for row in asked]),
            np.array(large) * each["large"] + np.array(small) * each["small"],
            sum(large) / max(1, sum(large) + sum(small)),
        )

    found = [point(name) for name in rows]
    small, large = (next(p for p in found if p.method == name) for name in ("small", "large"))
    scores = np.array([rows["small"][i]["p_t"] for i in ids])
    tokens = np.array([_tokens(rows["large"][i]) for i in ids])
    kept = np.array([_tokens(rows["small"][i]) for i in ids])
    for quantile in np.arange(0.1, 1.0, 0.1):
        up = scores < np.quantile(scores, quantile)
        found.append(
            Point(
                "query",
                f"{quantile:.1f}",
                np.where(up, large.right, small.right),
                small.flops + up * large.flops,
                np.where(up, large.written, small.written),
                float((up * tokens).sum() / (up * tokens + ~up * kept).sum()),
            )
        )
    for share in QUANTILES:  # a coin sends the question to one model, and only that one runs: what is to be expected
        right, flops, written = (
            (1 - share) * getattr(small, name) + share * getattr(large, name) for name in ("right", "flops", "written")
        )
        by_large = share * tokens.sum() / (share * tokens.sum() + (1 - share) * kept.sum())
        found.append(Point("blind", f"{share:g}", right, flops, written, float(by_large)))
    return found


def _tokens(row: dict[str, Any]) -> int:
    return sum(tokens for _, kept, tokens, _ in row["steps"] if kept)


def table(found: Sequence[Point]) -> Iterator[str]:
    """Each configuration beside the large model alone."""
    large = next(point for point in found if point.method == "large")
    yield "| decides | below | accuracy (95 %) | against the large model (95 %) | compute | as written | by the large |"
    yield "|---|---|---|---|---|---|---|"
    for point in sorted(found, key=lambda p: (ORDER.index(p.method), p.setting)):
        mean, low, high = mean_interval(point.right)
        gap, least, most = paired_difference(point.right, large.right)
        yield (
            f"| {NAMES[point.method]} | {point.setting or '-'} | {mean:.1%} ({low:.1%} to {high:.1%}) "
            f"| {100 * gap:+.1f} ({100 * least:+.1f} to {100 * most:+.1f}) | {_ratio(point.flops, large.flops)} "
            f"| {point.written.sum() / large.written.sum():.2f} | {point.by_large:.0%} |"
        )


def _ratio(flops: Any, large: Any) -> str:
    """Of two totals, with the interval of a bootstrap over questions."""
    draws = np.random.default_rng(0).integers(0, len(large), (2000, len(large)))
    low, high = np.quantile(flops[draws].sum(1) / large[draws].sum(1), (0.025, 0.975))
    return f"{flops.sum() / large.sum():.2f} ({low:.2f} to {high:.2f})"


def enough(found: Sequence[Point], points_below: float = 1.0) -> Iterator[str]:
    """The least compute at which each way is within so many points of the large model, on these very questions."""
    large = next(point for point in found if point.method == "large")
    yield f"| decides | least compute within {points_below:g} point of the large model | as written |"
    yield "|---|---|---|"
    for method in ORDER[2:]:
        near = [
            point
            for point in found
            if point.method == method and point.right.mean() >= large.right.mean() - points_below / 100
        ]
        if any(point.method == method for point in found):
            costs = [point.flops.sum() / large.flops.sum() for point in near]
            written = [point.written.sum() / large.written.sum() for point in near]
            shown = [f"{min(each):.2f}" if each else "none" for each in (costs, written)]
            yield f"| {NAMES[method]} | {shown[0]} | {shown[1]} |"


def plot(found: Sequence[Point], path: Path, title: str) -> None:
    """Accuracy over compute, counted in both ways."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    large = next(point for point in found if point.method == "large")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, attribute, label in (
        (axes[0], "flops", "all that ran, of the large model's"),
        (axes[1], "written", "only what was written and kept"),
    ):
        total = getattr(large, attribute).sum()
        for i, method in enumerate(ORDER):
            chosen = sorted((p for p in found if p.method == method), key=lambda p: getattr(p, attribute).sum())
            if not chosen:
                continue
            x = [getattr(p, attribute).sum() / total for p in chosen]
            told = [mean_interval(p.right) for p in chosen]
            y = [mean for mean, _, _ in told]
            spread = [[m - low for m, low, _ in told], [high - m for m, _, high in told]]
            single = len(chosen) == 1
            axis.errorbar(
                x, y, yerr=spread, marker="s" if single else "o", linestyle="none" if single else "-", capsize=2,
                color=f"C{i}", label=NAMES[method], alpha=0.85, markersize=4, linewidth=1, elinewidth=0.6,
            )  # fmt: skip
        axis.set_xlabel(f"FLOPs: {label}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy (95 %)")
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def confidences(folder: Path, path: Path, title: str) -> str:
    """STEER's mixture on the small model's own steps: its plot, and what `StepMixture` says of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from scipy.stats import norm
    from sklearn.mixture import GaussianMixture

    rows = collected(folder / "fit.jsonl").values()
    values = np.array([told["lookback"] for row in rows for *_, told in row["steps"][1:] if "lookback" in told])
    mixture = GaussianMixture(2, n_init=5, random_state=0).fit(values[:, None])
    means, deviations = mixture.means_[:, 0], np.sqrt(mixture.covariances_[:, 0, 0])
    figure, axis = plt.subplots(figsize=(6, 3.6))
    axis.hist(values, bins=40, density=True, alpha=0.4)
    grid = np.linspace(values.min(), values.max(), 400)
    for weight, mean, deviation in zip(mixture.weights_, means, deviations, strict=True):
        axis.plot(grid, weight * norm.pdf(grid, mean, deviation))
    axis.set_xlabel("mean greatest raw logit of a step")
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    try:
        fitted_mixture = StepMixture.fit(values)
    except ConfigurationError as error:
        return str(error)
    return repr(fitted_mixture)


@app.command()
def report(
    out: Path,
    pair: Annotated[str, typer.Option(help="As given to collect.")] = "bundled",
    write: Annotated[Path | None, typer.Option(help="Folder for the figures and the tables.")] = None,
) -> None:
    """Tables and figures of what was collected."""
    found = points(out / pair)
    count = len(found[0].right)
    lines = [*table(found), "", *enough(found)]
    if write is not None:
        write.mkdir(parents=True, exist_ok=True)
        plot(found, write / f"{pair}.png", f"{pair}: {count} questions")
        said = confidences(out / pair, write / f"{pair}-steps.png", f"{pair}: steps of the small model")
        lines += ["", said]
        (write / f"{pair}.md").write_text("\n".join(lines) + "\n")
    typer.echo("\n".join(lines))


@app.command()
def seams(
    pair: Annotated[str, typer.Option(help="bundled, or a name for two other models.")] = "bundled",
    small: Annotated[str, typer.Option(help="The small model: a folder or a GGUF file.")] = "",
    large: Annotated[str, typer.Option(help="The large model.")] = "",
    data: Annotated[Path, typer.Option(help="The folder of the question sets.")] = Path(),
    questions: Annotated[int, typer.Option(help="How many.")] = 20,
) -> None:
    """What is lost where models read each other's text: how often a step's text has other tokens than were written."""
    two = bundled(questions, 1) if pair == "bundled" else local(small, large, data, questions, 1)
    for model in (two.small, two.large):
        steps = differ = tokens = others = 0
        sessions = [Session() for _ in two.test]
        texts = ["" for _ in two.test]
        open_ = list(range(len(two.test)))
        while open_:
            asks = [
                Generate(
                    model,
                    replace(two.request(two.test[i]), written=texts[i]),
                    session=sessions[i],
                    until=two.steps.delimiter,
                )
                for i in open_
            ]
            answers = list(model.generate(asks))
            for i, ask, answer in zip(open_, asks, answers, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                assert answer.written_tokens is not None
                written = list(answer.written_tokens.ids)
                read = model.encode_behind(ask.request, answer.text)
                steps += 1
                differ += read != written
                tokens += len(written)
                others += len(written) - sum(a == b for a, b in zip(read[::-1], written[::-1], strict=False))
                texts[i] += answer.text
            open_ = [
                i
                for i, answer in zip(open_, answers, strict=True)
                if isinstance(answer, Response) and answer.finish_reason in ("step", "paused")
            ]
        typer.echo(
            f"{model.name}: {differ} of {steps} steps have other tokens if their text is read, "
            f"{others} of {tokens} tokens"
        )


if __name__ == "__main__":
    app()
