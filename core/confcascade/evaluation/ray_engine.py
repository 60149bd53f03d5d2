"""Work on a Ray cluster: Ray Data hands it out, and again if a node is lost. Sweeps; `ray_collect` asks models.

What the driver makes of the results is the same to the last digit as without Ray: the sums of a part of a recording are
exact wherever they are made, and are added here in their order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfcascadeError, ConfigurationError, require
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.replay import QUESTIONS, PolicyStage, Sums, Sweep, sum_up, total

__all__ = ["connect", "mapped", "ray_sweep", "worker_count"]


def connect() -> Any:
    """Ray, connected: to the cluster that ``RAY_ADDRESS`` names, else to one of this machine alone.

    Ray reports its use to nobody unless ``RAY_USAGE_STATS_ENABLED`` says so.

    Raises:
        ConfigurationError: If there is no such cluster.
        MissingExtraError: Without Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "ray")
    require("ray.data", "ray")
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:  # by the kind of address
            address = os.environ.get("RAY_ADDRESS", "this machine")
            raise ConfigurationError(f"The Ray cluster of {address} cannot be reached: {error}") from error
    return ray


def worker_count(gpus: bool = False) -> int:
    """How many workers the cluster has room for: one for each processor, or each GPU."""
    return max(1, int(connect().cluster_resources().get("GPU" if gpus else "CPU", 0)))


def ray_sweep(
    columns: Columns | Sequence[Columns | Path],
    policies: Sequence[Sequence[PolicyStage]],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """`sweep` on a Ray cluster, with the same figures to the last digit.

    Args:
        columns: A recording, which is sent out in slices; or its parts. Files (`part_paths`) are read by the workers,
            one at a time, so every node must be able to reach them.
        policies: As for `sweep`.
        architectures: By model.
        prices: By model.
        progress: Called with the number of parts that are done, and of all.

    Raises:
        ConfigurationError: As by `sweep` and `connect`.
    """
    if isinstance(columns, Columns):
        starts = range(0, len(columns), QUESTIONS)
        columns = [columns.take(range(at, min(at + QUESTIONS, len(columns)))) for at in starts]

    def part_sums(part: Columns | Path) -> Sums:
        read = part if isinstance(part, Columns) else Columns.read(part)
        return sum_up(read, policies, architectures=architectures, prices=prices)

    sums: dict[int, Sums] = {}
    for number, made in mapped(columns, part_sums, workers=worker_count()):
        sums[number] = made
        if progress is not None:
            progress(len(sums), len(columns))
    return total(sums[number] for number in range(len(columns)))


def mapped(
    items: Sequence[Any], work: Callable[[Any], Any], *, workers: int, gpus: int = 0
) -> Iterator[tuple[int, Any]]:
    """The number of each item and what `work` makes of it, as they are done; what a lost node had is done again.

    Args:
        items: Sent to the workers one at a time.
        work: Sent to every worker once; what it keeps there is kept for the next item.
        workers: Most at a time, each with a processor of its own.
        gpus: That each of them has to itself.

    Raises:
        ConfcascadeError: That `work` raised.
    """
    if not items:
        return
    ray = connect()
    cloudpickle = ray.cloudpickle
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every step
    ray.data.DataContext.get_current().enable_progress_bars = False
    sent = [{"number": number, "item": cloudpickle.dumps(item)} for number, item in enumerate(items)]
    done = ray.data.from_items(sent, override_num_blocks=len(sent)).map_batches(
        _Worker,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
    )
    for row in done.iter_rows():
        made = cloudpickle.loads(row["made"])
        if isinstance(made, ConfcascadeError):
            raise made
        yield int(row["number"]), made


class _Worker:
    """An actor, to which Ray Data gives one item after the other."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """What came of a batch of one item. An error of ours is handed to the driver: it is no reason to try again."""
        from ray import cloudpickle

        try:
            made = self._work(cloudpickle.loads(batch["item"][0]))
        except ConfcascadeError as error:
            made = error
        return {"number": batch["number"], "made": [cloudpickle.dumps(made)]}
