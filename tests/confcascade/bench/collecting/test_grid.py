"""What of a cascade file is asked: its models, and a cascade that writes step by step as models of their own."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import CascadeModel
from confcascade.bench.collecting import collect
from confcascade.bench.collecting.grid import stages_to_ask
from confcascade.bench.fitting import RecordedGrid
from confcascade.bench.recording import read_rows
from confcascade.cascade_file import CascadeFile
from confcascade.graders.example import Example

MIXED = "Vodis has 57 shells, finds 88, loses 39. How many shells?"
MODELS = "models: [bundled:small, bundled:large]\n"
IN_TURN = f'mode: stepwise\n{MODELS}signals: [{{type: p_t, aggregate: min}}]\nsteps: {{delimiter: "\\n"}}\n'


@pytest.fixture
def file(tmp_path):
    def read(text):
        (tmp_path / "cascade.yaml").write_text(text)
        return CascadeFile.load(tmp_path / "cascade.yaml")

    return read


@pytest.mark.parametrize(
    ("text", "thresholds", "names"),
    [
        (MODELS, (), ["small", "large"]),
        (IN_TURN, (), ["small", "large"]),
        (IN_TURN + "threshold: 0.75\n", (), ["small", "small+large@0.75", "large"]),
        (IN_TURN + "threshold: 0.75\n", (0.9, 0.125), ["small", "small+large@0.9", "small+large@0.125", "large"]),
        (IN_TURN + "threshold: always\n", (), ["small", "small+large@always", "large"]),
        (
            IN_TURN.replace("[{type", "[glimpse, {type") + "threshold: {glimpse: 0.9, p_t: 0.9}\n",
            *((), ["small", "small+large", "large"]),
        ),
    ],
)
def test_who_is_asked(file, text, thresholds, names):
    stages = stages_to_ask(file(text), thresholds)
    assert [stage.model.name for stage in stages] == names
    assert all(bool(stage.signals) != isinstance(stage.model, CascadeModel) for stage in stages)


def test_each_answers_as_the_live_cascade(file, tmp_path):
    """Its text, and the tokens of every model that ran; another threshold makes another answer."""
    read = file(IN_TURN)
    stages = stages_to_ask(read, (0.75, 0.2))
    collect([Example(MIXED, references=("106",))], stages, tmp_path / "rec.jsonl", prompt="plain", grader="numeric")
    rows = {row.model: row for row in read_rows(tmp_path / "rec.jsonl")}
    for cascade, name in zip(read.grid([0.75, 0.2]), ("small+large@0.75", "small+large@0.2"), strict=True):
        outcome = cascade.run(MIXED)
        row = rows[name]
        assert (row.answer, row.usage) == (outcome.text, outcome.record.usage)
    assert (rows["small+large@0.75"].grade, rows["small+large@0.2"].grade) == (1.0, 0.0)


def test_what_python_collects_is_a_grid_to_fit(file, tmp_path):
    """As what the command line collects: what each configuration decides by is beside the recording."""
    read, rec = file(IN_TURN), tmp_path / "rec.jsonl"
    given = {"prompt": "plain", "grader": "numeric"}
    collect([Example(MIXED, references=("106",))], stages_to_ask(read, (0.2, 0.75)), rec, **given)
    grid = RecordedGrid.read(rec)
    assert grid.order == ("small+large@0.75", "small+large@0.2")
    assert (grid.small, grid.large, grid.signal, len(grid.material())) == ("small", "large", "p_t", 1)
