"""Splits that hold: by the text of a question, and the paper's."""

from __future__ import annotations

import math
import random

import pytest
from confcascade.bench.questions import paper_split, paper_test_size, side, split
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

SHARES = {"fit": 0.5, "calibration": 0.3, "test": 0.2}
examples = st.lists(st.text(min_size=1).filter(str.strip)).map(lambda texts: [Example(text) for text in texts])


@given(examples, st.randoms(use_true_random=False), st.integers())
def test_a_question_stays_where_it_is(made, rng, seed):
    """Whatever the order of the file, whatever else is in it, and however it is spaced and capitalised."""
    parts = split(made, SHARES, seed=seed)
    where = {example.question: name for name, its in parts.items() for example in its}
    assert sum(map(len, parts.values())) == len(made)
    shuffled = rng.sample(made, len(made))[: len(made) // 2 + 1]
    for name, its in split(shuffled, SHARES, seed=seed).items():
        assert all(where[example.question] == name for example in its)
    for example in made:
        again = Example(f"  {example.question}\n", ("another", "context"), id="other")
        assert side(again, SHARES, seed=seed) == where[example.question]


def test_case_does_not_move_a_question():
    sides = {(side(Example(f"What is {i}?"), SHARES), side(Example(f"WHAT IS {i}?"), SHARES)) for i in range(50)}
    assert {first for first, second in sides} == set(SHARES)
    assert all(first == second for first, second in sides)


def test_parts_have_their_shares():
    """Of 10,000 questions, each part's share lies within what a binomial draw gives in all but 1e-6 of the cases."""
    parts = split((Example(f"question {i}") for i in range(10_000)), SHARES)
    for name, share in SHARES.items():
        low, high = binom.interval(1 - 1e-6, 10_000, share)
        assert low <= len(parts[name]) <= high


def test_another_seed_is_another_split():
    made = [Example(f"question {i}") for i in range(1000)]
    first, second = ({each.id for each in split(made, {"a": 0.5, "b": 0.5}, seed=seed)["a"]} for seed in (0, 1))
    low, high = binom.interval(1 - 1e-6, 1000, 0.25)  # as good as independent
    assert low <= len(first & second) <= high


def test_the_hash_is_the_same_for_ever():
    """Written down once: who fitted on a part yesterday must not report on it tomorrow."""
    expected = "fit calibration calibration calibration fit test fit calibration".split()
    assert [side(Example(f"question {i}"), SHARES) for i in range(8)] == expected


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 80, "b": 20}])
def test_shares_must_be_shares(shares):
    with pytest.raises(ConfigurationError, match="add up to 1"):
        split([], shares)


@given(st.integers(0, 10**6))
def test_a_tenth_rounded_up_is_what_two_splits_of_scikit_learn_leave(count):
    """A fifth, rounded up, and then half of it, rounded up."""
    assert paper_test_size(count) == math.ceil(math.ceil(count / 5) / 2) == math.ceil(count / 10)


def test_the_papers_split_of_groups():
    made = [
        Example(f"{group} {i}", group=group) for group, size in (("a", 11), ("b", 100), ("c", 1)) for i in range(size)
    ]
    parts = paper_split(made)
    sizes = {name: [sum(each.group == group for each in its) for group in "abc"] for name, its in parts.items()}
    assert sizes == {"train": [8, 80, 0], "validation": [1, 10, 0], "test": [2, 10, 1]}
    assert sorted(each.id for its in parts.values() for each in its) == sorted(each.id for each in made)
    shuffled = paper_split(random.Random(0).sample(made, len(made)))
    assert {name: {each.id for each in its} for name, its in shuffled.items()} == {
        name: {each.id for each in its} for name, its in parts.items()
    }
    assert [each.id for each in parts["test"]] == [each.id for each in made if each in parts["test"]]


def test_the_papers_split_of_one_text_under_many_ids_hangs_on_no_order():
    made = [Example("again", id=str(i)) for i in range(10)]
    (first,), (second,) = paper_split(made)["test"], paper_split(made[::-1])["test"]
    assert first == second


def test_the_papers_sizes_are_scikit_learns():
    """The oracle: `train_test_split(test_size=0.2)`, and 0.5 of what that leaves."""
    from sklearn.model_selection import train_test_split

    for count in (6, 10, 11, 99, 100, 173):
        train, rest = train_test_split(range(count), test_size=0.2, random_state=0)
        validation, test = train_test_split(rest, test_size=0.5, random_state=0)
        parts = paper_split([Example(str(i)) for i in range(count)])
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [
            len(train),
            len(validation),
            len(test),
        ]
