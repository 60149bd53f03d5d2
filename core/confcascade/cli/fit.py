"""``confcascade fit``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confcascade.cli.fit_grid import fit_grid, refuse_grid
from confcascade.cli.fit_labels import fit_labels, refuse_with_labels
from confcascade.cli.fit_targets import TargetOptions, tell_targets
from confcascade.cli.hints import with_options
from confcascade.cli.options import Models, Parameters, PerToken, Unit
from confcascade.cli.sizes import Sizes
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.graders import Grader
    from confcascade.guarantee import Equivalence

RULES = ("choice", "normalized", "numeric", "exact")
JUDGE_DELTA = 0.1  # the part of the promise's own doubt that a judge's error bound takes


def fit(
    recording: Annotated[
        Path,
        typer.Argument(
            help="A recording (or a folder of its parts): one row for each question and model.", exists=True
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy.", dir_okay=False)] = Path("policy.json"),
    max_drop: Annotated[
        float | None,
        typer.Option(help="The greatest loss of accuracy against the largest model, as a share: 0.01 is one point."),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="Instead: the least loss that this share of the largest model's cost buys, such as 0.4. With "
            "--max-drop, --most-tokens or --timeout the cost itself is promised."
        ),
    ] = None,
    min_precision: Annotated[
        list[str] | None,
        typer.Option(help="CLASS=SHARE: at least so many of the answers CLASS are right, yes=0.9. Repeat for others."),
    ] = None,
    min_recall: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS=SHARE: at least so many questions of CLASS are answered so. each=0.9: of every class."
        ),
    ] = None,
    min_f1: Annotated[
        list[str] | None, typer.Option(help="CLASS=SHARE: the harmonic mean of the two is at least so much.")
    ] = None,
    error_price: Annotated[
        float | None,
        typer.Option(help="What an error costs, in dollars (or in --unit): cost and errors together are to be least."),
    ] = None,
    max_asked: Annotated[
        float | None, typer.Option(help="The greatest share of the questions that the largest model is asked.")
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(help="The greatest mean of seconds to an answer, with --timeout; or the limit of --late-share."),
    ] = None,
    late_share: Annotated[
        float | None, typer.Option(help="The greatest share of the questions that take longer than --max-latency.")
    ] = None,
    most_tokens: Annotated[
        str | None,
        typer.Option(
            help="PROMPT,ANSWER: the most tokens that any model is paid for at a question, 4000,512 (see max_tokens). "
            "A promise of a mean cost needs that."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which an attempt is given up. A promise of mean seconds needs that."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which the promise shall hold.")] = 0.95,
    labels: Annotated[
        bool, typer.Option(help="--no-labels: promise the largest model's answers, without knowing the right ones.")
    ] = True,
    equivalence: Annotated[
        str | None,
        typer.Option(
            help="With --no-labels, when two answers are the same: choice, normalized, numeric, exact, or judge:MODEL."
        ),
    ] = None,
    judge_checked: Annotated[
        int | None,
        typer.Option(min=1, help="With a judge: how many pairs that it called the same were checked by hand."),
    ] = None,
    judge_missed: Annotated[int, typer.Option(min=0, help="With a judge: how many of them differed.")] = 0,
    cascade: Annotated[
        Path | None,
        typer.Option(
            help="The cascade file of the recording: its models, prices, and signals, which the policy then keeps.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    models: Models = None,
    signals: Annotated[str | None, typer.Option(help="Which to use: p_ik,p_t. By default all that can route.")] = None,
    early: Annotated[
        str | None,
        typer.Option(
            help="A signal that is known before an answer has ended, such as P(T) of its first tokens: an answer that "
            "it is sure of is kept, and streamed, from there."
        ),
    ] = None,
    prices: PerToken = None,
    parameters: Parameters = None,
    unit: Unit = None,
    rule: Annotated[
        Literal["quantiles", "pass-rate", "per-label"],
        typer.Option(
            help="Which thresholds: of quantiles of the scores, the next model's pass rate, or one for each label."
        ),
    ] = "quantiles",
    per_group: Annotated[bool, typer.Option(help="Promise it for every group of questions at once.")] = False,
    seed: Annotated[
        int, typer.Option(help="Of the split. To try several until one passes is to choose by the proof.")
    ] = 0,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid",
            help="Of a cascade with `mode: stepwise`: certify one of the thresholds at which it was collected.",
        ),
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(
            help="Buy labels one by one until the target is certified: ask (at this terminal), FILE.jsonl (which "
            "grows), or largest (the cascade file's last model, at its price)."
        ),
    ] = None,
    saving: Annotated[
        float | None,
        typer.Option(help="With --label: enough is what saves this share of the largest model's cost, such as 0.3."),
    ] = None,
    most_labels: Annotated[int | None, typer.Option(min=1, help="With --label: buy so many at most, in all.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --label FILE: wait for labels, and do not end with 3 for want of them.")
    ] = False,
) -> None:
    """Choose thresholds from a recording, with a promise: calibrate, choose, certify.

    With two models and one signal every question proves; else some choose (15 %; with several signals 30 %) and the
    others prove. One that was drawn several times counts as often. Asks no model (but a judge). Ends with 1, and writes
    nothing, if nothing can be promised. Example:

        confcascade fit answers.jsonl -o policy.json --max-drop 0.01 --confidence 0.95 --parameters small=8B,large=70B

    With --grid, thresholds of a cascade that writes step by step (`collect --thresholds 0.9,0.7`) are tested with all
    questions, the highest first, up to the first that fails, and the cheapest that passed is taken. The grid and its
    order must have been settled before anybody looked at the answers. Costs are those of the recording:

        confcascade fit answers.jsonl -o policy.json --grid --max-drop 0.02 --cascade cascade.yaml

    Precision, recall and F1 of classes, the price of errors, costs and latency are promised alone or together, and
    with --max-drop: all hold at once. A fifth of the questions then chooses a threshold of one signal:

        confcascade fit answers.jsonl -o policy.json --max-drop 0.01 --max-cost 0.4 --most-tokens 4000,512

        confcascade fit answers.jsonl -o policy.json --min-f1 yes=0.8 --max-latency 2 --late-share 0.05

    With --label, answers need no grades: labels are asked for one by one, only where they can matter, until the target
    is certified. They are kept beside the policy, and the same command goes on. Ends with 3 while more are wanted:

        confcascade fit answers.jsonl -o policy.json --label ask --max-drop 0.02 --signals p_t
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from confcascade.bench.fitting import (
        NotCertified,
        Wanted,
        agreement,
        describe_fit,
        fit_targets,
        read_material,
        stepwise_models,
    )
    from confcascade.bench.fitting import fit as fitted
    from confcascade.cascade_file import CascadeFile
    from confcascade.guarantee import Promise

    options = TargetOptions(
        precision=min_precision or (),
        recall=min_recall or (),
        f1=min_f1 or (),
        error_price=error_price,
        max_cost=max_cost,
        max_drop=max_drop,
        max_asked=max_asked,
        max_latency=max_latency,
        late_share=late_share,
        most_tokens=most_tokens,
        timeout=timeout,
    )
    if options.used:
        options.refuse(grid=grid, per_group=per_group, rule=rule)
    elif grid:
        refuse_grid(
            max_drop=max_drop,
            max_cost=max_cost,
            signals=signals,
            prices=prices,
            parameters=parameters,
            per_group=per_group,
            seed=seed,
        )
    if not options.used and (max_drop is None) == (max_cost is None):
        raise ConfigurationError(
            "What shall be promised? Say --max-drop 0.01 (within a point of the largest), --max-cost 0.4, or another "
            "target, such as --min-f1 yes=0.8."
        )
    if labels == (equivalence is not None):
        raise ConfigurationError(
            "--no-labels and --equivalence go together: without labels, it must be said when two answers are the same."
        )
    if models is not None and cascade is not None and not grid:
        raise ConfigurationError("Say either --models or --cascade FILE, which has models of its own.")
    if early is not None and (options.used or grid or label is not None):
        raise ConfigurationError("--early goes with --max-drop (or --max-cost) of one policy for all questions.")
    file = None if cascade is None else CascadeFile.load(cascade)
    if label is not None:
        refuse_with_labels(max_drop=max_drop, max_cost=max_cost, per_group=per_group, rule=rule, grid=grid)
        status = fit_labels(
            recording,
            out,
            label,
            lambda rule: Promise(max_drop, confidence, equivalence=rule),
            rule=None
            if equivalence is None
            else lambda smaller: _equivalence(equivalence, judge_checked, judge_missed, confidence, smaller),
            models=None if models is None else [name.strip() for name in models.split(",")],
            signals=None if signals is None else [name.strip() for name in signals.split(",")],
            file=file,
            sizes=Sizes.told(parameters, prices, file, recording),
            unit=unit,
            seed=seed,
            saving=saving,
            most=most_labels,
            wait=wait,
        )
        raise typer.Exit(status)
    if saving is not None or most_labels is not None or wait:
        raise ConfigurationError(
            "--saving, --most-labels and --wait are for labels bought one by one: say --label, too."
        )
    console = Console(stderr=True)
    if grid:
        certified = fit_grid(
            recording,
            out,
            lambda rule: Promise(max_drop, confidence, equivalence=rule),
            rule=None
            if equivalence is None
            else lambda smaller: _equivalence(equivalence, judge_checked, judge_missed, confidence, smaller),
            models=None if models is None else [name.strip() for name in models.split(",")],
            file=file,
            unit=unit,
            console=console,
        )
        raise typer.Exit(0 if certified else 1)
    if models is None and (written := stepwise_models(recording)):
        raise ConfigurationError(
            f"The recording has cascades that write step by step, {', '.join(written)}. Say --grid to certify one of "
            "them, or name in --models which models to fit on."
        )
    sizes = Sizes.told(parameters, prices, file, recording)
    chosen = None if models is None else [name.strip() for name in models.split(",")]
    if file is not None:
        chosen = list(file.thresholds)
    with console.status("Reading the recording"):
        material = read_material(
            recording,
            models=chosen,
            graded=labels,
            texts=not labels or options.classes,
            architectures=sizes.architectures,
            prices=sizes.prices,
        )
    for name in sizes.typed:
        material.columns.index(name)
    equivalent, same = None, None
    if equivalence is not None:
        smaller = len(material.models) - 1
        equivalent, grader = _equivalence(equivalence, judge_checked, judge_missed, confidence, smaller)
        with console.status("Comparing answers"):
            same = agreement(material, grader)
    if options.used:
        promise = None if max_drop is None else Promise(max_drop, confidence, equivalence=equivalent)
        with console.status("Trying policies"):
            found = fit_targets(
                material,
                Wanted(options.targets, promise, confidence),
                same=same,
                limits=options.limits,
                signals=None if signals is None else [name.strip() for name in signals.split(",")],
                described=file,
                architectures=sizes.architectures,
                prices=sizes.prices,
                unit=unit or ("usd" if error_price is not None else sizes.unit(material.models)),
                seed=seed,
                folder=out.parent,
            )
        if found.policy is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            found.policy.save(out)
        tell_targets(found.describe(), out, Console(), written=found.policy is not None)
        raise typer.Exit(0 if found.policy is not None else 1)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as bars:
        task = bars.add_task("Trying policies")
        result = fitted(
            material,
            Promise(max_drop, confidence, equivalence=equivalent),
            same=same,
            max_cost=max_cost,
            per_group=per_group,
            signals=None if signals is None else [name.strip() for name in signals.split(",")],
            early=early,
            described=file,
            architectures=sizes.architectures,
            prices=sizes.prices,
            unit=unit or sizes.unit(material.models),
            seed=seed,
            folder=out.parent,
            rule=rule,
            progress=lambda done, total, words: bars.update(
                task, completed=done, total=total, description=f"Trying policies: {words}"
            ),
        )
    told = Console()
    lines = map(with_options, describe_fit(result).splitlines())
    told.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if isinstance(result, NotCertified):
        raise typer.Exit(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    result.policy.save(out)
    told.print(f"\nPolicy: {out}", highlight=False, markup=False)


def _equivalence(
    name: str, checked: int | None, missed: int, confidence: float, smaller: int
) -> tuple[Equivalence, Grader]:
    from confcascade.graders import grader_from_string
    from confcascade.guarantee import Equivalence, harm_bound

    if name in RULES:
        if checked is not None:
            raise ConfigurationError(f"--judge-checked is for a judge; '{name}' is right by definition.")
        return Equivalence(name), grader_from_string(name)
    kind, _, model = name.partition(":")
    if kind != "judge" or not model:
        raise ConfigurationError(f"--equivalence must be one of {', '.join(RULES)}, or judge:MODEL. Got '{name}'.")
    if checked is None or missed > checked:
        raise ConfigurationError(
            "A judge errs, and by how much belongs in the promise: check by hand some pairs that it called the same, "
            "drawn at random, and say --judge-checked 400 --judge-missed 0."
        )
    delta = JUDGE_DELTA * (1 - confidence)
    # of all smaller models' pairs together; a policy may keep the answers of the one of which it misses all
    error = min(smaller * harm_bound(missed, checked, delta), math.nextafter(1, 0))
    return Equivalence(f"judge {model}", error, delta), grader_from_string(name)
