"""Rewards by hand, what they pay most, and by how much a finite group misleads."""

import math

import numpy as np
import pytest
from confcascade import ConfigurationError
from confcascade.bench.training.rewards import (
    BrierReward,
    CorrectnessReward,
    FormatReward,
    GroupDistance,
    LogReward,
    best_of_group,
    graded_by,
    read_completion,
)
from confcascade.graders import grader_from_string
from scipy.stats import binom

RIGHT = graded_by(grader_from_string("numeric"))
# two prompts, four completions of each; the first is right in three of four, the second in one
COMPLETIONS = [
    "42\n<confidence>0.9</confidence>",
    "42\nConfidence: 75%",
    "41\n<confidence>0.5</confidence>",
    "<think>Confidence: 1.0</think>42",
    "7\n<confidence>0.25</confidence>",
    "8\n<confidence>1.0</confidence>",
    "8\n<confidence>x</confidence>",
    "<confidence>0.0</confidence>",
]
CALL = {
    "prompts": ["6*7?"] * 4 + ["3+4?"] * 4,
    "completions": COMPLETIONS,
    "completion_ids": [[1, 2]] * 8,
    "references": [["42"]] * 4 + [["7"]] * 4,
    "question": ["6*7?"] * 4 + ["3+4?"] * 4,
    "trainer_state": object(),
    "log_extra": print,
}


def test_completions():
    assert [read_completion(each) for each in COMPLETIONS] == [
        ("42", 0.9),
        ("42", 0.75),
        ("41", 0.5),
        ("42", None),
        ("7", 0.25),
        ("8", 1.0),
        ("8", None),
        ("", 0.0),
    ]
    assert read_completion([{"role": "assistant", "content": COMPLETIONS[0]}]) == ("42", 0.9)


def test_by_hand():
    """As TRL calls them, by keyword and with columns; each against numbers that were worked out by hand."""
    assert CorrectnessReward(RIGHT)(**CALL) == [1, 1, 0, 1, 1, 0, 0, 0]
    assert FormatReward()(**CALL) == [1, 1, 1, 0, 1, 1, 0, 0]
    # groups: 3/4 and 1/4 right; what states nothing that can be read is paid the worst
    assert GroupDistance(RIGHT)(**CALL) == pytest.approx([-0.15, 0, -0.25, -1, 0, -0.75, -1, -0.25])
    assert BrierReward(RIGHT)(**CALL) == pytest.approx([-0.01, -0.0625, -0.25, -1, -0.5625, -1, -1, 0])
    worst = math.log(0.001)
    logs = [math.log(0.9), math.log(0.75), math.log(0.5), worst, math.log(0.25), worst, worst, math.log(0.999)]
    assert LogReward(RIGHT)(**CALL) == pytest.approx(logs)


def test_conversations():
    """Prompts and completions as messages give the same."""
    talk = dict(CALL)
    talk["prompts"] = [[{"role": "user", "content": prompt}] for prompt in CALL["prompts"]]
    talk["completions"] = [[{"role": "assistant", "content": each}] for each in COMPLETIONS]
    for reward in (CorrectnessReward(RIGHT), FormatReward(), GroupDistance(RIGHT), BrierReward(RIGHT)):
        assert reward(**talk) == reward(**CALL)


def test_groups_of_several_processes():
    """A group that is split among processes has the accuracy of the whole."""
    halves = [{key: value[at::2] if isinstance(value, list) else value for key, value in CALL.items()} for at in (0, 1)]
    sent = []
    for half in halves:
        GroupDistance(RIGHT, gather=lambda mine: sent.append(mine) or mine)(**half)
    everything = [pair for mine in sent for pair in mine]
    first, second = (GroupDistance(RIGHT, gather=lambda _: everything)(**half) for half in halves)
    assert [value for both in zip(first, second, strict=True) for value in both] == GroupDistance(RIGHT)(**CALL)


def test_names_are_told_apart():
    """TRL logs each under its name."""
    rewards = [CorrectnessReward(RIGHT), FormatReward(), GroupDistance(RIGHT), BrierReward(RIGHT), LogReward(RIGHT)]
    assert [reward.__name__ for reward in rewards] == ["correct", "format", "group_distance", "brier", "log"]


def test_one_prompt_to_each():
    with pytest.raises(ConfigurationError, match="one prompt"):
        GroupDistance(RIGHT)(**{**CALL, "prompts": ["a"]})


@pytest.mark.parametrize("kind", [BrierReward, LogReward])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.85])
def test_proper(kind, p):
    """Over simulated answers, the true probability earns more than any other statement.

    With 200,000 answers the best statement of a grid of step 0.05 is another with a probability below 1e-9.
    """
    right = np.random.default_rng(0).random(200_000) < p
    share = right.mean()
    grid = np.round(np.arange(0.05, 1, 0.05), 2)
    earned = [share * kind.paid(c, 1.0) + (1 - share) * kind.paid(c, 0.0) for c in grid]
    assert grid[int(np.argmax(earned))] == p


@pytest.mark.parametrize("p", [0.1, 0.3, 0.45, 0.62, 0.9])
def test_the_distance_to_one_answer_is_not_proper(p):
    """Why it is not offered: of a group of one the distance earns most at 0 or 1."""
    grid = np.linspace(0, 1, 101)
    earned = [p * GroupDistance.paid(c, 1.0) + (1 - p) * GroupDistance.paid(c, 0.0) for c in grid]
    assert grid[int(np.argmax(earned))] == round(p)
    assert best_of_group(p, 1) == round(p)


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.62, 0.9])
def test_best_of_group(group, p):
    """The median is what earns most, summed over every accuracy that a group can have."""
    chances = binom.pmf(np.arange(group + 1), group, p)
    grid = np.linspace(0, 1, 401)
    earned = [sum(w * GroupDistance.paid(c, k / group) for k, w in enumerate(chances)) for c in grid]
    best = max(earned)
    at = sum(w * GroupDistance.paid(best_of_group(p, group), k / group) for k, w in enumerate(chances))
    assert at == pytest.approx(best, abs=1e-12)


def test_bias_of_finite_groups():
    """The table of the page on stated confidences: how far the best statement lies from the probability."""
    told = {}
    for group in (4, 8, 16, 32, 64):
        ps = (np.arange(1000) + 0.5) / 1000
        off = np.array([best_of_group(p, group) - p for p in ps])
        told[group] = (round(float(np.abs(off).mean()), 3), round(float(np.abs(off).max()), 3))
        assert np.abs(off).max() <= math.log(2) / group  # the median of a binomial is within ln 2 of its mean
    assert told == {4: (0.065, 0.159), 8: (0.033, 0.083), 16: (0.016, 0.042), 32: (0.008, 0.021), 64: (0.004, 0.011)}
