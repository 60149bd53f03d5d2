"""What confidence, shared prefixes and many queries cost a local model, compared with plain `transformers`.

    python benchmarks/local_speed.py free        # P(IK) and P(T) compared with `generate`, one query and a batch of 64
    python benchmarks/local_speed.py prefixes    # prompts that begin alike: kept keys and values compared with none
    python benchmarks/local_speed.py memory      # peaks of fresh processes, of batches and of waiting callers

Contenders take turns, and ratios are within pairs: medians, quartiles in brackets. CPU time is that of the whole
process, all threads; it is the one to trust on a machine with other work.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from concurrency import AtHalfDepth, by_generate, questions, random_llama, spread
from confcascade import Cascade, Stage, TokenProbability, TransformersModel
from confcascade.models.bundled import bundled_model
from confcascade.testing import ScriptedModel
from confcascade.types import Message

TOKENS = 32
WORDS = 200  # about as many tokens
RATIO = "×{:.3f}".format


def made(name: str, **options: Any) -> TransformersModel:
    """One of the models, whose answers end with their most tokens only."""
    known: dict[str, Callable[[], TransformersModel]] = {
        "bundled": lambda: bundled_model("small"),
        "random": random_llama,
        "random128k": lambda: random_llama(vocabulary=128_000),
    }
    model = known[name]() if name in known else TransformersModel.from_pretrained(name)
    model = TransformersModel(model.model, model.tokenizer, name=model.name, **options)
    model._speaker.settings.ends = frozenset()
    return model


def cascade_of(model: TransformersModel) -> Cascade:
    """P(IK) and P(T), which always pass."""
    stage = Stage(model, [AtHalfDepth(), TokenProbability()], {"half": 0.0, "p_t": 0.0})
    return Cascade([stage, Stage(ScriptedModel("large"))], on_cut="keep")


def pairs(
    first: Callable[[list[str]], Any], second: Callable[[list[str]], Any], asked: Callable[[int], list[str]], count: int
) -> str:
    """Ratios of the second to the first on the same texts, each as often before the other as after it: two cells."""
    found: dict[str, list[float]] = {"CPU": [], "wall": []}
    for number in range(-2, count):
        texts, spent = asked(number + 2), {}
        for contender in (first, second) if number % 2 else (second, first):
            began, cpu = time.perf_counter(), time.process_time()
            contender(texts)
            spent[contender] = time.process_time() - cpu, time.perf_counter() - began
        if number >= 0:
            for clock, mine, its in zip(found, spent[second], spent[first], strict=True):
                found[clock].append(mine / its)
    return " | ".join(spread(found[clock], RATIO) for clock in found)


def free(options: argparse.Namespace) -> None:
    """Confidence compared with none."""
    print("| model | queries | pairs | CPU | wall |\n|---|---:|---:|---:|---:|")
    for name in options.model or ["bundled", "random"]:
        for rows, count in ((1, options.pairs), (64, options.batches)):
            model = made(name, batch_size=64, prefix_cache_mb=0)
            plain = partial(by_generate, model, tokens=TOKENS, rows_at_once=64)
            cells = pairs(plain, partial(run, model, TOKENS, ""), partial(questions, rows, WORDS), count)
            print(f"| {model.name} | {rows} | {count} | {cells} |", flush=True)


def run(model: TransformersModel, tokens: int, system: str, texts: list[str]) -> None:
    """Answer texts, behind a system prompt if there is one."""
    cascade = cascade_of(model)
    asked = [Message.parse([("system", system), ("user", text)] if system else text) for text in texts]
    if len(asked) == 1:
        cascade.run(asked[0], max_tokens=tokens)
    else:
        cascade.run_batch(asked, max_tokens=tokens)


def prefixes(options: argparse.Namespace) -> None:
    """With beginnings kept, compared with none."""
    shapes = {"few-shot: 400 words in common, 20 of its own": (400, 20), "retrieval: 40 in common, 300 own": (40, 300)}
    print("| model | prompts | at once | pairs | CPU | wall |\n|---|---|---:|---:|---:|---:|")
    for name in options.model or ["bundled", "random"]:
        for shape, (common, own) in shapes.items():
            (system,) = questions(1, common, 0)
            for rows in (1, 16):
                plain, keeping, count = made(name, prefix_cache_mb=0), made(name), max(5, options.pairs // (4 * rows))
                run(keeping, 1, system, questions(2, own, 10**6))
                contenders = (partial(run, model, 4, system) for model in (plain, keeping))
                cells = pairs(*contenders, partial(questions, rows, own), count)
                print(f"| {plain.name} | {shape} | {rows} | {count} | {cells} |", flush=True)


def peak_mb() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(what: str, name: str) -> None:
    """One measurement of memory, in a process of its own."""
    model = made(name, batch_size=64)
    cascade, asked = cascade_of(model), questions(64, WORDS, 64)
    cascade.run_batch(asked[:2], max_tokens=2)
    loaded = peak_mb()
    if what == "generate":
        by_generate(model, asked, TOKENS, 64)
    elif what == "cascade":
        cascade.run_batch(asked, max_tokens=TOKENS)
    elif what.startswith("batch"):
        cascade.run_batch(questions(int(what[5:]), 8, 1), max_tokens=2)
    else:

        async def main() -> int:
            texts, most = questions(int(what[7:]), 8, 1), threading.active_count()
            calls = [asyncio.ensure_future(cascade.arun(text, max_tokens=2)) for text in texts]
            before = most
            while not all(call.done() for call in calls):
                await asyncio.sleep(0.05)
                most = max(most, threading.active_count())
            return most - before

        print(f"{asyncio.run(main())} threads more, ", end="")
    print(f"{peak_mb():.0f} MiB at most, {peak_mb() - loaded:.0f} above the model")


def memory(options: argparse.Namespace) -> None:
    """Peaks, each of a fresh process."""
    for name in options.model or ["random"]:
        for what in ("generate", "cascade"):
            measured(what, name)
    for what in ("batch1000", "batch10000", "callers1000", "callers10000"):
        measured(what, "bundled")


def measured(what: str, name: str) -> None:
    """A line of it."""
    command = [sys.executable, __file__, "alone", "--what", what, "--model", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{name}, {what}: {done.stdout.strip()}", flush=True)


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["free", "prefixes", "memory", "alone"])
    parser.add_argument("--model", action="append", help='"bundled", "random", "random128k", a folder or a GGUF file')
    parser.add_argument("--pairs", type=int, default=200, help="of single queries")
    parser.add_argument("--batches", type=int, default=20, help="pairs of batches")
    parser.add_argument("--what", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.which == "alone":
        alone(options.what, options.model[0])
    else:
        {"free": free, "prefixes": prefixes, "memory": memory}[options.which](options)


if __name__ == "__main__":
    main()
