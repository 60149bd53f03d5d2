"""A Ray cluster of real nodes gives the figures and rows that one process gives, though one is killed on the way."""

from pathlib import Path

import pytest

pytest.importorskip("ray.data")
pytest.importorskip("openai")


def test_one_node_three_nodes_and_one_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Figures are the same to the last digit, rows but for their times; what the killed node had is done again."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import ray_nodes
    from confcascade import ConfigurationError, Usage
    from confcascade.bench.evaluation.evaluate import evaluate
    from confcascade.bench.evaluation.gathered import gather
    from confcascade.bench.recording import RecordedScore, Row
    from confcascade.bench.replay import PolicyStage
    from confcascade.bench.replay.ray import ray_sweep

    rows = [
        Row(question=str(i), model=m, answer="x", grade=(i * k) % 3 / 2, scores={"s": RecordedScore(value=i % 7 / 7)})
        for i in range(60)
        for k, m in enumerate(("small", "large"), start=1)
    ]
    rows = [row.model_copy(update={"usage": Usage(5, 1)}) for row in rows]
    gathered, policy = gather(rows), [PolicyStage("small", {"s": 0.5}), PolicyStage("large")]
    columns, questions = ray_nodes.made_up(140_000, early=True), 120
    here = ray_nodes.swept("here", columns, 40)
    asked_here = ray_nodes.asked("here", tmp_path / "here", questions)
    with ray_nodes.cluster() as nodes:
        assert ray_nodes.swept("1 node", columns, 40, nodes).figures == here.figures
        with pytest.raises(ConfigurationError, match="'huge' is not in the recording"):
            ray_sweep(columns.take(range(10)), [[PolicyStage("huge")]])
        assert evaluate(gathered, policy, sweep=ray_sweep).as_dict() == evaluate(gathered, policy).as_dict()
        for _ in range(2):
            nodes.add_node(**ray_nodes.NODE)
        assert ray_nodes.swept("3 nodes", columns, 40, nodes, kill=True).figures == here.figures
        assert len(nodes.worker_nodes) == 1
        nodes.add_node(**ray_nodes.NODE)
        asked = ray_nodes.asked("3 nodes", tmp_path / "ray", questions, nodes)
        assert len(nodes.worker_nodes) == 1
    assert asked.rows == asked_here.rows
    assert len(asked.rows) == questions * len(ray_nodes.ASKED)
    assert asked.calls - len(asked.rows) == asked.repeated <= 64  # a batch, or two if its rows were lost on the way
