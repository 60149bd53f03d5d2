"""Make the bundled models: ``python -m confcascade.demo.train small --out DIR``.

A Llama of one of three sizes is trained from scratch on `World` conversations, on one CPU core in half an hour to
an hour and a half, and saved as `transformers` saves any model.  The loss is on the assistant's turns only.

Reading order is execution order: tokenizer, batches, forward pass, training.  This module knows nothing of
confidence or cascades; sizes and recipe are fixed before any cascade is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.demo.world import ADJECTIVES, MIX, NOUNS, SUFFIXES, World

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
PAD, BOS, END = range(3)
VOCABULARY = 1536
CONTEXT = 4096

# Qwen2's split into words, one token a digit: an expression that llama.cpp knows by the name "qwen2"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>{{ ' ' + m.content | default('', true) | trim }}<|end|>"
    "{% elif m.role == 'tool' %}<|tool|>{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|system|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The shape of a bundled model and how long it is trained."""

    hidden: int
    layers: int
    heads: int
    million_tokens: float
    learning_rate: float
    batch_tokens: int


SIZES = {
    "small": Size(hidden=28, layers=3, heads=2, million_tokens=20, learning_rate=4e-3, batch_tokens=2048),
    "medium": Size(hidden=64, layers=4, heads=2, million_tokens=12, learning_rate=4e-3, batch_tokens=2048),
    "large": Size(hidden=128, layers=6, heads=4, million_tokens=13, learning_rate=3e-3, batch_tokens=3072),
}


def build_tokenizer(world: World, seed: int = 7, conversations: int = 40_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every name and every value of the world is one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # a reply opens with a space, so that a value is the same token there as in a passage; decoding takes it away
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    rng = random.Random(seed)
    texts = [
        text
        for _ in range(conversations)
        for asked, answered in world.example(rng).turns
        for text in (asked, f" {answered}")
    ]
    values = [value for group in world.values.values() for value in group]
    names = [*world.first_names, *world.last_names, *ADJECTIVES, *NOUNS, *SUFFIXES]
    texts += [f" {word}" for word in [*values, *names]] * 400
    texts += world.first_names * 400  # these also open a line
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def batches(
    tokenizer: PreTrainedTokenizerFast, world: World, seed: int, batch_tokens: int, pool: int = 4096
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Endless batches of conversations of similar length, right-padded to a multiple of 8.

    Yields:
        Token ids (rows, length); a mask of the same shape, true where a token is the assistant's; the rows' tasks.
    """
    import torch

    rng = random.Random(seed)
    user, assistant, system = (SPECIAL.index(f"<|{role}|>") for role in ("user", "assistant", "system"))
    while True:
        examples = [world.example(rng) for _ in range(pool)]
        texts = []
        for example in examples:
            texts += [example.system] if example.system else []
            texts += [text for asked, answered in example.turns for text in (asked, f" {answered}")]
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        rows: list[tuple[list[int], list[bool], str]] = []
        for example in examples:
            ids, learned = [BOS], [False]
            if example.system:
                part = [system, *next(encoded)]
                ids += part
                learned += [False] * len(part)
            for _ in example.turns:
                asked, answered = [user, *next(encoded), assistant], [*next(encoded), END]
                ids += asked + answered
                learned += [False] * len(asked) + [True] * len(answered)
            rows.append((ids, learned, example.task))
        rows.sort(key=lambda row: len(row[0]))
        grouped: list[list[tuple[list[int], list[bool], str]]] = [[]]
        for row in rows:
            if grouped[-1] and len(row[0]) * (len(grouped[-1]) + 1) > batch_tokens:
                grouped.append([])
            grouped[-1].append(row)
        rng.shuffle(grouped)
        for group in grouped:
            length = -(-max(len(ids) for ids, _, _ in group) // 8) * 8
            tokens = torch.full((len(group), length), PAD)
            mask = torch.zeros(len(group), length, dtype=torch.bool)
            for i, (ids, learned, _) in enumerate(group):
                tokens[i, : len(ids)] = torch.tensor(ids)
                mask[i, : len(ids)] = torch.tensor(learned)
            yield tokens, mask, [task for _, _, task in group]


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


def answer_logits(model: LlamaForCausalLM, tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Llama's forward pass in bfloat16, the head only where it is needed: much faster than float32 on a recent CPU.

    Written out because autocast would convert at every operation; the tests hold it to transformers' own.

    Args:
        model: Weights in float32 (converted here, so gradients reach them).
        tokens: Ids (rows, length), right-padded: under a causal mask padding cannot reach an answer.
        where: Boolean (rows, length): the positions whose next token is asked for.

    Returns:
        Logits (true entries of `where`, vocabulary) in float32.
    """
    import torch
    from torch.nn import functional as F

    config = model.config
    rows, length = tokens.shape
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

    x = F.embedding(tokens, model.model.embed_tokens.weight.bfloat16())
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = norm(x, layer.input_layernorm.weight)
        joint = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).bfloat16()
        q, k, v = F.linear(normed, joint).view(rows, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        # by hand: on a CPU the backward pass of the fused kernel takes four times as long at these lengths
        scores = rotate(q) @ rotate(k).transpose(-1, -2) * width**-0.5
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), attention.o_proj.weight.bfloat16())
        normed = norm(x, layer.post_attention_layernorm.weight)
        gate, up = F.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).bfloat16()).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight.bfloat16())
    x = norm(x[where], model.model.norm.weight)
    return F.linear(x, model.lm_head.weight.bfloat16()).float()


def train(name: str, out: Path, seed: int = 0, million_tokens: float | None = None) -> dict[str, Any]:
    """Train the size called `name` and save it under `out`; returns what is written to ``training.json``."""
    import torch
    from torch.nn import functional as F

    size = SIZES[name]
    total = (million_tokens or size.million_tokens) * 1e6
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    world = World()
    tokenizer = build_tokenizer(world)
    model = new_model(size)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            hidden, lr=size.learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    seen, reported = 0, 0
    losses: dict[str, list[float]] = {task: [] for task in MIX}
    history: list[dict[str, float]] = []
    started, cpu_started = time.time(), time.process_time()
    for tokens, learned, tasks in batches(tokenizer, world, seed + 1, size.batch_tokens):
        progress = seen / total
        if progress >= 1:
            break
        rate = size.learning_rate * min(1.0, (seen + 2e3) / 2e5) * min(1.0, max(0.02, (1 - progress) / 0.5))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        where = torch.zeros_like(learned)
        where[:, :-1] = learned[:, 1:]  # the logits at a position are about the next token
        loss = F.cross_entropy(answer_logits(model, tokens, where), tokens[learned], reduction="none")
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += int((tokens != PAD).sum())
        for task, part in zip(tasks, loss.detach().split(learned.sum(1).tolist()), strict=True):
            losses[task].append(part.mean().item())
        if seen - reported > 5e5:
            reported = seen
            history.append(
                {"tokens": seen} | {task: round(sum(each) / len(each), 3) for task, each in losses.items() if each}
            )
            losses = {task: [] for task in MIX}
            print(f"{name}: {history[-1]}, {seen / (time.time() - started):.0f} tokens/s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    record = {
        "command": f"python -m confcascade.demo.train {name} --seed {seed} --out FOLDER",
        "seed": seed,
        "size": asdict(size),
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
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--million-tokens", type=float, help="stop earlier or later than the recipe (for trying things out)"
    )
    arguments = parser.parse_args()
    train(arguments.size, arguments.out, arguments.seed, arguments.million_tokens)


if __name__ == "__main__":
    main()
