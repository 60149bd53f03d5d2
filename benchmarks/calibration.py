"""What calibration and fusion are worth on recorded answers of real models, and what a confidence costs.

    python benchmarks/calibration.py --data DIR

DIR holds recorded answers, one folder a data set (those that are missing are left out): ``mmlu_llama31_logits``
(github.com/alecwangcq/llm-calibration), ``softmax_confidence`` (ARC) and ``stated_vs_token`` (SciQ and BoolQ), as
`confcascade.evaluation.importers` reads them.

No model runs. Questions are halved by a hash of their id, `splits` times with another salt: one half fits, the other is
reported on, and what is printed is the mean over the splits.
"""

from __future__ import annotations

import hashlib
import timeit
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import typer
from confcascade import ConfigurationError
from confcascade.calibration import Fusion, Isotonic, Platt, Temperature, fit_calibrator
from confcascade.evaluation import Columns
from confcascade.evaluation.examples import is_right
from confcascade.evaluation.health import LEAST_AUROC, check_signals
from confcascade.evaluation.importers import read_choice_logits, read_choice_softmax, read_stated
from confcascade.evaluation.metrics import auroc, brier, calibration_error
from numpy.typing import NDArray

UNIT = (0.0, 1.0)
Numbers: TypeAlias = NDArray[np.float64]
KINDS: Mapping[str, Any] = {"Platt": Platt, "isotonic": Isotonic, "temperature": Temperature}


