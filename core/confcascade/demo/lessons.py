"""What the bundled models are trained on, as tokens: the tokenizer, and batches of conversations with their helps.

The helps are explained in `train`: values to recall halfway, and guides of where a head should look.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confcascade.demo.world import ADJECTIVES, LABELS, NOUNS, SUFFIXES, Example, World

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
PAD, BOS, END = range(3)
VOCABULARY = 1536
CONTEXT = 4096
NOTHING = -1  # where no token is to be recalled

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
class Lesson:
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
    example: Example, encode: Iterator[tuple[list[int], list[tuple[int, int]]]], words: Words, recall: int
) -> Lesson:
    """One conversation as tokens.

    Args:
        example: The conversation.
        encode: Its texts, in their order.
        words: The ids of values and letters.
        recall: After how many layers a fact must be recalled.
    """
    user, assistant, system = (SPECIAL.index(f"<|{role}|>") for role in ("user", "assistant", "system"))
    row = Lesson(example.task, [BOS], [False], [NOTHING])
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
                row.guides.append(Guide(recall, 0, here, where[letter]))
            elif token in words.values and not example.clues:
                recalled[i] = token
        if example.clues and example.task == "reading":
            question = asked.rpartition(example.clues[-1].text)[2]
            for clue in example.clues:
                if clue.handle in question and clue.value == answered:
                    row.guides.append(Guide(recall, 0, len(row.ids) - 1, where[clue.handle]))
        row.add(reply, learned=True, recalled=recalled)
    return row


def batches(
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    seed: int,
    *,
    mix: str,
    recall: int,
    batch_tokens: int,
    pool: int = 4096,
) -> Iterator[Batch]:
    """Endless batches.

    Args:
        tokenizer: Of `build_tokenizer`.
        world: Whose conversations they are.
        seed: Of the conversations.
        mix: One of `MIXES`.
        recall: After how many layers a fact must be recalled.
        batch_tokens: Most tokens of a batch.
        pool: How many conversations are sorted by length at a time.
    """
    import torch

    rng = random.Random(seed)
    words = Words.of(tokenizer, world)
    while True:
        examples = [world.example(rng, mix) for _ in range(pool)]
        texts = []
        for example in examples:
            texts += [example.system] if example.system else []
            texts += [text for asked, answered in example.turns for text in (asked, f" {answered}")]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        encode = iter(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        rows = [to_row(example, encode, words, recall) for example in examples]
        rows.sort(key=lambda row: len(row.ids))
        grouped: list[list[Lesson]] = [[]]
        for row in rows:
            if grouped[-1] and len(row.ids) * (len(grouped[-1]) + 1) > batch_tokens:
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
