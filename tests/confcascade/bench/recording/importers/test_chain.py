"""Solutions with P(True), as published: made-up ones everywhere, GSM8K where it is at hand."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError, Prices
from confcascade.bench.recording import Columns
from confcascade.bench.recording.importers import read_chain
from confcascade.bench.replay import PolicyStage, replay

DATA = Path(__file__).parents[5].parent / "shared" / "data" / "cascade_chains" / "gsm8k_qwen_oai_dev.jsonl.gz"
SMALL = {
    "model": "small",
    "answer": "2 + 2 = 5\n#### 5",
    "correct": False,
    "logprob": math.log(0.25),
    "cost_usd": 0.5,
    "latency_ms": 1500,
    "tokens_in": 10,
    "tokens_out": 20,
}
LARGE = {**SMALL, "model": "large", "answer": "#### 4", "correct": True, "logprob": 0.0, "tokens_out": 5}
QUESTION: dict[str, Any] = {"question": 7, "prompt": "2 + 2 is", "answer": "4", "models": [SMALL, LARGE]}


def written(record: Any, folder: Path) -> Path:
    path = folder / "chain.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return path


def test_rows(tmp_path: Path):
    """Texts, P(True), tokens and seconds of each model's attempt."""
    small, large = read_chain(written(QUESTION, tmp_path))
    assert (small.key, large.key) == (("7", "small"), ("7", "large"))
    assert (small.prompt, small.reference, small.answer) == ("2 + 2 is", "4", "2 + 2 = 5\n#### 5")
    assert (small.grade, large.grade) == (0.0, 1.0)
    assert small.scores["p_true"].value == pytest.approx(0.25)
    assert set(small.scores) == {"p_true"}
    assert (small.usage.input_tokens, small.usage.output_tokens, small.usage.estimated) == (10, 20, False)
    assert small.latency_s == 1.5


def test_replay_charges_tokens_and_time(tmp_path: Path):
    rows = read_chain(written(QUESTION, tmp_path))
    policy = [PolicyStage("small", {"p_true": 0.5}), PolicyStage("large")]
    played = replay(Columns.of(rows), policy, prices={"small": Prices(1, 2), "large": Prices(10, 20)})
    assert played.stage.tolist() == [1]
    assert played.cost.usd[0] == pytest.approx((10 + 40 + 100 + 100) / 1e6)
    assert played.cost.seconds[0] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"correct": 1}, "`correct` is true or false, not 1"),
        ({"logprob": 0.5}, "does not lie in"),
        ({"logprob": 1e9}, "Line 1"),
        ({"logprob": None}, "Line 1"),
        ({"answer": None}, "answer: "),
        ({"tokens_in": "many"}, "Line 1 .* 'many'"),
        ({"tokens_out": -1}, "-1 is not a number of tokens"),
        ({"latency_ms": -1}, "latency_s: "),
    ],
)
def test_another_kind_of_value(changes: dict[str, Any], error: str, tmp_path: Path):
    record = copy.deepcopy(QUESTION)
    record["models"][0] |= changes
    with pytest.raises(ConfigurationError, match=error):
        list(read_chain(written(record, tmp_path)))


@pytest.mark.skipif(not DATA.exists(), reason="the recorded answers are not at hand")
def test_gsm8k():
    """300 questions by four models; the number after "####" agrees with the published grade on all but five."""
    rows = list(read_chain(DATA))
    columns = Columns.of(rows)
    assert columns.models == ("gpt-4o-mini", "qwen2.5-32b-coder-instruct", "qwen2.5-72b-instruct", "gpt-4o")
    assert columns.recorded.shape == (300, 4)
    assert columns.recorded.all()
    assert np.nansum(columns.grades, axis=0).tolist() == [271, 287, 285, 285]
    agree = 0
    for row in rows:
        number = re.search(r"-?[\d,]*\.?\d+", row.answer.partition("####")[2])
        right = number is not None and float(number[0].replace(",", "")) == float(str(row.reference).replace(",", ""))
        agree += right == bool(row.grade)
    assert agree == 1195
