"""Data in parts, so that nobody reports on the rows that chose a threshold or trained a probe."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example

__all__ = ["paper_split", "paper_test_size", "sample", "side", "split"]


def split(examples: Iterable[Example], shares: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Example]]:
    """Examples in parts, each part with its share of all questions, by a hash of the question's text.

    The part of a question hangs on its text, the shares and the seed alone: it stays where it is if the file is
    reordered or grows, and a text that occurs twice, as some of MMLU's do, is never on two sides. So the parts have
    their shares only by and large.

    Args:
        examples: In any order.
        shares: By the name of the part, such as ``{"fit": 0.8, "test": 0.2}``; above 0, and 1 in all.
        seed: Another seed, another split.

    Returns:
        By the name of the part, its examples in their order.

    Raises:
        ConfigurationError: If the shares are none.
    """
    _check(shares)
    parts: dict[str, list[Example]] = {name: [] for name in shares}
    for example in examples:
        parts[side(example, shares, seed=seed)].append(example)
    return parts


def side(example: Example, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """The part that `split` puts this example in: for data that is not to be held in memory.

    Raises:
        ConfigurationError: As `split`.
    """
    _check(shares)
    place, reached = _place(example, seed), 0.0
    for name, share in shares.items():
        reached += share
        if place < reached:
            return name
    return name  # sums of shares may end just below 1


def paper_test_size(count: int) -> int:
    """How many of `count` questions of a group the paper tests on: a tenth, rounded up.

    ceil(n / 10) of each of MMLU's 57 subjects makes the paper's 1,430 of 14,042 questions; it is what two calls of
    scikit-learn's ``train_test_split`` leave, a fifth and then half of it.
    """
    return -(-count // 10)


def paper_split(examples: Iterable[Example], *, seed: int = 0) -> dict[str, list[Example]]:
    """The paper's 80/10/10 split of each group, to the question: "train", "validation" and "test".

    Of a group's n questions ceil(n / 10) are for testing, and ceil(n / 5) for testing and validation together; which,
    a hash of their texts says, for the paper does not tell its own draw. Sizes are exact, so a text that occurs twice
    in a group may come to lie on two sides; `split` keeps it on one.

    Args:
        examples: In any order.
        seed: Another seed, another draw.

    Returns:
        By the name of the part, its examples in their order.
    """
    known = list(examples)
    groups: defaultdict[str | None, list[int]] = defaultdict(list)
    for i, example in enumerate(known):
        groups[example.group].append(i)
    part = ["train"] * len(known)
    for members in groups.values():
        ranked = sorted(members, key=lambda i: (_place(known[i], seed), known[i].id))
        tested, held_out = paper_test_size(len(ranked)), -(-len(ranked) // 5)
        for name, chosen in (("test", ranked[:tested]), ("validation", ranked[tested:held_out])):
            for i in chosen:
                part[i] = name
    return {
        name: [example for example, its in zip(known, part, strict=True) if its == name]
        for name in ("train", "validation", "test")
    }


def _place(example: Example, seed: int) -> float:
    """A number in [0, 1) that is as good as drawn, the same for texts that differ in case and white space alone."""
    words = " ".join(example.question.split()).casefold()
    digest = hashlib.sha256(f"{seed}\0{words}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # as many bits as a float has


def _check(shares: Mapping[str, float]) -> None:
    if not shares or not all(share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        raise ConfigurationError(
            f'The shares of a split must be above 0 and add up to 1, as in {{"fit": 0.8, "test": 0.2}}. '
            f"Got {dict(shares)}."
        )


def sample(examples: Iterable[Example], size: int) -> list[Example]:
    """`size` examples drawn by a hash of their ids, in their own order.

    Files are often sorted by subject, so that the first examples would tell of one subject alone. The draw is the same
    every time, and a smaller one is part of a larger one: raising the size of a collected sample adds questions to it.
    A question that comes several times may be drawn several times.

    Raises:
        ConfigurationError: If `size` is below 1.
    """
    if size < 1:
        raise ConfigurationError(f"A sample needs at least 1 example. Got {size}.")
    drawn, times = [], Counter[str]()
    for i, each in enumerate(examples):
        again = f"\0{times[each.id]}" if times[each.id] else ""
        drawn.append((hashlib.sha256(f"{each.id}{again}".encode()).digest(), i, each))
        times[each.id] += 1
    chosen = heapq.nsmallest(size, drawn, key=lambda entry: entry[:2])
    return [example for _, _, example in sorted(chosen, key=lambda entry: entry[1])]
