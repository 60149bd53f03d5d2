"""What models answered, one row for each question and model, as JSON Lines that survive a kill.

A file is only ever appended to. A row is one line, written by one call, and counts once its newline is there: a
reader drops an unfinished last line, a writer cuts it off before it adds another.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from confcascade.asks import Flow
from confcascade.errors import ConfigurationError, SignalUnavailableError
from confcascade.signals import Evidence, Signal
from confcascade.types import Token, Usage

__all__ = [
    "RecordedScore",
    "RecordingWriter",
    "Row",
    "is_recording",
    "judged_score",
    "part_paths",
    "read_rows",
    "recorded_score",
]


class RecordedScore(BaseModel):
    """What one signal made of one attempt.

    Attributes:
        value: In the signal's own space, higher = more likely right; None if it could not be computed.
        phase: "pre" is judged before anything is generated, "post" by the answer.
        prefill: Whether the model reads the prompt for it in a pass of its own, which is paid for even where the signal
            fails (a hidden state, say; a router of texts needs no model).
        upper: Where a signal can decide early: (tokens, bound) each time the greatest value that it can still reach
            falls, tokens being those generated so far. A draft ends where the bound falls below the threshold.
        details: Further figures of the signal's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float | None
    phase: Literal["pre", "post"] = "post"
    prefill: bool = False
    upper: tuple[tuple[int, float], ...] = ()
    details: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounds_fall(self) -> RecordedScore:
        for (before, high), (after, low) in zip(self.upper, self.upper[1:], strict=False):
            if not (before < after and low < high):
                raise ValueError("`upper` must rise in tokens and fall in bounds")
        if self.upper and self.phase == "pre":
            raise ValueError("a signal of the phase 'pre' has no `upper`: it is judged before the first token")
        if self.upper and self.upper[0][0] < (0 if self.prefill else 1):
            raise ValueError("`upper` begins with the first token (1), or with the prompt (0) where `prefill` is true")
        if self.upper and self.value is not None and self.value > self.upper[-1][1]:
            raise ValueError(f"`value` {self.value} lies above its last upper bound {self.upper[-1][1]}")
        return self


class Row(BaseModel):
    """One model's attempt at one question.

    Attributes:
        format: Of the row.
        question: Its id; with `model` the key of the row. Of rows with the same key the last holds.
        model: By which stages name it.
        group: What the figures are also told by (a subject, say).
        prompt: What was asked, if it is to be kept.
        reference: The right answer, if it is to be kept.
        answer: The text; empty if there was none.
        grade: How right it is, from 0 to 1; None if nobody graded it.
        refused: It says that it does not know; counted apart from a wrong answer.
        predicted: The answer as its grader read it (a letter, a number), if it did.
        error: Why the model failed, if it did. There is no answer then.
        finish_reason: As in `Response`.
        tokens: Of the answer, which their texts add up to, with log-probabilities; None where the model tells none, or
            they were not kept.
        labels: Log-probability that the answer begins with each label, read off the prompt (`Prefilled`).
        scores: By the name of the signal.
        usage: Tokens paid for.
        latency_s: Seconds from asking to the end of the answer; of a call for many questions, this one's share; None if
            unknown.
        prefill_s: Those of them for reading the prompt; None if unknown.
        build: The model's exact build (fingerprint, revision, date), if known.
        prompt_version: Which prompt was used, if there are several.
        drawn: How often the question was drawn, at least 1: it was asked once, and its row counts so many times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    question: str = Field(min_length=1)
    model: str = Field(min_length=1)
    group: str | None = None
    prompt: str | None = None
    reference: str | None = None
    answer: str = ""
    grade: float | None = Field(default=None, ge=0, le=1)
    refused: bool = False
    predicted: str | None = None
    error: str | None = None
    finish_reason: str | None = "stop"
    tokens: tuple[Token, ...] | None = None
    labels: Mapping[str, float] = Field(default_factory=dict)
    scores: Mapping[str, RecordedScore] = Field(default_factory=dict)
    usage: Usage = Usage()
    latency_s: float | None = Field(default=None, ge=0)
    prefill_s: float | None = Field(default=None, ge=0)
    build: str | None = None
    prompt_version: str | None = None
    drawn: int = Field(default=1, ge=1)

    @property
    def key(self) -> tuple[str, str]:
        """The question and the model."""
        return self.question, self.model

    @property
    def usable(self) -> bool:
        """Whether there is an answer that a cascade could keep."""
        return self.error is None and bool(self.answer.strip())

    def line(self) -> bytes:
        """As it stands in a file: UTF-8 JSON, values that are the default's left out, and a newline.

        Half a surrogate pair, of an emoji that a model was cut off in, say, cannot stand there: it becomes U+FFFD.
        """
        try:
            return self.model_dump_json(exclude_defaults=True).encode() + b"\n"
        except PydanticSerializationError:
            told = json.dumps(self.model_dump(exclude_defaults=True), ensure_ascii=False, separators=(",", ":"))
            return re.sub("[\ud800-\udfff]", "\ufffd", told).encode() + b"\n"


def recorded_score(signal: Signal, evidence: Evidence, *, prefill: bool = False) -> RecordedScore:
    """What `signal` makes of a finished attempt, with the bounds that it would have given along the way.

    Args:
        signal: One that needs no further calls; `judged_score` takes any.
        evidence: The whole attempt: what was prefilled, the tokens and the response.
        prefill: Whether the prompt is read in a pass of its own for this signal: as in the flow, because it names
            layers, or labels that the model can tell from the prompt.

    Returns:
        Its score; `RecordedScore.value` is None, and the detail ``unavailable`` says why, if it cannot be computed.

    Raises:
        ConfigurationError: If the signal asks for a further call.
    """
    flow = judged_score(signal, evidence, prefill=prefill)
    try:
        next(flow)
    except StopIteration as ended:
        score: RecordedScore = ended.value
        return score
    raise ConfigurationError(f"Signal '{signal.name}' needs further calls of a model; `collect` records such scores.")


def judged_score(signal: Signal, evidence: Evidence, *, prefill: bool = False) -> Flow[RecordedScore]:
    """`recorded_score` as a flow, which asks for the further calls that a signal may need."""
    upper: list[tuple[int, float]] = []
    if not prefill:  # another signal's pass is not its own
        evidence = replace(evidence, prefilled=None)
    if signal.phase == "post" and signal.early:
        tokens, least = evidence.tokens or (), signal.space[1]
        for count in range(0 if prefill else 1, len(tokens) + 1):
            _, high = signal.bounds(Evidence(evidence.request, evidence.prefilled, tuple(tokens[:count])))
            if high < least or (count, high) == (0, least):
                upper.append((count, high))
                least = high
    value: float | None = None
    details: Mapping[str, Any] = {}
    try:
        measured = yield from signal.judge(evidence)
        value, details = measured.value, measured.details
    except SignalUnavailableError as error:
        details = {"unavailable": str(error)}
    return RecordedScore(value=value, phase=signal.phase, prefill=prefill, upper=tuple(upper), details=details)


def part_paths(path: str | Path) -> list[Path]:
    """The files of a recording, in the order of their names: those in a folder, or the one file.

    Raises:
        ConfigurationError: If there is none.
    """
    path = Path(path)
    found = (
        sorted(each for each in path.iterdir() if each.suffix in (".parquet", ".jsonl")) if path.is_dir() else [path]
    )
    if not found or not path.exists():
        raise ConfigurationError(f"'{path}' is no recording: neither a file nor a folder of .parquet or .jsonl files.")
    return found


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a recording, one at a time, whatever its size.

    An unfinished last line is left out: its writer was killed, or is still writing.

    Args:
        path: JSON Lines, Parquet if it ends with ".parquet", or a folder of such files.

    Raises:
        ConfigurationError: If there is none, or, naming the line, if one is no row.
    """
    for part in part_paths(path):
        if part.suffix == ".parquet":
            from confcascade.evaluation.parquet import read_parquet

            yield from read_parquet(part)
        else:
            yield from _read_lines(part)


