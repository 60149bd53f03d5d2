"""The state of an audit: one SQLite file, shared by threads and processes, that no kill leaves half written.

A drawn query is one transaction: its row, the counts and the tests change together or not at all.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.audit.sequential import SequentialTest, rate_interval
from confcascade.audit.state import AuditState, AuditTest, Disagreement, TestName
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["AuditFile", "DrawnQuery", "Guarded"]

FORMAT = 1
_BUSY_S = 30.0  # how long to wait for another process's transaction
_TABLES = """
CREATE TABLE IF NOT EXISTS guarded (format INTEGER NOT NULL, since REAL NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS drawn (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, audited INTEGER NOT NULL, differs INTEGER NOT NULL,
    question_hash TEXT, texts TEXT, labelled INTEGER NOT NULL DEFAULT 0, loss INTEGER,
    log_e_agreement REAL, log_e_accuracy REAL
);
CREATE INDEX IF NOT EXISTS of_unlabelled ON drawn (id) WHERE differs AND NOT labelled;
CREATE TABLE IF NOT EXISTS calls (at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tests (
    name TEXT PRIMARY KEY, reached INTEGER NOT NULL, n INTEGER NOT NULL, loss REAL NOT NULL, log_wealth TEXT,
    log_e REAL NOT NULL, alarm_at REAL, told INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True)
class Guarded:
    """What an audit is of; a file holds one, and answers to no other.

    Attributes:
        policy_id: Of the cascade.
        models: Its stages' names.
        equivalence: The rule by which answers are the same.
        false_alarms: See `AuditState`.
        bounds: By test, what is promised.
        certificate: As JSON.
    """

    policy_id: str
    models: tuple[str, ...]
    equivalence: str
    false_alarms: float
    bounds: Mapping[TestName, float]
    certificate: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DrawnQuery:
    """A drawn query as the tests count it.

    Attributes:
        audited: Whether the answer was kept, and so compared.
        differs: Whether it differs from the largest model's.
        question_hash: Of a query that differs.
        texts: Question, kept answer and the largest model's, where these are to be stored.
    """

    audited: bool
    differs: bool = False
    question_hash: str | None = None
    texts: tuple[str, str, str] | None = None


class AuditFile:
    """The state of an audit on disk: to look at it, and to tell who was right where two answers differ.

    Args:
        path: Of a file that an audit wrote.

    Raises:
        ConfigurationError: If it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigurationError(f"There is no audit state at '{path}'. A cascade with `audit=...` writes one.")
        with self._open() as db:
            found = db.execute("SELECT name FROM sqlite_master WHERE name = 'guarded'").fetchone()
            row = db.execute("SELECT format, since, told FROM guarded").fetchone() if found else None
        if row is None or row[0] != FORMAT:
            raise ConfigurationError(f"'{path}' is not an audit state, or is of another version of confcascade.")
        told = json.loads(row[2])
        self.since: float = row[1]
        self.guarded = Guarded(**{**told, "models": tuple(told["models"])})

    def __repr__(self) -> str:
        return f"AuditFile({str(self.path)!r})"

    @classmethod
    def begin(cls, path: str | Path, guarded: Guarded) -> AuditFile:
        """The file of an audit: made if there is none, continued if it is of the same.

        Raises:
            ConfigurationError: If it is of another policy, promise or rule, or cannot be written.
        """
        path = Path(path)
        told = json.dumps(asdict(guarded))
        with _opened(path) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "guarded" not in tables:
                raise ConfigurationError(f"'{path}' is a database of something else. Give the audit a file of its own.")
            db.execute("PRAGMA journal_mode = WAL")  # readers do not stop writers
            with _writing(db):
                for statement in _TABLES.split(";\n"):
                    db.execute(statement)
                if db.execute("SELECT 1 FROM guarded").fetchone() is None:
                    db.execute("INSERT INTO guarded VALUES (?, ?, ?)", (FORMAT, time.time(), told))
                    names = [(name, "[]") for name in guarded.bounds]
                    db.executemany("INSERT INTO tests VALUES (?, 0, 0, 0, ?, 0, NULL, 0)", names)
        file = cls(path)
        if json.loads(json.dumps(asdict(file.guarded))) != json.loads(told):
            raise ConfigurationError(
                f"The audit state '{path}' is of another policy, promise or rule of equivalence "
                f"(policy {file.guarded.policy_id}, '{file.guarded.equivalence}'), and what it has seen says nothing "
                "about this one. Give another file."
            )
        return file

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """While there is much to write: SQLite tidies up when the last connection is closed, which takes its time."""
        with ExitStack() as stack:
            with suppress(ConfigurationError):  # each write says so itself
                stack.enter_context(self._open()).execute("SELECT format FROM guarded")
            yield

    # ------------------------------------------------------------------ writing

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the counts."""
        if any(counts.values()):
            with self._open() as db, _writing(db):
                _add(db, counts)

    def record(self, judged: DrawnQuery, counts: Mapping[str, int]) -> None:
        """Take the next drawn query into the tests."""
        now = time.time()
        with self._open() as db, _writing(db):
            _add(db, counts)
            row = (now, judged.audited, judged.differs, judged.question_hash)
            texts = None if judged.texts is None else json.dumps(judged.texts)
            db.execute(
                "INSERT INTO drawn (at, audited, differs, question_hash, texts) VALUES (?, ?, ?, ?, ?)", (*row, texts)
            )
            _add(db, {"n": 1, "audited": int(judged.audited), "disagreements": int(judged.differs)})
            for name in self.guarded.bounds:
                self._advance(db, name, now)

    def called(self, *, since: float) -> None:
        """Note a call of the largest model, and forget those before `since`."""
        with self._open() as db, _writing(db):
            db.execute("DELETE FROM calls WHERE at < ?", (since,))
            db.execute("INSERT INTO calls VALUES (?)", (time.time(),))

    def feedback(self, number: int, *, right: bool | None, larger_right: bool | None) -> AuditState:
        """Tell who was right where two answers differ; what agrees needs no label.

        The test of accuracy takes queries in the order in which they were drawn, and waits at the first disagreement
        without a label.

        Args:
            number: Of the `Disagreement`.
            right: Whether the kept answer is right; with `larger_right` None if nobody can tell, which leaves the
                query out.
            larger_right: Whether the largest model's is.

        Raises:
            ConfigurationError: If there is no such disagreement, one of the two alone is told, or it was told before.
        """
        if (right is None) != (larger_right is None):
            raise ConfigurationError("Tell both, `right` and `larger_right`, or None for both if nobody can tell.")
        loss = None if right is None or larger_right is None else int(larger_right) - int(right)
        with self._open() as db, _writing(db):
            row = db.execute("SELECT labelled FROM drawn WHERE id = ? AND differs", (number,)).fetchone()
            if row is None or row[0]:
                what = "it has a label already" if row else "there is none"
                raise ConfigurationError(f"No label is wanted for disagreement {number}: {what}.")
            db.execute("UPDATE drawn SET labelled = 1, loss = ? WHERE id = ?", (loss, number))
            if "accuracy" in self.guarded.bounds:
                self._advance(db, "accuracy", time.time())
        return self.state()

    def _advance(self, db: Connection, name: TestName, now: float) -> None:
        """Let a test take the drawn queries that it has not, as far as it can."""
        reached, n, total, wealth, alarm_at = db.execute(
            "SELECT reached, n, loss, log_wealth, alarm_at FROM tests WHERE name = ?", (name,)
        ).fetchone()
        accuracy = name == "accuracy"
        test = SequentialTest(
            self.guarded.bounds[name],
            lowest=-1.0 if accuracy else 0.0,
            n=n,
            log_wealth=[-math.inf if value is None else value for value in json.loads(wealth)] or None,
        )
        # the test of accuracy waits for the first label that is missing
        unlabelled = "SELECT id FROM drawn WHERE differs AND NOT labelled ORDER BY id LIMIT 1"
        stop = db.execute(unlabelled).fetchone() if accuracy else None
        rows = db.execute(
            "SELECT id, differs, loss FROM drawn WHERE id > ? AND id < ? ORDER BY id",
            (reached, stop[0] if stop else math.inf),
        )
        for id_, differs, loss in rows.fetchall():
            reached = id_
            if accuracy and differs and loss is None:
                continue
            value = (loss if accuracy else 1) if differs else 0
            test.observe(value)
            total += value
            db.execute(f"UPDATE drawn SET log_e_{name} = ? WHERE id = ?", (test.log_e, id_))
            if alarm_at is None and test.log_e >= -math.log(self.guarded.false_alarms):
                alarm_at = now
        finite = [None if value == -math.inf else value for value in test.log_wealth]
        db.execute(
            "UPDATE tests SET reached = ?, n = ?, loss = ?, log_wealth = ?, log_e = ?, alarm_at = ? WHERE name = ?",
            (reached, test.n, total, json.dumps(finite), test.log_e, alarm_at, name),
        )

    def untold_alarms(self) -> int:
        """How many alarms nobody was told of yet; each is counted for one caller alone."""
        with self._open() as db:
            untold = "FROM tests WHERE alarm_at IS NOT NULL AND NOT told"
            if not db.execute(f"SELECT count(*) {untold}").fetchone()[0]:  # mostly so, and without a transaction
                return 0
            with _writing(db):
                found: int = db.execute(f"SELECT count(*) {untold}").fetchone()[0]
                db.execute("UPDATE tests SET told = 1 WHERE alarm_at IS NOT NULL")
        return found

    # ------------------------------------------------------------------ reading

    def spent(self, since: float) -> tuple[int, float | None]:
        """Calls noted by `called` since then (in seconds since 1970), and dollars in all; None if not known."""
        with self._open() as db:
            counts = dict(db.execute("SELECT name, value FROM counts").fetchall())
            calls = db.execute("SELECT count(*) FROM calls WHERE at >= ?", (since,)).fetchone()[0]
        return calls, _usd(counts)

    def state(self) -> AuditState:
        """Where the audit stands."""
        with self._open() as db, _reading(db):
            counts = Counter(dict(db.execute("SELECT name, value FROM counts").fetchall()))
            rows = db.execute("SELECT name, n, loss, log_e, alarm_at FROM tests").fetchall()
            unlabelled = db.execute("SELECT count(*) FROM drawn WHERE differs AND NOT labelled").fetchone()[0]
        bounds = self.guarded.bounds
        tests: dict[TestName, AuditTest] = {
            name: AuditTest(bounds[name], n, loss, log_e, alarm_at, unlabelled if name == "accuracy" else 0)
            for name, n, loss, log_e, alarm_at in rows
        }
        low, high = rate_interval(counts["disagreements"], counts["n"])
        told = "queries", "kept", "n", "audited", "disagreements", "dropped", "skipped", "failed"
        return AuditState(
            policy_id=self.guarded.policy_id,
            models=self.guarded.models,
            equivalence=self.guarded.equivalence,
            since=self.since,
            low=low,
            high=high,
            usd=_usd(counts),
            false_alarms=self.guarded.false_alarms,
            tests=tests,
            certificate=self.guarded.certificate,
            **{name: counts[name] for name in told},
        )

    def disagreements(self, *, labelled: bool = False) -> list[Disagreement]:
        """Those that wait for a label, oldest first; or those that have one."""
        query = "SELECT id, at, question_hash, texts FROM drawn WHERE differs AND labelled = ? ORDER BY id"
        with self._open() as db:
            rows = db.execute(query, (labelled,)).fetchall()
        return [
            Disagreement(id_, at, hashed, None if texts is None else tuple(json.loads(texts)))
            for id_, at, hashed, texts in rows
        ]

    def history(self, name: TestName) -> list[tuple[int, float]]:
        """How the evidence grew: the number of each drawn query that the test has counted, and log_e after it."""
        with self._open() as db:
            column = f"log_e_{'accuracy' if name == 'accuracy' else 'agreement'}"
            query = f"SELECT id, {column} FROM drawn WHERE {column} IS NOT NULL ORDER BY id"
            return [(id_, log_e) for id_, log_e in db.execute(query).fetchall()]

    def _open(self) -> Any:
        return _opened(self.path)


def _add(db: Connection, counts: Mapping[str, int]) -> None:
    added = [(name, value) for name, value in counts.items() if value]
    adding = "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
    db.executemany(adding, added)


def _usd(counts: Mapping[str, int]) -> float | None:
    return None if counts.get("unpriced") else counts.get("nano_usd", 0) / 1e9


@contextmanager
def _opened(path: Path) -> Iterator[Connection]:
    """A connection of this call's own: SQLite's belong to one thread, and do not survive a fork."""
    import sqlite3  # here, for `import confcascade` to stay light

    try:
        db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = NORMAL")  # what a killed process has committed stays
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise ConfigurationError(f"The audit state '{path}' cannot be read or written: {error}.") from error


@contextmanager
def _writing(db: Connection) -> Iterator[None]:
    """A transaction that has the file to itself from the start, so that what it reads is what it changes."""
    with _transaction(db, "BEGIN IMMEDIATE"):
        yield


@contextmanager
def _reading(db: Connection) -> Iterator[None]:
    """All reads see the same state."""
    with _transaction(db, "BEGIN"):
        yield


@contextmanager
def _transaction(db: Connection, begin: str) -> Iterator[None]:
    db.execute(begin)
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
