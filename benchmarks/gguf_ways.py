"""One GGUF file by its two ways in: dequantised into transformers, and run by llama.cpp, both in this process.

First: are the hidden states and log-probabilities of the dequantised model those of the same weights saved as
safetensors and loaded again? Then, on the same questions, P(T) of both ways: of the letters of multiple choice, and of
short free answers. How far apart are the scores, how many decisions differ at the median score, how long does it take?

llama.cpp multiplies quantised weights with activations that it rounds to eight bits, transformers with floats: some
difference is the price of its speed. Of a file in float32 there is none but rounding.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from confcascade import Cascade, LlamaCppModel, Message, Request, Stage, TokenProbability, TransformersModel
from confcascade.asks import Prefill
from confcascade.bench.questions import PROMPTS, read_examples
from confcascade.demo.gguf import write_gguf
from confcascade.demo.world import World
from confcascade.models.bundled import WEIGHTS
from rich.console import Console
from rich.progress import Progress

FREE = 8  # tokens of a free answer
SHORT = "Answer in a few words.\n{question}"

Kind: TypeAlias = tuple[str, list[Any], Callable[[], TokenProbability]]  # name, prompts, signal


def main(
    gguf: Annotated[Path | None, typer.Argument(help="The file; by default the bundled 'small' in float32.")] = None,
    choices: Annotated[Path | None, typer.Option(help="Questions with choices, for P(T) of the letters.")] = None,
    open_ended: Annotated[Path | None, typer.Option(help="Questions for short free answers.")] = None,
    questions: Annotated[int, typer.Option(help="Of each kind.")] = 100,
    threads: Annotated[int, typer.Option(help="Of computation, for both.")] = 1,
    batch: Annotated[int, typer.Option(help="Questions of one forward pass, and slots of llama.cpp.")] = 4,
    half: Annotated[
        bool,
        typer.Option(help="Also with a half-precision cache and flash attention."),
    ] = True,
    fresh: Annotated[bool, typer.Option(help="Dequantise again, and compare with what is saved.")] = True,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    import torch

    torch.set_num_threads(threads)
    console, found = Console(soft_wrap=True), {}
    with ExitStack() as stack:
        if gguf is None:
            gguf = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "small.gguf"
            write_gguf(WEIGHTS / "small", gguf)
        kinds = _kinds(choices, open_ended, questions)
        first = kinds[0][1]
        started = time.perf_counter()
        local = TransformersModel.from_pretrained(gguf, batch_size=batch, gguf_cache=False if fresh else None)
        found["loading_s"] = time.perf_counter() - started
        if fresh:
            found |= _same_as_saved(local, first[:20], console)
        models: list[tuple[str, Any]] = [("local", local)]
        started = time.perf_counter()
        models.append(("llamacpp", stack.enter_context(LlamaCppModel(gguf, slots=batch, threads=threads))))
        found["starting_llamacpp_s"] = time.perf_counter() - started
        if half:
            settings = {"kv_type": "float16", "flash_attention": True}
            models.append(
                ("llamacpp, half", stack.enter_context(LlamaCppModel(gguf, slots=batch, threads=threads, **settings)))
            )
        console.print(
            f"loading {found['loading_s']:.1f} s{' with dequantising' if fresh else ''}, "
            f"starting llama.cpp {found['starting_llamacpp_s']:.2f} s; load {os.getloadavg()[0]:.1f}"
        )
        heads = (
            "questions",
            "model",
            "seconds",
            "largest difference of P(T)",
            "median",
            "other decisions",
            "other answers",
        )
        console.print(f"| {' | '.join(heads)} |")
        console.print("|---|---|---:|---:|---:|---:|---:|---:|")
        for kind, prompts, signal in kinds:
            found[kind] = _compare(kind, prompts, signal, models, console)
    if out is not None:
        out.write_text(json.dumps(found, indent=1))


def _kinds(choices: Path | None, open_ended: Path | None, n: int) -> list[Kind]:
    kinds: list[Kind] = []
    if choices is not None:
        asked = [PROMPTS["multiple-choice"].messages(each) for each in _first(choices, n)]
        kinds.append(("letters", asked, lambda: TokenProbability(labels="ABCD")))
    if open_ended is not None:
        asked = [(Message("user", SHORT.format(question=each.question)),) for each in _first(open_ended, n)]
        kinds.append(("free", asked, TokenProbability))
    if not kinds:
        asked = [(Message("user", each.prompt),) for each in World().questions("test", ("facts", "sums"), per_task=n)]
        kinds.append(("free", asked[:n], TokenProbability))
    return kinds


def _first(path: Path, n: int) -> list[Any]:
    return [example for example, _ in zip(read_examples(path), range(n), strict=False)]


def _same_as_saved(model: TransformersModel, prompts: Sequence[Any], console: Console) -> dict[str, float]:
    """Largest differences from the same weights, saved as safetensors and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        started = time.perf_counter()
        saved = TransformersModel.from_pretrained(folder)
        seconds = time.perf_counter() - started
        layers = tuple(sorted({1, model.capability.layers // 2, model.capability.layers}))
        hidden = logprobs = 0.0
        for prompt in prompts:
            request = Request(tuple(prompt))
            ours, theirs = (each.prefill([Prefill(each, request, layers)])[0] for each in (model, saved))
            for layer in layers:
                hidden = max(hidden, float(abs(ours.hidden_states[layer] - theirs.hidden_states[layer]).max()))
            ours, theirs = (each.state.batch.logits.float().log_softmax(-1) for each in (ours, theirs))
            logprobs = max(logprobs, float((ours - theirs).abs().max()))
    console.print(
        f"against the same weights in safetensors, {len(prompts)} prompts, layers {layers}: hidden states differ by "
        f"{hidden:.1e} at most, log-probabilities of all next tokens by {logprobs:.1e}; loaded in {seconds:.1f} s"
    )
    return {"hidden_difference": hidden, "logprob_difference": logprobs, "loading_kept_s": seconds}


def _compare(
    kind: str,
    prompts: Sequence[Any],
    signal: Callable[[], TokenProbability],
    models: Sequence[tuple[str, Any]],
    console: Console,
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    reference: list[Any] = []
    threshold = 0.0
    for name, model in models:
        cascade = Cascade([Stage(model, [signal()], {"p_t": "always"}), Stage(model)], on_cut="keep")
        outcomes, started, computed = [], time.perf_counter(), time.process_time()
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{kind}, {name}", total=len(prompts))
            for begin in range(0, len(prompts), 8 * model.capability.batch_size):
                part = prompts[begin : begin + 8 * model.capability.batch_size]
                outcomes += cascade.run_batch(part, max_tokens=FREE, temperature=0)
                progress.update(task, completed=len(outcomes))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - computed  # llama.cpp's threads, too
        scores = [outcome.record.attempts[0].scores["p_t"].value for outcome in outcomes]
        if not reference:
            reference, threshold = outcomes, statistics.median(score for score in scores if score is not None)
        theirs = [outcome.record.attempts[0].scores["p_t"].value for outcome in reference]
        both = [(a, b) for a, b in zip(scores, theirs, strict=True) if a is not None and b is not None]
        gaps = [abs(a - b) for a, b in both]
        row = {
            "n": len(both),
            "seconds": seconds,
            "cpu_s": cpu_s,
            "largest": max(gaps),
            "median": statistics.median(gaps),
            "decisions": sum((a >= threshold) != (b >= threshold) for a, b in both),
            "answers": sum(a.text.strip() != b.text.strip() for a, b in zip(outcomes, reference, strict=True)),
        }
        found[name] = row
        console.print(
            f"| {kind} ({row['n']}) | {name} | {seconds:.1f} | {cpu_s:.1f} | {row['largest']:.1e} | "
            f"{row['median']:.1e} | {row['decisions']} | {row['answers']} |"
        )
    return found


if __name__ == "__main__":
    typer.run(main)
