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

"small" and "medium" are trained in three rounds, and "large", grown from the first of medium's, in two: from random
weights it learned facts and sums faster, but not to use what its guided heads see.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.demo.world import ADJECTIVES, LABELS, NOUNS, SUFFIXES, Example, World
from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
PAD, BOS, END = range(3)
VOCABULARY = 1536
CONTEXT = 4096
NOTHING = -1  # where no token is to be recalled
HELP = 0.5  # weight of each of the two helps beside the loss of the replies

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
    recall: int  # after how many layers a fact must be recalled
    mix: str  # one of `MIXES`
    million_tokens: float
    learning_rate: float
    batch_tokens: int = 1024
    begins: str | None = None  # the trained model that it begins as: of its own size, or grown from a smaller one


SMALL = Size(28, layers=4, heads=2, recall=2, mix="carry", million_tokens=12, learning_rate=4e-3)
MEDIUM = Size(64, layers=5, heads=2, recall=3, mix="look-up", million_tokens=11, learning_rate=4e-3)
LARGE = Size(128, layers=6, heads=4, recall=3, mix="carry", million_tokens=5, learning_rate=3e-3, begins="medium-1")
SIZES = {
    "small-1": SMALL,
    "small-2": replace(SMALL, mix="facts", million_tokens=5, learning_rate=3e-3, begins="small-1"),
    "small": replace(SMALL, mix="all", million_tokens=2, learning_rate=3e-3, begins="small-2"),
    "medium-1": MEDIUM,
    "medium-2": replace(MEDIUM, mix="carry", million_tokens=4, learning_rate=3e-3, begins="medium-1"),
    "medium": replace(MEDIUM, mix="all", million_tokens=3, learning_rate=2e-3, begins="medium-2"),
    "large-1": LARGE,
    "large": replace(LARGE, mix="all", million_tokens=4.5, learning_rate=2e-3, begins="large-1"),
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


@dataclass(frozen=True)
class Words:
    """The token ids of all values, and the letter of the token id of each letter, as they open a reply."""

    values: frozenset[int]
    letters: dict[int, str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, world: World) -> Words:
        def one(word: str) -> int:
            [token] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            return int(token)

        values = frozenset(one(value) for group in world.values.values() for value in group)
        return cls(values, {one(label): label for label in LABELS})


@dataclass(frozen=True)
class Guide:
    """In layer `layer`, head `head`: the token at `here` should attend to the token at `there`."""

    layer: int
    head: int
    here: int
    there: int


@dataclass
class Row:
    """One conversation as tokens: its ids, which are the assistant's, and the helps (see the module)."""

    task: str
    ids: list[int]
    learned: list[bool] = field(default_factory=list)
    recalled: list[int] = field(default_factory=list)
    guides: list[Guide] = field(default_factory=list)

    def add(self, ids: list[int], learned: bool = False, recalled: list[int] | None = None) -> None:
        self.ids += ids
        self.learned += [learned] * len(ids)
        self.recalled += recalled or [NOTHING] * len(ids)


@dataclass(frozen=True)
class Batch:
    """Conversations of similar length, right-padded to a multiple of 8.

    Attributes:
        tokens: Ids, (rows, length).
        learned: True where a token is the assistant's, (rows, length).
        recalled: The value that must be recalled halfway before each token, or `NOTHING`, (rows, length).
        guides: By layer: row, head, here and there of each guide, (4, guides).
        tasks: Of the rows.
    """

    tokens: torch.Tensor
    learned: torch.Tensor
    recalled: torch.Tensor
    guides: dict[int, torch.Tensor]
    tasks: list[str]


def to_row(
    example: Example, encode: Iterator[tuple[list[int], list[tuple[int, int]]]], words: Words, depth: int
) -> Row:
    """One conversation as tokens.

    Args:
        example: The conversation.
        encode: Its texts, in their order.
        words: The ids of values and letters.
        depth: `Size.recall`.
    """
    user, assistant, system = (SPECIAL.index(f"<|{role}|>") for role in ("user", "assistant", "system"))
    row = Row(example.task, [BOS], [False], [NOTHING])
    if example.system:
        row.add([system, *next(encode)[0]])
    where: dict[str, int] = {}  # handle of a clue -> position of its value
    for n, (asked, answered) in enumerate(example.turns):
        ids, offsets = next(encode)
        if n == 0 and example.clues:
            ends = {end: len(row.ids) + 1 + i for i, (_, end) in enumerate(offsets)}
            for clue in example.clues:
                start = asked.index(clue.text)
                value = ends[start + clue.text.rindex(clue.value) + len(clue.value)]
                handle = ends[start + clue.text.index(clue.handle) + len(clue.handle)]
                where[clue.handle] = value
                if clue.handle in LABELS:
                    row.guides.append(Guide(0, 0, value, handle))
                else:  # first name -> last name -> value
                    row.guides += [Guide(0, 0, handle, handle - 1), Guide(1, 1, value, handle)]
        row.add([user, *ids, assistant])
        reply = [*next(encode)[0], END]
        recalled = [NOTHING] * len(reply)
        for i, token in enumerate(reply):
            here = len(row.ids) + i - 1
            letter = words.letters.get(token)
            if letter in where:
                recalled[i] = row.ids[where[letter]]
                row.guides.append(Guide(depth, 0, here, where[letter]))
            elif token in words.values and not example.clues:
                recalled[i] = token
        if example.clues and example.task == "reading":
            question = asked.rpartition(example.clues[-1].text)[2]
            for clue in example.clues:
                if clue.handle in question and clue.value == answered:
                    row.guides.append(Guide(depth, 0, len(row.ids) - 1, where[clue.handle]))
        row.add(reply, learned=True, recalled=recalled)
    return row


def batches(
    tokenizer: PreTrainedTokenizerFast, world: World, size: Size, seed: int, pool: int = 4096
) -> Iterator[Batch]:
    """Endless batches of `size.batch_tokens` tokens at most."""
    import torch

    rng = random.Random(seed)
    words = Words.of(tokenizer, world)
    while True:
        examples = [world.example(rng, size.mix) for _ in range(pool)]
        texts = []
        for example in examples:
            texts += [example.system] if example.system else []
            texts += [text for asked, answered in example.turns for text in (asked, f" {answered}")]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        encode = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        rows = [to_row(example, encode, words, size.recall) for example in examples]
        rows.sort(key=lambda row: len(row.ids))
        grouped: list[list[Row]] = [[]]
        for row in rows:
            if grouped[-1] and len(row.ids) * (len(grouped[-1]) + 1) > size.batch_tokens:
                grouped.append([])
            grouped[-1].append(row)
        rng.shuffle(grouped)
        for group in grouped:
            length = -(-max(len(row.ids) for row in group) // 8) * 8
            tokens = torch.full((len(group), length), PAD)
            learned = torch.zeros(len(group), length, dtype=torch.bool)
            recalled = torch.full((len(group), length), NOTHING)
            guides: dict[int, list[tuple[int, int, int, int]]] = {}
            for i, row in enumerate(group):
                tokens[i, : len(row.ids)] = torch.tensor(row.ids)
                learned[i, : len(row.ids)] = torch.tensor(row.learned)
                recalled[i, : len(row.ids)] = torch.tensor(row.recalled)
                for guide in row.guides:
                    guides.setdefault(guide.layer, []).append((i, guide.head, guide.here, guide.there))
            by_layer = {layer: torch.tensor(each).T for layer, each in guides.items()}
            yield Batch(tokens, learned, recalled, by_layer, [row.task for row in group])


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
    """Train the size called `name` and save it under `out`; returns what is written to ``training.json``.

    Args:
        name: One of `SIZES`.
        out: Folder for the weights and the tokenizer.
        seed: Of the weights, and, plus one, of the conversations.
        million_tokens: Instead of the recipe's.
        begin: Folder of the trained model `Size.begins`, where there is one.

    Raises:
        ConfigurationError: If a model to begin with is missing, or given to a size that begins with none.
    """
    import torch
    from torch.nn import functional as F
    from transformers import LlamaForCausalLM

    size = SIZES[name]
    if (begin is None) != (size.begins is None):
        wanted = f"the folder of a trained '{size.begins}'" if size.begins else "nothing: it has random weights"
        raise ConfigurationError(f"`begin` of '{name}' must be {wanted}. Got {begin}.")
    total = (million_tokens or size.million_tokens) * 1e6
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
            hidden, lr=size.learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    seen, reported = 0, 0
    losses: dict[str, list[float]] = {}
    history: list[dict[str, float]] = []
    started, cpu_started = time.time(), time.process_time()
    for batch in batches(tokenizer, world, size, seed + 1):
        progress = seen / total
        if progress >= 1:
            break
        decay = min(1.0, max(0.02, (1 - progress) / 0.5))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = size.learning_rate * min(1.0, (seen + 2e3) / 2e5) * decay
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
        + (f"--begin {size.begins.upper()} --out FOLDER" if size.begins else "--out FOLDER"),
        "seed": seed,
        "begins_with": begin and json.loads((begin / "training.json").read_text()),
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
    parser.add_argument("--begin", type=Path, help='folder of the trained model that "medium" and "large" begin with')
    given = parser.parse_args()
    try:
        train(given.size, given.out, given.seed, given.million_tokens, given.begin)
    except ConfigurationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
