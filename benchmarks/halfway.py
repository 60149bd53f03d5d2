"""What a prompt costs that P(IK) rejects behind half or three quarters of the blocks, over the same with a whole pass.

    python benchmarks/halfway.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

A random Llama of about 107M parameters, and the models of GGUF files, read prompts of 220 tokens, alone and in batches,
as stages of a cascade with a probe: rejected behind one depth or another, rejected for every second prompt, and passed
(an answer of one token, which the pass itself gives). Each is compared with the same cascade whose model obeys no gate,
as all did before. Contenders take turns; CPU time of the process on one thread; medians of the ratios within a turn,
and their quartiles. The models' answers mean nothing here; a probe has random weights.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from confcascade import Cascade, KnowledgeProbe, Stage, TransformersModel
from confcascade.models.bundled import WEIGHTS
from confcascade.signals.knowledge_probe import ProbeCard, resolve_layer
from confcascade.signals.probe_fitting import NETWORK
from confcascade.testing import ScriptedModel
from rich.console import Console
from rich.progress import Progress

TOKENS = 220
SHAPE = {
    "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 4, "vocab_size": 16_000, "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip


def random_llama() -> TransformersModel:
    """About 107M parameters, over the bundled models' tokenizer; prompts are completed."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "small")
    tokenizer.chat_template = None
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return TransformersModel(model, tokenizer, name=f"random Llama, {model.num_parameters() / 1e6:.0f}M")


def prompts(model: TransformersModel, count: int) -> list[str]:
    """Different ones, each of about `TOKENS` tokens."""
    words = "the old town lies near a quiet river and many people walk there on warm days".split()
    found = []
    for i in range(count):
        rng, text = np.random.default_rng(i), ""
        while len(model.tokenizer(text)["input_ids"]) < TOKENS:
            text += f" {words[rng.integers(len(words))]}"
        found.append(text)
    return found


def random_probe(model: TransformersModel, depth: float) -> KnowledgeProbe:
    """The network of the papers, with random weights."""
    size, rng = model.capability.hidden_size, np.random.default_rng(0)
    widths = [size, *NETWORK, 1]
    weights = {"mean": np.zeros(size, np.float32), "scale": np.ones(size, np.float32)}
    for i, (n, m) in enumerate(pairwise(widths)):
        weights[f"weight.{i}"] = (rng.normal(size=(n, m)) / n**0.5).astype(np.float32)
        weights[f"bias.{i}"] = np.zeros(m, np.float32)
    layer = resolve_layer(depth, model.capability.layers)
    card = ProbeCard(model.name, model.fingerprint, layer, size, (0, 0, 0), 0.5, (0.5, 0.5), 0.25, 0, 0)
    return KnowledgeProbe(card, weights)


def without_gates(model: TransformersModel) -> TransformersModel:
    """The same weights; every pass goes on to its end."""
    other = copy(model)
    other._capability = replace(model.capability, stops=False)
    return other


@dataclass(frozen=True)
class Compared:
    """Two cascades that differ in whether the small model obeys a gate.

    Attributes:
        case: What is measured.
        rows: Prompts in a batch.
        gated: A call of the one.
        whole: A call of the other.
    """

    case: str
    rows: int
    gated: Callable[[], Any]
    whole: Callable[[], Any]


def cases(model: TransformersModel, rows: int, depths: Sequence[float]) -> list[Compared]:
    """All that is compared for one model in batches of one size."""
    asked = prompts(model, rows)
    large = ScriptedModel("large")

    def call(own: TransformersModel, probe: KnowledgeProbe, threshold: Any) -> Callable[[], Any]:
        cascade = Cascade([Stage(own, [probe], {"p_ik": threshold}), Stage(large)])
        if rows == 1:
            return lambda: [cascade.run(asked[0], max_tokens=1)]
        return lambda: cascade.run_batch(asked, max_tokens=1)

    whole, found = without_gates(model), []
    for depth in depths:
        probe = random_probe(model, depth)
        named: list[tuple[str, Any]] = [(f"rejected at {depth:g}", "never")]
        if rows > 1:
            scores = sorted(each.record.attempts[0].scores["p_ik"].value for each in call(whole, probe, "never")())
            named.append((f"every second rejected at {depth:g}", (scores[rows // 2 - 1] + scores[rows // 2]) / 2))
        for case, threshold in [*named, (f"passed at {depth:g}", "always")]:
            pair = call(model, probe, threshold), call(whole, probe, threshold)
            assert_alike(*(each() for each in pair))
            found.append(Compared(case, rows, *pair))
    return found


def assert_alike(gated: Sequence[Any], whole: Sequence[Any]) -> None:
    """Decisions, reasons and answers are the same, and rejected prompts cost fewer operations."""
    for one, other in zip(gated, whole, strict=True):
        mine, theirs = one.record.attempts[0], other.record.attempts[0]
        assert (mine.decision, one.text) == (theirs.decision, other.text)
        assert abs(mine.scores["p_ik"].value - theirs.scores["p_ik"].value) < 1e-5
        assert (mine.cost.flops < theirs.cost.flops) != mine.scores["p_ik"].passed


def seconds(call: Callable[[], Any]) -> float:
    """Of CPU."""
    gc.collect()
    begun = time.process_time()
    call()
    return time.process_time() - begun


def line(name: str, compared: Compared, turns: Sequence[tuple[float, float]]) -> str:
    ratios = [gated / whole for gated, whole in turns]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    before = statistics.median(whole for _, whole in turns) * 1e3
    return (
        f"| {name} | {compared.rows} | {compared.case} | {before:,.0f} ms | ×{middle:.2f} ({low:.2f} to {high:.2f}) |"
    )


def main(
    gguf: Annotated[list[Path] | None, typer.Option(help="A model to measure, too; may be repeated.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="Prompts in a batch; may be repeated.")] = None,
    depths: Annotated[list[float] | None, typer.Option(help="Of the probe; may be repeated.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Of one prompt alone.")] = 15,
    batch_turns: Annotated[int, typer.Option(min=1, help="Of batches.")] = 5,
    random: Annotated[bool, typer.Option(help="Measure the random model.")] = True,
) -> None:
    """Measure, and print the table as Markdown."""
    import torch

    torch.set_num_threads(1)
    models = [random_llama] * random + [
        lambda path=path: TransformersModel.from_pretrained(path) for path in gguf or ()
    ]
    print("| model | rows | prompts are | whole pass, CPU | gated over whole (quartiles) |\n|---|---:|---|---:|---:|")
    with Progress(console=Console(stderr=True)) as progress:
        for make in models:
            model = make()
            for count in rows or (1, 16):
                repeats = turns if count == 1 else batch_turns
                compared = cases(model, count, depths or (0.5, 0.75))
                taken: list[list[tuple[float, float]]] = [[] for _ in compared]
                for turn in progress.track(range(repeats), description=f"{model.name}, {count}"):
                    for each, own in zip(compared, taken, strict=True):
                        if turn % 2:  # neither is always the first
                            gated = seconds(each.gated)
                            own.append((gated, seconds(each.whole)))
                        else:
                            whole = seconds(each.whole)
                            own.append((seconds(each.gated), whole))
                for each, own in zip(compared, taken, strict=True):
                    print(line(model.name, each, own), flush=True)


if __name__ == "__main__":
    typer.run(main)
