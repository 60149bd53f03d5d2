"""What signals want is found out once for a stage, and is what they say."""

from __future__ import annotations

import pickle
from dataclasses import replace

from confcascade import RetrievalScore, Stage, TokenProbability
from confcascade.signals.verbalized import Verbalized
from confcascade.testing import ScriptedModel
from confcascade.wants import NOTHING, Wants


def test_all_of_them_together():
    score, labels = RetrievalScore(), TokenProbability("AB", prefix="Answer:", name="labels")
    wants = Wants([score, labels, TokenProbability()])
    assert (wants.before, wants.after) == ((score,), wants.signals[1:])
    assert (wants.logprobs, wants.top_logprobs, wants.labels) == (True, 20, {"A", "B"})
    assert (wants.prefill, wants.asks, wants.reads, wants.early) == (True, True, False, True)


def test_an_answer_that_is_asked_for_in_other_words_is_judged_whole():
    wants = Wants([TokenProbability("AB"), Verbalized()])
    assert (wants.asks, wants.reads, wants.early) == (True, True, False)


def test_free_text_wants_log_probabilities_only():
    wants = Wants([TokenProbability()])
    assert (wants.logprobs, wants.top_logprobs) == (True, 0)
    assert not any((wants.prefill, wants.asks, wants.reads, wants.early, wants.follows_up, wants.labels))


def test_who_judges_nothing_wants_nothing():
    assert not any(vars(NOTHING).values())


def test_a_stage_finds_them_out_once_and_a_changed_one_anew():
    stage = Stage(ScriptedModel("small", {}), [TokenProbability()], {"p_t": 0.5})
    assert stage.wants is stage.wants
    assert replace(stage, signals=[RetrievalScore()], thresholds={"retrieval": 0.5}).wants.logprobs is False
    assert stage == Stage(stage.model, stage.signals, stage.thresholds)
    assert pickle.loads(pickle.dumps(stage)).wants.logprobs
