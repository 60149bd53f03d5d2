"""Make the bundled models: ``python -m confcascade.demo.train small --out DIR``.

A Llama of one of three sizes is trained from scratch on `World` conversations, on one CPU core in a quarter of an
hour to an hour, and saved as `transformers` saves any model.  The loss is on the assistant's turns only, with two
helps that a model of this size needs and that leave no trace in what is saved:

- *Recall halfway.*  At the depth `Size.recall` the output head must already say the value of a fact, also where the
  reply is the letter of an option: so the layers above may look that value up among the options (deep supervision,
  Lee et al. 2015, "Deeply-Supervised Nets").
- *Guides.*  One attention head is told where to look: an option's value at its letter, a value in a passage at its
  subject, and the reply, from the depth of recall on, at the option or the sentence that it is about (guided
  attention, as Mi et al. 2016 and Liu et al. 2016 did for translation).  They fade out over the last half.

"small" and "medium" are trained in four rounds, and "large", grown from the first of medium's, in three: from random
weights it learned facts and sums faster, but not to use what its guided heads see.

Reading order is execution order: model, forward pass, training.  This module knows nothing of
confidence or cascades; sizes and recipe are fixed before any cascade is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.demo.lessons import BOS, CONTEXT, END, NOTHING, PAD, VOCABULARY, Batch, batches, build_tokenizer
from confcascade.demo.world import World
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

HELP = 0.5  # weight of each of the two helps beside the loss of the replies


BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Size:
    """The shape of a bundled model."""

    hidden: int
    layers: int
    heads: int
    recall: int  # after how many layers a fact must be recalled


@dataclass(frozen=True)
class Round:
    """A training of a model of one size."""

    size: Size
    mix: str  # one of `MIXES`
    million_tokens: float
    learning_rate: float
    begins: str | None = None  # the round whose model it begins with: of its own size, or grown from a smaller one


SMALL = Size(28, layers=4, heads=2, recall=2)
MEDIUM = Size(64, layers=5, heads=2, recall=3)
LARGE = Size(128, layers=6, heads=4, recall=3)
ROUNDS = {
    "small-1": Round(SMALL, "carry", 12, 4e-3),
    "small-2": Round(SMALL, "facts", 5, 3e-3, begins="small-1"),
    "small-3": Round(SMALL, "letters", 3, 3e-3, begins="small-2"),
    "small": Round(SMALL, "facts, sums", 1.2, 2e-3, begins="small-3"),
    "medium-1": Round(MEDIUM, "look-up", 11, 4e-3),
    "medium-2": Round(MEDIUM, "carry", 4, 3e-3, begins="medium-1"),
    "medium-3": Round(MEDIUM, "all", 3, 2e-3, begins="medium-2"),
    "medium": Round(MEDIUM, "sums", 3, 2e-3, begins="medium-3"),
    "large-1": Round(LARGE, "carry", 5, 3e-3, begins="medium-1"),
    "large-2": Round(LARGE, "all", 4.5, 2e-3, begins="large-1"),
    "large": Round(LARGE, "refusals", 4, 1.5e-3, begins="large-2"),
}


def new_model(size: Size) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.hidden * 8 // 3,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.4 * size.hidden**-0.5,
    )
    return LlamaForCausalLM(config)


def grow(small: LlamaForCausalLM, size: Size, noise: float = 0.01) -> LlamaForCausalLM:
    """A larger model that computes what `small` does, to be trained on: Net2Net (Chen et al. 2016).

    The residual stream, the heads and the hidden units are repeated, and what reads them is divided by as much;
    further layers add nothing at first.

    Args:
        small: A trained model.
        size: Its hidden size and heads are the same multiple of `small`'s; it has as many layers or more.
        noise: Standard deviation of what is added to each matrix, relative to its own: without it, copies stay alike.
    """
    import torch

    model = new_model(size)
    times = size.hidden // small.config.hidden_size
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(small.model.embed_tokens.weight.repeat(1, times))
        model.model.norm.weight.copy_(small.model.norm.weight.repeat(times) / times)
        for layer, old in zip(model.model.layers, small.model.layers, strict=False):
            for name, parameter in layer.named_parameters():
                copies = old.get_parameter(name)
                if parameter.ndim == 1:
                    parameter.copy_(copies.repeat(times))
                    continue
                copies = copies.repeat(times, times) / times
                if "down_proj" in name:  # hidden units beyond the copies are not read
                    parameter.zero_()
                parameter[: copies.shape[0], : copies.shape[1]] = copies
        for layer in model.model.layers[small.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * noise)
    return model


@dataclass(frozen=True)
class Pass:
    """What a forward pass gives the training.

    Attributes:
        logits: Of the next token, (positions asked for, vocabulary), float32.
        halfway: The same from the layer of recall, of the positions where something is to be recalled.
        guides: Mean cross-entropy of the guided heads' attention, one scalar per guided layer.
    """

    logits: torch.Tensor
    halfway: torch.Tensor
    guides: list[torch.Tensor]


def forward(model: LlamaForCausalLM, batch: Batch, recall: int) -> Pass:
    """Llama's forward pass in bfloat16, the head only where it is needed: much faster than float32 on a recent CPU.

    Written out because autocast would convert at every operation, and because the guides need the attention; the
    tests hold it to transformers' own.

    Args:
        model: Weights in float32 (converted here, so gradients reach them).
        batch: Right-padded: under a causal mask padding cannot reach an answer.
        recall: `Size.recall`.
    """
    import torch
    from torch.nn import functional as F

    config = model.config
    rows, length = batch.tokens.shape
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    half = width // 2
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    angle = torch.outer(torch.arange(length), frequency)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()  # (length, half)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (config.hidden_size,), weight.bfloat16(), config.rms_norm_eps)

    def head(x: torch.Tensor) -> torch.Tensor:
        return F.linear(norm(x, model.model.norm.weight), model.lm_head.weight.bfloat16()).float()

    guided: list[torch.Tensor] = []
    x = F.embedding(batch.tokens, model.model.embed_tokens.weight.bfloat16())
    for depth, layer in enumerate(model.model.layers):
        if depth == recall:
            halfway = head(x[before(batch.recalled != NOTHING)])
        attention, mlp = layer.self_attn, layer.mlp
        normed = norm(x, layer.input_layernorm.weight)
        joint = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).bfloat16()
        q, k, v = F.linear(normed, joint).view(rows, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        # by hand: on a CPU the backward pass of the fused kernel takes four times as long at these lengths
        scores = rotate(q) @ rotate(k).transpose(-1, -2) * width**-0.5
        if depth in batch.guides:
            row, which, here, there = batch.guides[depth]
            visible = scores[row, which, here].float().masked_fill(future[here], float("-inf"))
            guided.append(F.cross_entropy(visible, there))
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), attention.o_proj.weight.bfloat16())
        normed = norm(x, layer.post_attention_layernorm.weight)
        gate, up = F.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).bfloat16()).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight.bfloat16())
    return Pass(head(x[before(batch.learned)]), halfway, guided)


def before(where: torch.Tensor) -> torch.Tensor:
    """The positions one earlier, whose logits are about the true entries of `where` (rows, length)."""
    shifted = where.roll(-1, 1)
    shifted[:, -1] = False
    return shifted


def train(
    name: str, out: Path, seed: int = 0, million_tokens: float | None = None, begin: Path | None = None
) -> dict[str, Any]:
    """Train the round called `name` and save its model under `out`; returns what is written to ``training.json``.

    Args:
        name: One of `ROUNDS`.
        out: Folder for the weights and the tokenizer.
        seed: Of the weights, and, plus one, of the conversations.
        million_tokens: Instead of the recipe's.
        begin: Folder of the model of the round `Round.begins`, where there is one.

    Raises:
        ConfigurationError: If a model to begin with is missing, or given to a round that begins with none.
    """
    import torch
    from torch.nn import functional as F
    from transformers import LlamaForCausalLM

    plan = ROUNDS[name]
    size = plan.size
    if (begin is None) != (plan.begins is None):
        wanted = f"the folder of a trained '{plan.begins}'" if plan.begins else "nothing: it has random weights"
        raise ConfigurationError(f"`begin` of '{name}' must be {wanted}. Got {begin}.")
    total = (million_tokens or plan.million_tokens) * 1e6
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    world = World()
    tokenizer = build_tokenizer(world)
    if begin is None:
        model = new_model(size)
    else:
        model = grow(LlamaForCausalLM.from_pretrained(begin, dtype=torch.float32), size)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            hidden, lr=plan.learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    seen, reported = 0, 0
    losses: dict[str, list[float]] = {}
    history: list[dict[str, float]] = []
    started, cpu_started = time.time(), time.process_time()
    for batch in batches(tokenizer, world, seed + 1, mix=plan.mix, recall=size.recall, batch_tokens=BATCH_TOKENS):
        progress = seen / total
        if progress >= 1:
            break
        decay = min(1.0, max(0.02, (1 - progress) / 0.5))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * min(1.0, (seen + 2e3) / 2e5) * decay
        found = forward(model, batch, size.recall)
        loss = F.cross_entropy(found.logits, batch.tokens[batch.learned], reduction="none")
        recalled = batch.recalled[batch.recalled != NOTHING]
        helps = F.cross_entropy(found.halfway, recalled, reduction="sum") / len(loss)
        for guide in found.guides:
            helps = helps + decay * guide
        (loss.mean() + HELP * helps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += int((batch.tokens != PAD).sum())
        for task, part in zip(batch.tasks, loss.detach().split(batch.learned.sum(1).tolist()), strict=True):
            losses.setdefault(task, []).append(part.mean().item())
        if seen - reported > 5e5:
            reported = seen
            history.append(
                {"tokens": seen} | {task: round(sum(each) / len(each), 3) for task, each in sorted(losses.items())}
            )
            losses = {}
            print(f"{name}: {history[-1]}, {seen / (time.time() - started):.0f} tokens/s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    record = {
        "command": f"python -m confcascade.demo.train {name} --seed {seed} "
        + (f"--begin {plan.begins.upper()} --out FOLDER" if plan.begins else "--out FOLDER"),
        "seed": seed,
        "begins_with": begin and json.loads((begin / "training.json").read_text()),
        "round": asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": seen,
        "loss": history,
        "cpu_s": round(time.process_time() - cpu_started),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("round", choices=ROUNDS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--million-tokens", type=float, help="stop earlier or later than the recipe (for trying things out)"
    )
    parser.add_argument("--begin", type=Path, help="folder of the model of the round that this one begins with")
    given = parser.parse_args()
    try:
        train(given.round, given.out, given.seed, given.million_tokens, given.begin)
    except ConfigurationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
