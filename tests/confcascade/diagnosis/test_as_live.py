"""What the screen of a check says a cascade will do is what that cascade does, whatever its provider does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("openai")

from confcascade.cascade_file import CascadeFile
from confcascade.cli import app
from typer.testing import CliRunner

from ...providers import BEHAVIOURS

QUESTION = "Name three colours."
SIGNALS = {
    "judged whole": "{type: p_t}",
    "judged as it comes": "{type: p_t, aggregate: min}",
}


@pytest.fixture
def cascade_file(provider, tmp_path: Path, monkeypatch):
    """The path of a cascade over a server of a behaviour and an ordinary one, judged by a signal."""
    monkeypatch.setenv("COLUMNS", "80")

    def make(signal: str, **behaviour) -> Path:
        urls = [provider(**each)[1] for each in (behaviour, {})]
        timeout = 0.3 if behaviour.get("hangs_s") else 10
        first, second = (
            f"{{openai: m, name: {name}, base_url: '{url}', timeout_s: {limit}, max_retries: 0}}"
            for name, url, limit in zip(("small", "large"), urls, (timeout, 10), strict=True)
        )
        path = tmp_path / "cascade.yaml"
        path.write_text(f"models: [{first}, {second}]\nsignals: [{signal}]\nthreshold: 0.5\n")
        return path

    return make


class Screen:
    """What `confcascade check` shows of the first stage, as an engineer reads it."""

    def __init__(self, path: Path) -> None:
        done = CliRunner().invoke(app, ["check", str(path)])
        assert done.exit_code in (0, 1), done.output
        self.lines, self.code = done.stdout.splitlines(), done.exit_code
        stage = done.stdout.partition("\n\n")[0]
        begun = re.search(r"^  (?:fails|warning|note)  ", stage, re.MULTILINE)
        rows, self.findings = (
            re.sub(r"\s+", " ", part)
            for part in ((stage, "") if begun is None else (stage[: begun.start()], stage[begun.start() :]))
        )
        self.title = rows.partition(" answers ")[0]
        self.so_it = rows.partition(" so it ")[2].strip()
        score = re.search(r" score p_t ([^\s,]+)", rows)
        self.score = None if score is None or score[1] == "none" else float(score[1])

    def says(self, *, streamed: bool) -> str:
        """The decision on an answer like the one that was checked."""
        at_once, _, of_streams = self.so_it.partition("; ")
        if streamed and "in a stream" in of_streams:
            at_once = of_streams.removeprefix("in a stream ")
        if at_once.startswith(("its queries escalate", "queries that come to it fail")):
            return "fail"
        if at_once.startswith("every query escalates") or "Such answers escalate, whatever" in self.findings:
            return "escalate"
        least = float(re.fullmatch(r"keeps an answer with p_t >= (\S+), else escalates to 'large'", at_once)[1])
        return "accept" if self.score is not None and self.score >= least else "escalate"


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_it_does_what_the_screen_says(cascade_file, name, signal):
    """Whole and streamed, of an answer judged when it is whole or as it comes; and the screen fits 80 columns."""
    path = cascade_file(SIGNALS[signal], **BEHAVIOURS[name])
    screen = Screen(path)
    cascade = CascadeFile.load(path).cascade()
    whole = cascade.run(QUESTION)
    *_, streamed = cascade.stream(QUESTION)

    decisions = [outcome.record.attempts[0].decision for outcome in (whole, streamed)]
    if "decisions can differ" in screen.findings:
        assert name == "others when streamed"
        assert decisions == ["accept" if signal == "judged whole" else "escalate", "escalate"]
    else:
        assert decisions == [screen.says(streamed=False), screen.says(streamed=True)]
    assert (whole.record.answered_by, streamed.record.answered_by) == tuple(
        "small" if decision == "accept" else "large" for decision in decisions
    )
    assert screen.code == ("cannot work" in screen.title)
    assert screen.code == (decisions[0] != "accept" and "unusable" not in name and " fails " in f" {screen.findings} ")
    assert max(map(len, screen.lines)) <= 80
    assert not [line for line in screen.lines if line.strip() in {"'", "`", ".", "})."}]


def test_where_an_error_is_raised_streams_fail(cascade_file):
    """`on_error: raise` is part of what is said."""
    path = cascade_file("{type: p_t}", refuses=("stream",))
    path.write_text(path.read_text() + "on_error: raise\n")

    assert Screen(path).so_it.endswith("; streams that come to it fail")
    cascade = CascadeFile.load(path).cascade()
    assert cascade.run(QUESTION).record.answered_by == "small"
    with pytest.raises(Exception, match="stream"):
        list(cascade.stream(QUESTION))


@pytest.mark.parametrize(
    ("threshold", "said", "decision"),
    [
        ("always", "keeps every usable answer, else escalates to 'large'", "accept"),
        ("never", "every query escalates to 'large'", "escalate"),
    ],
)
def test_thresholds_that_are_words(cascade_file, threshold, said, decision):
    """They ask for no score, and their sentence names none."""
    path = cascade_file("{type: p_t}")
    path.write_text(path.read_text().replace("threshold: 0.5", f"threshold: {threshold}"))

    assert Screen(path).so_it.partition(";")[0] == said
    assert CascadeFile.load(path).cascade().run(QUESTION).record.attempts[0].decision == decision
