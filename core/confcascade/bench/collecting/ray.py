"""Collecting on a Ray cluster: workers with the models of a cascade file ask, the driver writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from confcascade.bench.cluster import connect, mapped, worker_count
from confcascade.bench.collecting.attempt import CollectOptions
from confcascade.bench.collecting.collect import AskAll, collect_rows
from confcascade.bench.collecting.grid import stages_to_ask
from confcascade.bench.collecting.rate_limit import RateLimiter, RateLimits
from confcascade.bench.recording.row import Row
from confcascade.cascade_file import CascadeFile
from confcascade.graders import Grader
from confcascade.graders.example import Example
from confcascade.signals import Threshold
from confcascade.stage import Stage
from confcascade.types import Usage

__all__ = ["on_ray"]

_ROWS = 32  # asked for at a time: a worker that is lost, or a driver that is killed, repeats no more of each worker


def on_ray(file: CascadeFile, grader: Callable[[], Grader], thresholds: Sequence[Threshold] = ()) -> AskAll:
    """In the place of `collect_rows`: for ``collect(..., ask_all=on_ray(file, grader))``.

    Each worker builds the stages of `file` for itself, so what the file names (models, probes) must be reachable from
    every node. With local models on a cluster with GPUs there is one worker for each GPU, else one for each processor.
    Calls at a time and rate limits are divided among them.

    Args:
        file: Of which the stages are.
        grader: Makes the grader, on each worker.
        thresholds: With which the stages were made of it (`stages_to_ask`).
    """

    def ask_all(
        pairs: Iterable[tuple[Example, Stage]],
        asking: CollectOptions,
        *,
        max_concurrency: int = 16,
        lines: RateLimiter | None = None,
    ) -> Iterator[Row]:
        lines = lines or RateLimiter()
        local, wanted = False, []
        for example, stage in pairs:
            local = local or stage.model.capability.local
            wanted.append((example, stage.model.name))
        gpus = int(local and connect().cluster_resources().get("GPU", 0) >= 1)
        batches = [wanted[at : at + _ROWS] for at in range(0, len(wanted), _ROWS)]
        workers = max(1, min(worker_count(gpus=bool(gpus)), len(batches)))
        work = _Asker(
            file,
            tuple(thresholds),
            grader,
            replace(asking, grader=None),  # type: ignore[arg-type]  # it is made anew there, for it may hold a model
            max(1, max_concurrency // workers),
            {name: _share(limits, workers) for name, limits in lines.limits.items()},
        )
        for _, (rows, used) in mapped(batches, work, workers=workers, gpus=gpus):
            for model, usage in used.items():
                lines.used[model] = lines.used.get(model, Usage()) + usage
            yield from map(Row.model_validate_json, rows)
            if lines.stop.is_set() or lines.given_up:
                return

    return ask_all


@dataclass(frozen=True)
class _Share:
    """What one worker may ask of a provider."""

    requests_per_minute: float | None
    tokens_per_minute: float | None


def _share(limits: RateLimits, workers: int) -> _Share:
    requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
    return _Share(requests and requests / workers, tokens and tokens / workers)


@dataclass
class _Asker:
    """What each worker is sent; its stages are made with the first batch, and kept."""

    file: CascadeFile
    thresholds: tuple[Threshold, ...]
    grader: Callable[[], Grader]
    asking: CollectOptions
    max_concurrency: int
    limits: dict[str, _Share]
    _made: tuple[dict[str, Stage], CollectOptions, RateLimiter] | None = field(default=None, init=False)

    def __call__(self, batch: list[tuple[Example, str]]) -> tuple[list[bytes], dict[str, Usage]]:
        if self._made is None:
            stages = {stage.model.name: stage for stage in stages_to_ask(self.file, self.thresholds)}
            lines = RateLimiter(self.limits, max_concurrency=self.max_concurrency)
            self._made = stages, replace(self.asking, grader=self.grader()), lines
        stages, asking, lines = self._made
        lines.used.clear()
        pairs = ((example, stages[model]) for example, model in batch)
        rows = [row.line() for row in collect_rows(pairs, asking, max_concurrency=self.max_concurrency, lines=lines)]
        return rows, dict(lines.used)
