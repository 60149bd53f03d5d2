"""Ask every model every question once, and record what came of it: resumable, within limits and a budget.

Questions are asked one after the other, each of all models (`collect`): whatever ends it early, the questions in the
file are whole, but for the last few, so that a cascade can be replayed on them; and models behind APIs are waited for
while local ones compute. The price is that all local models are in memory together, as they are in the cascade itself;
models that do not fit there together are collected into files of their own, whose rows can be written one after the
other into one.

There is no asynchronous way: calls to APIs wait in threads of `drivers.run_many`, a few dozen at most, and rows are
written by one thread anyway.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from confcascade.asks import Generate
from confcascade.bench.collecting.attempt import CollectOptions, attempt_flow
from confcascade.bench.collecting.rate_limit import CollectStoppedError, RateLimiter, RateLimits
from confcascade.bench.questions.prompts import Prompt, prompt_from
from confcascade.bench.recording.provenance import Noted, bind, identity_of, meta_path
from confcascade.bench.recording.reading import read_rows
from confcascade.bench.recording.row import Row
from confcascade.bench.recording.writer import RecordingWriter
from confcascade.cascade_model import CascadeModel
from confcascade.cost import attempt_cost
from confcascade.drivers import run_many
from confcascade.errors import ConfigurationError
from confcascade.graders import Grader, grader_from_string
from confcascade.graders.example import Example
from confcascade.models.remote import estimated_usage
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import Stage
from confcascade.types import Usage

__all__ = ["AskAll", "Collected", "Ending", "Tally", "collect", "collect_rows", "with_default_signals"]

Ending = Literal["complete", "budget", "stopped", "failing"]
_log = logging.getLogger("confcascade")
_GUESSED_TOKENS = 512  # of an answer, for the budget, until the model has given one


class AskAll(Protocol):
    """Who puts examples to stages' models: `collect_rows`, or another that does as it does."""

    def __call__(
        self,
        pairs: Iterable[tuple[Example, Stage]],
        asking: CollectOptions,
        *,
        max_concurrency: int,
        lines: RateLimiter,
    ) -> Iterator[Row]: ...


