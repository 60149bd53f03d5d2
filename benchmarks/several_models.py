"""A cascade of three local models, loaded at once or on demand: time to build it, time to answer, peak memory.

    python benchmarks/several_models.py                    # random Llamas of 0.6M, 3.5M and 86M parameters
    python benchmarks/several_models.py --rounds 5
    python benchmarks/several_models.py --models A B C     # folders or GGUF files, smallest first

Each way is a process of its own, in turns. The questions that a larger model is asked are fixed beforehand: none of
them ("never"), or one in four goes to the largest ("now and then"). "bound" holds the largest model and nothing else.
The table gives medians, and quartiles in brackets; peaks are of the whole process, beyond what it takes with the
packages imported. The script ends with an error if two ways answer differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confcascade import Cascade, MemoryBound, OnDemandModel, Stage, TransformersModel
from confcascade.extending import Evidence, Measurement, Signal
from confcascade.models.bundled import bundled_folder

WAYS = ("at once", "on demand", "bound")
RUNS = {"never": 0, "now and then": 4}
SIZES = {"small": (128, 2), "medium": (256, 4), "large": (768, 12)}  # hidden size and layers
COLUMNS = {"built_s": ".2f", "built_cpu_s": ".2f", "first_s": ".2f", "all_s": ".1f", "peak_mib": ",.0f", "loads": ".0f"}
QUESTIONS = 8
TOKENS = 4


class Planned(Signal):
    """Escalates the questions that say so."""

    name = "planned"
    phase = "post"

    def check(self, model: Any) -> None:
        """It goes with every model."""

    def identity(self) -> str:
        return self.name

    def score(self, evidence: Evidence) -> Measurement:
        return Measurement(0.0 if "!" in evidence.request.messages[-1].content else 1.0)


def random_models(folder: Path) -> list[str]:
    """Three Llamas that nobody has trained, with the bundled models' tokenizer."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_folder("small"))
    for name, (hidden_size, layers) in SIZES.items():
        torch.manual_seed(layers)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),  # every token is a text: an empty answer would escalate
            hidden_size=hidden_size,
            intermediate_size=8 * hidden_size // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // 64,
            tie_word_embeddings=True,
        )
        config.eos_token_id = config.bos_token_id = config.pad_token_id = None
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return [str(folder / name) for name in SIZES]


def peak_mib() -> float:
    """Most memory that this process has had so far."""
    status = Path("/proc/self/status").read_text()  # what `getrusage` says may be the parent's
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def answer(places: Sequence[str], way: str, every: int, gib: float) -> dict[str, Any]:
    """Build a cascade and ask it, in this process."""
    import torch

    loads: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: loads.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("confcascade").addHandler(handler)
    logging.getLogger("confcascade").setLevel(logging.INFO)
    torch.set_num_threads(1)
    import transformers.models.llama.modeling_llama  # noqa: F401  # not what is measured

    before = peak_mib()
    began, cpu = time.perf_counter(), time.process_time()
    if way == "at once":
        models = [TransformersModel.from_pretrained(place, name=Path(place).name) for place in places]
    else:
        memory = MemoryBound(gib) if way == "bound" else MemoryBound()
        models = [OnDemandModel(place, name=Path(place).name, memory=memory) for place in places]
    stages = [Stage(model, [Planned()], {"planned": 0.5}) for model in models[:-1]] + [Stage(models[-1])]
    cascade = Cascade(stages, on_cut="keep")
    built, built_cpu = time.perf_counter() - began, time.process_time() - cpu
    texts = [f"Where was number {i} born{'!' if every and i % every == every - 1 else '?'}" for i in range(QUESTIONS)]
    told = []
    first = None
    for text in texts:
        outcome = cascade.run(text, max_tokens=TOKENS)
        first = first or time.perf_counter() - began
        told.append(
            [outcome.text, [(each.model, each.decision) for each in outcome.record.attempts], cascade.policy_id]
        )
    return {
        "built_s": built,
        "built_cpu_s": built_cpu,
        "first_s": first,
        "all_s": time.perf_counter() - began,
        "peak_mib": peak_mib() - before,
        "loads": sum(message.startswith("Loading model") for message in loads) if way != "at once" else len(places),
        "digest": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12],
    }


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="folders or GGUF files, smallest first; by default random ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answer", help=argparse.SUPPRESS)  # a way, in a process of its own
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(answer(**json.loads(options.answer))))
        return
    with tempfile.TemporaryDirectory() as folder:
        places = options.models or random_models(Path(folder))
        sizes = [OnDemandModel(place).weight_bytes / 2**30 for place in places]
        print(f"weights: {', '.join(f'{size * 1024:,.0f} MiB' for size in sizes)}; {os.cpu_count()} cores\n")
        print(
            "| larger models asked | way | to build, s | CPU s | first answer, s | all answers, s | peak, MiB | loads |"
        )
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        for run, every in RUNS.items():
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    asked = {"places": places, "way": way, "every": every, "gib": 1.01 * max(sizes)}
                    command = [sys.executable, __file__, "--answer", json.dumps(asked)]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            for way, each in found.items():
                cells = [spread([one[name] for one in each], form) for name, form in COLUMNS.items()]
                print(f"| {run} | {way} | {' | '.join(cells)} |", flush=True)
            if len(digests := {one["digest"] for each in found.values() for one in each}) != 1:
                raise SystemExit(f"The ways answer differently: {digests}")


if __name__ == "__main__":
    main()
