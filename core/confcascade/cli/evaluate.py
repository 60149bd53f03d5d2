"""``confcascade evaluate``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confcascade.cli.options import Models, Parameters, PerToken, Unit, pair
from confcascade.cli.options import threshold as threshold_of
from confcascade.cli.sizes import Sizes
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.bench.evaluation.evaluate import Evaluation
    from confcascade.bench.fitting import Realised
    from confcascade.policy import Policy

GROUPS_SHOWN = 12  # in the terminal


def evaluate(
    recording: Annotated[
        Path,
        typer.Argument(help="A recording, one row for each question and model; or a folder of parts.", exists=True),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.", file_okay=False)] = Path("report"),
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="SIGNAL=NUMBER keeps answers whose score is at least that, at every stage that has the signal; "
            "MODEL.SIGNAL=NUMBER at one. Also 'always' and 'never'. Repeat."
        ),
    ] = None,
    cascade: Annotated[
        Path | None,
        typer.Option(
            help="A cascade file instead: its models, thresholds and prices. No model is loaded.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    models: Models = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A fitted policy instead, whose promise is told beside.", exists=True, dir_okay=False),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="With a policy of thresholds for each group: this group's questions alone, in full."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Another policy of the same models to tell beside: NAME=SIGNAL=NUMBER,MODEL.SIGNAL=NUMBER."),
    ] = None,
    prices: PerToken = None,
    parameters: Parameters = None,
    unit: Unit = None,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs matplotlib.")] = True,
    engine: Annotated[
        Literal["here", "ray"],
        typer.Option(help="Who plays the curves' policies: this process, or the Ray cluster that RAY_ADDRESS names."),
    ] = "here",
) -> None:
    """What a cascade would have got right and cost on recorded answers, beside all it should be held against.

    Asks no model. Writes a page, its figures, and each table and plot into a folder. Example:

        confcascade evaluate answers.jsonl --threshold p_t=0.9 --parameters small=8e9,large=70e9 -o report/
    """
    import numpy as np
    from rich.console import Console

    from confcascade.bench.evaluation.evaluate import UNTOLD, with_texts
    from confcascade.bench.evaluation.evaluate import evaluate as judge
    from confcascade.bench.evaluation.gathered import gather
    from confcascade.bench.evaluation.report import made_of, write_report
    from confcascade.bench.fitting import FitNotes, realised, replayable
    from confcascade.bench.recording.reading import Recording
    from confcascade.bench.replay.costs import UNITS
    from confcascade.bench.replay.policy import models_in_order, stages_from_thresholds
    from confcascade.bench.replay.replay import Sweep, sweep
    from confcascade.cascade_file import CascadeFile
    from confcascade.errors import require
    from confcascade.policy import Policy

    if plots:
        require("matplotlib", "plots")  # now, and not after the work
    if unit is not None and unit not in UNITS:
        raise ConfigurationError(f"--unit must be one of {', '.join(UNITS)}. Got '{unit}'.")
    file = None if cascade is None else CascadeFile.load(cascade)
    if file is not None:
        file.only_whole("A report")
    if file is not None and policy is None:
        policy = file.policy_path
    if bool(threshold) + bool(file is not None and file.policy is None) + bool(policy) != 1:
        raise ConfigurationError(
            "When is an answer kept? Say one of --threshold SIGNAL=NUMBER, for example p_t=0.9, --cascade FILE and "
            "--policy FILE."
        )
    if models is not None and (cascade is not None or policy is not None):
        raise ConfigurationError("Say either --models, or --cascade FILE or --policy FILE, which have their own.")
    sizes = Sizes.told(parameters, prices, file, recording)
    limits = dict(pair(text, "--threshold", threshold_of) for text in threshold or ())
    played: Callable[..., Sweep] = sweep
    if engine == "ray":
        from confcascade.bench.replay.ray import ray_sweep

        played = ray_sweep
    console = Console()
    with console.status("Reading the recording"):
        source, seen = Recording(recording), FitNotes()
        gathered = gather(source.rows() if policy is None else seen.passing(source.rows()))
    columns = gathered.columns
    for name in sizes.typed:
        columns.index(name)
    fitted, told = None if policy is None else Policy.load(policy), []
    if fitted is not None:
        if (group := group or (None if file is None else file.group)) is not None:
            fitted = fitted.for_group(group)
            rows = np.flatnonzero(columns.groups == group)
            if not len(rows):
                raise ConfigurationError(f"The recording has no question of the group '{group}'.")
            gathered = gathered.take(rows)
        material = seen.data(columns, models=fitted.models, architectures=sizes.architectures, prices=sizes.prices)
        if group is not None:
            material = material.take(rows)
        found = realised(fitted, material, architectures=sizes.architectures, prices=sizes.prices)
        told = found.describe(fitted)
        if fitted.groups:
            _show_groups(console, fitted, found, told)
            return
        columns = gathered.columns
        if fitted.certificates and fitted.certificates[0].kind == "agreement":
            told.append("The promise is about answers that differ, which are not counted here, and not about accuracy.")
        if fitted.stages[-1].model != fitted.models[-1]:
            told.append(
                f"All other figures are held against {fitted.stages[-1].model}, the last model that the policy asks, "
                f"and not against {fitted.models[-1]}, which the promise is about."
            )
        columns, judged = replayable(columns, fitted)
        gathered = replace(gathered, columns=columns)
        chosen, by = tuple(stage.model for stage in judged), f"as in {policy and policy.name}"
    elif file is not None and cascade is not None:
        if file.skips:
            raise ConfigurationError(
                f"'{cascade}' has stages that `skip` others, which `confcascade evaluate` does not judge. Replay them "
                "with confcascade.bench.replay.replay, whose PolicyStage has `skip`, or take the key out."
            )
        chosen, by = tuple(file.thresholds), f"as in {cascade.name}"
        limits = {f"{m}.{name}": value for m in chosen[:-1] for name, value in file.thresholds[m].items()}
    elif models is None:
        chosen, by = models_in_order(columns, sizes.architectures, sizes.prices)
        by = f"by {by}"
    else:
        chosen, by = tuple(name.strip() for name in models.split(",")), "as given"
    for name in chosen:
        columns.index(name)
    if fitted is None:
        judged = stages_from_thresholds(columns, chosen, limits)
    others = {}
    for text in beside or ():
        name, _, rules = text.partition("=")
        rules_of = dict(pair(each, "--beside", threshold_of) for each in rules.split(","))
        others[name] = stages_from_thresholds(columns, chosen, rules_of)
    with console.status("Evaluating"):
        evaluation = judge(
            gathered,
            judged,
            beside=others,
            architectures=sizes.architectures,
            prices=sizes.prices,
            unit=unit or sizes.unit(chosen),
            sweep=played,
        )
        if gathered.texts is None:  # too many to be held: the recording is read again
            evaluation = with_texts(evaluation, source.rows())
        known = fitted is not None and found.seen is not None  # who chose these thresholds
        notes = (note for note in evaluation.notes if not (known and note == UNTOLD))
        evaluation = replace(evaluation, notes=(*told, *notes, *sizes.describe(chosen)))
        command = shlex.join(["confcascade", *sys.argv[1:]])
        made = made_of(source, command, **{"models, smallest first": f"{', '.join(chosen)} ({by})"})
        written = write_report(evaluation, out, made, plots=plots)
    _show(console, evaluation)
    console.print(f"Report: {written}", highlight=False, markup=False)


def _show_groups(console: Console, policy: Policy, found: Realised, told: Sequence[str]) -> None:
    """What came of each group, by its own thresholds."""
    from rich.table import Table
    from rich.text import Text

    promised = {each.group: each.promised for each in policy.accuracy_certificates}
    table = Table("group", "questions", "points lost", "promised at most", "saved")
    for name, own in found.groups.items():
        most = f"{100 * promised[name]:.2f}" if name in promised else "asks the largest alone"
        table.add_row(Text(name), f"{own.questions:,}", f"{100 * own.loss:.2f}", most, f"{own.saved:.1%}")
    console.print(table)
    for line in told:
        console.print(Text(line))
    console.print(Text("For the page of one group, with its figures and curves, say --group NAME.", style="dim"))


def _show(console: Console, evaluation: Evaluation) -> None:
    from rich.text import Text

    from confcascade.bench.evaluation.report import headline, tables, verdict

    console.print(Text(headline(evaluation), style="bold"))
    for line in verdict(evaluation):
        console.print(Text(line))
    for table in tables(evaluation):
        if table.name in ("costs", "answers", "curves"):  # on the page
            continue
        console.print(table.rich(GROUPS_SHOWN))
        if len(table.rows) > GROUPS_SHOWN:
            console.print(Text(f"{len(table.rows) - GROUPS_SHOWN} more in the report.", style="dim"))
    for note in evaluation.notes:
        console.print(Text(note, style="dim"))
