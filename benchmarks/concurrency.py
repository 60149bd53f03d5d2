"""Many callers of one local model: throughput and waits, compared with one after another, and with `generate`.

    python benchmarks/concurrency.py                       # the bundled model and a random Llama of 110M parameters
    python benchmarks/concurrency.py --model FILE.gguf     # a pretrained one
    python benchmarks/concurrency.py --callers 64 --signal probe

Each caller asks its next question when it has been answered (closed loop); all answers have the same number of tokens.
The cascade's first stage always answers, scored by P(T), or by hidden states before it generates (--signal probe).
Contenders of one round ask the same questions, one after the other, and ratios are within rounds: the table gives
medians, and quartiles in brackets. "generate" is a plain padded batch of `transformers`, 32 prompts at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from confcascade import Cascade, Stage, TokenProbability, TransformersModel
from confcascade.extending import Evidence, Measurement, Signal
from confcascade.models.bundled import bundled_model
from confcascade.models.local.worker import Worker, in_own_thread
from confcascade.testing import ScriptedModel

BATCH = 32
WORDS = "the old town lies near a quiet river and many people walk there on warm days".split()


def random_llama(*, vocabulary: int = 32_000) -> TransformersModel:
    """A Llama of 110M parameters that nobody has trained, with the bundled models' tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    model = in_own_thread(lambda: transformers.LlamaForCausalLM(config).eval())
    return TransformersModel(model, bundled_model("small").tokenizer, name="random Llama", batch_size=BATCH)


