"""`Lookback` and `Glimpse`: what the small model makes of the step before, and of what comes next."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confcascade import (
    ConfigurationError,
    Glimpse,
    Lookback,
    Message,
    Request,
    SignalUnavailableError,
    StepMixture,
    TokenProbability,
)
from confcascade.asks import Capability
from confcascade.extending import Evidence, Token
from confcascade.testing import ScriptedModel
from confcascade.types import Position, Prefilled, Usage

MIXTURE = StepMixture((0.4, 0.6), (18.0, 26.0), (1.5, 1.0), 500, -1000.0, model="small", fingerprint="scripted-small")
OF_LOGPROBS = replace(MIXTURE, means=(-2.0, -0.2), deviations=(0.5, 0.2), quantity="max_logprob")
WHAT = Request((Message("user", "What?"),))


def evidence(*logits: float | None, entropy: float = 0.0, expected: float | None = 25.0) -> Evidence:
    tokens = tuple(Token("x", -0.1, max_logit=logit) for logit in logits)
    return Evidence(WHAT, Prefilled(Usage(), following=Position(entropy, expected)), tokens)


class Reader(ScriptedModel):
    """One that reads what another has written."""

    def __init__(self, name: str, **changes: Any) -> None:
        super().__init__(name)
        self._changes = changes

    @property
    def capability(self) -> Capability:
        return replace(super().capability, **{"layers": 4, "continues": True, **self._changes})


def test_the_last_step_is_judged():
    """By the posterior of its mean greatest logit."""
    measured = Lookback(MIXTURE).score(evidence(20.0, 24.0, 25.0, expected=3.0))

    assert measured.value == MIXTURE.posterior(23.0)
    assert measured.details == {"step_confidence": pytest.approx(23.0), "quantity": "max_logit"}


def test_before_the_first_step_what_is_expected_is_judged():
    """By its greatest logit."""
    assert Lookback(MIXTURE).score(evidence(expected=21.0)).value == MIXTURE.posterior(21.0)


@pytest.mark.parametrize(
    "shown",
    [
        evidence(None),
        evidence(20.0, None),
        evidence(expected=None),
        evidence(expected=math.nan),
        evidence(math.inf),
        Evidence(WHAT),
        Evidence(WHAT, tokens=None),
        Evidence(WHAT, Prefilled(Usage())),
    ],
)
def test_logits_are_not_made_up(shown: Evidence) -> None:
    """A model that tells none cannot be judged by them."""
    with pytest.raises(SignalUnavailableError):
        Lookback(MIXTURE).score(shown)


def test_log_probabilities_may_stand_in():
    """Where the mixture is of them; before the first step there are none."""
    lookback = Lookback(OF_LOGPROBS)
    tokens = (Token("a", -0.5), Token("b", -3.0, (("c", -0.2),)))

    measured = lookback.score(Evidence(WHAT, None, tokens))

    assert measured.value == OF_LOGPROBS.posterior(-0.35)
    assert measured.details["quantity"] == "max_logprob"
    assert (lookback.top_logprobs, Lookback(MIXTURE).top_logprobs) == (1, 0)  # of what it samples, the greatest, too
    with pytest.raises(SignalUnavailableError, match="before the first step"):
        lookback.score(evidence())


def test_the_model_must_be_the_mixtures():
    """Logits of another build have another scale; where a build is not known, nothing is refused."""
    lookback = Lookback(MIXTURE)
    lookback.check(Reader("small"))
    Lookback(replace(MIXTURE, fingerprint=None)).check(Reader("other"))

    with pytest.raises(ConfigurationError, match=r"fitted on steps as model 'small' reads them .* StepMixture\.fit"):
        lookback.check(Reader("other"))


@pytest.mark.parametrize("changes", [{"layers": 0}, {"continues": False}])
def test_the_model_must_read_what_others_wrote(changes: dict[str, Any]) -> None:
    """An API shows nothing of a text that it did not write."""
    with pytest.raises(ConfigurationError, match="reads what another has written"):
        Lookback(MIXTURE).check(Reader("small", **changes))


def test_a_server_may_read_what_others_wrote():
    """One that tells log-probabilities of a prompt, where the mixture is of them."""
    Lookback(OF_LOGPROBS).check(Reader("small", layers=0, reads=True))

    with pytest.raises(ConfigurationError, match=r"of raw logits.*'small' is behind an API.*quantity=\"max_logprob\""):
        Lookback(MIXTURE).check(Reader("small", layers=0, reads=True))
    with pytest.raises(ConfigurationError, match=r"reads=\"prompt_logprobs\".*TokenProbability"):
        Lookback(OF_LOGPROBS).check(Reader("small", layers=0))


def test_a_mixture_may_come_from_its_file(tmp_path: Path) -> None:
    """And then is the same signal."""
    MIXTURE.save(tmp_path / "mixture.json")
    loaded = Lookback(tmp_path / "mixture.json")

    assert loaded.identity() == Lookback(MIXTURE).identity() == json.loads(json.dumps(loaded.identity()))
    assert loaded.identity() != Lookback(replace(MIXTURE, means=(18.0, 27.0))).identity()
    with pytest.raises(ConfigurationError, match=r"StepMixture\.save"):
        Lookback(tmp_path / "none.json")


@pytest.mark.parametrize(("entropy", "value"), [(0.0, 1.0), (math.log(4), 0.25), (-1e-9, 1.0)])
def test_a_glimpse_is_how_clear_it_is_what_comes(entropy: float, value: float) -> None:
    """1 over the number of tokens that it is as if among."""
    assert Glimpse().score(evidence(entropy=entropy)).value == pytest.approx(value)


@pytest.mark.parametrize(
    "shown", [Evidence(WHAT), Evidence(WHAT, Prefilled(Usage())), evidence(entropy=math.nan), evidence(entropy=-1.0)]
)
def test_an_entropy_is_not_made_up(shown: Evidence) -> None:
    """Nor is one taken that is none."""
    with pytest.raises(SignalUnavailableError):
        Glimpse().score(shown)


def test_a_glimpse_needs_a_model_that_reads():
    """Before it writes."""
    Glimpse().check(Reader("small", continues=False))
    with pytest.raises(ConfigurationError, match="Glimpse needs a model that tells what it expects next"):
        Glimpse().check(ScriptedModel("small"))


def test_which_signals_live_between_steps():
    """A step before is there only between steps; what comes next is there before any answer."""
    assert (Lookback(MIXTURE).between_steps, Glimpse().between_steps, TokenProbability().between_steps) == (
        True,
        False,
        False,
    )
    assert Lookback(MIXTURE).following
    assert Glimpse().following
    assert (Lookback(MIXTURE).phase, Glimpse().phase) == ("pre", "pre")
    assert (Lookback(MIXTURE, name="l").name, Glimpse(name="g").name) == ("l", "g")
    assert "max_logit" in repr(Lookback(MIXTURE))
    assert repr(Glimpse()) == "Glimpse()"
    assert Glimpse().identity() == {"signal": "Glimpse"}
