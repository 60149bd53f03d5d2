"""Kill ``confcascade collect`` time and again, and count at the models' server what was asked twice.

``python benchmarks/kill_collect.py`` collects 2,000 questions from two models behind a server of OpenAI's chat API in
another process, kills the collecting process (SIGKILL) five times in the middle, starts it again each time, and prints
what the server saw: which calls were under way at each kill, and which questions it was asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODELS = ("small", "large")
CONCURRENCY = 16
ANSWER_S = 0.02


@dataclass(frozen=True)
class Kill:
    """What was found after one.

    Attributes:
        rows: In the recording.
        half_row: Bytes of an unfinished last line.
        under_way: Calls that the server had been asked for and that are not in the recording.
        again: Of these, how many it was asked for again later.
        recorded_again: Calls that it was asked for again although they were recorded.
        lost: Rows that are no longer in the recording at the end.
    """

    rows: int
    half_row: int
    under_way: int
    again: int
    recorded_again: int
    lost: int


@dataclass(frozen=True)
class Result:
    """Of a collect that was killed and ended.

    Attributes:
        kills: One for each.
        rows: In the recording at the end.
        distinct: Of these, different ones.
        calls: That the server was asked for.
        repeated: Of these, how many were asked for more than once, counted once for each time too many.
    """

    kills: list[Kill]
    rows: int
    distinct: int
    calls: int
    repeated: int


def run(folder: Path, questions: int, kills: int, *, models: Sequence[str] = MODELS, seed: int = 0) -> Result:
    """Collect `questions` from `models`, killed `kills` times at random places."""
    data, recording, log = folder / "questions.jsonl", folder / "rec.jsonl", folder / "asked.log"
    asks = ({"question": f"Question {i}?", "reference": "word"} for i in range(questions))
    data.write_text("".join(json.dumps(each) + "\n" for each in asks))
    rng = random.Random(seed)
    total = questions * len(models)
    marks = sorted(rng.sample(range(total // 20, total - total // 20), kills))  # rows at which it is killed
    found = []
    with server(log) as port:
        cascade = folder / "cascade.yaml"
        entries = [{"openai": name, "base_url": f"http://127.0.0.1:{port}/v1"} for name in models]
        cascade.write_text(json.dumps({"models": entries}))  # JSON is YAML
        command = [sys.executable, "-m", "confcascade.cli", "collect", str(data), "-o", str(recording)]
        command += ["--cascade", str(cascade), "--grader", "contains", "--max-concurrency", str(CONCURRENCY)]
        for mark in marks:
            with (folder / "stderr.log").open("ab") as errors:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None and _lines(recording) < mark:
                time.sleep(0.002)
            if process.poll() is not None:
                raise RuntimeError(f"collect ended before it was killed: {(folder / 'stderr.log').read_text()}")
            process.kill()
            process.wait()
            time.sleep(10 * ANSWER_S)  # what has been sent arrives, and is answered to nobody
            found.append((recording.read_bytes(), len(_asked(log))))
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(ended.stderr)
        asked = _asked(log)
    final = recording.read_bytes()
    told, begun = [], 0
    for content, calls in found:
        whole = content[: content.rfind(b"\n") + 1]
        keys = set(_keys(whole))
        under_way, later = set(asked[begun:calls]) - keys, set(asked[calls:])
        told.append(
            Kill(
                rows=len(keys),
                half_row=len(content) - len(whole),
                under_way=len(under_way),
                again=len(under_way & later),
                recorded_again=len(keys & later),
                lost=len(keys - set(_keys(final))),
            )
        )
        begun = calls
    keys_at_end = _keys(final)
    return Result(told, len(keys_at_end), len(set(keys_at_end)), len(asked), len(asked) - len(set(asked)))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _keys(content: bytes) -> list[str]:
    rows = map(json.loads, content.splitlines())
    return [f"{row['model']} {row['prompt']}" for row in rows]


def _asked(log: Path) -> list[str]:
    return log.read_text().splitlines()


# ---------------------------------------------------------------------- the server


@contextmanager
def server(log: Path) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(log)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def serve(log: Path) -> None:
    """Answer chat requests after `ANSWER_S`, and write down each as it comes, before it is answered."""
    sys.path.insert(0, str(Path(__file__).parent))
    import instant_server

    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # one write, one line, whichever thread writes

    class Handler(instant_server.Handler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(body) < length:  # whoever asked was killed on the way
                return
            asked = json.loads(body)
            os.write(written, f"{asked['model']} {asked['messages'][-1]['content']}\n".encode())
            time.sleep(ANSWER_S)
            self._send("application/json", instant_server.whole(asked))

    listening = instant_server.Server(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    print(listening.server_port, flush=True)
    listening.serve_forever()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=Path, metavar="LOG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), options.questions, options.kills, seed=options.seed)
    print(
        "| kill | rows recorded | bytes of a half row | calls under way | asked again | recorded, asked again | lost |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for number, kill in enumerate(result.kills, start=1):
        figures = (kill.rows, kill.half_row, kill.under_way, kill.again, kill.recorded_again, kill.lost)
        print(f"| {number} | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    print(
        f"\n{options.questions:,} questions to {len(MODELS)} models, at most {CONCURRENCY} calls at a time: "
        f"{result.rows:,} rows, {result.distinct:,} different; {result.calls:,} calls counted at the server, "
        f"{result.repeated:,} of them repetitions. {time.perf_counter() - began:.0f} s."
    )


if __name__ == "__main__":
    main()
