"""When a cascade's stream shows its first token, and what it costs in decisions to show it sooner.

    python benchmarks/first_token.py

Four tables, as Markdown:

1. Time to the first streamed token and to the end of the stream, over a direct stream of the small model: over an
   instant LangChain client (the worst case there is, see `langchain_overhead`), and over a bundled model, which takes a
   few milliseconds a token. Every answer is accepted. CPU time; contenders take turns; medians of the turns' ratios,
   and quartiles.
2. How well the first k tokens tell right answers from wrong ones, beside all of them: AUROC, and its difference from
   that of the default, 95 % intervals of the bootstrap over questions, drawn in pairs.
3. How many drafts the default, the mean, could end early by a running bound: see `running_bound`.
4. What a policy saves, on average over random halves of each recording: on one `confcascade.bench.fitting.fit` chooses
   and certifies, on the other the policy is replayed, as in `fit_recorded`; in brackets, of how many halves nothing was
   certified, and how many lost more than the target. Beside it the saving in hindsight: of the cheapest threshold that
   keeps the target on the half that is looked at. "Early" is the share of the kept drafts that are shown before their
   end, "waits for" the part of a kept draft's tokens that comes before its first is shown (the mean).

The recordings: "sums" and "facts" of the bundled models' made-up world (collected here, a minute), of some 25 tokens
and of two, and real answers of Qwen2.5-Coder 0.5B and 1.5B in ``benchmarks/recordings`` (`aggregates`); no other model
runs.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Architecture, Calibrated, Cascade, Request, Stage, TokenProbability
from confcascade.bench.collecting import collect
from confcascade.bench.fitting import FitData, Fitted, fit, material_of, realised, replayable, split_by_key
from confcascade.bench.fitting.proof import losses
from confcascade.bench.metrics.ranking import auroc
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import RecordingWriter, Row, read_rows, score_of
from confcascade.bench.replay import PolicyStage, replay
from confcascade.bench.replay.costing import Costing
from confcascade.calibration import EarlyAccept, Feature, Fusion, Input, Platt
from confcascade.demo import bundled_probe
from confcascade.demo.world import Task, World
from confcascade.extending import Chunk, Evidence, Generate, Response
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example
from confcascade.guarantee import Promise
from confcascade.models.bundled import bundled_model
from confcascade.types import Message
from numpy.typing import NDArray

from langchain_confcascade import ConfidenceCascadeLLM

ROOT = Path(__file__).parent
HALVES = {"calibrate": 0.25, "choose": 0.25, "certify": 0.5}  # the first two for fitting, the last for looking
DROPS = (0.01, 0.02, 0.05)
UNIT = (0.0, 1.0)
SIGNALS = {  # the name of the column, and the signal
    "p_t": TokenProbability(),
    "first_1": TokenProbability(first=1, name="first_1"),
    "first_4": TokenProbability(first=4, name="first_4"),
    "first_8": TokenProbability(first=8, name="first_8"),
    "first_16": TokenProbability(first=16, name="first_16"),
    "first_32": TokenProbability(first=32, name="first_32"),
    "min_8": TokenProbability(aggregate="min", first=8, name="min_8"),
}
WORDS = {
    "p_t": "mean of all (the default)",
    "first_1": "first token",
    "first_4": "mean of the first 4",
    "first_8": "mean of the first 8",
    "first_16": "mean of the first 16",
    "first_32": "mean of the first 32",
    "min_8": "least of the first 8",
    "p_ik": "P(IK), before the answer",
}
EARLY = ("first_8", "first_16")  # those that `fit(early=...)` is tried with, beside p_t


# ---------------------------------------------------------------------- time


def early_accept(threshold: float = 0.7) -> dict[str, Any]:
    """What `fit(early=...)` makes, with numbers that nobody fitted: it accepts what its opening is sure of."""
    opening, whole = TokenProbability(first=8, name="opening"), TokenProbability()
    look = EarlyAccept(
        Platt(Input("opening", UNIT), 1.0, 0.0),
        Fusion(tuple(Feature(Input(name, UNIT), 0.0, 1.0, 0.5, None) for name in ("opening", "p_t")), 0.0),
        1.0,
        0.0,
    )
    return {"signals": [Calibrated([opening, whole], look)], "thresholds": {"confidence": threshold}}


def rules(threshold: float) -> dict[str, dict[str, Any]]:
    """The stage's signals and thresholds, of each contender."""
    found = {
        WORDS[name]: {"signals": [SIGNALS[name]], "thresholds": {name: threshold}}
        for name in ("p_t", "first_1", "first_8")
    }
    return found | {"first 8 early, else all": early_accept(threshold)}


Stream = Callable[[], Iterator[str]]


