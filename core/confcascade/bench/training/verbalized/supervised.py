"""Teaching by examples: the model's own answers, each with how often the model was right as its confidence."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confcascade.bench.training.verbalized.following import Following
from confcascade.bench.training.verbalized.questions import Questions
from confcascade.bench.training.verbalized.rollouts import Rollout, end_tokens
from confcascade.bench.training.verbalized.weights import Weights
from confcascade.errors import ConfigurationError, require
from confcascade.models.local import TransformersModel
from confcascade.signals.verbalized import statement

__all__ = ["Lesson", "Supervised", "lessons", "teach"]


@dataclass(frozen=True)
class Lesson:
    """One text to learn.

    Attributes:
        input_ids: Prompt with the instruction, answer, statement and the token that ends it.
        labels: The same, -100 for the prompt.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Supervised:
    """How long and how fast.

    Attributes:
        epochs: How often each text is read.
        answers: Answers to a question that are learned from; all that were sampled if there are fewer.
        rate: Learning rate, falling to 0.
        texts: Of an update, or as many as whole passes hold.
    """

    epochs: float = 3.0
    answers: int = 4
    rate: float = 2e-4
    texts: int = 64


def lessons(
    model: TransformersModel, questions: Questions, rollouts: Mapping[str, Rollout], *, answers: int, seed: int = 0
) -> list[Lesson]:
    """Texts from a model's own answers; those that reached the limit are left out.

    The confidence is the share of right answers among all to the same question.

    Raises:
        ConfigurationError: If every answer reached the limit.
    """
    known = {example.id: example for example in questions.training}
    rng, found = random.Random(seed), []
    ends = set(end_tokens(model))
    for rollout in rollouts.values():
        whole = [answer.tokens for answer in rollout.answers if answer.tokens and answer.tokens[-1] in ends]
        request = questions.asked(known[rollout.question])
        prompt = model.encode(request)
        for *tokens, end in rng.sample(whole, min(answers, len(whole))):
            answer = replace(request, written=model.tokenizer.decode(tokens, skip_special_tokens=True))
            learned = (*tokens, *model.encode_behind(answer, statement(rollout.accuracy)), end)
            found.append(Lesson((*prompt, *learned), (*(-100 for _ in prompt), *learned)))
    if not found:
        raise ConfigurationError(
            f"No answer of '{model.name}' came to an end within {questions.max_tokens} tokens: raise the limit."
        )
    rng.shuffle(found)
    return found


def teach(
    weights: Weights,
    texts: Sequence[Lesson],
    setting: Supervised,
    folder: Path,
    *,
    rows: int,
    following: Following,
    seed: int = 0,
) -> bool:
    """Train fresh weights on texts; goes on from the last checkpoint in the folder, and saves the weights there.

    Args:
        weights: To be trained.
        texts: In the order in which they were drawn.
        setting: How long and how fast.
        folder: Of the weights.
        rows: Most texts of a pass.
        following: What happens beside it.
        seed: Of the order.

    Returns:
        Whether it came to its end.

    Raises:
        MissingExtraError: Without trl.
    """
    trl = require("trl", "train")
    datasets = require("datasets", "train")
    model = weights.fresh()
    arguments = trl.SFTConfig(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=setting.epochs,
        learning_rate=setting.rate,
        per_device_train_batch_size=min(rows, setting.texts),
        gradient_accumulation_steps=max(1, setting.texts // rows),
        max_length=None,
        **following.arguments(seed),
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(list(_columns(texts))),
        processing_class=weights.tokenizer,
        callbacks=[following.callback()],
    )
    if following.train(trainer, folder):
        weights.save(folder)
        return True
    return False


def _columns(texts: Sequence[Lesson]) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield {"input_ids": list(text.input_ids), "labels": list(text.labels)}
