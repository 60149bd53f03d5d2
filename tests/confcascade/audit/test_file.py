"""The state on disk: shared by processes, whole after a kill, of one promise alone, labelled in order."""

from __future__ import annotations

import datetime
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import pytest
from confcascade import Audit, AuditFile, ConfigurationError
from confcascade.audit.file import DrawnQuery, Guarded
from confcascade.audit.sequential import SequentialTest
from confcascade.guarantee import Certificate, Equivalence, Promise, examine

GUARDED = Guarded("policy", ("small", "large"), "choice", 0.05, {"agreement": 0.02, "accuracy": 0.02})
WORKER = """
import sys
from confcascade import Audit, Cascade, Stage, TokenProbability
from confcascade.testing import Reply, ScriptedModel

path, log, count, wrong = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def hook(state):
    with open(log, "a") as out:
        out.write("alarm\\n")

small = ScriptedModel("small", lambda r: Reply("yes", 0.95 if int(r.messages[-1].content) % 2 else 0.5))
large = ScriptedModel("large", lambda r: "no" if int(r.messages[-1].content) % wrong == 1 else "yes")
stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(large)]
audit = Audit(state=path, rate=1.0, queue=100_000, max_disagreement=0.02, on_alarm=hook)
cascade = Cascade(stages, audit=audit)
print("begun", flush=True)
for i in range(count):
    cascade.run(str(i))
cascade.auditor.wait()
"""


