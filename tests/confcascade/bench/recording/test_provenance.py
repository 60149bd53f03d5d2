"""Rows that were asked otherwise never get into one file, and what differs is named."""

from __future__ import annotations

import json

import pytest
from confcascade import Architecture, ConfigurationError, Prices, Stage, TokenProbability
from confcascade.bench.questions.prompts import PROMPTS, Prompt
from confcascade.bench.recording.provenance import Noted, bind, digest, identity_of, meta_path, noted
from confcascade.graders import ExactMatch, NormalizedMatch
from confcascade.testing import ScriptedModel
from confcascade.types import Tool


class Renamed(ScriptedModel):
    """Another build under the same name."""

    fingerprint = "another"


SMALL, LARGE = ScriptedModel("small"), ScriptedModel("large")


@pytest.fixture
def made(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "q"}\n')

    def identity(**changes):
        given = {
            "data": data,
            "stages": [Stage(SMALL, [TokenProbability()]), Stage(LARGE)],
            "prompt": PROMPTS["plain"],
            "grader": NormalizedMatch(),
            "parameters": {},
        }
        return identity_of(**(given | changes))

    return identity


def test_the_same_again_goes_on(made, tmp_path):
    """Each run is noted; thresholds and prices may change, for no row hangs on them."""
    recording = tmp_path / "rec.jsonl"
    bind(recording, made(), {"command": ["first"]})
    recording.write_text("a row\n")
    bind(
        recording,
        made(stages=[Stage(SMALL, [TokenProbability()], {"p_t": 0.9}), Stage(LARGE)]),
        {"command": ["second"]},
    )
    meta = json.loads(meta_path(recording).read_text())
    assert [run["command"] for run in meta["runs"]] == [["first"], ["second"]]
    assert all("confcascade" in run["versions"] and run["started"] for run in meta["runs"])
    assert [each.name for each in tmp_path.iterdir() if "meta" in each.name] == ["rec.jsonl.meta.json"]


def test_both_prompts_are_told_in_words(made, tmp_path):
    """The templates stand beside the version; of an older recording, the version alone is known."""
    recording = tmp_path / "rec.jsonl"
    own = Prompt("brief", "In one word.", "Q: {question}")
    bind(recording, made(), {}, prompt=PROMPTS["plain"])
    recording.write_text("a row\n")
    meta = json.loads(meta_path(recording).read_text())
    assert Prompt(**meta["prompt"]) == PROMPTS["plain"]
    with pytest.raises(ConfigurationError) as refused:
        bind(recording, made(prompt=own), {}, prompt=own)
    plain = f'prompt was "{PROMPTS["plain"].version}" (\'plain\': user "{{context}}\\n\\n{{question}}\\n{{choices}}")'
    assert plain in str(refused.value)
    now = f'and is now "{own.version}" (\'brief\': system "In one word.", user "Q: {{question}}").'
    assert now in str(refused.value)
    del meta["prompt"]
    meta_path(recording).write_text(json.dumps(meta))
    with pytest.raises(ConfigurationError, match=r'prompt was "[0-9a-f]{12}" and is now'):
        bind(recording, made(prompt=own), {}, prompt=own)


