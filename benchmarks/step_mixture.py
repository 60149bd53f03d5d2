"""How often a mixture of step confidences is fitted to data with one mode, and how often to data with two.

    python benchmarks/step_mixture.py --draws 100

Draws data sets of 50 to 1,000 steps, independent of one another, from distributions whose truth is known, and counts
those which `StepMixture.fit` accepts. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from confcascade import ConfigurationError, StepMixture
from numpy.typing import NDArray

SIZES = (50, 200, 1000)
Drawn = Callable[[np.random.Generator, int], NDArray[np.float64]]


def two(low: float, apart: float, deviation: float = 1.0) -> Drawn:
    """A share `low` of N(0, 1), the rest of N(apart, deviation^2)."""

    def drawn(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return np.where(rng.random(n) < low, rng.normal(size=n), rng.normal(apart, deviation, n))

    return drawn


ONE_MODE: dict[str, Drawn] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Student's t, 3 degrees": lambda rng, n: rng.standard_t(3, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "gamma, shape 2": lambda rng, n: rng.gamma(2, size=n),
    "triangular, mode at an end": lambda rng, n: rng.triangular(0, 0, 1, n),
    "beta(1.3, 1.3)": lambda rng, n: rng.beta(1.3, 1.3, n),
    "uniform": lambda rng, n: rng.random(n),
    "two normals, 1.8 apart": two(0.5, 1.8),
}
TWO_MODES: dict[str, Drawn] = {
    "50 : 50, 3 apart": two(0.5, 3),
    "50 : 50, 4 apart": two(0.5, 4),
    "30 : 70, 4 apart": two(0.3, 4),
    "30 : 70, 4 apart, high one half as broad": two(0.3, 4, 0.5),
    "20 : 80, 5 apart": two(0.2, 5),
    "10 : 90, 5 apart": two(0.1, 5),
}


def accepted(drawn: Drawn, n: int, draws: int, seed: int = 0) -> float:
    """The share of data sets to which a mixture is fitted."""
    rng, count = np.random.default_rng([seed, n]), 0
    for _ in range(draws):
        try:
            StepMixture.fit(drawn(rng, n))
        except ConfigurationError:
            continue
        count += 1
    return count / draws


def main(draws: Annotated[int, typer.Option(help="Data sets of each size.")] = 100) -> None:
    """Print the table."""
    for title, kinds in (("one mode", ONE_MODE), ("two modes (parts, deviations)", TWO_MODES)):
        print(f"| {title} |", " | ".join(f"{n:,}" for n in SIZES), "|")
        print("|---|", "---:|" * len(SIZES), sep="")
        for name, drawn in kinds.items():
            cells = [f"{accepted(drawn, n, draws):.1%}" for n in SIZES]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)
        print()


if __name__ == "__main__":
    typer.run(main)
