"""Work on a Ray cluster: Ray Data hands it out, and again if a node is lost."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confcascade.errors import ConfcascadeError, ConfigurationError, require

__all__ = ["connect", "mapped", "worker_count"]


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