def instant() -> dict[str, Stream]:
    """Streams of the instant LangChain client, 16 tokens each."""
    from langchain_overhead import LARGE, SMALL, THRESHOLD, Client

    small, large = Client(model=SMALL), Client(model=LARGE)

    def streamed(llm: Any) -> Stream:
        return lambda: (str(chunk.content) for chunk in llm.stream("What is the town like?"))

    found = {"direct": streamed(small)}
    for name, stage in rules(THRESHOLD).items():
        found[name] = streamed(ConfidenceCascadeLLM(stages=[Stage(small, **stage), Stage(large)]))
    return found


def local() -> dict[str, Stream]:
    """Streams of the bundled small model, of a worked sum, some 25 tokens; last behind P(IK) only."""
    small, large = bundled_model("small"), bundled_model("large")
    (question, *_) = World().questions("test", ("sums",), per_task=1)
    asked = Request((Message("user", question.prompt),), max_tokens=48)

    def direct() -> Iterator[str]:
        return (item.text for item in small.stream(Generate(small, asked, live=True)) if isinstance(item, Chunk))

    def streamed(stage: Stage) -> Stream:
        cascade = Cascade([stage, Stage(large)])
        return lambda: (item.text for item in cascade.stream(asked) if isinstance(item, Chunk))

    found = {"direct": direct}
    for name, stage in rules(0.0001).items():
        found[name] = streamed(Stage(small, **stage))
    found["P(IK) only"] = streamed(Stage(small, [bundled_probe("small")], {"p_ik": 0.0}))
    return found


