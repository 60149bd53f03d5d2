"""Two kinds of steps: a mixture of two normal distributions over the confidence of steps, learnt without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from confcascade.asks import LanguageModel
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.types import Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Quantity", "StepMixture", "step_confidence"]

Quantity: TypeAlias = Literal["max_logit", "max_logprob"]

FORMAT = 1
FEWEST = 50  # values: of fewer, hardly two normal distributions four deviations apart are told from one
APART = 2.0  # deviations between the means: nearer than that, two equal components have one mode between them
SMALLEST = 0.05  # of the weights
NARROWEST = 0.01  # of the deviations, as a share of the values' own: kept there are values that repeat
LEVEL = 0.05  # of the test for a valley
_STARTS = 5
_MOST, _ROUNDS = 500, 10  # rounds at most, and after how many it is looked whether they still gain


@dataclass(frozen=True)
class StepMixture:
    """How confident a model's steps are: a low and a high component, each normal.

    Made by `fit` or `load`. What it is fitted on, the confidence c of a step, is the mean over the step's tokens of the
    greatest raw logit ("max_logit"; `step_confidence`). Raw logits have a scale of their own in every build of a model,
    so a mixture belongs to one. APIs tell no logits: "max_logprob" is the same of the greatest log-probability, which
    is not what STEER describes.

    Attributes:
        weights: Of the components, the low one first; they add up to 1.
        means: Ascending.
        deviations: Above 0.
        n: Steps that it was fitted on.
        log_likelihood: Of all of them together, in nats.
        quantity: What the values are.
        model: Name of the model that read the steps, if known.
        fingerprint: Of its build, if known; `Lookback` refuses any other.

    Raises:
        ConfigurationError: If the numbers are no such mixture.

    Source: STEER, arXiv 2511.06190: step confidences are bimodal, and the posterior of their high component decides.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]
    n: int
    log_likelihood: float
    quantity: Quantity = "max_logit"
    model: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        pairs = (self.weights, self.means, self.deviations)
        numbers = [*(each for pair in pairs for each in pair), self.log_likelihood]
        whole = (
            all(len(pair) == 2 for pair in pairs)
            and all(_is_number(each) and math.isfinite(each) for each in numbers)
            and min(self.weights) > 0
            and math.isclose(sum(self.weights), 1, abs_tol=1e-6)
            and self.means[0] < self.means[1]
            and min(self.deviations) > 0
            and isinstance(self.n, int)
            and self.n > 0
        )
        if not whole:
            raise ConfigurationError(
                "A StepMixture has two weights above 0 that add up to 1, two means in ascending order and two "
                f"deviations above 0. Got {self.weights}, {self.means} and {self.deviations}, of n={self.n}."
            )
        _check_quantity(self.quantity)

    # ------------------------------------------------------------------ what it says

    @property
    def separation(self) -> float:
        """Between the means, in deviations of the broader component."""
        return (self.means[1] - self.means[0]) / max(self.deviations)

    @property
    def turning_point(self) -> float:
        """Where the components' log-odds turn, infinite where they rise everywhere.

        They are a parabola in c, whose apex is at (m1 s0^2 - m0 s1^2) / (s0^2 - s1^2) for means m and deviations s: at
        or above the high mean where the low component is the broader one (beyond it, the odds fall again), at or below
        the low mean where it is the narrower one (before it, they fall).
        """
        (low, high), (s0, s1) = self.means, self.deviations
        ratio = min(s0, s1) / max(s0, s1)
        if ratio == 1:
            return math.inf
        beyond = (high - low) * ratio**2 / ((1 - ratio) * (1 + ratio))  # the formula above from the narrower one's mean
        return high + beyond if s0 > s1 else low - beyond

    def posterior(self, c: float) -> float:
        """The probability that a step of confidence `c` is one of the high component, in [0, 1].

        It never falls as `c` grows: beyond the `turning_point`, where the probability proper would come back to the
        broader component however high (or low) the confidence, its value there is kept. So it may stay below 1, or
        above 0, everywhere.

        Raises:
            ConfigurationError: If `c` is not finite.
        """
        if not math.isfinite(c):
            raise ConfigurationError(f"The confidence of a step must be finite. Got {c!r}.")
        (low, high), (s0, s1) = self.means, self.deviations
        if s0 > s1:
            c = min(c, self.turning_point)
        elif s0 < s1:
            c = max(c, self.turning_point)
        z0, z1 = (c - low) / s0, (c - high) / s1
        prior = math.log(self.weights[1] / self.weights[0]) + math.log(s0 / s1)
        odds = prior + (z0 - z1) * (z0 + z1) / 2  # of this form, for rounding errors grow with z0^2 - z1^2
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))

    # ------------------------------------------------------------------ learning

    @classmethod
    def fit(
        cls, values: ArrayLike, *, quantity: Quantity = "max_logit", model: LanguageModel | None = None, seed: int = 0
    ) -> StepMixture:
        """Fit it to the confidences of steps whose rightness nobody has to know.

        By expectation maximisation, the best of five starts. Data that do not show two kinds of steps
        are refused: a posterior made of them would decide by chance (docs/design/step-mixture.md).

        Args:
            values: Confidences of steps (`step_confidence`), shape (steps,), from traces of the small model on
                questions like those to come.
            quantity: What they are.
            model: Who read the steps, that other models may be refused.
            seed: Of the starts.

        Raises:
            ConfigurationError: If there are fewer than 50, one is not finite, or they are not bimodal: the means are
                nearer than two deviations of the broader component, a component has less than 5 % of the steps or
                hardly any width, one normal distribution explains them as well (BIC), or there is no valley between the
                two (a binomial test at the level 5 %).
        """
        import numpy as np

        x = np.asarray(values, dtype=np.float64)
        _check_quantity(quantity)
        if x.ndim != 1 or not np.isfinite(x).all():
            raise ConfigurationError(f"`values` must be finite numbers of shape (steps,). Got {x.shape}.")
        if quantity == "max_logprob" and x.max(initial=0.0) > 1e-6:
            raise ConfigurationError(f"Log-probabilities are at most 0. Got {x.max():g}; are these logits?")
        if len(x) < FEWEST:
            raise ConfigurationError(
                f"A StepMixture needs the confidences of at least {FEWEST} steps, better of 500. Got {len(x)}: "
                "collect more traces, or use Glimpse(), which needs none."
            )
        if x.min() == x.max():
            raise _not_bimodal(len(x), f"all are {x[0]:g}")
        found = _fitted(x, seed)
        mixture = cls(
            **found,
            n=len(x),
            quantity=quantity,
            model=None if model is None else model.name,
            fingerprint=_fingerprint(model),
        )
        if why := _why_not(x, mixture):
            raise _not_bimodal(len(x), why)
        return mixture

    # ------------------------------------------------------------------ on disk

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, "kind": "StepMixture", **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write it as a JSON file, such as ``mixture.json``; `load` reads it back."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> StepMixture:
        """Read a saved mixture.

        Raises:
            ConfigurationError: If the file holds none, a damaged one, or one of an unknown format.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(
                f"The mixture '{path}' cannot be read: {error.strerror}. StepMixture.save writes one."
            ) from error
        except ValueError as error:
            raise _damaged(path, "it is no JSON") from error
        if not isinstance(stored, dict) or stored.pop("kind", None) != "StepMixture":
            raise ConfigurationError(f"'{path}' holds no StepMixture. StepMixture.save writes one.")
        if stored.pop("format", None) != FORMAT:
            raise ConfigurationError(f"'{path}' holds a mixture of another format; this version reads format {FORMAT}.")
        try:
            weights, means, deviations = (tuple(stored.pop(name)) for name in ("weights", "means", "deviations"))
            mixture = cls(weights, means, deviations, **stored)
        except (KeyError, TypeError, ConfigurationError) as error:
            raise _damaged(path, str(error)) from error
        if not all(each is None or isinstance(each, str) for each in (mixture.model, mixture.fingerprint)):
            raise _damaged(path, "a name is no text")
        return mixture


def step_confidence(tokens: Sequence[Token], quantity: Quantity = "max_logit") -> float:
    """The confidence of a step: the mean over its tokens of the greatest raw logit, or log-probability, at each.

    Args:
        tokens: Of the step, as the model reads them.
        quantity: "max_logit"; or "max_logprob", of the alternatives that are told and the token itself.

    Raises:
        SignalUnavailableError: If there are no tokens, one lacks its greatest logit, or the mean is not finite.
    """
    if not tokens:
        raise SignalUnavailableError("there are no tokens to judge")
    found: list[float] = []
    for token in tokens:
        if quantity == "max_logprob":
            found.append(max([token.logprob, *(logprob for _, logprob in token.top)]))
        elif token.max_logit is None:
            raise SignalUnavailableError("the model tells no raw logits of the step")
        else:
            found.append(token.max_logit)
    mean = sum(found) / len(found)
    if not math.isfinite(mean):
        raise SignalUnavailableError(f"the confidence of the step is not finite ({mean})")
    return mean


# ---------------------------------------------------------------------- fitting


def _fitted(x: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Weights, means and deviations in ascending order of the means, and the log-likelihood.

    Expectation maximisation, all starts at once: each begins with the values split at a place drawn by lot.
    """
    import numpy as np
    from scipy.special import expit

    n, centre, scale = len(x), float(x.mean()), float(x.std())
    z = np.sort((x - centre) / scale)  # of unit variance, so that their scale does not matter
    squared = z * z
    sums, squares = z.sum(), squared.sum()
    places = np.random.default_rng(seed).uniform(SMALLEST, 1 - SMALLEST, _STARTS)
    high = (np.arange(n) >= n * places[:, None]).astype(float)  # of each value, that it is of the high component
    reached = np.full(_STARTS, -np.inf)
    for _ in range(_MOST // _ROUNDS):
        for _ in range(_ROUNDS):
            count = np.clip(high.sum(axis=1), 1e-9 * n, (1 - 1e-9) * n)
            size = np.stack([n - count, count])
            mean = np.stack([sums - high @ z, high @ z]) / size
            variance = np.maximum(np.stack([squares - high @ squared, high @ squared]) / size - mean**2, NARROWEST**2)
            logs = np.log(size / n) - np.log(2 * np.pi * variance) / 2
            low_log, high_log = (
                logs[k][:, None] - (z - mean[k][:, None]) ** 2 / (2 * variance[k][:, None]) for k in (0, 1)
            )
            high = expit(high_log - low_log)
        before, reached = reached, np.logaddexp(low_log, high_log).sum(axis=1)
        if (reached - before).max() < 1e-4:  # nats, of all values together
            break
    best = int(reached.argmax())
    order = mean[:, best].argsort()

    def pair(values: NDArray[np.float64]) -> tuple[float, float]:
        first, second = values[order, best].tolist()
        return first, second

    weights = size[order, best] / n
    return {
        "weights": (float(weights[0]), float(1 - weights[0])),
        "means": pair(centre + scale * mean),
        "deviations": pair(scale * np.sqrt(variance)),
        "log_likelihood": float(reached[best] - n * math.log(scale)),
    }


def _why_not(x: NDArray[np.float64], mixture: StepMixture) -> str:
    """Why the data are not bimodal, with the figures; "" if they are."""
    from scipy.stats import norm

    if mixture.separation < APART:
        return (
            f"the components' means, {_two(mixture.means)}, are {mixture.separation:.2f} deviations of the broader one "
            f"apart, and {APART:g} are wanted"
        )
    if min(mixture.weights) < SMALLEST:
        return f"one component holds {min(mixture.weights):.1%} of them, and {SMALLEST:.0%} are wanted"
    if min(mixture.deviations) < 1.01 * NARROWEST * x.std():
        return f"one component is a value that repeats: the deviations are {_two(mixture.deviations)}"
    single = float(norm.logpdf(x, x.mean(), x.std()).sum())
    gain = 2 * (mixture.log_likelihood - single) - 3 * math.log(len(x))  # three parameters more
    if gain <= 0:
        return f"one normal distribution explains them as well (a BIC lower by {-gain:.1f})"
    chance = _valley_p_value(x, mixture)
    if chance > LEVEL:
        return (
            f"there is no valley between the components' means, {_two(mixture.means)}, that chance does not explain "
            f"(p = {chance:.2f}, and {LEVEL:g} is wanted)"
        )
    return ""


def _valley_p_value(x: NDArray[np.float64], mixture: StepMixture) -> float:
    """How probable so few values between the two components are, if the density had no valley there.

    A density with one mode is, on the mean over an interval between two others, at least as high as over the lower of
    these. So of the values in the valley and on a hill, no smaller share is to be expected in the valley than its share
    of their width, for one hill at least; the greater p-value of both binomial tests counts.
    """
    from scipy.stats import binom

    left, valley, right = _intervals(mixture)
    inside = _count(x, valley)
    chances = []
    for hill in (left, right):
        share = _width(valley) / (_width(valley) + _width(hill))
        chances.append(float(binom.cdf(inside, inside + _count(x, hill), share)))
    return max(chances)


def _intervals(mixture: StepMixture) -> list[tuple[float, float]]:
    """On the low hill, in the valley, on the high hill: those which would tell most, if the mixture were the truth."""
    import numpy as np
    from scipy.stats import norm

    weights, means, deviations = map(np.array, (mixture.weights, mixture.means, mixture.deviations))

    def mass(ends: NDArray[np.float64]) -> NDArray[np.float64]:
        below = (weights * norm.cdf((ends[..., None] - means) / deviations)).sum(axis=-1)
        return np.asarray(below[..., 1] - below[..., 0])

    between = np.linspace(*mixture.means, 201)
    bottom = between[(weights * norm.pdf(between[:, None], means, deviations)).sum(axis=-1).argmin()]
    best, chosen = -math.inf, []
    for share in np.linspace(0.05, 0.5, 10):
        valley = np.array([bottom - share * (bottom - means[0]), bottom + share * (means[1] - bottom)])
        found, least = [valley], math.inf
        for k in (0, 1):
            reach = np.linspace(0.3, 1.5, 13) * deviations[k]
            hills = np.stack([means[k] - reach, means[k] + reach], axis=-1)
            hills[:, 1 - k] = np.minimum(hills[:, 1], valley[0]) if k == 0 else np.maximum(hills[:, 0], valley[1])
            expected = np.diff(valley) / (np.diff(valley) + np.diff(hills).ravel())
            inside, outside = mass(valley), mass(hills)
            spread = np.sqrt((inside + outside) * expected * (1 - expected))
            told = ((inside + outside) * expected - inside) / spread
            found.insert(2 * k, hills[told.argmax()])
            least = min(least, float(told.max()))
        if least > best:
            best, chosen = least, found
    return [(float(low), float(high)) for low, high in chosen]


def _count(x: NDArray[np.float64], interval: tuple[float, float]) -> int:
    return int(((interval[0] <= x) & (x < interval[1])).sum())


def _width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


# ---------------------------------------------------------------------- errors


def _not_bimodal(n: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The confidences of these {n:,} steps do not show two kinds of steps: {why}. Use Glimpse(), or judge the "
        "finished step (TokenProbability(), a LearnedScorer); where the two kinds are faint, more traces may show them."
    )


def _damaged(path: str | Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"The mixture '{path}' is damaged ({why}). Save it again, or fit a new one.")


def _check_quantity(quantity: str) -> None:
    if quantity not in ("max_logit", "max_logprob"):
        raise ConfigurationError(f'`quantity` must be "max_logit" or "max_logprob". Got {quantity!r}.')


def _fingerprint(model: LanguageModel | None) -> str | None:
    told = getattr(model, "fingerprint", None)
    return told if isinstance(told, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _two(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3g} and {pair[1]:.3g}"