@dataclass
class Tally:
    """What one model has answered so far, earlier runs included.

    Attributes:
        wanted: How many questions it is to answer in all.
        n: How many it has answered, or failed to.
        graded: Of these, how many were graded.
        drawn: How often the graded ones were drawn, repeats included.
        right: Sum of their grades, each as often as its question was drawn.
        refused: How many it said not to know.
        errors: How many failed.
        usage: Tokens paid for.
        usd: Their price; None where the stage has no prices.
        seconds: Sum of the latencies of answers.
        dearest_usd: The price of the dearest answer.
        last_error: With what it last failed.
        unscored: By signal, how many of its answers had no score.
        why_unscored: By signal, why the last of these had none.
    """

    wanted: int = 0
    n: int = 0
    graded: int = 0
    drawn: int = 0
    right: float = 0.0
    refused: int = 0
    errors: int = 0
    usage: Usage = field(default_factory=Usage)
    usd: float | None = None
    seconds: float = 0.0
    dearest_usd: float = 0.0
    last_error: str = ""
    unscored: dict[str, int] = field(default_factory=dict)
    why_unscored: dict[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Mean grade of what was graded, over the draws; None if nothing was."""
        return self.right / self.drawn if self.drawn else None

    @property
    def latency_s(self) -> float | None:
        """Mean over the answers; None if there is none."""
        answers = self.n - self.errors
        return self.seconds / answers if answers else None

    def add(self, row: Row, usd: float | None, *, again: bool = False, drawn: int = 1) -> None:
        """Count a row; `again` if it stands in the place of one that failed; `drawn` is how often its question was."""
        self.n += not again
        self.errors += (row.error is not None) - again
        if row.grade is not None:
            self.graded += 1
            self.drawn += drawn
            self.right += drawn * row.grade
        self.refused += row.refused
        self.usage += row.usage
        if usd is not None:
            self.usd = (self.usd or 0.0) + usd
            self.dearest_usd = max(self.dearest_usd, usd)
        self.last_error = row.error or self.last_error
        for name, score in row.scores.items():
            if row.error is None and score.value is None:
                self.unscored[name] = self.unscored.get(name, 0) + 1
                self.why_unscored[name] = str(score.details.get("unavailable", ""))
        if row.error is None:
            self.seconds += row.latency_s or 0.0  # a recording that came from elsewhere may not tell


@dataclass
class Collected:
    """How far collecting has come, and how it ended.

    Attributes:
        tallies: By the name of the model, in the order of the stages.
        ended: "complete", or why not: "budget" (the next call might have cost too much), "stopped" (by `stop`), or
            "failing" (a model failed time after time; see `problem`).
        problem: What it failed with.
        rows: Rows that were added.
        spent_usd: Dollars for all rows in the file, and for the further calls of this run (of signals and graders) to
            models with prices; None where no stage has prices.
        used: Tokens of this run by the name of the model, graders' models included.
    """

    tallies: dict[str, Tally] = field(default_factory=dict)
    ended: Ending = "complete"
    problem: str = ""
    rows: int = 0
    spent_usd: float | None = None
    used: dict[str, Usage] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Rows that are still to be made."""
        return sum(tally.wanted - tally.n for tally in self.tallies.values())


def with_default_signals(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """`stages` as they are asked: models of strings loaded; one without signals, as the last, with the others' P(T).

    A cascade gets none: of tokens of several models it would say nothing.
    That decides nothing in the cascade, but its scores can be a baseline later, or show what it would do elsewhere.
    Its answers are not begun with a `prefix`: those of the last stage of a cascade are not.
    """
    known = {
        signal.name: signal if signal.prefix is None else TokenProbability(signal.labels, name=signal.name)
        for stage in stages
        for signal in stage.signals
        if isinstance(signal, TokenProbability)
    }
    able = [
        stage.model.capability.logprobs is not False and not isinstance(stage.model, CascadeModel) for stage in stages
    ]
    return tuple(
        stage if stage.signals or not logprobs else replace(stage, signals=tuple(known.values()))
        for stage, logprobs in zip(stages, able, strict=True)
    )


def collect_rows(
    pairs: Iterable[tuple[Example, Stage]],
    asking: CollectOptions,
    *,
    max_concurrency: int = 16,
    lines: RateLimiter | None = None,
) -> Iterator[Row]:
    """Rows of examples put to stages' models, as they end: local models in batches, APIs concurrently.

    Pairs are taken as there is room to ask them, and nothing new is asked while a row is being taken: whoever keeps
    each row at once loses only what was under way.

    Args:
        pairs: Each makes one row, if it is not stopped before.
        asking: How they are asked and graded.
        max_concurrency: Most calls to APIs at a time.
        lines: Rate limits, and a way to stop; by default none.
    """
    lines = lines or RateLimiter(max_concurrency=max_concurrency)
    flows = (lines.play(attempt_flow(example, stage, asking)) for example, stage in pairs)
    with closing(run_many(flows, max_concurrency)) as ended:  # type: ignore[type-var]
        for _, row in ended:
            if isinstance(row, Row):
                yield row
            elif not isinstance(row, CollectStoppedError):
                raise row


def collect(
    examples: Iterable[Example],
    stages: Sequence[Stage],
    writer: RecordingWriter | str | Path,
    *,
    prompt: Prompt | str,
    grader: Grader | str,
    max_usd: float | None = None,
    max_concurrency: int = 16,
    rate_limits: Mapping[str, RateLimits] | None = None,
    retry_errors: bool = False,
    give_up_after: int = 20,
    keep_text: bool = True,
    keep_tokens: bool = True,
    keep_thoughts: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[Collected, Row | None], None] | None = None,
    ask_all: AskAll = collect_rows,
    **parameters: Any,
) -> Collected:
    """Record what every stage's model answers to every example, but for what the recording has already.

    Args:
        examples: Questions; one that comes again, with the same id, is asked once, and counts as often (`Row.drawn`).
        stages: Models with the signals to score; thresholds play no part.
        writer: The recording, or its file: each row is appended as it comes, and what is there is not asked again. What
            it is made with is written beside it, as ``FILE.meta.json``; a run that asks otherwise is refused.
        prompt: How questions are put; or the name of one of `PROMPTS`.
        grader: Judges the answers; or its name, as for `grader_from_string`.
        max_usd: No call is begun that would bring the dollars spent beyond this, rows of earlier runs included. Calls
            under way count as much as the model's dearest answer so far, so it is passed only by answers dearer still.
        max_concurrency: Most calls to APIs at a time; to a server that answers fewer at a time, as many as it does.
        rate_limits: What providers allow, by the name of the model.
        retry_errors: Ask again where the recording has an error.
        give_up_after: Errors of one model in a row after which nothing new is begun: its key or its server is at fault.
        keep_text: See `CollectOptions`.
        keep_tokens: See `CollectOptions`.
        keep_thoughts: See `CollectOptions`.
        stop: Once set, what is under way is finished and recorded, and nothing new is begun.
        progress: Called once at the beginning, without a row, and after each row.
        ask_all: Who asks: this process, or `collecting.ray.on_ray` a cluster.
        **parameters: Fields of `Request`, such as ``max_tokens``.

    Raises:
        ConfigurationError: If a stage cannot work, two examples share an id, a price is missing for `max_usd`, or the
            recording was made otherwise.
    """
    prompt = prompt_from(prompt) if isinstance(prompt, str) else prompt
    grader = grader_from_string(grader) if isinstance(grader, str) else grader
    asking = CollectOptions(prompt, grader, parameters, keep_text, keep_tokens, keep_thoughts)
    chosen, drawn = _distinct(examples, asking)
    stages = with_default_signals(stages)
    _check(stages, max_usd)
    with nullcontext(writer) if isinstance(writer, RecordingWriter) else RecordingWriter(writer) as opened:
        _bind(opened, stages, asking, noted=opened is writer)
        lines = RateLimiter(rate_limits, stop, max_concurrency=max_concurrency)
        done = _Budget(stages, max_usd, give_up_after, lines, drawn)
        for row in _drawn_more(opened, drawn):
            opened.append(row)
        failed = done.read(opened, len(chosen))
        pairs = (
            (example, stage)
            for example in chosen
            for stage in stages
            if (key := (example.id, stage.model.name)) not in opened.keys or (retry_errors and key in failed)
        )
        if progress is not None:
            progress(done.state, None)
        while done.goes_on:  # what was held back for the budget may fit in once the calls under way were cheaper
            for row in ask_all(done.admit(pairs, asking), asking, max_concurrency=max_concurrency, lines=done.lines):
                row = row.model_copy(update={"drawn": drawn[row.question]})
                opened.append(row)
                done.take(row, again=row.key in failed)
                failed.discard(row.key)
                if progress is not None:
                    progress(done.state, row)
        done.end()
        return done.state


def _bind(writer: RecordingWriter, stages: Sequence[Stage], asking: CollectOptions, *, noted: bool) -> None:
    """Write down what the recording is made with, or see that it goes on as it began.

    Args:
        writer: Its.
        stages: With their signals.
        asking: How they are asked.
        noted: Whether the caller holds the writer, and may have noted the run already.
    """
    if writer.keys and not meta_path(writer.path).exists():
        _log.warning(
            "'%s' holds rows, but '%s' is not beside it, so how they were asked for is not known. Rows are added, but "
            "`fit` finds no stepwise cascade in it, and a policy of it does not tell how models decoded: for these, "
            "collect into another file.",
            writer.path,
            meta_path(writer.path).name,
        )
        return
    identity = identity_of(None, stages, asking.prompt, asking.grader, asking.parameters)
    run = {"command": ["confcascade.collect"]}
    bind(writer.path, identity, run, Noted.of(stages), prompt=asking.prompt, noted=noted)


def _distinct(examples: Iterable[Example], asking: CollectOptions) -> tuple[list[Example], Counter[str]]:
    """Each once, all of which can be asked (it shows before the first call is paid for), and how often each comes."""
    chosen: dict[str, Example] = {}
    drawn = Counter[str]()
    for example in examples:
        asking.request(example)
        known = chosen.setdefault(example.id, example)
        drawn[example.id] += 1
        if (known.question, known.choices, known.context) != (example.question, example.choices, example.context):
            raise ConfigurationError(
                f"Two examples have the id '{example.id}', and rows cannot tell them apart. Give each its own."
            )
    if not chosen:
        raise ConfigurationError("There is no example to ask.")
    return list(chosen.values()), drawn


def _drawn_more(writer: RecordingWriter, drawn: Mapping[str, int]) -> list[Row]:
    """Answers that the recording has, of questions that have come more often since (in a larger sample, say)."""
    found: dict[tuple[str, str], Row] = {}
    for row in read_rows(writer.path) if max(drawn.values()) > 1 else ():
        if row.error is None and row.drawn < drawn.get(row.question, 1):
            found[row.key] = row
        else:
            found.pop(row.key, None)
    return [row.model_copy(update={"drawn": drawn[row.question]}) for row in found.values()]


def _check(stages: Sequence[Stage], max_usd: float | None) -> None:
    names = [stage.model.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"Collecting needs models of different names. Got {names}.")
    for stage in stages:
        for signal in stage.signals:
            signal.check(stage.model)
    if max_usd is None:
        return
    if not max_usd > 0:
        raise ConfigurationError(f"`max_usd` must be above 0, or None for no cap. Got {max_usd}.")
    for stage in stages:
        if stage.prices is None and not stage.model.capability.local:
            raise ConfigurationError(
                f"With a cap on dollars, the prices of model '{stage.model.name}' must be known. "
                "Give its stage `prices`, 0 if it costs nothing."
            )


class _Budget:
    """Decides whether the next question may be asked, and keeps the tally."""

    def __init__(
        self,
        stages: Sequence[Stage],
        max_usd: float | None,
        give_up_after: int,
        lines: RateLimiter,
        drawn: Mapping[str, int],
    ) -> None:
        self.lines = lines
        self.state = Collected(tallies={stage.model.name: Tally() for stage in stages}, used=lines.used)
        self._prices = {stage.model.name: stage.prices for stage in stages}
        self._max_usd = max_usd
        self._give_up_after = give_up_after
        self._drawn = drawn
        self._earlier_usd = 0.0
        self._open: dict[tuple[str, str], float] = {}  # what is under way, with the dollars it may cost
        self._held: tuple[Example, Stage] | None = None  # for the budget
        self._errors_in_a_row = dict.fromkeys(self._prices, 0)
        self._begun: int | None = None  # in this round

    def read(self, writer: RecordingWriter, wanted: int) -> set[tuple[str, str]]:
        """Count what the recording has; gives the keys of the rows that failed."""
        failed: set[tuple[str, str]] = set()
        counted: set[tuple[str, str]] = set()
        for tally in self.state.tallies.values():
            tally.wanted = wanted
        for row in read_rows(writer.path):
            usd = self._usd(row.model, row.usage)
            if row.key in failed or row.key not in counted:  # else it was paid for before
                self._earlier_usd += usd or 0.0
            mine = row.model in self._prices and row.question in self._drawn
            if mine and (row.key in failed or row.key not in counted):
                times = self._drawn[row.question]
                self.state.tallies[row.model].add(row, usd, again=row.key in failed, drawn=times)
            counted.add(row.key)
            (failed.add if row.error is not None else failed.discard)(row.key)
        self.state.spent_usd = self._spent()
        return failed

    @property
    def goes_on(self) -> bool:
        """Whether there may be something left that can be asked now."""
        if self.state.ended not in ("complete", "budget"):
            return False
        return self._begun is None or (self._begun > 0 and self._held is not None)

    def admit(self, pairs: Iterator[tuple[Example, Stage]], asking: CollectOptions) -> Iterator[tuple[Example, Stage]]:
        """The pairs that may be asked, until something speaks against the next."""
        self._begun, self.state.ended = 0, "complete"
        while (pair := self._held or next(pairs, None)) is not None:
            self._held = pair
            if self.lines.stop.is_set():
                self.state.ended = "stopped"
                return
            if self.state.problem:
                self.state.ended = "failing"
                return
            usd = self._may_cost(pair, asking)
            if self._max_usd is not None and (self._spent() or 0.0) + sum(self._open.values()) + usd > self._max_usd:
                self.state.ended = "budget"
                return
            self._held = None
            self._begun += 1
            self._open[pair[0].id, pair[1].model.name] = usd
            yield pair

    def end(self) -> None:
        """Say why, if what had been admitted was not all asked, or all was and the last of it failed."""
        if self.state.ended == "complete" and (self.state.left or self.state.problem):
            self.state.ended = "stopped" if self.lines.stop.is_set() else "failing"

    def take(self, row: Row, *, again: bool) -> None:
        """Count a new row."""
        self._open.pop(row.key, None)
        self.state.rows += 1
        usd = self._usd(row.model, row.usage)
        self.state.tallies[row.model].add(row, usd, again=again, drawn=row.drawn)
        self.state.spent_usd = self._spent()
        unpriced = [] if self._max_usd is None else [model for model in self.lines.used if model not in self._prices]
        if unpriced:
            self.state.problem = (
                f"The grader or a signal asks model '{unpriced[0]}', whose prices are not known, so a cap on dollars "
                "cannot be kept. Collect without one, or let it ask a model of the cascade with prices"
            )
        failures = self._errors_in_a_row[row.model] + 1 if row.error is not None else 0
        self._errors_in_a_row[row.model] = failures
        if failures == self._give_up_after:  # those that were under way may fail too
            self.state.problem = f"Model '{row.model}' failed {failures} times in a row, at last with {row.error}"
        self.lines.given_up = bool(self.state.problem)

    def _usd(self, model: str, usage: Usage) -> float | None:
        return attempt_cost(usage, 0.0, None, self._prices.get(model)).usd

    def _spent(self) -> float | None:
        if not any(self._prices.values()):
            return None
        now = [self._usd(model, usage) or 0.0 for model, usage in self.lines.used.items()]
        return self._earlier_usd + sum(now)

    def _may_cost(self, pair: tuple[Example, Stage], asking: CollectOptions) -> float:
        """Dollars for one more row: as much as the dearest yet; before there is one, by the length of the prompt."""
        example, stage = pair
        if self._max_usd is None or stage.prices is None:
            return 0.0
        if dearest := self.state.tallies[stage.model.name].dearest_usd:
            return dearest
        request = asking.request(example)
        guess = estimated_usage(Generate(stage.model, request), "", ())
        guess += Usage(0, request.max_tokens or _GUESSED_TOKENS)
        return self._usd(stage.model.name, guess) or 0.0
