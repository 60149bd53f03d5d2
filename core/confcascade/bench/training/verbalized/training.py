"""From a model and questions to one that states how sure it is: sampled, taught the form, reinforced, and judged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from confcascade.bench.collecting.collect import collect
from confcascade.bench.recording.reading import read_rows
from confcascade.bench.training.verbalized.figures import ConfidenceFigures, figures_of
from confcascade.bench.training.verbalized.following import Following
from confcascade.bench.training.verbalized.guards import CollapseGuard
from confcascade.bench.training.verbalized.questions import Questions
from confcascade.bench.training.verbalized.reinforced import Reinforced, reinforce
from confcascade.bench.training.verbalized.rollouts import Sampling, sample_rollouts
from confcascade.bench.training.verbalized.supervised import Supervised, lessons, teach
from confcascade.bench.training.verbalized.weights import Weights
from confcascade.errors import ConfigurationError, ModelError
from confcascade.graders.example import Example
from confcascade.models.local import TransformersModel
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import Stage

__all__ = ["FORMAT", "Judged", "Method", "TrainedVerbalized", "train_verbalized"]

Method: TypeAlias = Literal["grpo", "supervised"]
FORMAT = Supervised(epochs=1.0, answers=2)
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judged:
    """A set of questions that only judges.

    Attributes:
        stated: What the model states of its answers.
        p_t: P(T) of the same answers: the mean over the tokens' log-probabilities.
        recording: Its rows.
    """

    stated: ConfidenceFigures
    p_t: ConfidenceFigures
    recording: Path


@dataclass(frozen=True)
class TrainedVerbalized:
    """What came of it.

    Attributes:
        model: With the weights that were kept.
        method: "grpo" or "supervised".
        before: By the name of the set ("test" and the others): the model as it was, asked in the same words.
        taught: The model that reinforcement began with; empty with "supervised".
        after: The trained one.
        log: Every step's figures, and those of every validation.
        problem: Why training was ended early; "" if it was not.
        texts: How many the supervised part learned from.
    """

    model: TransformersModel
    method: Method
    before: Mapping[str, Judged]
    taught: Mapping[str, Judged]
    after: Mapping[str, Judged]
    log: Path
    problem: str
    texts: int


def train_verbalized(
    model: TransformersModel,
    questions: Questions,
    folder: Path,
    *,
    method: Method = "grpo",
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    reinforced: Reinforced = Reinforced(),  # noqa: B008
    supervised: Supervised | None = None,
    rank: int = 16,
    base: str = "",
    every: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> TrainedVerbalized | None:
    """Train a model to state its confidence, and judge it before and after.

    1. It answers the test questions, asked for its confidence.
    2. It answers each training question several times, without a word about confidence: how often it is right is what
       it should have said.
    3. It learns from some of these answers, each followed by that share: with "supervised" that is all, with "grpo" a
       short lesson in the form.
    4. It is paid for right answers, for the form, and for statements that come true.
    5. The weights that earned most on the validation questions are kept, and answer the test questions.

    Args:
        model: Changed. Load it anew for any other use.
        questions: In parts.
        folder: Of everything; what is there is gone on with, so the settings must be the same.
        method: "grpo", or the cheap "supervised".
        sampling: Of steps 2 and 4.
        reinforced: Of step 4.
        supervised: Of step 3; by default `FORMAT` before reinforcement, and three rounds over four answers to each
            question otherwise.
        rank: Of the LoRA; 0 trains all weights.
        base: Where the model was loaded from, for the adapter's folder.
        every: Steps between validations.
        seed: Of all that is drawn.
        progress: Called with what is done, how much of it, and how much there is.
        stop: Once set, ends after what is under way.

    Returns:
        None if it was stopped.

    Raises:
        MissingExtraError: Without trl, datasets or peft.
        ConfigurationError: If there is nothing to learn from.
        ModelError: If the model cannot be asked.
    """
    tell = progress or (lambda _what, _done, _of: None)
    if method == "grpo":
        reinforced.passes(sampling)  # now, and not after hours of sampling
    before = _judged(model, questions, folder, "before", tell, stop)
    if before is None:
        return None
    rollouts = sample_rollouts(
        model,
        questions,
        folder / "rollouts.jsonl",
        sampling,
        seed=seed,
        progress=lambda done, of: tell("sampling answers", done, of),
        stop=stop,
    )
    if rollouts is None:
        return None
    if (shares := {rollout.accuracy for rollout in rollouts.values()}) in ({0.0}, {1.0}):
        raise ConfigurationError(
            f"All sampled answers of '{model.name}' are {'right' if 1.0 in shares else 'wrong'}: there is nothing to "
            "be unsure of. Take other questions, or look at the grader."
        )
    weights = Weights(model, base=base, rank=rank)
    setting = supervised or (FORMAT if method == "grpo" else Supervised())
    texts = lessons(model, questions, rollouts, answers=setting.answers, seed=seed)
    on_cpu = model.model.device.type == "cpu"
    taught = folder / "taught"
    if not _holds_weights(taught):
        following = Following(
            taught / "log.jsonl",
            on_cpu,
            every=every,
            progress=lambda done, of: tell("teaching the form" if method == "grpo" else "teaching", done, of),
            stop=stop,
        )
        if not teach(weights, texts, setting, taught, rows=sampling.rows, following=following, seed=seed):
            return None
    kept, log, problem, start = taught, taught / "log.jsonl", "", {}
    if method == "grpo":
        weights.load(taught)
        asked = _judged(weights.asked(f"{model.name}-taught"), questions, folder, "taught", tell, stop)
        if asked is None:
            return None
        start = asked
        kept, log = folder / "best", folder / "log.jsonl"
        following = Following(
            log,
            on_cpu,
            every=every,
            validate=lambda step: _validated(weights, model.name, questions, folder / "validation", step),
            keep=lambda: weights.save(kept),
            guard=CollapseGuard(),
            progress=lambda done, of: tell("reinforcing", done, of),
            stop=stop,
        )
        if not reinforce(
            model, weights, taught, questions, reinforced, sampling, folder, following=following, seed=seed
        ):
            return None
        problem = following.problem
        if not _holds_weights(kept):
            raise ConfigurationError(
                f"Training ended before its first validation: {problem}. Let the model learn the form for longer "
                "first, by more `epochs` or `answers`."
            )
    weights.load(kept)
    weights.save(folder / "model")
    trained = weights.asked(f"{model.name}-trained")
    after = _judged(trained, questions, folder, "after", tell, stop)
    if after is None:
        return None
    return TrainedVerbalized(trained, method, before, start, after, log, problem, len(texts))


def _judged(
    model: TransformersModel,
    questions: Questions,
    folder: Path,
    when: str,
    tell: Progress,
    stop: threading.Event | None,
) -> dict[str, Judged] | None:
    """The model's answers to each set, and what they show; None if it was stopped."""
    found = {}
    for name, examples in {"test": questions.test, **questions.others}.items():
        path = folder / "recordings" / when / f"{name}.jsonl"
        if not _recorded(model, questions, examples, path, stop, partial(tell, f"{name}, {when}")):
            return None
        rows = list(read_rows(path))
        stated, p_t = (figures_of(rows, signal) for signal in (questions.signal.name, "p_t"))
        if stated is None or p_t is None:
            raise ConfigurationError(f"No answer of '{model.name}' to the questions '{name}' was graded.")
        found[name] = Judged(stated, p_t, path)
    return found


