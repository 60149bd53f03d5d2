"""Sweeps on a Ray cluster (`cluster`); `collecting.ray` asks models there.

What the driver makes of the results is the same to the last digit as without Ray: the sums of a part of a recording are
exact wherever they are made, and are added here in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from confcascade.bench.cluster import mapped, worker_count
from confcascade.bench.recording.columns import Columns
from confcascade.bench.recording.reading import read_columns
from confcascade.bench.replay.policy import PolicyStage
from confcascade.bench.replay.replay import QUESTIONS, Sums, Sweep, sum_up, total
from confcascade.cost import Architecture, Prices

__all__ = ["ray_sweep"]


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
        read = part if isinstance(part, Columns) else read_columns(part)
        return sum_up(read, policies, architectures=architectures, prices=prices)

    sums: dict[int, Sums] = {}
    for number, made in mapped(columns, part_sums, workers=worker_count()):
        sums[number] = made
        if progress is not None:
            progress(len(sums), len(columns))
    return total(sums[number] for number in range(len(columns)))
