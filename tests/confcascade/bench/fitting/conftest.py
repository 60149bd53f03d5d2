"""A made-up recording: a score that tells right answers from wrong ones, two or three models."""

import numpy as np
import pytest
from confcascade import Architecture, Usage
from confcascade.bench.recording import RecordedScore, Row

SIZES = {
    "small": Architecture(10**9, 0, 0),
    "medium": Architecture(4 * 10**9, 0, 0),
    "large": Architecture(3 * 10**10, 0, 0),
}
EASE = {"small": 0.3, "medium": 0.8, "large": 2.0}


def made_rows(n=1500, models=("small", "large"), seed=0, prefix="q", **changes):
    """Rows of `n` questions to each model; the easier the question, the higher the scores ``p_t`` and ``p_ik``."""
    rng = np.random.default_rng(seed)
    ease = 1.6 * rng.normal(size=n)
    rows = []
    for model in models:
        seen = ease + EASE[model] + 0.5 * rng.normal(size=n)
        right = rng.random(n) < 1 / (1 + np.exp(-2.5 * seen))
        told = {name: 1 / (1 + np.exp(-(seen + 0.7 * rng.normal(size=n)))) for name in ("p_t", "p_ik")}
        for i in range(n):
            row = Row(
                question=f"{prefix}{i}",
                model=model,
                group="even" if i % 2 == 0 else "odd",
                prompt=f"What is {prefix} {i}?",
                answer="yes" if right[i] else f"no, says {model}",
                grade=float(right[i]),
                scores={
                    "p_ik": RecordedScore(value=float(told["p_ik"][i]), phase="pre", prefill=True),
                    "p_t": RecordedScore(value=float(told["p_t"][i])),
                },
                usage=Usage(20, 5),
                latency_s=0.5,
                prefill_s=0.1,
                build=f"build of {model}",
                prompt_version="v1",
            )
            rows.append(row.model_copy(update=changes))
    return rows


@pytest.fixture(scope="session")
def rows():
    """Of two models."""
    return made_rows()


@pytest.fixture(scope="session")
def chain_rows():
    """Of three."""
    return made_rows(models=("small", "medium", "large"))
