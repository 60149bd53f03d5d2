"""Labels as they were bought, one line each, in a file that survives a kill and tells when it was changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from confcascade.errors import ConfigurationError

__all__ = ["Journal", "JournalEntry"]


class JournalEntry(BaseModel):
    """One label.

    Attributes:
        number: The how manieth, from 1.
        place: Of the question in the drawn order.
        question: Its id.
        grades: By model, from 0 to 1; None where nobody could tell, which counts as lost.
        seconds: That it took; None if not known.
        usd: What it cost; likewise.
        chain: sha256 of this line without it, and of the line before: a line changed later is noticed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    number: int = Field(ge=1)
    place: int = Field(ge=0)
    question: str
    grades: Mapping[str, float] | None
    seconds: float | None = Field(default=None, ge=0)
    usd: float | None = Field(default=None, ge=0)
    chain: str = ""

    def chained(self, before: str) -> JournalEntry:
        """With its link to the line before."""
        told = json.dumps(self.model_dump(mode="json", exclude={"chain"}), sort_keys=True)
        return self.model_copy(update={"chain": hashlib.sha256((before + told).encode()).hexdigest()[:16]})


class Journal:
    """Labels beside a policy: read at the start, then appended to, on the disk before more is asked.

    Args:
        path: The file; made with the first line, which says what the labels are for.
        identity: What they are for: recording, models, policies, promise, seed.

    Attributes:
        entries: The labels, in the order in which they were bought.

    Raises:
        ConfigurationError: If the file is of another purpose, or a line was changed or is none.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._head = json.loads(json.dumps(dict(identity)))
        self._chain = hashlib.sha256(json.dumps(self._head, sort_keys=True).encode()).hexdigest()[:16]
        self.entries: list[JournalEntry] = []
        if self.path.exists() and self.path.stat().st_size:
            self._cut_unfinished()
        if self.path.exists() and self.path.stat().st_size:
            self._read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(json.dumps({"labels_for": self._head}))

    def append(self, entries: Iterable[JournalEntry]) -> None:
        """Keep labels that came together, in one write: when this returns, they are on the disk."""
        linked: list[JournalEntry] = []
        for entry in entries:
            linked.append(entry.chained(linked[-1].chain if linked else self._chain))
        self._append("\n".join(each.model_dump_json() for each in linked))
        self._chain = linked[-1].chain
        self.entries += linked

    def _read(self) -> None:
        lines = self._lines()
        _, head = next(lines)
        try:
            was = json.loads(head)["labels_for"]
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"'{self.path}' is no journal of labels; keep labels in another file.") from None
        if was != self._head:
            differs = sorted(name for name in {**was, **self._head} if was.get(name) != self._head.get(name))
            raise ConfigurationError(
                f"'{self.path}' holds labels that were bought otherwise: {', '.join(differs)} "
                f"{'differs' if len(differs) == 1 else 'differ'}. Go on as they were, or keep others in another file: "
                "to change what is promised after labels were seen is to choose by the proof."
            )
        for number, line in lines:
            try:
                entry = JournalEntry.model_validate_json(line)
            except ValidationError as error:
                raise ConfigurationError(
                    f"Line {number} of '{self.path}' is no label: {error.errors()[0]['msg']}."
                ) from error
            if entry.chained(self._chain).chain != entry.chain or entry.number != len(self.entries) + 1:
                raise ConfigurationError(
                    f"Line {number} of '{self.path}' is not as it was written: a label was changed, added or taken "
                    "away. Put the journal back as it was, or begin anew in another file."
                )
            self._chain = entry.chain
            self.entries.append(entry)

    def _lines(self) -> Iterator[tuple[int, str]]:
        with self.path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _cut_unfinished(self) -> None:
        """What a kill has left of a line."""
        with self.path.open("rb+") as file:
            data = file.read()
            if not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
