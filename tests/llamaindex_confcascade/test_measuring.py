"""`measure`: a query engine asked questions of one's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from confcascade import ConfigurationError, Prices, RetrievalScore, Stage, TokenProbability
from confcascade.testing import ScriptedModel
from llama_index.core.base.response.schema import AsyncStreamingResponse
from llama_index.core.query_engine import CustomQueryEngine

from llamaindex_confcascade import ConfidenceCascadeLLM, Measured, ameasure, measure

# question -> the small model's answer and its probability; the reference is always "yes"
SAID = {"a": ("yes", 0.9), "b": ("yes", 0.7), "c": ("no", 0.8), "d": ("no", 0.2)}
QUESTIONS = [(question, "yes") for question in SAID]


class Twice(CustomQueryEngine):
    """Rewrites with one LLM, into what it was asked, and answers with the other."""

    rewriting: ConfidenceCascadeLLM
    answering: ConfidenceCascadeLLM

    def custom_query(self, query_str: str) -> str:
        return str(self.answering.complete(str(self.rewriting.complete(query_str))))


def engine(threshold: float | str = "always") -> Twice:
    prices = Prices(input_usd=1.0, output_usd=1.0)
    signals, thresholds = [TokenProbability(), RetrievalScore()], {"p_t": threshold, "retrieval": "always"}
    small = Stage(ScriptedModel("small", SAID), signals, thresholds, prices=prices)
    large = Stage(ScriptedModel("large", lambda _: "yes"), prices=prices)
    same = Stage(ScriptedModel("same", lambda r: r.messages[-1].content), prices=prices)
    return Twice(rewriting=ConfidenceCascadeLLM(stages=[same]), answering=ConfidenceCascadeLLM(stages=[small, large]))


def is_right(answer: str, reference: str) -> bool:
    return answer == reference


def test_answers_are_judged_and_every_cascade_is_on_the_bill() -> None:
    """Accuracy, records in order, tokens of both LLMs of an engine."""
    measured = measure(engine().query, QUESTIONS, is_right)

    assert measured.right == (True, True, False, False)
    assert measured.accuracy == 0.5
    assert [[record.answered_by for record in records] for records in measured.records] == [["same", "small"]] * 4
    assert measured.usage.total_tokens == 4 * (2 + 1 + 2 + 1)
    assert measure(engine(0.85).query, QUESTIONS, is_right).accuracy == 1.0


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    """Of the pairs of a right and a wrong answer, one of four is the wrong way round."""
    asking = engine()
    measured = measure(asking.query, QUESTIONS, is_right)
    (policy_id,) = {record.policy_id for records in measured.records for record in records[1:]}

    scored = [(round(value, 6), right) for value, right in measured.scores("p_t")]
    assert sorted(scored) == [(0.2, False), (0.7, True), (0.8, False), (0.9, True)]
    assert measured.auroc("p_t") == 0.75
    assert measured.auroc("p_t", policy_id) == 0.75
    assert measured.auroc("p_t", measured.records[0][0].policy_id) is None  # the other cascade, which has no signal


def test_what_tells_nothing_has_no_auroc() -> None:
    """No score could be computed, or all answers were right."""
    measured = measure(engine().query, QUESTIONS, is_right)

    assert measured.scores("retrieval") == []
    assert measured.auroc("retrieval") is None
    assert measure(engine().query, QUESTIONS[:2], is_right).auroc("p_t") is None


def test_scores_of_rejected_attempts_are_left_out() -> None:
    """The answer that was right or wrong was not theirs."""
    assert measure(engine(0.85).query, QUESTIONS, is_right).scores("p_t") == [(pytest.approx(0.9), True)]


def test_asynchronous_questions_are_refused() -> None:
    """Their answer would be a coroutine, and never right."""
    with pytest.raises(ConfigurationError, match=r"ameasure\(engine\.aquery"):
        measure(engine().aquery, QUESTIONS, is_right)


async def test_synchronous_questions_are_refused_by_the_asynchronous_one() -> None:
    with pytest.raises(ConfigurationError, match=r"measure\(engine\.query"):
        await ameasure(engine().query, QUESTIONS, is_right)
    with pytest.raises(ConfigurationError, match="at least 1"):
        await ameasure(engine().aquery, QUESTIONS, is_right, max_concurrency=0)


def test_there_must_be_a_question() -> None:
    """An accuracy of nothing would be an error further on."""
    with pytest.raises(ConfigurationError, match="at least one pair"):
        measure(engine().query, [], is_right)


# ---------------------------------------------------------------------- many questions


class RateLimitError(Exception):
    status_code = 429


class Sometimes:
    """Asks an engine; at questions that are `down`, its server is."""

    def __init__(self, *down: str) -> None:
        self.down = set(down)
        self.asked: list[str] = []
        self.at_a_time = self.most = 0

    def query(self, question: str) -> Any:
        self.asked.append(question)
        if question in self.down:
            raise RateLimitError("the key sk-123 is over its limit")
        return engine().query(question)

    async def aquery(self, question: str) -> Any:
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        await asyncio.sleep(0.01)
        self.at_a_time -= 1
        return self.query(question)


async def measured_by(way: str, asking: Any, questions: Any, **parameters: Any) -> Measured:
    if way == "measure":
        return measure(asking.query, questions, is_right, **parameters)
    return await ameasure(asking.aquery, questions, is_right, **parameters)


WAYS = pytest.mark.parametrize("way", ["measure", "ameasure"])


@WAYS
async def test_an_error_is_a_row_and_loses_no_other(way: str) -> None:
    """Without its text, which may quote what is secret; the accuracy is that of the answers."""
    measured = await measured_by(way, Sometimes("b"), QUESTIONS)

    assert measured.right == (True, None, False, False)
    assert [row.error for row in measured.rows] == [None, "RateLimitError (429)", None, None]
    assert (measured.errors, measured.accuracy) == (1, pytest.approx(1 / 3))
    assert [row.answer for row in measured.rows] == ["yes", None, "no", "no"]
    assert len(measured.scores("p_t")) == 3
    assert measured.usage.total_tokens == 3 * 6
    assert (await measured_by(way, Sometimes(*SAID), QUESTIONS)).accuracy is None


@WAYS
async def test_a_measurement_goes_on_where_it_was(way: str, tmp_path: Path) -> None:
    """What was answered is not asked again, what failed is; the rows are as if nothing had happened."""
    path = tmp_path / "rows.jsonl"
    first = await measured_by(way, Sometimes("b", "d"), QUESTIONS[:3], path=path)
    with path.open("a") as file:
        file.write('{"question": "d", "answ')  # as a killed process may leave it

    asking = Sometimes()
    again = await measured_by(way, asking, QUESTIONS, path=path)

    assert asking.asked == ["b", "d"]
    assert again.errors == 0
    assert again.rows[0] == first.rows[0]
    assert again == await measured_by(way, Sometimes(), QUESTIONS, path=path)
    whole = await measured_by(way, Sometimes(), QUESTIONS)
    assert (again.right, again.usage, again.cost.usd) == (whole.right, whole.usage, whole.cost.usd)
    assert again.scores("p_t") == whole.scores("p_t")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["question"] for line in lines] == ["a", "b", "c", "b", "d"]
    assert lines[1]["error"] == "RateLimitError (429)"
    assert "sk-123" not in path.read_text()


def test_rows_are_kept_as_they_come_and_judged_anew(tmp_path: Path) -> None:
    """Whatever ends it, judging included; an answer costs, and judging it does not."""
    path = tmp_path / "rows.jsonl"
    asking = Sometimes()

    def interrupted(answer: str, reference: str) -> bool:
        if len(asking.asked) == 3:
            raise KeyboardInterrupt
        return is_right(answer, reference)

    with pytest.raises(KeyboardInterrupt):
        measure(asking.query, QUESTIONS, interrupted, path=path)
    assert len(path.read_text().splitlines()) == 3
    measured = measure(asking.query, QUESTIONS, lambda answer, _: answer == "no", path=path)
    assert measured.right == (False, False, True, True)
    assert asking.asked == ["a", "b", "c", "d"]


@WAYS
async def test_every_run_is_on_the_bill(way: str, tmp_path: Path) -> None:
    """What failed, or was interrupted, after models were paid for."""
    path = tmp_path / "rows.jsonl"

    class FailsLate(Sometimes):
        def query(self, question: str) -> Any:
            answer = engine().query(question)
            if error := {"b": RateLimitError, "d": asyncio.CancelledError}.get(question):
                raise error
            return answer

    with pytest.raises(asyncio.CancelledError):
        await measured_by(way, FailsLate(), [*QUESTIONS, *QUESTIONS[1:2]], path=path, **one_at_a_time(way))
    again = await measured_by(way, Sometimes(), [*QUESTIONS, *QUESTIONS[1:2]], path=path, **one_at_a_time(way))

    assert (again.errors, again.accuracy) == (0, 0.6)
    assert [len(row.earlier) for row in again.rows] == [0, 2, 0, 2, 0]
    assert [len(records) for records in again.records] == [2] * 5
    assert len(again.scores("p_t")) == 5
    assert again.usage.total_tokens == (5 + 2) * 6
    kept = [record for line in path.read_text().splitlines() for record in json.loads(line)["records"]]
    assert again.cost.usd == pytest.approx(sum(record["cost"]["usd"] for record in kept))


def one_at_a_time(way: str) -> dict[str, int]:
    return {"max_concurrency": 1} if way == "ameasure" else {}


@WAYS
async def test_an_answer_that_cannot_be_judged_is_kept(way: str, tmp_path: Path, monkeypatch: Any) -> None:
    """It is a row with the error of `is_right`, and is judged again without being asked again."""
    path, asking = tmp_path / "rows.jsonl", Sometimes()

    def judge(answer: str, reference: str) -> bool:
        if len(asking.asked) == 2:
            raise RateLimitError("the key sk-123 is over its limit")
        return answer == reference

    with monkeypatch.context() as patched:
        patched.setitem(globals(), "is_right", judge)
        first = await measured_by(way, asking, QUESTIONS, path=path, **one_at_a_time(way))
    assert (first.rows[1].answer, first.rows[1].right, first.rows[1].error) == ("yes", None, "RateLimitError (429)")
    assert (first.right, first.errors, first.accuracy) == ((True, None, False, False), 1, pytest.approx(1 / 3))

    again = await measured_by(way, asking, QUESTIONS, path=path)
    assert (again.right, again.errors) == ((True, True, False, False), 0)
    assert asking.asked == list(SAID)


def test_a_broken_emoji_is_kept(tmp_path: Path) -> None:
    """UTF-8 has no half of a surrogate pair, in an answer or a question."""
    path, questions = tmp_path / "rows.jsonl", [("what \ud83d?", "yes")]
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return "yes \ud83d"

    for answer in ("yes \ud83d", "yes \ufffd"):
        (row,) = measure(ask, questions, lambda answer, _: answer.startswith("yes"), path=path).rows
        assert (row.question, row.answer, row.right) == ("what \ud83d?", answer, True)
    assert len(asked) == 1


def test_an_asynchronous_judge_is_refused(tmp_path: Path) -> None:
    """Its verdict would be a coroutine, and so every answer right."""

    async def judge(answer: str, reference: str) -> bool:
        return answer == reference

    path, asking = tmp_path / "rows.jsonl", Sometimes()
    with pytest.raises(ConfigurationError, match="`is_right` must judge"):
        measure(asking.query, QUESTIONS, judge, path=path)
    assert measure(asking.query, QUESTIONS, is_right, path=path).accuracy == 0.5
    assert asking.asked == list(SAID)


def test_a_question_that_comes_twice_is_asked_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for times, asked in ((1, ["a"]), (3, ["a", "a"]), (3, [])):
        asking = Sometimes()
        assert measure(asking.query, QUESTIONS[:1] * times, is_right, path=path).right == (True,) * times
        assert asking.asked == asked


async def test_so_many_questions_are_under_way_at_a_time() -> None:
    asking = Sometimes()
    measured = await ameasure(asking.aquery, QUESTIONS * 5, is_right, max_concurrency=3)

    assert asking.most == 3
    assert measured.right == (True, True, False, False) * 5
    assert all(len(records) == 2 for records in measured.records)


async def test_a_streamed_answer_is_read_to_its_end() -> None:
    async def pieces() -> Any:
        for piece in ("y", "es"):
            yield piece

    async def ask(_: str) -> Any:
        return AsyncStreamingResponse(response_gen=pieces())

    assert (await ameasure(ask, QUESTIONS[:1], is_right)).right == (True,)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """Before a question is paid for."""
    path = tmp_path / "notes.txt"
    path.write_text("milk\n")
    asking = Sometimes()
    with pytest.raises(ConfigurationError, match="line 1, is not a row"):
        measure(asking.query, QUESTIONS, is_right, path=path)
    with pytest.raises(FileNotFoundError):
        measure(asking.query, QUESTIONS, is_right, path=tmp_path / "no" / "such")
    assert asking.asked == []


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    measure(Sometimes("b").query, QUESTIONS, is_right)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "33% right, 1 failed" in shown

    measure(Sometimes("b").query, QUESTIONS, is_right, progress=False)
    assert capsys.readouterr().err == ""