class AtHalfDepth(Signal):
    """Reads the hidden state at half depth before anything is generated, and always passes."""

    name = "half"
    phase = "pre"

    def check(self, model: Any) -> None:
        """It goes with local models only."""

    def identity(self) -> str:
        return self.name

    def layers(self, model: Any) -> tuple[int, ...]:
        return (model.capability.layers // 2,)

    def score(self, evidence: Evidence) -> Measurement:
        assert evidence.prefilled is not None
        (state,) = evidence.prefilled.hidden_states.values()
        return Measurement(float(state[0] < 1e9))


@dataclass
class Round:
    """What one contender took for the same questions.

    Attributes:
        seconds: For each query, on average.
        waits: From question to answer, in seconds.
        lags: How much later than asked for a timer of the event loop fired, in seconds.
        threads: Most that there were, those of the process before not counted.
    """

    seconds: float
    waits: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    threads: int = 0


def questions(count: int, words: int, seed: int) -> list[str]:
    """Texts of nearly the same length."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words + draw.randrange(words // 10 + 1))) for _ in range(count)]


def one_after_another(cascade: Cascade, asked: list[str], tokens: int) -> Round:
    """One caller."""
    waits = []
    for text in asked:
        began = time.perf_counter()
        cascade.run(text, max_tokens=tokens)
        waits.append(time.perf_counter() - began)
    return Round(statistics.fmean(waits), waits)


def from_tasks(cascade: Cascade, asked: list[str], tokens: int, callers: int) -> Round:
    """Tasks of one event loop."""

    async def main() -> Round:
        waits: list[float] = []
        lags: list[float] = []
        left = iter(asked)
        most = before = threading.active_count()

        async def caller() -> None:
            for text in left:
                began = time.perf_counter()
                await cascade.arun(text, max_tokens=tokens)
                waits.append(time.perf_counter() - began)

        async def watch() -> None:
            nonlocal most
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.005)
                lags.append(time.perf_counter() - began - 0.005)
                most = max(most, threading.active_count())

        watching = asyncio.ensure_future(watch())
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        took = time.perf_counter() - began
        watching.cancel()
        return Round(took / len(asked), waits, lags, most - before)

    return asyncio.run(main())


def from_threads(cascade: Cascade, asked: list[str], tokens: int, callers: int) -> Round:
    """A thread for each caller."""

    def ask(text: str) -> float:
        began = time.perf_counter()
        cascade.run(text, max_tokens=tokens)
        return time.perf_counter() - began

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(str, range(callers)))
        began = time.perf_counter()
        waits = list(pool.map(ask, asked))
        return Round((time.perf_counter() - began) / len(asked), waits)


def as_a_batch(cascade: Cascade, asked: list[str], tokens: int, callers: int) -> Round:
    """One call of `run_batch`."""
    began = time.perf_counter()
    cascade.run_batch(asked, max_concurrency=callers, max_tokens=tokens)
    return Round((time.perf_counter() - began) / len(asked))


def by_generate(model: TransformersModel, asked: list[str], tokens: int, rows_at_once: int = BATCH) -> Round:
    """`generate` of transformers, so many prompts at a time, padded on the left."""
    from confcascade.types import Message, Request

    def encode(text: str) -> list[int]:
        return list(model.encode(Request(Message.parse(text))))

    return on_its_thread(model, lambda: _generated(model, [encode(text) for text in asked], tokens, rows_at_once))


def on_its_thread(model: TransformersModel, function: Callable[[], Round]) -> Round:
    """Call a function in the thread in which the model computes: a second pool of PyTorch's would slow both."""
    future: Future[Round] = Future()

    class Once:
        def take(self, job: None) -> None:
            """Nothing is handed over."""

        def step(self) -> bool:
            future.set_result(function())
            return False

        def fail(self, error: BaseException) -> None:
            future.set_exception(error)

    Worker.of(model.model.device).submit(Once(), None)
    return future.result()


def _generated(model: TransformersModel, encoded: list[list[int]], tokens: int, rows_at_once: int) -> Round:
    began = time.perf_counter()
    for start in range(0, len(encoded), rows_at_once):
        rows = encoded[start : start + rows_at_once]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = model.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        for row in out[:, longest:].tolist():
            model.tokenizer.decode(row)
    return Round((time.perf_counter() - began) / len(encoded))


def spread(values: list[float], text: Callable[[float], str]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{text(middle)} ({text(low)}-{text(high)})"


def measure(model: TransformersModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model's table."""
    ends, model._speaker.settings.ends = model._speaker.settings.ends, frozenset()  # so that answers are equally long
    signal = AtHalfDepth() if options.signal == "probe" else TokenProbability()
    cascade = Cascade([Stage(model, [signal], {signal.name: 0.0}), Stage(ScriptedModel("large"))], on_cut="keep")
    tokens, rows = options.tokens, []
    contenders = {"tasks": from_tasks, "threads": from_threads, "run_batch": as_a_batch}
    one_after_another(cascade, questions(4, options.words, 0), tokens)
    for callers in options.callers:
        rounds: dict[str, list[Round]] = {name: [] for name in ("sequential", "generate", *contenders)}
        for number in range(options.rounds):
            asked = questions(max(options.queries, callers), options.words, 1000 * callers + number)
            rounds["sequential"].append(one_after_another(cascade, asked[: options.sequential], tokens))
            rounds["generate"].append(by_generate(model, asked, tokens))
            for name, contend in contenders.items():
                if name in options.contenders:
                    rounds[name].append(contend(cascade, asked, tokens, callers))
        for name, done in rounds.items():
            if done:
                rows.append({"model": model.name, "callers": callers, "contender": name} | figures(done, rounds))
                print(line(rows[-1]), flush=True)
    model._speaker.settings.ends = ends
    return rows


def figures(done: list[Round], rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """Of one contender, in every round."""
    waits = sorted(wait for each in done for wait in each.waits)
    lags = sorted(lag for each in done for lag in each.lags)
    return {
        "queries_s": statistics.median(1 / each.seconds for each in done),
        "over_sequential": [one.seconds / each.seconds for one, each in zip(rounds["sequential"], done, strict=True)],
        "over_generate": [one.seconds / each.seconds for one, each in zip(rounds["generate"], done, strict=True)],
        "wait_p50_s": waits[len(waits) // 2] if waits else None,
        "wait_p95_s": waits[int(len(waits) * 0.95)] if waits else None,
        "lag_p95_s": lags[int(len(lags) * 0.95)] if lags else None,
        "lag_max_s": lags[-1] if lags else None,
        "threads": max(each.threads for each in done),
    }


def line(row: dict[str, Any]) -> str:
    """One line of the table."""

    def ms(value: float | None) -> str:
        return "" if value is None else f"{1000 * value:,.0f}"

    ratio = "×{:.2f}".format
    return (
        f"| {row['callers']} | {row['contender']} | {row['queries_s']:.1f} | {spread(row['over_sequential'], ratio)} "
        f"| {spread(row['over_generate'], ratio)} | {ms(row['wait_p50_s'])} | {ms(row['wait_p95_s'])} "
        f"| {ms(row['lag_p95_s'])} | {ms(row['lag_max_s'])} | {row['threads'] or ''} |"
    )


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help='"bundled", "random", or a folder or GGUF file (repeatable)')
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--contenders", nargs="+", default=["tasks", "threads", "run_batch"])
    parser.add_argument("--queries", type=int, default=128, help="of each round, or one for each caller")
    parser.add_argument("--sequential", type=int, default=16, help="of them are asked one after another")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=40, help="of a question")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--signal", choices=["p_t", "probe"], default="p_t")
    parser.add_argument("--out", type=Path, help="the figures of every row, as JSON lines")
    options = parser.parse_args()
    known = {"bundled": lambda: bundled_model("small"), "random": random_llama}
    for name in options.model or ["bundled", "random"]:
        model = known[name]() if name in known else TransformersModel.from_pretrained(name, batch_size=BATCH)
        print(
            f"\n{model.name}: {options.words} words, {options.tokens} tokens, {os.cpu_count()} cores, "
            f"torch {torch.__version__}, transformers {transformers.__version__}\n"
        )
        print(
            "| callers | contender | queries/s | over sequential | over generate | wait p50, ms | p95 | lag p95, ms "
            "| max | threads |"
        )
        print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        rows = measure(model, options)
        if options.out:
            with options.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
