"""Reinforcement learning: the model answers, states a confidence, and is paid for both (GRPO, by TRL).

Right answers are paid as much as the form and the statement. Without that, a model learns to be surely wrong, and to
say so: it then earns as much by its statements as one that is surely right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from confcascade.bench.metrics.ranking import auroc, calibration_error
from confcascade.bench.training.rewards import (
    BrierReward,
    CorrectnessReward,
    FormatReward,
    GroupDistance,
    LogReward,
    Reward,
    read_completion,
)
from confcascade.bench.training.verbalized.following import Following
from confcascade.bench.training.verbalized.questions import Questions
from confcascade.bench.training.verbalized.rollouts import Sampling
from confcascade.bench.training.verbalized.weights import Weights
from confcascade.errors import ConfigurationError, require
from confcascade.graders.grade import is_right
from confcascade.models.local import TransformersModel
from confcascade.types import Request

__all__ = ["RULES", "Reinforced", "Rule", "reinforce", "statement_figures", "trainer_prompts"]

Rule: TypeAlias = Literal["brier", "log", "group-distance"]
RULES: Mapping[Rule, type[BrierReward | LogReward | GroupDistance]] = {
    "brier": BrierReward,
    "log": LogReward,
    "group-distance": GroupDistance,
}


@dataclass(frozen=True)
class Reinforced:
    """How long, how fast, and for what.

    Attributes:
        rule: What pays the statement (`confcascade.bench.training.rewards`).
        steps: Updates of the weights.
        questions: Of an update.
        rate: Learning rate, falling to 0.
        beta: Weight of the KL penalty against the weights it began with.
    """

    rule: Rule = "brier"
    steps: int = 300
    questions: int = 8
    rate: float = 2e-5
    beta: float = 0.0

    def passes(self, sampling: Sampling) -> int:
        """Passes of an update.

        Raises:
            ConfigurationError: If passes of so many rows do not divide its answers.
        """
        answers = sampling.group * self.questions
        if answers % sampling.rows:
            raise ConfigurationError(
                f"{self.questions} questions with {sampling.group} answers each make {answers} in all, which passes of "
                f"{sampling.rows} do not divide."
            )
        return answers // sampling.rows


def reinforce(
    model: TransformersModel,
    weights: Weights,
    begin: Path,
    questions: Questions,
    setting: Reinforced,
    sampling: Sampling,
    folder: Path,
    *,
    following: Following,
    seed: int = 0,
) -> bool:
    """Go on training the weights of `begin`; from the last checkpoint in the folder, if there is one.

    Returns:
        Whether it came to its end.

    Raises:
        MissingExtraError: Without trl.
        ConfigurationError: If TRL would render prompts otherwise than the model does.
    """
    trl = require("trl", "train")
    datasets = require("datasets", "train")
    requests = [questions.asked(example) for example in questions.training]
    prompts = trainer_prompts(model, requests)
    right = questions.right
    rewards: list[Reward] = [_Watched(right), FormatReward(), RULES[setting.rule](right)]
    arguments = trl.GRPOConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=setting.steps,
        learning_rate=setting.rate,
        num_generations=sampling.group,
        per_device_train_batch_size=sampling.rows,
        gradient_accumulation_steps=setting.passes(sampling),
        max_completion_length=questions.max_tokens,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=model.generation_settings.get("repetition_penalty", 1.0),
        beta=setting.beta,
        scale_rewards=False,  # a group that agrees must not weigh more for the little that it differs in
        chat_template_kwargs=model.template_options,
        **following.arguments(seed),
    )
    trainer = trl.GRPOTrainer(
        model=weights.load(begin),
        reward_funcs=rewards,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": prompt, "id": example.id} for prompt, example in zip(prompts, questions.training, strict=True)]
        ),
        processing_class=weights.tokenizer,
        callbacks=[following.callback()],
    )
    return following.train(trainer, folder)


def trainer_prompts(model: TransformersModel, requests: Sequence[Request]) -> list[Any]:
    """Prompts in a form of which TRL makes the very tokens that the model reads: conversations, or rendered texts.

    Raises:
        ConfigurationError: If neither form does.
    """
    tokenizer = model.tokenizer
    wanted = [model.encode(request) for request in requests]
    if tokenizer.chat_template is not None:
        talks = [[{"role": m.role, "content": m.content} for m in request.messages] for request in requests]
        try:
            read = tokenizer.apply_chat_template(
                talks, add_generation_prompt=True, tokenize=True, return_dict=True, **model.template_options
            )["input_ids"]
        except Exception:
            read = None
        if read == wanted:
            return talks
    texts = [model.render(request) for request in requests]
    if tokenizer(text=texts)["input_ids"] == wanted:
        return texts
    raise ConfigurationError(
        f"TRL would hand other tokens to '{model.name}' than it reads when it answers: the prompt's roles do not fit "
        "its chat template. Try a prompt without a system message."
    )


def statement_figures(right: Sequence[float], stated: Sequence[float | None]) -> dict[str, float]:
    """Of a step's answers: how many statements can be read, their mean, the share of the most frequent one, how many
    bits they have, ECE and AUROC (0.5 where all answers are right, or all wrong).
    """
    known = [(is_right(grade), value) for grade, value in zip(right, stated, strict=True) if value is not None]
    told = {"stated/read": len(known) / max(1, len(stated))}
    if not known:
        return told
    labels, values = (np.array(each, dtype=float) for each in zip(*known, strict=True))
    share = np.array(list(Counter(values.tolist()).values())) / len(values)
    area = auroc(labels, values)
    return told | {
        "stated/mean": float(values.mean()),
        "stated/alike": float(share.max()),
        "stated/bits": float(-(share * np.log2(share)).sum()),
        "stated/ece": calibration_error(labels, values),
        "stated/auroc": 0.5 if area is None else area,
    }


class _Watched(CorrectnessReward):
    """Pays for correctness, and logs the step's statements."""

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        paid = super().__call__(prompts=prompts, completions=completions, **columns)
        stated = [read_completion(completion)[1] for completion in completions]
        for name, value in statement_figures(paid, stated).items():
            columns["log_metric"](name, value)
        return paid
