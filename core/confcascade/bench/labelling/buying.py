"""Ask for labels until it is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from confcascade.bench.labelling.journal import Journal, JournalEntry
from confcascade.bench.labelling.sources import Label, LabelSource
from confcascade.bench.labelling.task import LabelTask
from confcascade.errors import ConfigurationError
from confcascade.guarantee import Promise
from confcascade.guarantee.sequential_path import SequentialPath

__all__ = ["Aim", "Bought", "Ending", "buy", "worth"]

Ending = Literal["reached", "enough", "most", "paused", "all certified", "out of reach"]
_WORTH = 20  # by how many times more labels may grow, in proportion, than the saving
_LEAST_TRIED = 100  # labels, as if so many had been bought, before which little is known


@dataclass(frozen=True)
class Aim:
    """When it is enough.

    Attributes:
        saving: Share of the largest model's cost; once a policy that saves so much is certified, nothing more is asked.
            None: go on while it pays (`buy`).
        most: Labels in all, at most; None for no limit.
    """

    saving: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.saving is not None and not 0 < self.saving < 1:
            raise ConfigurationError(f"`saving` must be a share between 0 and 1, such as 0.3. Got {self.saving:g}.")
        if self.most is not None and self.most < 1:
            raise ConfigurationError(f"`most` must be at least 1. Got {self.most}.")


@dataclass(frozen=True)
class Bought:
    """How far it has come.

    Attributes:
        path: What is known of every policy.
        labels: How many were bought, earlier runs included.
        usd: What they cost; None if not known of all.
        seconds: That they took; likewise.
        skipped: How many nobody could tell, which count as lost.
        best: The certified policy that saves most; None if none is certified that saves anything.
        ended: "reached" (the saving aimed at), "enough" (more labels would not pay), "most" (labels allowed), "paused"
            (no more labels for now), "all certified" (every policy), "out of reach" (the questions left could not
            certify the next policy, whatever their labels); None while it goes on.
    """

    path: SequentialPath
    labels: int
    usd: float | None
    seconds: float | None
    skipped: int
    best: int | None
    ended: Ending | None


def buy(
    task: LabelTask,
    promise: Promise,
    journal: Journal,
    source: LabelSource,
    *,
    aim: Aim = Aim(),
    progress: Callable[[Bought], None] | None = None,
) -> Bought:
    """Ask for labels until the aim is reached, or more would not pay, and keep each in the journal.

    Asked for is always what the safest uncertified policy cannot do without. Without a saving to aim at it goes on
    while it pays: once a policy is certified, the next may take twenty times as many labels, in proportion to those
    bought before it, as it saves more, in proportion to what is saved already: doubling the labels must raise the
    saving by a twentieth. When to stop may hang on anything: the certificates hold at all times at once.

    Args:
        task: What is to be labelled.
        promise: With a target.
        journal: What was bought before, and where it is kept.
        source: Who is asked.
        aim: When it is enough.
        progress: Called before each question to the source, and at the end.

    Raises:
        ConfigurationError: If the promise has no target, the journal holds labels of other questions, or the source
            tells what is no label of its question.
    """
    if promise.max_drop is None:
        raise ConfigurationError("Labels are bought until a target is certified: give the promise a `max_drop`.")
    spread = np.minimum(task.spread, promise.tested_drop) if promise.equivalence is not None else task.spread
    path = SequentialPath(task.losses(), drop=promise.tested_drop, delta=promise.delta, spread=spread)
    turn = _Turn()
    for entry in journal.entries:
        turn.before(path)
        _take(path, task, entry)
    while True:
        turn.before(path)
        wanted = path.wanted(source.batch if aim.most is None else min(source.batch, max(1, aim.most - turn.labels)))
        ended = turn.ending(path, task, aim)
        if progress is not None:
            progress(_state(path, task, journal, ended))
        if ended is not None:
            return _state(path, task, journal, ended)
        distinct = {task.material.columns.questions[place]: place for place in reversed(wanted)}
        places = sorted(distinct.values())
        labels = source.ask([task.wanted(place) for place in places])
        if not labels:
            state = _state(path, task, journal, "paused")
            if progress is not None:
                progress(state)
            return state
        _check(labels, places, task)
        first = len(journal.entries)
        journal.append(
            JournalEntry(
                number=number,
                place=label.wanted.place,
                question=label.wanted.question,
                grades=label.grades,
                seconds=label.seconds,
                usd=label.usd,
            )
            for number, label in enumerate(labels, start=first + 1)
        )
        for entry in journal.entries[first:]:
            turn.before(path)
            _take(path, task, entry)


def worth(saved: float, more: float, labels: int) -> float:
    """How many labels may be spent on the next policy.

    Args:
        saved: Share of the cost that the best certified policy saves, above 0.
        more: That the next would save.
        labels: Bought before it.
    """
    return max(_LEAST_TRIED / 2, _WORTH * max(more - saved, 0.0) / saved * max(labels, _LEAST_TRIED))


class _Turn:
    """Which policy labels are bought for, since how many labels."""

    def __init__(self) -> None:
        self.labels = -1
        self.focus = -1
        self.since = 0

    def before(self, path: SequentialPath) -> None:
        """Another label is about to be taken, or the end is considered."""
        self.labels = path.labels
        if path.certified != self.focus:
            self.focus, self.since = path.certified, self.labels

    def ending(self, path: SequentialPath, task: LabelTask, aim: Aim) -> Ending | None:
        best = _best(path, task)
        saved = 0.0 if best is None else float(task.saved[best])
        if aim.saving is not None and saved >= aim.saving:
            return "reached"
        if self.focus == len(task.policies):
            return "all certified"
        if not path.attainable(self.focus):
            return "out of reach"
        if aim.most is not None and self.labels >= aim.most:
            return "most"
        spent = self.labels - self.since
        if aim.saving is None and saved > 0 and spent > worth(saved, float(task.saved[self.focus]), self.since):
            return "enough"
        return None


def _check(labels: Sequence[Label], places: Sequence[int], task: LabelTask) -> None:
    """Before they are kept: a label that cannot be used must not stand in the journal."""
    told = [label.wanted.place for label in labels]
    if len(set(told)) < len(told) or not set(told) <= set(places):
        raise ConfigurationError("A source of labels must tell those of the questions that it is asked, each once.")
    for label in labels:
        grades = label.grades
        if grades is not None and not (task.largest in grades and all(0 <= each <= 1 for each in grades.values())):
            raise ConfigurationError(
                f"The label of question '{label.wanted.question}' must have a grade from 0 to 1 for each model that "
                f"answered, '{task.largest}' among them. Got {dict(grades)}."
            )


def _take(path: SequentialPath, task: LabelTask, entry: JournalEntry) -> None:
    questions = task.material.columns.questions
    if entry.place >= len(questions) or questions[entry.place] != entry.question:
        raise ConfigurationError(
            f"Label {entry.number} of the journal is of question '{entry.question}', which was not drawn there: the "
            "recording has changed."
        )
    path.learn(entry.place, task.losses_of(entry.place, entry.grades))
    for place in task.repeats(entry.place):
        if path.lacks(place):
            path.learn(place, task.losses_of(place, entry.grades), again=True)


def _best(path: SequentialPath, task: LabelTask) -> int | None:
    certified = [i for i in range(path.certified) if task.saved[i] > 0]
    return max(certified, key=lambda i: float(task.saved[i]), default=None)


def _state(path: SequentialPath, task: LabelTask, journal: Journal, ended: Ending | None) -> Bought:
    entries = journal.entries
    usd = [entry.usd for entry in entries]
    seconds = [entry.seconds for entry in entries]
    return Bought(
        path=path,
        labels=len(entries),
        usd=sum(each for each in usd if each is not None) if usd and None not in usd else None,
        seconds=sum(each for each in seconds if each is not None) if seconds and None not in seconds else None,
        skipped=sum(entry.grades is None for entry in entries),
        best=_best(path, task),
        ended=ended,
    )