def _validated(weights: Weights, name: str, questions: Questions, folder: Path, step: int) -> ConfidenceFigures:
    path = folder / f"step-{step:06d}.jsonl"
    path.unlink(missing_ok=True)
    _recorded(weights.asked(name), questions, questions.validation, path, None, lambda _done, _of: None)
    found = figures_of(read_rows(path), questions.signal.name)
    if found is None:
        raise ConfigurationError("No answer to a validation question was graded.")
    return found


def _recorded(
    model: TransformersModel,
    questions: Questions,
    examples: Sequence[Example],
    path: Path,
    stop: threading.Event | None,
    tell: Callable[[int, int], None],
) -> bool:
    """Ask and grade as `collect` does, which is as a cascade does; False if it was stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    collected = collect(
        examples,
        [Stage(model, [questions.signal, TokenProbability()])],
        path,
        prompt=questions.prompt,
        grader=questions.grader,
        stop=stop,
        progress=lambda state, _row: tell(*_done(state.tallies)),
        max_tokens=questions.max_tokens,
    )
    if collected.ended == "failing":
        raise ModelError(f"Model '{model.name}' failed time after time: {collected.problem}")
    return collected.ended == "complete"


def _done(tallies: Mapping[str, object]) -> tuple[int, int]:
    return sum(t.n for t in tallies.values()), sum(t.wanted for t in tallies.values())  # type: ignore[attr-defined]


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("adapter_model.safetensors", "model.safetensors"))