def times(streams: dict[str, Stream], turns: int, calls: int) -> list[str]:
    """A line for each contender: ratios to the direct stream, of the first token and of the whole."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for turn in range(turns + 1):
        for name, stream in streams.items():
            first = whole = 0.0
            for _ in range(calls):
                begun = time.process_time()
                shown = 0.0
                for text in stream():
                    if text and not shown:
                        shown = time.process_time() - begun
                first, whole = first + shown, whole + time.process_time() - begun
            if turn:  # the first warms up
                spent[name].append((first / calls, whole / calls))
    direct = np.array(spent["direct"])
    lines = []
    for name, each in spent.items():
        if name == "direct":
            microseconds = 1e6 * np.median(direct, axis=0)
            lines.append(f"| {name} | {microseconds[0]:,.0f} us | {microseconds[1]:,.0f} us |")
            continue
        low, middle, high = np.quantile(np.array(each) / direct, [0.25, 0.5, 0.75], axis=0)
        cells = [f"×{m:.2f} ({a:.2f} to {b:.2f})" for a, m, b in zip(low, middle, high, strict=True)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


# ---------------------------------------------------------------------- recordings


@dataclass(frozen=True)
class Source:
    """A recording of two models.

    Attributes:
        name: Of models and questions.
        rows: Scored by `SIGNALS`.
        models: The smaller first.
        sizes: Of them.
    """

    name: str
    rows: list[Row]
    models: tuple[str, str]
    sizes: dict[str, Architecture]


def scored(row: Row, problem: str | None) -> Row:
    """With what `SIGNALS` make of its tokens, as `collect` would have recorded it."""
    response = Response(row.answer, row.tokens, row.usage, row.finish_reason)
    evidence = Evidence(Request((Message("user", row.question),)), None, row.tokens, response)
    scores = {name: score_of(signal, evidence) for name, signal in SIGNALS.items()}
    return row.model_copy(update={"scores": {**row.scores, **scores}, "problem": problem})


def qwen(size: str, group: str) -> list[Row]:
    """Real answers to one set of questions, with five alternatives at each token (`aggregates`)."""
    found = []
    with gzip.open(ROOT / f"recordings/aggregates-{size}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(Row.model_validate_json, lines):
            if row.group == group:
                found.append(scored(row, "it was cut off" if row.finish_reason == "length" else None))
    return found


def bundled(questions: int, tasks: Sequence[Task]) -> list[Row]:
    """Answers of the bundled models, collected anew: worked sums, or a word or two."""
    asked = World().questions("calibration", tasks, per_task=questions // len(tasks))
    examples = [Example(each.prompt, references=(each.reference,), group=each.task) for each in asked]
    stages = [Stage(bundled_model(size), [bundled_probe(size)]) for size in ("small", "large")]
    path = Path(mkdtemp()) / "sums.jsonl"
    with RecordingWriter(path) as writer:
        collect(examples, stages, writer, prompt=PROMPTS["plain"], grader=NormalizedMatch(), max_tokens=48)
    return [scored(row, row.problem) for row in read_rows(path)]


def sources(questions: int) -> Iterator[Source]:
    sizes = {}
    for size in ("small", "large"):
        architecture = bundled_model(size).architecture
        assert architecture is not None
        sizes[size] = architecture
    yield Source("sums, bundled small → large", bundled(questions, ("sums",)), ("small", "large"), sizes)
    facts = bundled(questions, ("facts", "reading", "letters"))
    yield Source("facts, bundled small → large", facts, ("small", "large"), sizes)
    names = ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
    of = dict(zip(names, (Architecture(494 * 10**6, 0, 0), Architecture(1544 * 10**6, 0, 0)), strict=True))
    for group in ("mbpp", "arc"):
        yield Source(f"{group}, Qwen2.5-Coder 0.5B → 1.5B", [*qwen("0.5b", group), *qwen("1.5b", group)], names, of)


def ranking(name: str, rows: Sequence[Row], draws: int = 300) -> Iterator[str]:
    """AUROC of each signal, and the difference from that of the default."""
    rows = [row for row in rows if row.usable]
    right = np.array([row.grade == 1 for row in rows])
    values = {key: np.array([row.scores[key].value for row in rows], dtype=float) for key in SIGNALS}
    length = np.array([len(row.tokens or ()) for row in rows])
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(rows), size=len(rows)) for _ in range(draws)]
    picks = [pick for pick in picks if 0 < right[pick].sum() < len(pick)]
    drawn = {key: np.array([auroc(right[pick], score[pick]) for pick in picks]) for key, score in values.items()}
    for key, score in values.items():
        low, high = np.quantile(drawn[key], [0.025, 0.975])
        cells = [f"{auroc(right, score):.2f} ({low:.2f} to {high:.2f})", ""]
        if key != "p_t":
            a, b = np.quantile(drawn[key] - drawn["p_t"], [0.025, 0.975])
            cells[1] = f"{auroc(right, score) - auroc(right, values['p_t']):+.2f} ({a:+.2f} to {b:+.2f})"
        counted = SIGNALS[key].first
        cells.append("" if counted is None else f"{np.mean(length > counted):.0%}")
        yield f"| {name} | {len(rows):,} | {right.mean():.0%} | {WORDS[key]} | {' | '.join(cells)} |"


def running_bound(name: str, rows: Sequence[Row], limit: int) -> str:
    """How many drafts the mean itself could end early, if no answer were longer than `limit` tokens.

    With the log-probabilities so far S, and none above 0, the mean of all can be no more than S / limit. There is no
    such bound from below, as the next token may be impossible: so nothing can be shown early by it.
    """
    scores = np.array([row.scores["p_t"].value for row in rows], dtype=float)
    threshold = float(np.median(scores))
    ended = spared = written = 0
    rejected = [row for row, score in zip(rows, scores, strict=True) if score < threshold]
    for row in rejected:
        reached = np.cumsum([token.logprob for token in row.tokens or ()]) / limit < np.log(threshold)
        written += len(reached)
        if reached[:-1].any():
            ended, spared = ended + 1, spared + len(reached) - 1 - int(reached.argmax())
    return f"| {name} | {limit} | {threshold:.2f} | {ended / len(rejected):.0%} | {spared / written:.1%} |"


# ---------------------------------------------------------------------- policies


@dataclass
class Summary:
    """Over the halves of one source, by one rule, at one target."""

    nothing: int = 0
    above: int = 0
    saved: list[float] = field(default_factory=list)
    hindsight: list[float] = field(default_factory=list)
    early: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def waited(material: FitData, source: Source, kept: NDArray[np.bool_], shown: NDArray[np.bool_], first: int) -> float:
    """Of kept drafts, which part of their tokens comes before the first is shown; of those shown early, `first`."""
    lengths = {row.question: len(row.tokens or ()) for row in source.rows if row.model == source.models[0]}
    length = np.array([lengths[question] for question in material.columns.questions], dtype=float)
    before = np.where(shown, np.minimum(first, length), length)
    return float((before[kept] / length[kept]).mean()) if kept.any() else float("nan")


def one(source: Source, material: FitData, rule: str, drop: float, seed: int, summary: Summary) -> None:
    halves = split_by_key(material.keys, seed=10_000 + seed, shares=HALVES)
    ours, theirs = np.sort(halves.ordering), halves.certify
    fitting, looking = material.take(ours), material.take(theirs)
    signals = rule.split("+")
    options: dict[str, Any] = {"signals": signals, "early": signals[0] if len(signals) > 1 else None}
    result = fit(fitting, Promise(drop), seed=seed, architectures=source.sizes, **options)
    saved = loss = 0.0
    if isinstance(result, Fitted):
        came = realised(result.policy, looking, architectures=source.sizes)
        saved, loss = came.saved, came.loss
        columns, policy = replayable(looking.columns, result.policy)
        if len(policy) > 1:
            played = replay(columns, policy)
            kept = played.stage == 0
            if kept.any():
                summary.early.append(float(played.shown_early[kept].mean()))
                first = (SIGNALS[signals[0]].first or 0) if signals[0] in SIGNALS else 1
                summary.waits.append(waited(looking, source, kept, played.shown_early, first))
    else:
        summary.nothing += 1
    summary.saved.append(saved)
    summary.above += loss > drop
    if len(signals) == 1:
        small, largest = source.models
        values = looking.columns.signals[small, rule].values
        cuts = np.unique(np.nanquantile(values, np.linspace(0, 1, 201))).tolist()
        tried = [*((PolicyStage(small, {rule: at}), PolicyStage(largest)) for at in cuts), (PolicyStage(largest),)]
        lost = losses(looking.columns, tried, largest, None).mean(axis=1)
        cost = Costing.of(material.columns, source.models, source.sizes, {}).means(looking.columns, tried)
        summary.hindsight.append(float(np.max((1 - cost / cost[-1])[lost <= drop])))


def policies(source: Source, splits: int) -> Iterator[str]:
    material = material_of(source.rows, models=source.models, texts=True)
    gates = [name for owner, name in material.columns.signals if owner == source.models[0] and name == "p_ik"]
    known_early = [material.columns.signals[source.models[0], name].lower for name in EARLY]
    looks = [
        name for name, lower in zip(EARLY, known_early, strict=True) if lower is not None and np.mean(lower > 0) > 0.1
    ]
    told = [*SIGNALS, *gates, *(f"{early}+p_t" for early in looks)]  # where an answer in ten is long enough
    for rule in told:
        words = WORDS.get(rule) or f"{WORDS[rule.split('+')[0]]} early, else all"
        cells = []
        early, waits = [], []
        for drop in DROPS:
            summary = Summary()
            for seed in range(splits):
                one(source, material, rule, drop, seed, summary)
            best = f"{np.mean(summary.hindsight):.1%}" if summary.hindsight else ""
            cells += [f"{np.mean(summary.saved):.1%} ({summary.nothing}, {summary.above})", best]
            early, waits = early + summary.early, waits + summary.waits
        shown = [f"{np.mean(early):.0%}", f"{np.mean(waits):.0%}"] if early else ["", ""]
        yield f"| {source.name} | {len(material):,} | {words} | {' | '.join(cells)} | {' | '.join(shown)} |"


def main(
    turns: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 15,
    splits: Annotated[int, typer.Option(min=1, help="Random halves of each recording.")] = 5,
    questions: Annotated[int, typer.Option(min=100, help="Sums that the bundled models are asked.")] = 1500,
    only: Annotated[str, typer.Option(help="Rank and fit only recordings whose name holds this.")] = "",
    part: Annotated[str, typer.Option(help="Only this table: time, ranking, bound or policies.")] = "",
) -> None:
    begun = time.perf_counter()
    if part in ("", "time"):
        for what, streams, calls in (("instant client", instant(), 20), ("bundled small model", local(), 3)):
            print(f"| {what} | first streamed token | whole stream |\n|---|---:|---:|")
            print("\n".join(times(streams, turns, calls)), flush=True)
            print()
    recorded = [each for each in sources(questions) if only in each.name] if part in ("", "ranking", "policies") else []
    if part in ("", "ranking"):
        print("| answers | n | right | score | AUROC | beside all | longer |\n|---|---:|---:|---|---:|---:|---:|")
        for source in recorded:
            rows = [row for row in source.rows if row.model == source.models[0]]
            print("\n".join(ranking(source.name.split(" →")[0], rows)), flush=True)
        for name, size, group in (
            ("mbpp, Qwen2.5-Coder 1.5B", "1.5b", "mbpp"),
            ("GSM8K in steps, Qwen2.5-Coder 1.5B", "1.5b", "gsm8k-steps"),
        ):
            print("\n".join(ranking(name, qwen(size, group))), flush=True)
        print()
    if part in ("", "bound"):
        print("| answers | limit | threshold: the median | rejected drafts ended early | their tokens spared |")
        print("|---|---:|---:|---:|---:|")
        for name, size, group, limit in (
            ("mbpp, Qwen2.5-Coder 0.5B", "0.5b", "mbpp", 256),
            ("mbpp, Qwen2.5-Coder 1.5B", "1.5b", "mbpp", 256),
            ("GSM8K in steps, Qwen2.5-Coder 1.5B", "1.5b", "gsm8k-steps", 320),
            ("arc, Qwen2.5-Coder 0.5B", "0.5b", "arc", 48),
        ):
            print(running_bound(name, qwen(size, group), limit))
        print()
    if part in ("", "policies"):
        heads = [f"saved at {100 * drop:g} point{'s' * (drop > 0.01)} | hindsight" for drop in DROPS]
        print(f"| recording | n | rule | {' | '.join(heads)} | early | waits for |")
        print("|---|---:|---|" + "---:|" * (2 * len(DROPS) + 2))
        for source in recorded:
            for line in policies(source, splits):
                print(line, flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    typer.run(main)
