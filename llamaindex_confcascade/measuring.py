"""Measure a query engine on questions of one's own: how often it is right, what it costs, and how well signals rank.

Questions take minutes and dollars, so no answer is lost: a question that fails becomes a row with its error, and with a
file each row is kept as it comes, and a measurement that was interrupted goes on where it was. Nor is what was paid.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from confcascade import Attempt, ConfigurationError, Cost, Record, Score, Usage, trace
from confcascade.extending import kept_of
from llama_index.core.base.response.schema import AsyncStreamingResponse

__all__ = ["Measured", "MeasuredQuestion", "ameasure", "measure"]

R = TypeVar("R")
D = TypeVar("D")


@dataclass(frozen=True)
class MeasuredQuestion:
    """What became of one question.

    Attributes:
        question: It.
        answer: The text of the answer; None if there is none, because of an error.
        right: Whether the answer was right; None without one, or if `is_right` raised.
        error: What `ask` raised, or `is_right` if there is an answer: its type and status, without its text; None if
            neither did.
        records: Of all cascades that were asked in it, in the order in which they ended.
        earlier: Records of the runs in which it failed, as `path` holds them; they were paid for, too.
    """

    question: str
    answer: str | None
    right: bool | None
    error: str | None
    records: tuple[Record, ...]
    earlier: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What became of a set of questions.

    Attributes:
        rows: One for each question, in the order in which they were given.
    """

    rows: tuple[MeasuredQuestion, ...]

    @property
    def right(self) -> tuple[bool | None, ...]:
        """For each question whether the answer was right; None for one that failed or could not be judged."""
        return tuple(row.right for row in self.rows)

    @property
    def records(self) -> tuple[tuple[Record, ...], ...]:
        """For each question its records."""
        return tuple(row.records for row in self.rows)

    @property
    def errors(self) -> int:
        """How many questions failed, or have an answer that could not be judged."""
        return sum(row.error is not None for row in self.rows)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those that were judged, in [0, 1]; None if none was."""
        answered = [row.right for row in self.rows if row.right is not None]
        return sum(answered) / len(answered) if answered else None

    @property
    def cost(self) -> Cost:
        """Every model that ran, for all questions and in all runs; models outside of cascades are not in it."""
        return sum((record.cost for row in self.rows for record in (*row.earlier, *row.records)), Cost())

    @property
    def usage(self) -> Usage:
        """Tokens of every attempt that was paid for, for all questions and in all runs."""
        return sum((record.usage for row in self.rows for record in (*row.earlier, *row.records)), Usage())

    def scores(self, signal: str, policy_id: str | None = None) -> list[tuple[float, bool]]:
        """A signal's scores of the attempts whose answers were kept, each with whether the question was answered right.

        Measure with the threshold "always": a threshold that escalates answers leaves only the high scores here.
        Attempts that could not be scored are left out.

        Args:
            signal: Its name, such as "p_t".
            policy_id: Of the one cascade to look at, where an engine asks several.
        """
        return [
            (score.value, row.right)
            for row in self.rows
            if row.right is not None
            for record in row.records
            if policy_id in (None, record.policy_id)
            for attempt in record.attempts
            if attempt.stage == record.stage and (score := attempt.scores.get(signal)) and score.value is not None
        ]

    def auroc(self, signal: str, policy_id: str | None = None) -> float | None:
        """How well a signal ranks right answers above wrong ones: the area under its ROC curve, in [0, 1].

        It is the chance that a right answer scores higher than a wrong one: 0.5 is chance, 1 is perfect.

        Args:
            signal: Its name, such as "p_t".
            policy_id: Of the one cascade to look at, where an engine asks several.

        Returns:
            None if the answers that it scored were all right or all wrong.
        """
        from confcascade.bench.metrics.ranking import auroc

        scored = self.scores(signal, policy_id)
        return auroc([right for _, right in scored], [value for value, _ in scored])


def measure(
    ask: Callable[[str], Any],
    questions: Iterable[tuple[str, R]],
    is_right: Callable[[str, R], bool],
    *,
    path: str | Path | None = None,
    progress: bool = True,
) -> Measured:
    """Ask every question once, one after the other.

    Args:
        ask: What answers, such as a query engine's ``query``; the text of its answer is what ``str`` makes of it.
        questions: Pairs of a question and its reference.
        is_right: Whether the text of an answer is right, given the question's reference. If it raises, the row has its
            error, and the answer.
        path: A JSON Lines file, to which each row is added as it comes. Questions that it has an answer to are not
            asked again, only judged again; those that failed are. Give each engine its own file.
        progress: Show a bar, where there is a terminal.

    Raises:
        ConfigurationError: If there is no question, `ask` or `is_right` is asynchronous, or `path` is not such a file.
    """
    with _Measuring.of(questions, is_right, path, progress) as measuring:
        for index in measuring.open:
            with measuring.asking(index) as answers:
                found = ask(measuring.question(index))
                _refuse_awaitable(found)
                answers.append(str(found))  # a streamed response ends here
        return measuring.measured()


async def ameasure(
    ask: Callable[[str], Awaitable[Any]],
    questions: Iterable[tuple[str, R]],
    is_right: Callable[[str, R], bool],
    *,
    max_concurrency: int = 8,
    path: str | Path | None = None,
    progress: bool = True,
) -> Measured:
    """`measure`, with several questions under way at a time.

    Args:
        ask: What answers, such as a query engine's ``aquery`` or an agent's ``run``.
        questions: As for `measure`.
        is_right: As for `measure`.
        max_concurrency: Most questions at a time, at least 1.
        path: As for `measure`.
        progress: As for `measure`.

    Raises:
        ConfigurationError: If there is no question, `ask` is not asynchronous, `is_right` is, `max_concurrency` is
            below 1, or `path` is not such a file.
    """
    if max_concurrency < 1:
        raise ConfigurationError(f"`max_concurrency` must be at least 1. Got {max_concurrency}.")
    with _Measuring.of(questions, is_right, path, progress) as measuring:
        left = iter(measuring.open)

        async def work() -> None:
            for index in left:
                with measuring.asking(index) as answers:
                    answers.append(await _text_of(ask(measuring.question(index))))

        workers = [asyncio.create_task(work()) for _ in range(min(max_concurrency, len(measuring.open)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return measuring.measured()


def _refuse_awaitable(found: Any) -> None:
    if not inspect.isawaitable(found):
        return
    if inspect.iscoroutine(found):
        found.close()
    raise ConfigurationError(
        "`ask` must answer when it is called: give `engine.query`, or use `await ameasure(engine.aquery, ...)`."
    )


async def _text_of(found: Any) -> str:
    if not inspect.isawaitable(found):
        raise ConfigurationError(
            "`ask` must be asynchronous: give `engine.aquery`, or use `measure(engine.query, ...)`."
        )
    response = await found
    if isinstance(response, AsyncStreamingResponse):
        response = await response.get_response()
    return str(response)


class _Measuring(Generic[R]):
    """Questions that are being asked.

    Attributes:
        open: Indices of those that are still to be asked.
    """

    def __init__(self, questions: list[tuple[str, R]], is_right: Callable[[str, R], bool], file: _File | None) -> None:
        self._questions = questions
        self._is_right = is_right
        self._file = file
        self._rows: dict[int, MeasuredQuestion] = {}
        known, failed = ({}, {}) if file is None else file.read()
        self._failed: dict[int, tuple[Record, ...]] = {}
        seen: Counter[str] = Counter()
        for index, (question, _) in enumerate(questions):
            written = _writable(question)
            if not seen[written]:
                self._failed[index] = tuple(failed.get(written, ()))
            earlier = known.get(written, [])
            if seen[written] < len(earlier):  # the n-th time that it comes
                answer, records = earlier[seen[written]]
                self._rows[index] = self._judged(index, self._row(index, answer, None, records))
            seen[written] += 1
        self.open = [index for index in range(len(questions)) if index not in self._rows]
        self._show: Callable[[_Measuring[R]], None] = lambda _: None

    @classmethod
    @contextmanager
    def of(
        cls, questions: Iterable[tuple[str, R]], is_right: Callable[[str, R], bool], path: Any, progress: bool
    ) -> Iterator[_Measuring[R]]:
        chosen = list(questions)
        if not chosen:
            raise ConfigurationError(
                "`questions` must hold at least one pair of a question and its reference. Got none."
            )
        measuring = cls(chosen, is_right, None if path is None else _File(Path(path)))
        with _bar(len(chosen), progress) as measuring._show:
            measuring._show(measuring)
            yield measuring

    def question(self, index: int) -> str:
        return self._questions[index][0]

    @contextmanager
    def asking(self, index: int) -> Iterator[list[str]]:
        """A question while it is asked: its answer goes into the list; what is raised becomes its row's error."""
        answers: list[str] = []
        error = None
        with trace() as t:
            try:
                yield answers
            except ConfigurationError:
                raise
            except Exception as failure:
                error = kept_of(failure)
            except BaseException as failure:  # it ends the measurement, and what ran was paid for
                self._keep(self._row(index, None, kept_of(failure), t.records))
                raise
        row = self._row(index, answers[0] if answers else None, error, t.records)
        try:
            row = self._judged(index, row)
        finally:
            self._keep(row)
        self._rows[index] = row
        self._show(self)

    def _keep(self, row: MeasuredQuestion) -> None:
        if self._file is not None:
            self._file.append(row)

    def measured(self) -> Measured:
        return Measured(tuple(self._rows[index] for index in sorted(self._rows)))

    def _row(self, index: int, answer: str | None, error: str | None, records: Iterable[Record]) -> MeasuredQuestion:
        """What became of a question, still to be judged."""
        return MeasuredQuestion(self.question(index), answer, None, error, tuple(records), self._failed.get(index, ()))

    def _judged(self, index: int, row: MeasuredQuestion) -> MeasuredQuestion:
        if row.answer is None:
            return row
        try:
            right = self._is_right(row.answer, self._questions[index][1])
        except ConfigurationError:
            raise
        except Exception as failure:
            return replace(row, error=kept_of(failure))
        if inspect.isawaitable(right):
            if inspect.iscoroutine(right):
                right.close()
            raise ConfigurationError("`is_right` must judge when it is called. Got one that is asynchronous.")
        return replace(row, right=bool(right))


