"""A sweep and a collect on a real Ray cluster of local nodes, of which one is killed in the middle.

``python benchmarks/ray_nodes.py`` sweeps here, on one node, and on three of which one is killed after the first part,
and prints the figures to the last digit; then collects from two models behind a server of OpenAI's chat API in another
process, here and on three nodes of which one is killed after a quarter of the rows, and prints what the server saw.
Each node has one processor and a store of 80 MB for objects.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kill_collect
from confcascade.bench.cluster import connect
from confcascade.bench.recording import Columns, read_rows
from confcascade.bench.replay import Sweep, sweep
from confcascade.bench.replay.ray import ray_sweep
from replay_speed import MODELS, made_up, policies

ASKED = ("small", "large")
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
QUICK = {  # to notice that a node is gone
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@dataclass(frozen=True)
class Swept:
    """A sweep: how it was made, how long it took, and all its figures."""

    how: str
    seconds: float
    figures: bytes
    best: float
    flops: float


@dataclass(frozen=True)
class Asked:
    """A collect: its rows without times, in order, the calls that the server counted, and how many came again."""

    how: str
    seconds: float
    rows: list[dict[str, Any]]
    calls: int
    repeated: int


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster of one node, to which others can be added; this process is connected to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK})
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = made.address
    try:
        connect()
        yield made
    finally:
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()
        made.shutdown()


def kill_one_at_work(nodes: Any) -> str:
    """Kill (SIGKILL) a node other than the first with a worker on it; says which."""
    import ray._private.state

    while True:
        actors = ray._private.state.actors().values()
        at_work = {actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"}
        for node in nodes.worker_nodes:
            if node.node_id in at_work:
                nodes.remove_node(node, allow_graceful=False)
                return str(node.node_id)
        time.sleep(0.05)


def swept(how: str, columns: Columns, count: int, nodes: Any = None, kill: bool = False) -> Swept:
    """Sweep `count` policies, here or on the cluster."""
    killed: list[str] = []

    def progress(done: int, parts: int) -> None:
        del done, parts
        if kill and not killed:
            killed.append(kill_one_at_work(nodes))

    begun, chains = time.perf_counter(), policies(count)
    if nodes is None:
        made = sweep(columns, chains, architectures=MODELS)
    else:
        made = ray_sweep(columns, chains, architectures=MODELS, progress=progress)
    took = time.perf_counter() - begun
    return Swept(how, took, _bytes(made), float(made.accuracy.max()), float(made.cost.flops.mean()))


def _bytes(made: Sweep) -> bytes:
    costs = [array for cost in (made.cost, made.cost_answering_stage) for array in vars(cost).values()]
    return b"".join(each.tobytes() for each in (made.accuracy, made.answered, made.unanswered, *costs))


def asked(how: str, folder: Path, questions: int, nodes: Any = None) -> Asked:
    """Collect `questions` by the command, here or on the cluster, where a node is killed when a quarter is there."""
    folder.mkdir()
    data, recording, log = folder / "questions.jsonl", folder / "rec.jsonl", folder / "asked.log"
    log.touch()
    asks = ({"question": f"Question {i}?", "reference": "word"} for i in range(questions))
    data.write_text("".join(json.dumps(each) + "\n" for each in asks))
    with kill_collect.server(log) as port:
        models = [{"openai": name, "base_url": f"http://127.0.0.1:{port}/v1"} for name in ASKED]
        (folder / "cascade.yaml").write_text(json.dumps({"models": models}))
        command = [sys.executable, "-m", "confcascade.cli", "collect", str(data), "-o", str(recording)]
        command += ["--cascade", str(folder / "cascade.yaml"), "--grader", "contains"]
        begun = time.perf_counter()
        with (folder / "output.log").open("wb") as output:
            running = subprocess.Popen(
                [*command, "--engine", "here" if nodes is None else "ray"],
                stdout=output,
                stderr=output,
                env={**os.environ, "OPENAI_API_KEY": "none"},
            )
            while nodes is not None and running.poll() is None and _rows(recording) < questions * len(ASKED) / 4:
                time.sleep(0.02)
            if nodes is not None and running.poll() is None:
                kill_one_at_work(nodes)
            if running.wait():
                raise RuntimeError((folder / "output.log").read_text())
        took = time.perf_counter() - begun
        calls = log.read_text().splitlines()
    rows = sorted(read_rows(recording), key=lambda row: row.key)
    told = [row.model_dump(exclude={"latency_s", "prefill_s"}) for row in rows]
    return Asked(how, took, told, len(calls), len(calls) - len(set(calls)))


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200_000, help="of the sweep")
    parser.add_argument("--policies", type=int, default=200)
    parser.add_argument("--asks", type=int, default=500, help="questions of the collect")
    options = parser.parse_args()
    columns = made_up(options.questions, early=True)
    sweeps = [swept("here", columns, options.policies)]
    with tempfile.TemporaryDirectory() as folder:
        collects = [asked("here", Path(folder) / "here", options.asks)]
        with cluster() as nodes:
            sweeps.append(swept("1 node", columns, options.policies, nodes))
            for _ in range(2):
                nodes.add_node(**NODE)
            sweeps.append(swept("3 nodes, 1 killed", columns, options.policies, nodes, kill=True))
            nodes.add_node(**NODE)
            collects.append(asked("3 nodes, 1 killed", Path(folder) / "ray", options.asks, nodes))
    print(f"{options.policies:,} policies x {options.questions:,} questions x {len(MODELS)} models\n")
    print("| sweep | seconds | best accuracy | mean FLOPs | all figures as here |\n|---|---:|---:|---:|---|")
    for each in sweeps:
        same = "yes" if each.figures == sweeps[0].figures else "NO"
        print(f"| {each.how} | {each.seconds:.1f} | {each.best!r} | {each.flops!r} | {same} |")
    print(f"\n{options.asks:,} questions to {len(ASKED)} models\n")
    print("| collect | seconds | rows | rows as here, times apart | calls | of them again |")
    print("|---|---:|---:|---|---:|---:|")
    for one in collects:
        same = "yes" if one.rows == collects[0].rows else "NO"
        print(f"| {one.how} | {one.seconds:.1f} | {len(one.rows):,} | {same} | {one.calls:,} | {one.repeated:,} |")


if __name__ == "__main__":
    main()
