"""``confcascade fit --label``: labels asked for one by one, at the terminal, by a file, or of the largest model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.cli.hints import with_options
from confcascade.cli.progress import duration, usd_told
from confcascade.cli.sizes import Sizes
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.bench.fitting import FitData
    from confcascade.bench.labelling import Bought, Label, LabelSource, LabelTask, LargestLabels, Wanted
    from confcascade.cascade_file import CascadeFile
    from confcascade.graders import Grader
    from confcascade.guarantee import Equivalence, Promise

__all__ = ["WANTED", "TerminalLabels", "fit_labels", "refuse_with_labels"]

TERMINAL, LARGEST = "ask", "largest"
WANTED = 3  # exit status: more labels are wanted


def fit_labels(
    recording: Path,
    out: Path,
    source: str,
    promise: Callable[[Equivalence | None], Promise],
    *,
    rule: Callable[[int], tuple[Equivalence, Grader]] | None,
    models: Sequence[str] | None,
    signals: Sequence[str] | None,
    file: CascadeFile | None,
    sizes: Sizes,
    unit: str | None,
    seed: int,
    saving: float | None,
    most: int | None,
    wait: bool,
) -> int:
    """Ask for labels until it is enough, tell what came of it, and write the policy if there is one.

    Args:
        recording: With the answers and scores of all models; with the largest model as the labeller, of the smaller.
        out: Of the policy; the labels that were bought lie beside it.
        source: "ask" for the terminal, "largest" for the largest model, else the file of labels.
        promise: What to promise, under an equivalence of answers or none.
        rule: The equivalence and its grader, of the number of smaller models, for the largest model as the labeller.
        models: Smallest first; by default all.
        signals: One for each smaller model.
        file: The cascade file.
        sizes: Of the models.
        unit: Of costs.
        seed: Of the draw.
        saving: Share of the cost at which it is enough.
        most: Labels allowed.
        wait: Whether to wait for a file to grow.

    Returns:
        The exit status: 0 if something is promised and nothing more is asked, 3 if more labels are wanted, 1 if nothing
        can be promised.
    """
    from rich.console import Console

    from confcascade.bench.fitting import Described
    from confcascade.bench.labelling import Aim, FileLabels, Journal, LargestLabels, buy, labelled

    told = Console()

    def say(text: str) -> None:
        told.print(with_options(text), highlight=False, markup=False, soft_wrap=True)

    aim = Aim(saving, most)
    equivalence: Equivalence | None = None
    asked: LabelSource
    journal_path = out.with_suffix(".labels.jsonl")
    if source == LARGEST:
        if rule is None or file is None or most is None:
            raise ConfigurationError(
                "--label largest pays a call for every label, and promises the largest model's answers: say --cascade "
                "FILE, in which it is the last model, --no-labels with --equivalence choice (or another rule), and "
                "--most-labels, the most calls that you will pay for."
            )
        file.only_whole("A fitted policy")
        stage = file.make_stages()[-1]
        equivalence, grader = rule(len(file.thresholds) - 1)
        largest = LargestLabels(stage, out.with_suffix(".largest.jsonl"), grader, parameters=_parameters(recording))
        # as if it had answered nothing yet, so that the policies are the same in every run
        material, asked = _material_with_largest(recording, list(file.thresholds), None, sizes), largest
    else:
        if rule is not None:
            raise ConfigurationError(
                "People label answers as right or wrong: leave out --no-labels and --equivalence, or say --label "
                "largest."
            )
        asked = TerminalLabels(told) if source == TERMINAL else FileLabels(source, wait=wait)
        material = _material(recording, models if file is None else list(file.thresholds), sizes)
    for name in sizes.typed:
        material.columns.index(name)
    goal = promise(equivalence)
    task = _task(material, signals, sizes, unit, seed, by_text=equivalence is None)
    journal = Journal(
        journal_path,
        {
            "recording": material.digest,
            "models": list(material.models),
            "signals": dict(task.signals),
            "max_drop": goal.max_drop,
            "confidence": goal.confidence,
            "equivalence": None if equivalence is None else equivalence.name,
            "seed": seed,
            "policies": [[dict(stage.thresholds) for stage in policy] for policy in task.policies],
            "by": source if source in (TERMINAL, LARGEST) else "file",
        },
    )
    if isinstance(asked, FileLabels):
        asked.check(journal.entries, task.wanted)
    say(
        f"{len(task.policies)} policies of {' → '.join(material.models)}, made without labels, are tested in this "
        f"order, the highest thresholds first. A label is needed on at most {task.open.any(axis=0).mean():.1%} of "
        f"{len(task.material):,} questions: on the others no policy keeps an answer that "
        f"{'differs' if equivalence is None else 'is not the largest model’s own'}."
    )
    if journal.entries:
        say(f"{len(journal.entries):,} labels were bought before ({journal_path}).")
    found = buy(task, goal, journal, asked, aim=aim, progress=None if isinstance(asked, TerminalLabels) else _shown())
    if isinstance(asked, LargestLabels):  # now that it is known what its answers come to
        task = task.costed(_material_with_largest(recording, list(material.models), asked, sizes))
    described = {} if file is None else {n: Described(e, file.folder) for n, e in file.signal_entries.items()}
    result = labelled(task, goal, found, described=described, folder=out.parent)
    say("\n" + result.describe())
    if isinstance(asked, LargestLabels):
        say(f"Where {task.largest} was not asked, its cost is taken to be its mean where it was.")
    if result.policy is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result.policy.save(out)
        say(f"\nPolicy: {out}")
    if found.ended == "paused":
        if isinstance(asked, FileLabels):
            say(
                f"Wanted next: {asked.wanted_path}. Append the lines, with their grades, to {asked.path}, and run "
                "again."
            )
        return WANTED
    return 0 if result.policy is not None else 1


class TerminalLabels:
    """Whoever sits at the terminal: each answer that differs is shown, and is right or wrong.

    Args:
        console: Where to show it.
    """

    batch = 1

    def __init__(self, console: Console) -> None:
        self._console = console

    def ask(self, wanted: Sequence[Wanted]) -> Sequence[Label]:
        """The label of the first question; none where they quit."""
        from rich.panel import Panel
        from rich.prompt import Prompt
        from rich.text import Text

        from confcascade.bench.labelling import Label

        one, began = wanted[0], time.monotonic()
        self._console.print()
        self._console.print(Panel(Text(one.prompt or one.question), title="Question", title_align="left"))
        grades = []
        for number, text in enumerate(one.answers, start=1):
            self._console.print(Panel(Text(text), title=f"Answer {number} of {len(one.answers)}", title_align="left"))
            try:
                answer = Prompt.ask(
                    "right, wrong, skip (it counts as lost) or quit",
                    choices=["r", "w", "s", "q"],
                    console=self._console,
                )
            except (EOFError, KeyboardInterrupt):
                answer = "q"
            if answer == "q":
                return ()
            if answer == "s":
                return (Label(one, None, time.monotonic() - began),)
            grades.append(float(answer == "r"))
        return (Label(one, one.grades(grades), time.monotonic() - began),)


def _shown() -> Callable[[Bought], None]:
    """How far it has come, on one line of standard error each time."""
    from rich.console import Console

    console = Console(stderr=True)

    def show(state: Bought) -> None:
        certified = state.path.certified
        parts = [f"{state.labels:,} labels", usd_told(state.usd), f"{certified} of {len(state.path.losses)} certified"]
        if state.ended is None and (more := state.path.outlook(certified)) is not None:
            parts.append(f"about {more:,} more to the next")
        if state.seconds:
            parts.append(duration(state.seconds))
        console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)

    return show


def _material(recording: Path, models: Sequence[str] | None, sizes: Sizes) -> FitData:
    from confcascade.bench.fitting import read_material

    return read_material(
        recording,
        models=models,
        graded=False,
        texts=True,
        architectures=sizes.architectures,
        prices=sizes.prices,
    )


def _material_with_largest(
    recording: Path, models: Sequence[str], asked: LargestLabels | None, sizes: Sizes
) -> FitData:
    """The smaller models' recording, with the answers of the largest that were bought."""
    from confcascade.bench.fitting import material_of
    from confcascade.bench.labelling import with_largest
    from confcascade.bench.recording import Recording

    read, identity = Recording(recording), _identity(recording)
    answered = () if asked is None else tuple(asked.rows())
    recorded = list(read.rows())
    if any(row.model == models[-1] for row in recorded):
        raise ConfigurationError(
            f"The recording has answers of '{models[-1]}' already, so there is nothing to buy: leave out --label."
        )
    rows = list(with_largest(recorded, models[-1], answered))
    if asked is not None:
        identity["models"] = {**_identity(asked.path).get("models", {}), **identity.get("models", {})}
    return material_of(
        rows,
        models=models,
        graded=False,
        texts=True,
        architectures=sizes.architectures,
        prices=sizes.prices,
        identity=identity,
        digest=read.digest,
    )