class _File:
    """Rows in JSON Lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.open("a").close()  # what cannot be written to shows before the first question is paid for

    def append(self, row: MeasuredQuestion) -> None:
        entry = {
            "question": row.question,
            "answer": row.answer,
            "right": row.right,
            "error": row.error,
            "records": [record.as_dict() for record in row.records],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_writable(json.dumps(entry, ensure_ascii=False)) + "\n")

    def read(self) -> tuple[dict[str, list[tuple[str, tuple[Record, ...]]]], dict[str, list[Record]]]:
        """The answers by question, and the records of each question's failures; a last line that was not finished is
        cut off."""
        found: dict[str, list[tuple[str, tuple[Record, ...]]]] = {}
        failed: dict[str, list[Record]] = {}
        whole = self._path.read_bytes()
        lines = whole.split(b"\n")
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                rows.append((entry["question"], entry["answer"], tuple(map(_record, entry["records"]))))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(f"'{self._path}', line {number}, is not a row of a measurement.") from error
        if lines[-1]:
            with self._path.open("r+b") as file:
                file.truncate(len(whole) - len(lines[-1]))
        for question, answer, records in rows:
            if answer is None:
                failed.setdefault(question, []).extend(records)
            else:
                found.setdefault(question, []).append((answer, records))
        return found, failed


def _writable(text: str) -> str:
    """`text` as UTF-8 can hold it: half a surrogate pair, of an emoji that was cut off, say, becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _record(entry: Mapping[str, Any]) -> Record:
    """What `Record.as_dict` gave."""
    attempts = []
    for each in entry["attempts"]:
        parts: dict[str, Any] = {"steps": tuple(each["steps"])}
        parts["scores"] = {name: _made(Score, score) for name, score in each["scores"].items()}
        parts["usage"], parts["cost"] = _made(Usage, each["usage"]), _made(Cost, each["cost"])
        attempts.append(_made(Attempt, {**each, **parts}))
    return _made(Record, {**entry, "attempts": tuple(attempts)})


def _made(cls: Callable[..., D], entry: Mapping[str, Any]) -> D:
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in entry.items() if name in names})


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[Any], None]]:
    """A bar on the terminal; what shows how far it has come."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    figures = TextColumn("{task.description}")
    columns = (TextColumn("questions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), figures)
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as bars:
        task = bars.add_task("", total=total)

        def show(measuring: Any) -> None:
            measured = measuring.measured()
            told = [] if measured.accuracy is None else [f"{measured.accuracy:.0%} right"]
            told += [f"{measured.errors} failed"] if measured.errors else []
            bars.update(task, completed=len(measured.rows), description=", ".join(told))

        yield show
