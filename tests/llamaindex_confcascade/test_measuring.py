"""`measure`: a query engine asked questions of one's own."""

from __future__ import annotations

import pytest
from confcascade import ConfigurationError, Prices, RetrievalScore, Stage, TokenProbability
from confcascade.testing import ScriptedModel
from llama_index.core.query_engine import CustomQueryEngine

from llamaindex_confcascade import ConfidenceCascadeLLM, measure

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
    small = Stage(
        ScriptedModel("small", SAID), [TokenProbability(), RetrievalScore()], {"p_t": threshold, "retrieval": "always"}
    )
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


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_asynchronous_questions_are_refused() -> None:
    """Their answer would be a coroutine, and never right."""
    with pytest.raises(ConfigurationError, match=r"not `engine\.aquery`"):
        measure(engine().aquery, QUESTIONS, is_right)


def test_there_must_be_a_question() -> None:
    """An accuracy of nothing would be an error further on."""
    with pytest.raises(ConfigurationError, match="at least one pair"):
        measure(engine().query, [], is_right)
