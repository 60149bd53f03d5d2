"""What goes wrong outside of us is one line, too."""

from __future__ import annotations

import errno
import sys

import pytest
from confcascade import cli


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(monkeypatch, capsys, number):
    def full() -> None:
        raise OSError(number, "No space left on device", "rec.jsonl")

    monkeypatch.setattr(cli, "app", full)

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Error: The disk is full, writing 'rec.jsonl'. What was kept before stays; make room")


def test_convert_leaves_no_half_recording(monkeypatch, tmp_path):
    """It would stand in the way of the next try."""
    from confcascade.bench.recording import RecordingWriter
    from confcascade.bench.recording.row import Row

    def full(self, row):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    (tmp_path / "a.jsonl").write_bytes(Row(question="q", model="m", answer="a").line())
    monkeypatch.setattr(RecordingWriter, "append", full)
    monkeypatch.setattr(sys, "argv", ["confcascade", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    assert not (tmp_path / "b.jsonl").exists()