def halves(questions: Sequence[str], splits: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the fitting half: the other is for reporting."""
    for salt in range(splits):
        digests = (hashlib.sha256(f"{salt} {question}".encode()).digest() for question in questions)
        yield np.array([digest[0] % 2 == 0 for digest in digests])


def recordings(data: Path) -> Iterator[tuple[str, Columns]]:
    """Those that are there, by name."""
    read: dict[str, tuple[str, Any]] = {
        "MMLU": ("mmlu_llama31_logits/mmlu_test_even_logits.csv.gz", read_choice_logits),
        "ARC": ("softmax_confidence/arc.csv.gz", read_choice_softmax),
        "SciQ and BoolQ": ("stated_vs_token/sciq_boolq.csv.gz", read_stated),
    }
    for name, (path, reader) in read.items():
        if (data / path).exists():
            yield name, Columns.of(reader(data / path))


def judged(columns: Columns, model: str, signals: Sequence[str]) -> tuple[Columns, NDArray[np.bool_]]:
    """The questions whose answer by `model` was graded and has all scores, and whether it is right."""
    j = columns.index(model)
    known = columns.usable[:, j] & ~np.isnan(columns.grades[:, j])
    for name in signals:
        known &= ~np.isnan(columns.signal(model, name).values)
    kept = columns.take(known)
    return kept, is_right(kept.grades[:, j])


def single(columns: Columns, model: str, name: str, splits: int) -> str:
    """A line: the errors of the score as it is, and calibrated."""
    kept, right = judged(columns, model, [name])
    score = kept.signal(model, name).values
    found = []
    for fit in halves(kept.questions, splits):
        confidences = [score[~fit]]
        confidences += [confidence(kind, name, score, right, fit) for kind in KINDS.values()]
        figures = (calibration_error, brier, auroc)
        found.append([np.nan if np.isnan(c).any() else f(right[~fit], c) for f in figures for c in confidences])
    mean = np.mean(np.array(found, dtype=float), axis=0)
    width = len(KINDS) + 1
    shown = " | ".join("–" if np.isnan(value) else f"{value:.3f}" for value in mean[: 2 * width + 1])
    return f"{len(right):,} | {right.mean():.1%} | {shown}"


def confidence(kind: Any, name: str, score: Numbers, right: NDArray[np.bool_], fit: NDArray[np.bool_]) -> Numbers:
    """Of the other half; NaN where no temperature fits."""
    try:
        fitted = kind.fit(score[fit], right[fit], signal=name)
    except ConfigurationError:
        return np.full(int((~fit).sum()), np.nan)
    found: Numbers = fitted.predict(score[~fit])
    return found


def fused(columns: Columns, model: str, names: Sequence[str], splits: int) -> str:
    """A line: AUROC and Brier score of each signal alone under Platt's sigmoid, and of their fusion."""
    kept, right = judged(columns, model, names)
    scores = {name: kept.signal(model, name).values for name in names}
    found = []
    for fit in halves(kept.questions, splits):
        seen = {name: values[fit] for name, values in scores.items()}
        held = {name: values[~fit] for name, values in scores.items()}
        confidences = [Platt.fit(seen[n], right[fit], signal=n).predict(held[n]) for n in names]
        confidences.append(Fusion.fit(seen, right[fit], dict.fromkeys(names, UNIT)).predict(held))
        found.append([f(right[~fit], c) for f in (auroc, brier) for c in confidences])
    mean = np.mean(np.array(found, dtype=float), axis=0)
    return f"{len(right):,} | " + " | ".join(f"{value:.3f}" for value in mean)


def gains(columns: Columns, own: str, larger: str, name: str, splits: int) -> Iterator[str]:
    """Lines: the accuracy of a cascade that keeps a share of the answers, by how these are chosen."""
    kept, right = judged(columns, own, [name])
    j = kept.index(larger)
    theirs = is_right(kept.grades[:, j])
    score = kept.signal(own, name).values
    shares = (0.3, 0.5, 0.7)
    found = []
    for fit in halves(kept.questions, splits):
        ours, other = (
            fit_calibrator({name: score[fit]}, labels[fit], {name: UNIT}).predict(score[~fit])
            for labels in (right, theirs)
        )
        found.append(
            [accuracy(by, right[~fit], theirs[~fit], share) for by in (score[~fit], ours - other) for share in shares]
        )
    mean = np.mean(found, axis=0).reshape(2, len(shares))
    for what, values in zip((name, "expected gain"), mean, strict=True):
        yield f"| {own} → {larger} | {what} | " + " | ".join(f"{value:.1%}" for value in values) + " |"


def accuracy(by: Numbers, right: NDArray[np.bool_], theirs: NDArray[np.bool_], share: float) -> float:
    """Of keeping the answers that score highest, equal scores in random order."""
    order = np.lexsort((np.random.default_rng(0).random(len(by)), -by))
    keep = np.zeros(len(by), dtype=bool)
    keep[order[: round(share * len(by))]] = True
    return float(np.where(keep, right, theirs).mean())


def costs() -> Iterator[str]:
    """Microseconds of one confidence, the least of five rounds."""
    rng = np.random.default_rng(0)
    score, other = rng.random((2, 2000))
    right = rng.random(2000) < score
    made = [kind.fit(score, right, signal="a") for kind in KINDS.values()]
    made.append(Fusion.fit({"a": score, "b": other}, right, {"a": UNIT, "b": UNIT}))
    for calibrator in made:
        asked = {"a": 0.7, "b": 0.4}
        us = min(timeit.repeat(lambda c=calibrator, q=asked: c.confidence(q), number=10_000, repeat=5)) * 100
        yield f"| {type(calibrator).__name__} | {us:.1f} us |"


def main(
    data: Annotated[Path | None, typer.Option(help="The folder of the data sets.")] = None,
    splits: Annotated[int, typer.Option(help="How often the questions are halved.")] = 20,
) -> None:
    """Print the tables, in Markdown."""
    found = list(recordings(data)) if data is not None else []
    four = " | ".join(["raw", *KINDS])
    print(f"| data, model, signal | answers | right | ECE: {four} | Brier: {four} | AUROC |")
    print("|---|" + "---:|" * 11)
    for name, columns in found:
        for (model, signal), health in check_signals(columns).items():
            if (health.auroc_low or 0) > LEAST_AUROC:
                print(f"| {name}, {model}, {signal} | {single(columns, model, signal, splits)} |", flush=True)
    print("\nSignals that cannot route, the first table's left out where the AUROC is why:\n")
    for name, columns in found:
        for (model, signal), health in check_signals(columns).items():
            if not health.can_route:
                print(f"- {name}, {model}, {signal}: {'; '.join(health.reasons)}")
    print("\n| data, model | answers | AUROC: p_t | verbalized | both | Brier: p_t | verbalized | both |")
    print("|---|" + "---:|" * 7)
    for name, columns in found:
        for model in columns.models:
            if (model, "verbalized") in columns.signals and (model, "p_t") in columns.signals:
                print(f"| {name}, {model} | {fused(columns, model, ['p_t', 'verbalized'], splits)} |", flush=True)
    print("\n| cascade | kept by | 30 % kept | 50 % kept | 70 % kept |")
    print("|---|---|" + "---:|" * 3)
    for name, columns in found:
        if name == "MMLU":
            print("\n".join(gains(columns, "llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "p_t", splits)))
    print("\n| calibrator | a confidence |")
    print("|---|---:|")
    print("\n".join(costs()))


if __name__ == "__main__":
    typer.run(main)
