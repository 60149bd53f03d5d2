"""`StepMixture`: two kinds of steps, told apart without labels, or refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError, SignalUnavailableError, StepMixture
from confcascade.extending import Token
from confcascade.signals.step_mixture import step_confidence
from confcascade.testing import ScriptedModel
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

KNOWN = StepMixture((0.4, 0.6), (18.0, 26.0), (1.5, 1.0), 500, -1000.0)


def drawn(n: int, *, low: float = 0.4, means: Any = (18.0, 26.0), deviations: Any = (1.5, 1.0), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    kind = (rng.random(n) >= low).astype(int)
    return rng.normal(np.array(means)[kind], np.array(deviations)[kind])


mixtures = st.builds(
    lambda weight, mean, apart, s0, s1: StepMixture((weight, 1 - weight), (mean, mean + apart), (s0, s1), 100, -1.0),
    weight=st.floats(0.001, 0.999),
    mean=st.floats(-1000, 1000),
    apart=st.floats(0.01, 1000),
    s0=st.floats(1e-3, 1e3),
    s1=st.floats(1e-3, 1e3),
)


# ---------------------------------------------------------------------- the posterior


@given(mixtures, st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=20))
def test_the_posterior_never_falls(mixture: StepMixture, places: list[float]) -> None:
    """And is a probability, whatever the parameters, up to rounding."""
    values = [mixture.posterior(c) for c in sorted(places)]

    assert all(0 <= value <= 1 for value in values)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


@given(mixtures, st.floats(-5, 5))
def test_the_posterior_is_bayes_rule_up_to_the_turning_point(mixture: StepMixture, z: float) -> None:
    """Beyond it, it stays what it was there."""
    c = mixture.means[0] + z * (mixture.means[1] - mixture.means[0])
    parts = [
        math.log(w) + float(norm.logpdf(c, m, s))
        for w, m, s in zip(mixture.weights, mixture.means, mixture.deviations, strict=True)
    ]
    turn, (s0, s1) = mixture.turning_point, mixture.deviations
    assume(s0 == s1 or (c < turn if s0 > s1 else c > turn))

    assert mixture.posterior(c) == pytest.approx(
        math.exp(parts[1] - np.logaddexp(*parts)), rel=1e-6, abs=1e-9 * max(1.0, abs(parts[0]), abs(parts[1]))
    )


@pytest.mark.parametrize(("deviations", "beyond"), [((2.0, 1.0), 1), ((1.0, 2.0), -1)])
def test_the_turning_point_is_where_the_slope_is_none(deviations: tuple[float, float], beyond: int) -> None:
    """Against the derivative of the log-odds, and beyond it the posterior is kept."""
    mixture = StepMixture((0.5, 0.5), (10.0, 14.0), deviations, 100, -1.0)
    turn, (low, high), (s0, s1) = mixture.turning_point, mixture.means, deviations

    assert -(turn - high) / s1**2 + (turn - low) / s0**2 == pytest.approx(0)
    assert turn == pytest.approx(high + 4 / 3 if beyond > 0 else low - 4 / 3)
    assert mixture.posterior(turn + beyond * 50) == mixture.posterior(turn)
    assert mixture.posterior(turn - beyond * 0.5) != mixture.posterior(turn)


def test_equal_deviations_have_no_turning_point():
    """The odds rise everywhere, to either certainty."""
    mixture = StepMixture((0.5, 0.5), (0.0, 4.0), (1.0, 1.0), 100, -1.0)

    assert mixture.turning_point == math.inf
    assert [mixture.posterior(c) for c in (-300.0, 2.0, 300.0)] == [pytest.approx(0), 0.5, 1.0]


@pytest.mark.parametrize("c", [math.nan, math.inf, -math.inf])
def test_only_finite_confidences_have_a_posterior(c: float) -> None:
    """An infinite logit is an error of the model."""
    with pytest.raises(ConfigurationError, match="must be finite"):
        KNOWN.posterior(c)


# ---------------------------------------------------------------------- fitting


def test_known_parameters_are_recovered():
    """Within a few standard errors at 4,000 steps."""
    mixture = StepMixture.fit(drawn(4000))

    assert mixture.weights == pytest.approx((0.4, 0.6), abs=0.03)
    assert mixture.means == pytest.approx((18, 26), abs=0.15)
    assert mixture.deviations == pytest.approx((1.5, 1.0), abs=0.1)
    assert mixture.n == 4000
    assert mixture.separation == pytest.approx(8 / 1.5, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_scikit_learns(seed: int) -> None:
    """Its parameters, log-likelihood and, where that is monotone, its posterior."""
    values = drawn(400, seed=seed)
    ours = StepMixture.fit(values, seed=seed)
    theirs = GaussianMixture(2, n_init=10, tol=1e-8, max_iter=5000, random_state=seed).fit(values[:, None])
    order = theirs.means_.ravel().argsort()

    assert ours.means == pytest.approx(theirs.means_.ravel()[order].tolist(), abs=1e-2)
    assert ours.weights == pytest.approx(theirs.weights_[order].tolist(), abs=1e-2)
    assert ours.log_likelihood == pytest.approx(len(values) * theirs.score(values[:, None]), abs=0.05)
    grid = np.linspace(14, min(28, ours.turning_point), 50)
    expected = theirs.predict_proba(grid[:, None])[:, order[1]]
    assert [ours.posterior(float(c)) for c in grid] == pytest.approx(expected.tolist(), abs=1e-2)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_units_do_not_matter(scale: float, shift: float) -> None:
    """Logits of another scale make the same decisions."""
    values = drawn(200)
    plain, moved = StepMixture.fit(values), StepMixture.fit(scale * values + shift)

    assert moved.posterior(scale * 22 + shift) == pytest.approx(plain.posterior(22), abs=1e-3)


UNIMODAL: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.random(n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "gamma": lambda rng, n: rng.gamma(2, size=n),
    "t": lambda rng, n: rng.standard_t(3, size=n),
    "beta": lambda rng, n: rng.beta(1.3, 1.3, size=n),
}


@pytest.mark.parametrize("name", UNIMODAL)
@pytest.mark.parametrize("n", [60, 300, 1000])
def test_unimodal_data_are_refused(name: str, n: int) -> None:
    """Nearly always: of twelve draws, at most three of the uniform distribution come through."""
    accepted = 0
    for seed in range(12):
        values = UNIMODAL[name](np.random.default_rng(seed), n)
        try:
            StepMixture.fit(values)
            accepted += 1
        except ConfigurationError as error:
            assert "do not show two kinds of steps" in str(error)  # noqa: PT017
            assert "Glimpse()" in str(error)  # noqa: PT017
    assert accepted <= (3 if name in ("uniform", "beta") else 1)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.random.default_rng(0).exponential(size=1000), r"deviations of the broader one\s+apart, and 2 are wanted"),
        (np.r_[drawn(490, low=0.0), np.full(10, 5.0) + np.arange(10) / 100], "one component holds 2.0%"),
        (np.r_[drawn(300, low=0.0), np.zeros(300)], "a value that repeats"),
        (np.random.default_rng(0).random(1000), "there is no valley"),
        (np.full(80, 3.0), "all are 3"),
    ],
)
def test_refusals_say_why(values: NDArray[np.float64], why: str) -> None:
    """With the figures, and what to use."""
    with pytest.raises(ConfigurationError, match=why):
        StepMixture.fit(values)


def test_too_few_steps_are_refused():
    """And it is said how many it takes."""
    with pytest.raises(ConfigurationError, match=r"at least 50 steps, better of 500. Got 49"):
        StepMixture.fit(drawn(49))


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [1.0] * 60 + [math.nan], [math.inf] * 60])
def test_values_must_be_finite_numbers(values: Any) -> None:
    """In one row."""
    with pytest.raises(ConfigurationError, match="finite numbers of shape"):
        StepMixture.fit(values)


def test_what_it_is_fitted_on_is_written_down():
    """The quantity, and whose steps they are."""
    model = ScriptedModel("small")
    mixture = StepMixture.fit(-drawn(200), quantity="max_logprob", model=model)

    assert (mixture.quantity, mixture.model, mixture.fingerprint) == ("max_logprob", "small", "scripted-small")
    with pytest.raises(ConfigurationError, match="are these logits"):
        StepMixture.fit(drawn(200), quantity="max_logprob")
    with pytest.raises(ConfigurationError, match="`quantity` must be"):
        StepMixture.fit(drawn(200), quantity="entropy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": (0.5, 0.6)},
        {"weights": (0.0, 1.0)},
        {"means": (2.0, 1.0)},
        {"deviations": (1.0, 0.0)},
        {"deviations": (1.0, math.nan)},
        {"n": 0},
    ],
)
def test_other_numbers_are_no_mixture(changed: dict[str, Any]) -> None:
    """They are refused when it is made."""
    with pytest.raises(ConfigurationError, match="A StepMixture has two weights"):
        StepMixture(**{**vars(KNOWN), **changed})


# ---------------------------------------------------------------------- on disk


@given(mixture=mixtures, fingerprint=st.none() | st.text())
def test_it_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, mixture: StepMixture, fingerprint: str | None
) -> None:
    """Bit for bit."""
    path = tmp_path_factory.mktemp("mixture") / "mixture.json"
    saved = StepMixture(**{**vars(mixture), "fingerprint": fingerprint, "model": "small"})
    saved.save(path)

    assert StepMixture.load(path) == saved


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "another format"),
        ({"kind": "probe"}, "no StepMixture"),
        ({"means": [3.0]}, "damaged"),
        ({"means": ["a", "b"]}, "damaged"),
        ({"weights": None}, "damaged"),
        ({"deviations": [1.0, -1.0]}, "damaged"),
        ({"quantity": "x"}, "damaged"),
        ({"fingerprint": 3}, "damaged"),
        ({"surplus": 1}, "damaged"),
        ({"n": "many"}, "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    """With what to do."""
    path = tmp_path / "mixture.json"
    KNOWN.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(ConfigurationError, match=why):
        StepMixture.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """Whatever is in them; and a file that is missing."""
    path = tmp_path / "mixture.json"
    with pytest.raises(ConfigurationError, match=r"StepMixture\.save writes one"):
        StepMixture.load(path)
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        StepMixture.load(path)


# ---------------------------------------------------------------------- the confidence of a step


def test_the_confidence_of_a_step_is_a_mean():
    """Of the greatest logit, whichever token had it; or of the greatest log-probability that is told."""
    tokens = [Token("a", -0.5, max_logit=20.0), Token("b", -3.0, (("c", -0.2), ("b", -3.0)), max_logit=23.0)]

    assert step_confidence(tokens) == pytest.approx(21.5)
    assert step_confidence(tokens, "max_logprob") == pytest.approx(-0.35)


@pytest.mark.parametrize(
    "tokens", [[], [Token("a", -1.0)], [Token("a", -1.0, max_logit=math.inf)], [Token("a", -1.0, max_logit=math.nan)]]
)
def test_what_is_not_told_is_not_made_up(tokens: list[Token]) -> None:
    """No tokens, no logits, none that is a number."""
    with pytest.raises(SignalUnavailableError):
        step_confidence(tokens)
