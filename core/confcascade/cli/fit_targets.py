"""``confcascade fit`` with targets other than a drop of accuracy: what the options say, and the fit itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confcascade.cli.hints import with_options
from confcascade.cli.options import pair
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from confcascade.bench.fitting import QueryLimits
    from confcascade.guarantee import Target

__all__ = ["TargetOptions", "tell_targets"]


@dataclass(frozen=True)
class TargetOptions:
    """Options of `confcascade fit` that name targets, as they were typed."""

    precision: Sequence[str]
    recall: Sequence[str]
    f1: Sequence[str]
    error_price: float | None
    max_cost: float | None
    max_drop: float | None
    max_asked: float | None
    max_latency: float | None
    late_share: float | None
    most_tokens: str | None
    timeout: float | None

    @property
    def used(self) -> bool:
        """Whether something is asked that a drop of accuracy, or the least loss at a cost, does not say."""
        others = self.error_price, self.max_asked, self.max_latency, self.late_share, self.most_tokens, self.timeout
        both = self.max_cost is not None and self.max_drop is not None
        return both or bool(self.classes) or any(each is not None for each in others)

    @property
    def classes(self) -> bool:
        """Whether a class is spoken of, so that texts must be read."""
        return bool(self.precision or self.recall or self.f1)

    @property
    def targets(self) -> tuple[Target, ...]:
        """All but the drop.

        Raises:
            ConfigurationError: If an option is out of range, or one of two that belong together is missing.
        """
        from confcascade.guarantee import Target

        found: list[Target] = []
        for option, kind, told in (
            ("--min-precision", "precision", self.precision),
            ("--min-recall", "recall", self.recall),
            ("--min-f1", "f1", self.f1),
        ):
            pairs = [pair(each, option, float) for each in told]
            found += [Target(kind, least, of=name) for name, least in pairs]  # type: ignore[arg-type]
        if self.error_price is not None:
            found.append(Target("total", self.error_price))
        if self.max_cost is not None:
            found.append(Target("cost", self.max_cost))
        if self.max_asked is not None:
            found.append(Target("asked", self.max_asked))
        if self.late_share is not None:
            if self.max_latency is None:
                raise ConfigurationError(
                    "--late-share is the share of queries that may take longer than --max-latency."
                )
            found.append(Target("late", self.late_share, seconds=self.max_latency))
        elif self.max_latency is not None:
            found.append(Target("latency", self.max_latency))
        if not found:
            raise ConfigurationError("--most-tokens and --timeout bound what is promised of costs; name a target, too.")
        return tuple(found)

    @property
    def limits(self) -> QueryLimits:
        """What a question costs at most at a model."""
        from confcascade.bench.fitting import QueryLimits

        if self.most_tokens is None:
            return QueryLimits(None, self.timeout)
        try:
            read, written = map(int, self.most_tokens.split(","))
        except ValueError as error:
            raise ConfigurationError(
                f"--most-tokens takes the most tokens of a prompt and of an answer: 4000,512. Got '{self.most_tokens}'."
            ) from error
        return QueryLimits((read, written), self.timeout)

    @staticmethod
    def refuse(*, grid: bool, per_group: bool, rule: str) -> None:
        """Raise `ConfigurationError` at what does not go with such targets."""
        for option, given in (("--grid", grid), ("--per-group", per_group), ("--rule", rule != "quantiles")):
            if given:
                raise ConfigurationError(
                    f"{option} goes with --max-drop or --max-cost alone, and not with other targets or both together."
                )


def tell_targets(described: str, out: Path, told: Console, *, written: bool) -> None:
    """Print what came of it, and where the policy is.

    Args:
        described: In words.
        out: The policy.
        told: Where to print.
        written: Whether there is one.
    """
    told.print("\n".join(map(with_options, described.splitlines())), highlight=False, markup=False, soft_wrap=True)
    if written:
        told.print(f"\nPolicy: {out}", highlight=False, markup=False)
