"""``confcascade fit --grid``: of a stepwise cascade that was recorded at several thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from confcascade.cli.hints import with_options
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.cascade_file import CascadeFile
    from confcascade.graders import Grader
    from confcascade.guarantee import Equivalence, Promise

__all__ = ["fit_grid", "refuse_grid"]


def fit_grid(
    recording: Path,
    out: Path,
    promise: Callable[[Equivalence | None], Promise],
    *,
    rule: Callable[[int], tuple[Equivalence, Grader]] | None,
    models: Sequence[str] | None,
    file: CascadeFile | None,
    unit: str | None,
    console: Console,
) -> bool:
    """Test the thresholds in their order, tell what came of it, and write the policy if there is one.

    Args:
        recording: With a stepwise cascade at several thresholds, and its large model.
        out: Of the policy.
        promise: What to promise, under an equivalence of answers or none.
        rule: The equivalence and its grader, of the number of configurations; None to promise accuracy.
        models: Configurations, by default all.
        file: The cascade file, which says how the signal is made.
        unit: Of costs.
        console: For progress.

    Returns:
        Whether something can be promised.
    """
    from rich.console import Console

    from confcascade.bench.fitting import RecordedGrid, agreement

    told = Console()

    def say(text: str) -> None:
        told.print(with_options(text), highlight=False, markup=False, soft_wrap=True)

    grid = RecordedGrid.read(recording, models)
    say(grid.describe())  # before anything is looked at
    with console.status("Reading the recording"):
        material = grid.material(graded=rule is None, texts=rule is not None)
    equivalence, same = None, None
    if rule is not None:
        equivalence, grader = rule(len(grid.order))
        with console.status("Comparing answers"):
            same = agreement(material, grader)
    with console.status(f"Testing {len(grid.order)} thresholds"):
        found = grid.certify(material, promise(equivalence), same=same, unit=unit)
    say("")
    if found.chosen is None:
        say(found.describe())
        return False
    policy = grid.policy(found, material, described=file, folder=out.parent)
    say("\n".join(policy.describe().splitlines()[:3]))
    say(found.describe())
    if not policy.stages[0].signals:
        say(
            f"The policy does not say how '{grid.signal}' is made. Fit with --cascade FILE to have it kept; else hand "
            "it over in `signals`."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    policy.save(out)
    say(f"\nPolicy: {out}")
    return True


def refuse_grid(
    *,
    max_drop: float | None,
    max_cost: float | None,
    signals: str | None,
    prices: Sequence[str] | None,
    parameters: str | None,
    per_group: bool,
    seed: int,
) -> None:
    """Raise `ConfigurationError` at what `fit` takes and a grid has no use for."""
    if max_cost is not None or max_drop is None:
        raise ConfigurationError(
            "With --grid, say what may be lost: --max-drop 0.02. The cheapest that keeps it is taken."
        )
    if prices or parameters:
        raise ConfigurationError(
            "With --grid, costs are those that were recorded with the answers, for the tokens of two models cannot be "
            "priced afterwards: put `prices` into the cascade file and collect again, or say --unit seconds."
        )
    for option, given in (("--signals", signals is not None), ("--per-group", per_group), ("--seed", seed != 0)):
        if given:
            raise ConfigurationError(
                f"{option} does not go with --grid, where every threshold was collected with its one signal, and all "
                "questions are the proof."
            )