def started(path, count, wrong):
    command = [sys.executable, "-c", WORKER, str(path), str(path) + ".log", str(count), str(wrong)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def recomputed(path, bound):
    """The evidence of the rows, one by one, as the file's test should have it."""
    test = SequentialTest(bound)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT id, differs, log_e_agreement FROM drawn ORDER BY id").fetchall()
    for _, differs, log_e in rows:
        test.observe(differs)
        assert log_e == pytest.approx(test.log_e)
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    return test


def test_processes_that_write_at_once(tmp_path):
    """Nothing is lost and nothing counted twice, the evidence is that of all, and one of them is told of the alarm."""
    path, each = tmp_path / "audit.sqlite", 150
    workers = [started(path, each, 10) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0] * 4

    state = AuditFile(path).state()
    assert (state.queries, state.n, state.audited) == (4 * each, 4 * each, 2 * each)
    assert state.disagreements == 4 * each // 10
    assert state.tests["agreement"].log_e == pytest.approx(recomputed(path, 0.02).log_e)
    assert state.alarms == ("agreement",)
    assert (tmp_path / "audit.sqlite.log").read_text() == "alarm\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_kill_leaves_nothing_half_written(tmp_path):
    """Killed while it writes, beside another that goes on; a third continues."""
    path = tmp_path / "audit.sqlite"
    killed, other = started(path, 100_000, 1_000_000), started(path, 200, 1_000_000)
    assert killed.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 60
    while AuditFile(path).state().n < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert other.wait(120) == 0

    before = AuditFile(path).state()
    assert before.n >= 200
    assert before.tests["agreement"].n == before.n == recomputed(path, 0.02).n
    assert started(path, 50, 1_000_000).wait(60) == 0
    after = AuditFile(path).state()
    assert after.n == before.n + 50 == recomputed(path, 0.02).n
    assert after.since == before.since


FORKED = """
import os, sys
from confcascade import Audit, Cascade, Stage, TokenProbability
from confcascade.testing import Reply, ScriptedModel

small = ScriptedModel("small", lambda r: Reply("yes", 0.95))
stages = [Stage(small, [TokenProbability()], {"p_t": 0.9}), Stage(ScriptedModel("large", lambda r: "yes"))]
cascade = Cascade(stages, audit=Audit(state=sys.argv[1], rate=1.0))
cascade.run("1")
cascade.auditor.wait(10)
child = os.fork()
cascade.run("2" if child else "3")
cascade.auditor.wait(10)
if child:
    os.waitpid(child, 0)
else:
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_audits_too(tmp_path):
    """With a thread and counts of its own; in a process without the threads of other tests, which forks cut off."""
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "a")], check=True, timeout=120)
    state = AuditFile(tmp_path / "a").state()
    assert (state.queries, state.n) == (3, 3)


def test_a_file_guards_one_promise(tmp_path):
    """Another policy, rule or bound is told to take another file; the same goes on."""
    path = tmp_path / "a"
    AuditFile.begin(path, GUARDED).record(DrawnQuery(True), Counter())
    assert AuditFile.begin(path, GUARDED).state().n == 1
    for changed in ({"policy_id": "other"}, {"equivalence": "numeric"}, {"bounds": {"agreement": 0.03}}):
        with pytest.raises(ConfigurationError, match="of another policy, promise or rule"):
            AuditFile.begin(path, Guarded(**{**vars(GUARDED), **changed}))


def test_what_is_no_state(tmp_path):
    """Is told in one line."""
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 100)
    sqlite3.connect(tmp_path / "empty").execute("CREATE TABLE a (b)")
    with pytest.raises(ConfigurationError, match="There is no audit state"):
        AuditFile(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot be read or written"):
        AuditFile(tmp_path / "text")
    with pytest.raises(ConfigurationError, match="is not an audit state"):
        AuditFile(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="database of something else"):
        AuditFile.begin(tmp_path / "empty", GUARDED)
    with pytest.raises(ConfigurationError, match="cannot be read or written"):
        AuditFile.begin(tmp_path / "no folder" / "a", GUARDED)


def test_labels_are_taken_in_the_order_of_the_queries(tmp_path):
    """Whatever the order in which they come, the evidence is that of the queries in order; some stay untold."""
    file = AuditFile.begin(tmp_path / "a", GUARDED)
    for i in range(30):
        file.record(DrawnQuery(True, i % 10 == 9, "hash"), Counter())
    ninth, nineteenth, last = (each.number for each in file.disagreements())
    assert file.state().tests["accuracy"].n == 9

    state = file.feedback(nineteenth, right=False, larger_right=True)
    assert (state.tests["accuracy"].n, state.tests["accuracy"].unlabelled) == (9, 2)
    file.feedback(ninth, right=True, larger_right=False)
    state = file.feedback(last, right=None, larger_right=None)

    test = SequentialTest(0.02, lowest=-1.0)
    for loss in [*[0] * 9, -1, *[0] * 9, 1, *[0] * 9]:
        test.observe(loss)
    told = state.tests["accuracy"]
    assert (told.n, told.loss, told.unlabelled) == (29, 0, 0)
    assert told.log_e == pytest.approx(test.log_e)
    assert file.history("accuracy")[-1] == (29, pytest.approx(test.log_e))
    assert [each.number for each in file.disagreements(labelled=True)] == [ninth, nineteenth, last]
    for number, what in ((ninth, "it has a label already"), (1, "there is none")):
        with pytest.raises(ConfigurationError, match=what):
            file.feedback(number, right=True, larger_right=True)
    with pytest.raises(ConfigurationError, match="Tell both"):
        file.feedback(last, right=True, larger_right=None)


def test_an_empty_state_tells_what_it_does_not_know(tmp_path):
    """No estimate, and an interval of all rates; evidence of 1."""
    state = AuditFile.begin(tmp_path / "a", GUARDED).state()
    assert (state.disagreement, state.low, state.high, state.usd) == (None, 0.0, 1.0, 0.0)
    assert {test.e_value for test in state.tests.values()} == {1.0}
    assert abs(datetime.datetime.now(datetime.UTC).timestamp() - state.since) < 60


def test_evidence_may_grow_beyond_any_float(tmp_path):
    """And is still told as a number."""
    file = AuditFile.begin(tmp_path / "a", GUARDED)
    with file.held_open():
        for _ in range(400):
            file.record(DrawnQuery(True, True, "hash"), Counter())
    test = file.state().tests["agreement"]
    assert test.log_e > 700
    assert math.isfinite(test.e_value)


class Choice:
    name = "choice"

    def __call__(self, question, answer, larger):
        return answer == larger


def certificate(promise):
    return Certificate.of(examine([0.0] * 400, 1.0, promise, "harms"), promise)


def test_what_a_certificate_promises_is_guarded(tmp_path):
    """Of agreement, both tests: less what the rule may overlook; of accuracy, that alone; the state carries it."""
    judged = certificate(Promise(0.02, equivalence=Equivalence("choice", error=0.005)))
    audit = Audit(certificate=judged, same=Choice(), state=tmp_path / "a")
    assert audit.bounds == {"agreement": pytest.approx(0.015), "accuracy": 0.02}
    assert Audit(certificate=certificate(Promise(0.02)), same=Choice()).bounds == {"accuracy": 0.02}
    assert Audit().bounds == {}


def test_a_certificate_that_does_not_fit():
    agreed = certificate(Promise(0.02, equivalence=Equivalence("choice")))
    with pytest.raises(ConfigurationError, match="by 'choice', the audit by 'same text'"):
        Audit(certificate=agreed)
    with pytest.raises(ConfigurationError, match="either the `certificate`, or bounds"):
        Audit(certificate=agreed, same=Choice(), max_drop=0.01)
    with pytest.raises(ConfigurationError, match="about the group 'law' alone"):
        Audit(certificate=certificate(Promise(0.02, group="law")))
