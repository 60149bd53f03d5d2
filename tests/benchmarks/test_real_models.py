"""The experiment on real models, over the bundled ones: from questions to tables, and live as replayed."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.bench.recording import read_rows
from confcascade.demo.world import World
from confcascade.errors import ConfigurationError
from confcascade.graders import NormalizedMatch
from confcascade.graders.example import Example
from confcascade.models.bundled import bundled_model
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("real_models", "real_models_live", "real_models_scores", "real_models_sets", "real_models_tables")


def world(task: str) -> list[Example]:
    drawn = World().questions("test", (task,), per_task=150)
    return [Example(each.prompt, references=(each.reference,), group=each.task) for each in drawn]


@pytest.fixture(scope="module")
def scripts() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        loaded = importlib.import_module("real_models")
        sets: Any = importlib.import_module("real_models_sets")
        made = {
            task: replace(
                sets.SETS["printed"],
                name=task,
                read=lambda _, task=task: world(task),
                prompt=PROMPTS["plain"],
                grader=NormalizedMatch(),
                max_tokens=24,
            )
            for task in ("facts", "sums")
        }
        patch.setattr(loaded, "SETS", made)
        patch.setattr(loaded, "FILES", {"small": "", "large": ""})
        patch.setattr(loaded, "load", lambda name, _: bundled_model(name))
        patch.setattr(loaded, "DEPTHS", (0.5, 0.75, 1.0))
        yield loaded
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(scripts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `collect` and `score` leave."""
    out = tmp_path_factory.mktemp("real")
    given = ["--data", str(out), "--weights", str(out)]
    for command in (
        ["collect", str(out / "rec"), *given, "--sets", "facts,sums", "--models", "small,large", "--limit", "120"],
        ["score", str(out / "rec"), *given, "--kept", str(out / "kept"), "--sets", "facts,sums"],
    ):
        done = CliRunner().invoke(scripts.app, command)
        assert done.exit_code == 0, done.output
    return out


def test_recordings_keep_scores_and_no_texts(folder: Path):
    """Every question of both models, with P(IK) of the smaller at each depth, by a probe that did not see it."""
    of_the_larger: set[str] = set()  # left out where a fold has no question of the kind
    for name in ("facts", "sums"):
        rows = list(read_rows(folder / "kept" / f"{name}.parquet"))
        assert sorted(row.model for row in rows) == ["large"] * 120 + ["small"] * 120
        assert not any(row.prompt or row.reference or row.predicted for row in rows)
        assert {row.answer for row in rows} <= {"", "(not kept)"}
        (small,) = {frozenset(row.scores) for row in rows if row.model == "small"}
        others = {"p_ik_from_sums"} if name == "facts" else {"p_ik_from_facts"}
        assert {"p_t", "p_t_min", "p_ik@0.50", "p_ik@0.75", "p_ik@1.00", *others} <= small
        of_the_larger |= small & {"right_large", "needed_large"}
        assert {row.scores["p_ik@0.75"].depth for row in rows if row.model == "small"} == {0.75}
    assert of_the_larger == {"right_large", "needed_large"}


def test_every_table_is_made_of_the_recordings(scripts: ModuleType, folder: Path):
    done = CliRunner().invoke(scripts.app, ["report", "--kept", str(folder / "kept"), "--splits", "2"])
    assert done.exit_code == 0, done.output
    titles = re.findall(r"^\*\*(.+)\*\*$", done.output, re.MULTILINE)
    assert len(titles) == 7
    for name in ("facts", "sums"):
        rows = list(read_rows(folder / "kept" / f"{name}.parquet"))
        right = sum(row.grade for row in rows if row.model == "small" and row.grade is not None) / 120
        assert f"| {name} | 120 | small | {right:.1%} (" in done.output
    assert len(re.findall(r"small → large \| with(?:out)? \| ", done.output)) == 16


def test_the_page_shows_what_the_recordings_say(scripts: ModuleType):
    """Every table but that of certified policies, which takes minutes."""
    tables: Any = sys.modules["real_models_tables"]
    recorded = tables.Recorded.read(BENCHMARKS / "recordings" / "real_models")
    page = (BENCHMARKS.parent / "docs" / "real-models.md").read_text()
    makers = ("accuracy", "ranking", "by_depth", "elsewhere", "needed", "thresholds")
    missing = [line for maker in makers for line in getattr(tables, maker)(recorded) if line not in page]
    assert not missing


def test_a_folder_without_recordings_is_refused(scripts: ModuleType, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="holds no recordings"):
        sys.modules["real_models_tables"].Recorded.read(tmp_path)


def test_live_cascades_decide_as_the_recording(scripts: ModuleType, folder: Path):
    """Through the core and both frameworks."""
    given = [
        "--data",
        str(folder),
        "--weights",
        str(folder),
        "--asked",
        "facts",
        "--small",
        "small",
        "--large",
        "large",
    ]
    done = CliRunner().invoke(scripts.app, ["live", str(folder / "rec"), *given, "--limit", "40"])
    assert done.exit_code == 0, done.output
    found = re.findall(r"^\| (core|LangChain|LlamaIndex) \| 40 \| (\d+) \| (\d+) \| (\d+) \| (\d+) ", done.output, re.M)
    assert [way for way, *_ in found] == ["core", "LangChain", "LlamaIndex"]
    assert all(int(near) < 10 and wrong == ["0", "0", "0"] for _, near, *wrong in found)


def test_questions_of_our_own_are_graded_by_what_python_says(scripts: ModuleType):
    """Each once, right with its own reference in any dress, wrong with another's."""
    sets: Any = sys.modules["real_models_sets"]
    printed, modules = sets.printed(200), sets.modules(200)
    assert len({each.id for each in [*printed, *modules]}) == 400
    for each, other in pairwise(printed):
        (answer,) = each.references
        assert sets.is_printed(each, answer)
        assert sets.is_printed(each, f"```\n{answer}\n```")
        assert sets.is_printed(each, f"`{answer}`\n")
        assert sets.is_printed(each, other.references[0]) == (other.references == each.references)
    for each in sets.raises(100):
        (name,) = each.references
        assert sets.is_raised(each, f"`{name}`.")
        assert not sets.is_raised(each, f"{name} or another")
    for each in modules:
        name = each.references[0]
        assert all(sets.is_module(each, form) for form in (name, f"`{name}`", f"{name.upper()}.", f"import {name}"))
        assert not sets.is_module(each, "this")
