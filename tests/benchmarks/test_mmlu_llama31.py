"""The script of Table 15: on made-up logits everywhere, and on the recorded ones where they are at hand."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from confcascade.bench.metrics.significance import mcnemar
from confcascade.bench.recording import Columns
from confcascade.bench.recording.importers import read_choice_logits
from confcascade.bench.replay import replay

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "mmlu_llama31_logits"


@pytest.fixture
def script(load_script) -> ModuleType:
    return load_script("mmlu_llama31")


def test_it_runs_from_logits_to_plot(script, tmp_path, capsys):
    """Table, signals, plot, and live runs three ways that decide as the replay, on eighty made-up questions."""
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    lines = ["id,subject,index,answer,model,logit_A,logit_B,logit_C,logit_D"]
    for model, skill in ((script.SMALL, 1.0), (script.LARGE, 3.0)):
        for i in range(80):
            right = i % 4
            logits = rng.normal(size=4) + skill * (np.arange(4) == right)
            lines.append(f"law/test/{2 * i},law,{2 * i},{'ABCD'[right]},{model}," + ",".join(map(str, logits)))
    (tmp_path / script.FILE).write_bytes(gzip.compress("\n".join(lines).encode()))

    script.main(tmp_path, png=tmp_path / "plot.png", live=True)

    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("0 at 0.5, 0 at 0.7, 0 at 0.9, 0 at 0.95") == 3
    assert "subject's questions: 16" in printed
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_disagreements_are_counted(script, tmp_path):
    """A live run of another threshold than the replay's is found out."""
    path = tmp_path / "logits.csv"
    header = "id,subject,answer,model,logit_A,logit_B,logit_C,logit_D\n"
    path.write_text(f"{header}q,law,A,{script.SMALL},3,0,0,0\nq,law,A,{script.LARGE},0,5,0,0\n")
    rows = list(read_choice_logits(path))
    columns = Columns.of(rows)
    run = script.live_runs(rows)["core"]
    played = replay(columns, script.policy(0.5), architectures=script.SIZES)
    assert script.disagreements(played, run(0.5, columns.questions)) == 0
    assert script.disagreements(played, run(0.95, columns.questions)) == 1


@pytest.mark.skipif(not DATA.exists(), reason="the recorded logits are not at hand")
def test_recorded_llama_live_is_replay(script):
    """On all 7,032 questions core, LangChain and LlamaIndex decide as the replay, at the paper's threshold."""
    rows = [row for row in read_choice_logits(DATA / script.FILE) if row.model in (script.SMALL, script.LARGE)]
    columns = Columns.of(rows)
    assert len(columns) == 7032
    assert script.split_sizes(columns.questions) == 1430
    played = replay(columns, script.policy(0.9), architectures=script.SIZES)
    assert 100 * played.grade.mean() == pytest.approx(78.75, abs=0.005)
    assert played.retention[0] == pytest.approx(0.324, abs=0.0005)
    assert mcnemar(played.grade == 1, columns.grades[:, columns.index(script.LARGE)] == 1) < 1e-15
    for name, run in script.live_runs(rows).items():
        assert script.disagreements(played, run(0.9, columns.questions)) == 0, name
