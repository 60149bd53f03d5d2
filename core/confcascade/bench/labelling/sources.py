"""Who is asked for labels: a file that people add to, or the largest model, which is paid for every answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from confcascade.bench.collecting import collect
from confcascade.bench.labelling.journal import JournalEntry
from confcascade.bench.labelling.task import Wanted
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording.reading import read_rows
from confcascade.bench.recording.row import NOT_KEPT, Row
from confcascade.cost import attempt_cost
from confcascade.errors import ConfigurationError
from confcascade.graders import Grader
from confcascade.graders.example import Example
from confcascade.stage import Stage
from confcascade.types import Usage

__all__ = ["FileLabels", "Label", "LabelSource", "LargestLabels", "with_largest"]

_LOOK_EVERY_S = 1.0  # at a file that is waited for
_SEVERAL = "system: "  # so begins, in a recording, a prompt of several messages


@dataclass(frozen=True)
class Label:
    """What was told of one question.

    Attributes:
        wanted: The question.
        grades: By model, from 0 to 1; None where nobody could tell.
        seconds: That it took; None if not known.
        usd: What it cost; likewise.
    """

    wanted: Wanted
    grades: Mapping[str, float] | None
    seconds: float | None = None
    usd: float | None = None


class LabelSource(Protocol):
    """Whoever can be asked for labels.

    Attributes:
        batch: How many questions to ask for at a time: all are bought, though fewer might have done.
    """

    batch: int

    def ask(self, wanted: Sequence[Wanted]) -> Sequence[Label]:
        """Labels of some of these questions; none if no more can be had for now."""
        ...


class FileLabels:
    """Labels out of a file that people or programs add lines to; beside it stands which questions are wanted next.

    ``FILE.wanted.jsonl`` has a line for each wanted question: ``question``, ``prompt``, ``answers``, and ``grades`` to
    be filled in, 1 or 0 (or between) for each answer. The line, so filled in, is a label: append it to the file. In the
    place of grades, ``"skip": true`` says that nobody can tell.

    Args:
        path: The file of labels, JSON Lines; it need not be there yet.
        batch: How many questions to want at a time.
        wait: Whether to wait for labels; else `ask` gives those that are there.

    Raises:
        ConfigurationError: If `batch` is below 1.
    """

    def __init__(self, path: str | Path, *, batch: int = 20, wait: bool = False) -> None:
        if batch < 1:
            raise ConfigurationError(f"`batch` must be at least 1. Got {batch}.")
        self.path = Path(path)
        self.wanted_path = self.path.with_name(f"{self.path.stem}.wanted.jsonl")
        self.batch = batch
        self._wait = wait

    def ask(self, wanted: Sequence[Wanted]) -> Sequence[Label]:
        """Those of the questions that the file has; the others are written down as wanted.

        Raises:
            ConfigurationError: If a line cannot be a label of its question, naming it.
        """
        while True:
            told = self._read()
            found = [
                Label(each, _graded(each, told[each.question], self.path)) for each in wanted if each.question in told
            ]
            lacking = [each for each in wanted if each.question not in told]
            self._want(lacking)
            if found or not self._wait:
                return found
            time.sleep(_LOOK_EVERY_S)

    def check(self, entries: Iterable[JournalEntry], wanted: Callable[[int], Wanted]) -> None:
        """See that no label was changed after it was taken.

        Args:
            entries: What was taken.
            wanted: The question at a place of the drawn order.

        Raises:
            ConfigurationError: If one was.
        """
        told = self._read()
        for entry in entries:
            if entry.question not in told:
                continue
            now = _graded(wanted(entry.place), told[entry.question], self.path)
            if now != (None if entry.grades is None else dict(entry.grades)):
                raise ConfigurationError(
                    f"The label of question '{entry.question}' in '{self.path}' is not the one that was taken. A label "
                    "that is changed once it was counted breaks the proof: put it back, or begin anew, with a journal "
                    "in another file."
                )

    def _want(self, lacking: Sequence[Wanted]) -> None:
        lines = [
            json.dumps(
                {
                    "question": each.question,
                    "prompt": each.prompt,
                    "answers": list(each.answers),
                    "grades": [None] * len(each.answers),
                },
                ensure_ascii=False,
            )
            for each in lacking
        ]
        self.wanted_path.parent.mkdir(parents=True, exist_ok=True)
        part = self.wanted_path.with_name(self.wanted_path.name + ".part")
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        part.replace(self.wanted_path)

    def _read(self) -> dict[str, Mapping[str, Any]]:
        if not self.path.exists():
            return {}
        found: dict[str, Mapping[str, Any]] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                label = json.loads(line)
                question = label["question"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    break  # somebody is still writing it
                raise ConfigurationError(
                    f"Line {number} of '{self.path}' is no label: it must be a JSON object with `question` and "
                    "`grades`."
                ) from error
            if question in found and found[question] != label:
                raise ConfigurationError(
                    f"Line {number} of '{self.path}' labels question '{question}' a second time, otherwise. Keep one."
                )
            found[question] = label
        return found


def _graded(wanted: Wanted, label: Mapping[str, Any], path: Path) -> dict[str, float] | None:
    """By model, what a line of a file says."""
    where = f"The label of question '{wanted.question}' in '{path}'"
    if label.get("skip") is True:
        return None
    grades: Any = label.get("grades")
    good = isinstance(grades, list) and len(grades) == len(wanted.answers)
    if not good or not all(isinstance(each, int | float) and 0 <= each <= 1 for each in grades):
        raise ConfigurationError(
            f"{where} must have `grades`, a number from 0 to 1 for each of its {len(wanted.answers)} answers, in their "
            f"order; or `skip`: true. Got {json.dumps(grades)}."
        )
    if "answers" in label and label["answers"] != list(wanted.answers):
        raise ConfigurationError(
            f"{where} is of other answers, or of the same in another order, than '{path.stem}.wanted.jsonl' asked for."
        )
    return wanted.grades(grades)


class LargestLabels:
    """The largest model, asked at its price: a smaller model's answer is right if it is the same.

    Args:
        stage: The largest model's, with its prices and settings.
        path: A recording of its answers, which grows; what is in it is not asked again.
        grader: By which answers are the same; it must decide at once.
        batch: How many questions to ask at a time.
        parameters: Further fields of every request, as the smaller models were asked with.

    Raises:
        ConfigurationError: If `batch` is below 1.
    """

    def __init__(
        self,
        stage: Stage,
        path: str | Path,
        grader: Grader,
        *,
        batch: int = 8,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if batch < 1:
            raise ConfigurationError(f"`batch` must be at least 1. Got {batch}.")
        self.batch = batch
        self.path = Path(path)
        self._stage = replace(stage, signals=(), thresholds={})
        self._grader = grader
        self._parameters = dict(parameters or {})

    def ask(self, wanted: Sequence[Wanted]) -> Sequence[Label]:
        """Labels of all these questions.

        Raises:
            ConfigurationError: If the recording keeps no prompts, or has them in several messages; or the model fails
                time after time.
        """
        examples = []
        for each in wanted:
            if not each.prompt or each.prompt.startswith(_SEVERAL):
                raise ConfigurationError(
                    f"Question '{each.question}' cannot be put to '{self._stage.model.name}' as it was put to the "
                    "smaller models: the recording "
                    + ("keeps no prompt." if not each.prompt else "has its prompt in several messages.")
                    + " Collect the largest model's answers, and fit on these."
                )
            examples.append(Example(each.prompt, id=each.question))
        done = collect(
            examples,
            [self._stage],
            self.path,
            prompt=PROMPTS["plain"],
            grader="exact",  # there is no reference: nothing is graded by it
            keep_tokens=False,
            retry_errors=True,
            max_concurrency=self.batch,
            **self._parameters,
        )
        rows = {row.question: row for row in read_rows(self.path)}
        answered = [each for each in wanted if each.question in rows and rows[each.question].error is None]
        if not answered:
            raise ConfigurationError(
                f"'{self._stage.model.name}' answers none of the questions: "
                f"{done.problem or next((row.error for row in rows.values() if row.error), 'no answer came')}."
            )
        return [self._label(each, rows[each.question]) for each in answered]

    def rows(self) -> Iterator[Row]:
        """What it has answered so far."""
        if self.path.exists():
            yield from (row for row in read_rows(self.path) if row.error is None)

    def _label(self, wanted: Wanted, row: Row) -> Label:
        example = Example(wanted.prompt, references=(row.answer,))
        grades = {self._stage.model.name: 1.0}
        for text, models in zip(wanted.answers, wanted.models, strict=True):
            same = not row.usable or self._grader.grade(example, text).value == 1
            grades |= {name: float(same) for name in models}
        spent = attempt_cost(row.usage, 0.0, None, self._stage.prices).usd if row.usd is None else row.usd
        return Label(wanted, grades, row.latency_s, spent)


def with_largest(rows: Iterable[Row], largest: str, answered: Iterable[Row]) -> Iterator[Row]:
    """The smaller models' rows, and one of the largest for every question: its own, or one that stands for it.

    What stands for it has no answer to look at, and the tokens that its answers come to in the mean; before it has
    answered anything, those of the smaller model that comes last.

    Args:
        rows: The recording; rows of the largest model are left out.
        largest: Its name.
        answered: What it has answered.
    """
    known = {row.question: row for row in answered}
    used = [row.usage for row in known.values()]
    models_last: dict[str, Row] = {}
    for row in rows:
        if row.model != largest:
            models_last[row.question] = row
            yield row
    for question, row in models_last.items():
        if question in known:
            alike = {"group": row.group, "prompt_version": row.prompt_version, "drawn": row.drawn}
            yield known[question].model_copy(update=alike)
            continue
        usage = row.usage
        if used:
            usage = Usage(
                round(sum(each.input_tokens for each in used) / len(used)),
                round(sum(each.output_tokens for each in used) / len(used)),
            )
        yield Row(
            question=question,
            model=largest,
            group=row.group,
            prompt=row.prompt,
            answer=NOT_KEPT,
            usage=usage,
            prompt_version=row.prompt_version,
            drawn=row.drawn,
        )
