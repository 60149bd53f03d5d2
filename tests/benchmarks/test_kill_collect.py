"""A killed collect loses nothing that it had recorded, and asks for nothing again but what was under way."""

from pathlib import Path

import pytest

pytest.importorskip("openai")

QUESTIONS, KILLS = 2_000, 5


def test_five_kills_lose_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """SIGKILL five times in the middle of 2,000 questions, counted at the model's server."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import kill_collect

    result = kill_collect.run(tmp_path, QUESTIONS, KILLS, models=("small",))

    assert len(result.kills) == KILLS
    for kill in result.kills:
        assert 0 < kill.rows < QUESTIONS
        assert kill.recorded_again == kill.lost == 0
        assert kill.again == kill.under_way <= kill_collect.CONCURRENCY
    assert result.rows == result.distinct == QUESTIONS
    assert result.calls - QUESTIONS == result.repeated == sum(kill.under_way for kill in result.kills)
    assert result.repeated > 0  # it was killed at work