def _task(
    material: FitData, signals: Sequence[str] | None, sizes: Sizes, unit: str | None, seed: int, *, by_text: bool
) -> LabelTask:
    """What is to be labelled; without `by_text` the largest model's answers are not known, and none is the same."""
    from confcascade.bench.labelling import LabelTask, same_text

    if by_text:
        same = same_text(material)
    else:
        import numpy as np

        same = np.zeros((len(material), len(material.columns.models)), dtype=bool)
        same[:, material.columns.index(material.models[-1])] = True
    return LabelTask.of(
        material,
        same,
        signals=signals,
        architectures=sizes.architectures,
        prices=sizes.prices,
        unit=unit or sizes.unit(material.models),
        seed=seed,
    )


def _identity(recording: Path) -> dict[str, Any]:
    """What `collect` wrote down beside a recording."""
    import json

    from confcascade.bench.recording.provenance import meta_path

    path = meta_path(recording)
    return dict(json.loads(path.read_text(encoding="utf-8")).get("identity", {})) if path.exists() else {}


def _parameters(recording: Path) -> dict[str, Any]:
    """With which the smaller models were asked."""
    return dict(_identity(recording).get("parameters", {}))


def refuse_with_labels(
    *, max_drop: float | None, max_cost: float | None, per_group: bool, rule: str, grid: bool
) -> None:
    """Raise `ConfigurationError` at what `fit` takes and labels bought one by one have no use for."""
    if max_cost is not None or max_drop is None:
        raise ConfigurationError(
            "With --label, say what may be lost: --max-drop 0.01. Labels are bought until it is shown."
        )
    for option, given in (("--per-group", per_group), ("--rule", rule != "quantiles"), ("--grid", grid)):
        if given:
            raise ConfigurationError(f"{option} does not go with --label, which tests one path of thresholds for all.")
