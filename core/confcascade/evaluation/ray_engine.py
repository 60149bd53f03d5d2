"""A sweep and a collect on a Ray cluster: Ray Data hands the work out, and again if a node is lost.

The driver holds nothing that it does not hold without Ray, and what it makes of the results is the same to the last
digit: parts are summed up anywhere, and added here in their order.
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

__all__ = ["connect", "ray_sweep"]


def connect() -> Any:
    """Ray, connected: to the cluster that ``RAY_ADDRESS`` names, else to one on this machine alone.

    Ray reports its use to nobody unless ``RAY_USAGE_STATS_ENABLED`` is set.

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
        except ConnectionError as error:
            raise ConfigurationError(f"No Ray cluster can be reached: {error}") from error
    return ray


def ray_sweep(
    columns: Columns | Sequence[Path],
    policies: Sequence[Sequence[PolicyStage]],
    *,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
) -> Sweep:
    """`sweep` on a Ray cluster, with the same figures to the last digit.

    Args:
        columns: A recording, which is sent out in slices; or the files of its parts (`part_paths`), which every node
            must be able to read, and of which a worker holds one at a time.
        policies: As for `sweep`.
        architectures: By model.
        prices: By model.

    Raises:
        ConfigurationError: As by `sweep` and `connect`.
    """

    def part_sums(part: Columns | Path) -> Sums:
        read = part if isinstance(part, Columns) else Columns.read(part)
        return sum_up(read, policies, architectures=architectures, prices=prices)

    if isinstance(columns, Columns):
        starts = range(0, len(columns), QUESTIONS)
        parts: list[Any] = [columns.take(range(at, min(at + QUESTIONS, len(columns)))) for at in starts]
    else:
        parts = list(columns)
    sums = dict(mapped(parts, _Work, part_sums))
    return total(sums[number] for number in range(len(parts)))


class _Work:
    """What a worker does with each item: a function, made once for all of them."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The results of a batch of one item; an error of ours is a result, which the driver raises as it is."""
        import ray.cloudpickle

        try:
            made = self._work(ray.cloudpickle.loads(batch["item"][0]))
        except ConfcascadeError as error:
            made = error
        return {"number": batch["number"], "made": [ray.cloudpickle.dumps(made)]}


def mapped(
    items: Sequence[Any], worker: type, *arguments: Any, workers: int | None = None, gpus: int = 0
) -> Iterator[tuple[int, Any]]:
    """The number of each item, and what a worker made of it, as they are done.

    Args:
        items: Sent to the workers one at a time.
        worker: Class of the workers: a `_Work`.
        *arguments: For its constructor, on the node.
        workers: How many; by default one for each processor of the cluster.
        gpus: That each worker takes to itself.
    """
    ray = connect()
    import ray.cloudpickle
    import ray.data

    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    sent = [{"number": number, "item": ray.cloudpickle.dumps(item)} for number, item in enumerate(items)]
    count = workers or int(ray.cluster_resources().get("CPU", 1))
    done = ray.data.from_items(sent, override_num_blocks=len(sent)).map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(count, len(items)))),
    )
    for row in done.iter_rows():
        made = ray.cloudpickle.loads(row["made"])
        if isinstance(made, ConfcascadeError):
            raise made
        yield int(row["number"]), made