def test_sizes_and_prices_are_noted(made, tmp_path):
    """The newest ones; they decide nothing, and what a run does not tell stays."""
    recording = tmp_path / "rec.jsonl"
    assert noted(recording) == Noted()
    small = ScriptedModel("small", architecture=Architecture(8_000, 2, 16))
    bind(recording, made(), {}, Noted.of([Stage(small, prices=Prices(1, 2)), Stage(LARGE, prices=Prices(0, 0.5))]))
    recording.write_text("a row\n")
    bind(recording, made(), {}, Noted.of([Stage(small, prices=Prices(3, 4)), Stage(LARGE)]))
    bind(recording, made(), {})
    assert noted(recording) == Noted(
        {"small": Architecture(8_000, 2, 16)}, {"small": Prices(3, 4), "large": Prices(0, 0.5)}
    )
    meta = json.loads(meta_path(recording).read_text())
    meta_path(recording).write_text(json.dumps(meta | {"models": {"small": {"prices": {"input": 1}}}}))
    with pytest.raises(ConfigurationError, match=r"rec.jsonl.meta.json' does not tell sizes and prices"):
        noted(recording)
    del meta["models"]  # as an older version wrote it
    meta_path(recording).write_text(json.dumps(meta))
    assert noted(recording) == Noted()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": Prompt("plain", None, "Q: {question}")}, "prompt was"),
        ({"grader": ExactMatch()}, 'grader.grader was "normalized" and is now "exact"'),
        ({"parameters": {"max_tokens": 5}}, "models.small.decoding.max_tokens was absent and is now 5"),
        ({"stages": [Stage(Renamed("small"), [TokenProbability()])]}, "models.small.fingerprint was"),
        ({"stages": [Stage(SMALL, [TokenProbability(aggregate="min")])]}, "models.small.signals.p_t.aggregate"),
        ({"stages": [Stage(SMALL)]}, "models.small.signals.p_t was"),
    ],
)
def test_what_changed_is_named(made, tmp_path, changes, named):
    """Data, prompt, grader, parameters, a model's build and a signal's options all decide what rows say."""
    recording = tmp_path / "rec.jsonl"
    bind(recording, made(), {})
    recording.write_text("a row\n")
    before = meta_path(recording).read_text()
    with pytest.raises(ConfigurationError) as refused:
        bind(recording, made(**changes), {})
    assert named in str(refused.value)
    assert "another file" in str(refused.value)
    assert meta_path(recording).read_text() == before


def test_changed_data_are_named(made, tmp_path):
    """A question more, or less, is another data set."""
    recording = tmp_path / "rec.jsonl"
    bind(recording, made(), {})
    recording.write_text("a row\n")
    (tmp_path / "data.jsonl").write_text('{"question": "another"}\n')
    with pytest.raises(ConfigurationError, match="data was"):
        bind(recording, made(), {})


def test_a_model_may_be_added(made, tmp_path):
    """And is then held to what it was; models that a run leaves out stay known."""
    recording = tmp_path / "rec.jsonl"
    bind(recording, made(stages=[Stage(SMALL, [TokenProbability()])]), {})
    recording.write_text("a row\n")
    bind(recording, made(stages=[Stage(LARGE)]), {})
    assert set(json.loads(meta_path(recording).read_text())["identity"]["models"]) == {"small", "large"}
    with pytest.raises(ConfigurationError, match=r"models\.large\.fingerprint"):
        bind(recording, made(stages=[Stage(Renamed("large"))]), {})


def test_a_run_that_recorded_nothing_binds_nobody(made, tmp_path):
    """A wrong key or a mistyped option ended it before the first row: the corrected command may ask otherwise."""
    recording = tmp_path / "rec.jsonl"
    recording.touch()
    bind(recording, made(), {"command": ["mistaken"]})
    bind(recording, made(grader=ExactMatch()), {"command": ["corrected"]})
    meta = json.loads(meta_path(recording).read_text())
    assert meta["identity"]["grader"]["grader"] == "exact"
    assert [run["command"] for run in meta["runs"]] == [["corrected"]]


def test_rows_of_unknown_making_are_left_alone(made, tmp_path):
    """An imported recording, say, or one whose other file is damaged."""
    recording = tmp_path / "rec.jsonl"
    recording.write_text("a row\n")
    with pytest.raises(ConfigurationError, match="not known"):
        bind(recording, made(), {})
    meta_path(recording).write_text("{}")
    with pytest.raises(ConfigurationError, match="does not tell"):
        bind(recording, made(), {})


def test_a_folder_has_a_digest(tmp_path):
    """Of names and contents: moving a text from one file to the next is another folder."""
    (tmp_path / "a").write_text("12")
    (tmp_path / "b").write_text("3")
    first = digest(tmp_path)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("23")
    assert digest(tmp_path) != first
    with pytest.raises(ConfigurationError, match="not there"):
        digest(tmp_path / "c")


def test_parameters_that_json_has_no_form_for_are_told(made, tmp_path):
    """Those of Python: tuples, tools, and objects, whose repr would be another tomorrow."""
    recording = tmp_path / "rec.jsonl"
    for _ in range(2):
        bind(recording, made(data=None, parameters={"stop": ("\n",), "tools": (Tool("look"),), "native": object()}), {})
        recording.write_text("a row\n")
    told = json.loads(meta_path(recording).read_text())["identity"]["parameters"]
    assert (told["stop"], told["tools"][0]["name"], told["native"]) == (["\n"], "look", "object")