def _read_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Row.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"])
                raise ConfigurationError(
                    f"Line {number} of '{path}' is no row of a recording: {where}{first['msg']}."
                ) from error


def is_recording(path: str | Path) -> bool:
    """Whether a file or folder begins with the row of a recording: where questions are welcome, too."""
    try:
        first = part_paths(path)[0]
    except ConfigurationError:
        return False
    if first.suffix == ".parquet":  # no questions are read from there
        return True
    with first.open("rb") as file:
        line = file.readline()
    try:
        Row.model_validate_json(line)
    except ValidationError:
        return False
    return True


class RecordingWriter:
    """Appends rows to a recording; one writer at a time.

    A row is handed to the operating system by the time `append` returns, so killing the process loses none. The disk
    is told to keep them (fsync) at most every `sync_every_s` seconds, and by `close`: what a power cut can lose.

    Args:
        path: The file; made if missing. An unfinished last line is cut off.
        sync_every_s: Seconds between two fsyncs; 0 makes one for every row.

    Attributes:
        keys: (question, model) of every row in the file, so that a collect that was killed goes on where it was.

    Raises:
        ConfigurationError: If the file is no recording or a Parquet file, or another writer has it open.
    """

    def __init__(self, path: str | Path, *, sync_every_s: float = 1.0) -> None:
        self.path = Path(path)
        if self.path.suffix == ".parquet":
            raise ConfigurationError(
                f"'{path}' cannot be appended to: Parquet is written whole. Record to a .jsonl file, and convert it."
            )
        self._sync_every_s = sync_every_s
        self._synced = time.monotonic()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._fd, self.path)
            self.keys = {row.key for row in read_rows(self.path)}  # first: what is no recording is left as it is
            _cut_unfinished_line(self._fd, self.path)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, row: Row) -> None:
        """Add a row.

        Raises:
            OSError: If it could not be written whole (a full disk, say); what was written of it is taken away.
        """
        line = row.line()
        end = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)  # all or, of a full disk, a part: it raises only if nothing was written
        if written != len(line):
            os.ftruncate(self._fd, end)
            raise OSError(f"Only {written} of the {len(line)} bytes of a row could be written to '{self.path}'.")
        self.keys.add(row.key)
        if time.monotonic() - self._synced >= self._sync_every_s:
            self.sync()

    def sync(self) -> None:
        """Have the disk keep all rows, come what may."""
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def close(self) -> None:
        """`sync`, and let others write."""
        if self._fd >= 0:
            try:
                self.sync()
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(fd: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: there, keeping to one writer is the user's part
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(f"'{path}' is being written by another process or writer.") from error


def _cut_unfinished_line(fd: int, path: Path) -> None:
    end = size = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - 65_536)
        os.lseek(fd, begin, os.SEEK_SET)
        newline = os.read(fd, end - begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.lseek(fd, end, os.SEEK_SET)
        if not _begins_a_row(os.read(fd, size - end)):
            raise ConfigurationError(f"'{path}' is no recording, and is left as it is. Record to another file.")
        os.ftruncate(fd, end)


def _begins_a_row(line: bytes) -> bool:
    """Whether a line without a newline may be what a kill has left of a row, and not somebody's only line."""
    try:
        Row.model_validate_json(line)
    except ValidationError as error:
        begun, first = line[:64].replace(b" ", b""), b'{"question":'
        broken = error.errors()[0]["type"] == "json_invalid"
        return broken and (begun.startswith(first) or first.startswith(begun))
    return True
