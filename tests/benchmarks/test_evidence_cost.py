"""The benchmark of what it costs to find the answer times every kind of answer, whole and streamed."""

import json


def test_every_answer_is_timed(load_script, monkeypatch, capsys):
    script = load_script("evidence_cost")
    monkeypatch.setattr(script, "CALLS", 1)
    script.measure()
    took = json.loads(capsys.readouterr().out)

    assert set(took) == {f"{name}, {way}" for name in script.ANSWERS for way in ("whole", "streamed")}
    assert all(seconds > 0 for seconds in took.values())
