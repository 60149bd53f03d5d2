"""A model's own answers to questions, several to each: what it is trained on, and how often it is right."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from confcascade.bench.training.rewards import read_completion
from confcascade.bench.training.verbalized.questions import Questions
from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.models.local import TransformersModel

__all__ = ["Answer", "Rollout", "Sampling", "end_tokens", "sample_rollouts"]


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled, before training and while it lasts.

    Attributes:
        group: Answers to a question, at least 2.
        temperature: Above 0.
        rows: Answers of a pass of training, and the most that are sampled at a time before it.
    """

    group: int = 16
    temperature: float = 1.0
    rows: int = 16

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ConfigurationError(f"A group has at least 2 answers. Got {self.group}.")
        if not self.temperature > 0:
            raise ConfigurationError(f"Answers are sampled at a temperature above 0. Got {self.temperature}.")


@dataclass(frozen=True)
class Answer:
    """One that was sampled.

    Attributes:
        tokens: With the token that ended it, if it did not reach the limit.
        grade: How right it is, from 0 to 1.
    """

    tokens: tuple[int, ...]
    grade: float


@dataclass(frozen=True)
class Rollout:
    """All answers to one question, which was asked without a word about confidence.

    Attributes:
        question: Its id.
        answers: In the order in which they were sampled.
    """

    question: str
    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        """Mean grade: what the model's confidence should be."""
        return sum(answer.grade for answer in self.answers) / len(self.answers)


def sample_rollouts(
    model: TransformersModel,
    questions: Questions,
    path: Path,
    sampling: Sampling,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Rollout] | None:
    """A group of answers to every training question, kept as they come; what the file has is not sampled again.

    Args:
        model: As it is before any training.
        questions: Whose training part is asked.
        path: A file of JSON lines.
        sampling: How many to each, and how.
        seed: Of the samples.
        progress: Called with the number of questions done, and of all.
        stop: Once set, ends after the questions under way.

    Returns:
        By the question's id; None if it was stopped.

    Raises:
        ConfigurationError: If the file holds groups of another size.
    """
    known = dict(_read(path))
    if sizes := {len(rollout.answers) for rollout in known.values()} - {sampling.group}:
        raise ConfigurationError(
            f"'{path}' holds {sizes.pop()} answers to a question, and {sampling.group} are wanted. "
            "Take another folder, or delete the file."
        )
    left = [example for example in questions.training if example.id not in known]
    at_a_time = max(1, sampling.rows // sampling.group)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for begin in range(0, len(left), at_a_time):
            if progress is not None:
                progress(len(questions.training) - len(left) + begin, len(questions.training))
            if stop is not None and stop.is_set():
                return None
            part = left[begin : begin + at_a_time]
            for rollout in _sampled(model, questions, part, sampling, seed):
                known[rollout.question] = rollout
                file.write(json.dumps(asdict(rollout)) + "\n")
            file.flush()
    if progress is not None:
        progress(len(questions.training), len(questions.training))
    return {example.id: known[example.id] for example in questions.training}


def end_tokens(model: TransformersModel) -> list[int]:
    """The tokens that end an answer."""
    told = model.model.generation_config.eos_token_id
    ends = [] if told is None else [told] if isinstance(told, int) else list(told)
    own = model.tokenizer.eos_token_id
    return ends if own is None or own in ends else [own, *ends]


def _read(path: Path) -> Iterator[tuple[str, Rollout]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            told = json.loads(line)
        except ValueError:
            continue  # cut by a kill
        answers = tuple(Answer(tuple(each["tokens"]), each["grade"]) for each in told["answers"])
        yield told["question"], Rollout(told["question"], answers)


def _sampled(
    model: TransformersModel,
    questions: Questions,
    examples: Sequence[Example],
    sampling: Sampling,
    seed: int,
) -> Iterator[Rollout]:
    import torch

    prompts = [model.encode(questions.request(example)) for example in examples]
    ends, device = end_tokens(model), model.model.device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), ends[0])
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(_seed(seed, examples))
        written = model.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_settings(model, ends, sampling, questions.max_tokens),
        )
    rows = written[:, width:].tolist()
    for i, example in enumerate(examples):
        answers = []
        for row in rows[i * sampling.group : (i + 1) * sampling.group]:
            end = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
            text = model.tokenizer.decode(row[:end], skip_special_tokens=True)
            answers.append(Answer(tuple(row[:end]), questions.grade(example, read_completion(text)[0])))
        yield Rollout(example.id, tuple(answers))


def _settings(model: TransformersModel, ends: list[int], sampling: Sampling, limit: int) -> Any:
    """Of the whole distribution: top_k, top_p and such would hide what the model is unsure of."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        num_return_sequences=sampling.group,
        top_k=0,
        top_p=1.0,
        repetition_penalty=model.generation_settings.get("repetition_penalty", 1.0),
        max_new_tokens=limit,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )


def _seed(seed: int, examples: Sequence[Example]) -> int:
    """The same for the same questions, wherever a run was stopped before."""
    text = json.dumps([seed, *(example.id for example in examples)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
