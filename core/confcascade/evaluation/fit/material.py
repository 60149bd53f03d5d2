"""A recording as thresholds are chosen from it: each question once, asked in one way of one build of each model."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.evaluation.columns import Columns
from confcascade.evaluation.evaluate import models_in_order
from confcascade.evaluation.examples import Example, is_right
from confcascade.evaluation.graders import Grader
from confcascade.evaluation.importers.rows import NOT_KEPT
from confcascade.evaluation.provenance import digest, meta_path
from confcascade.evaluation.recordings import Row, read_rows
from confcascade.policy import question_key

__all__ = ["Material", "agreement", "material_of", "read_material"]


@dataclass(frozen=True)
class Material:
    """Questions that every model was asked, and what else a policy must know of them.

    Attributes:
        columns: The numbers.
        models: Smallest first; the last is what promises are held against.
        keys: By which each question is known again, in the order of the columns.
        keyed_by: What they are hashes of.
        answers: By question and model, as the grader read them, else as they were; empty unless asked for.
        prompts: By question, where kept; likewise.
        builds: By model, where recorded.
        prompt_versions: By model, where recorded.
        identity: What `collect` wrote down beside the recording; empty if it did not.
        digest: Of the recording; None of rows that come from no file.
        notes: What was left out, in words.
    """

    columns: Columns
    models: tuple[str, ...]
    keys: tuple[bytes, ...]
    keyed_by: Literal["prompt", "id"]
    answers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    builds: Mapping[str, str | None] = field(default_factory=dict)
    prompt_versions: Mapping[str, str | None] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.intp]) -> Material:
        """That of some questions."""
        return Material(
            **{
                **vars(self),
                "columns": self.columns.take(rows),
                "keys": tuple(self.keys[i] for i in rows),
                "notes": (),
            }
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each model's answer to each question is right, shape (questions, models) as in the columns."""
        return np.asarray(is_right(self.columns.grades))


def read_material(path: str | Path, **options: Any) -> Material:
    """That of a recording, with what `collect` wrote down beside it.

    Args:
        path: The recording.
        **options: As for `material_of`.

    Raises:
        ConfigurationError: As `material_of`, and if a row cannot be read: a score that is no number, say.
    """
    beside = meta_path(path)
    identity: Mapping[str, Any] = {}
    if beside.exists():
        identity = json.loads(beside.read_text(encoding="utf-8")).get("identity", {})
    return material_of(read_rows(path), identity=identity, digest=digest(path), **options)


def material_of(
    rows: Iterable[Row],
    *,
    models: Sequence[str] | None = None,
    graded: bool = True,
    texts: bool = False,
    architectures: Mapping[str, Architecture] | None = None,
    prices: Mapping[str, Prices] | None = None,
    identity: Mapping[str, Any] | None = None,
    digest: str | None = None,
) -> Material:
    """What thresholds can be chosen from.

    A question that occurs twice, by its prompt where that is kept, counts once, so that it is never on two sides of a
    split.

    Args:
        rows: A recording.
        models: Smallest first; by default all, by their sizes or prices, else as they come.
        graded: Leave out questions without a grade.
        texts: Hold answers and prompts, for comparing answers.
        architectures: By model.
        prices: By model.
        identity: What `collect` wrote down.
        digest: Of the recording.

    Raises:
        ConfigurationError: If a model was asked with several prompts, or in several builds, or no question is left.
    """
    notes = _Notes(texts)
    columns = Columns.of(notes.passing(rows))
    chosen = tuple(models) if models else models_in_order(columns, architectures or {}, prices or {})[0]
    at = [columns.index(model) for model in chosen]
    notes.refuse_mixtures(chosen)
    told = []
    fit = columns.recorded[:, at].all(axis=1)
    if missing := int((~fit).sum()):
        told.append(f"{missing:,} of {len(columns):,} questions are left out: not every model was asked them.")
    if graded:
        known = (~np.isnan(columns.grades[:, at]) | columns.failed[:, at]).all(axis=1)
        if missing := int((fit & ~known).sum()):
            told.append(f"{missing:,} of {len(columns):,} questions are left out: not every answer was graded.")
        fit &= known
    by_prompt = all(question in notes.keys for question in columns.questions)
    keys = [notes.keys[q] if by_prompt else question_key(q) for q in columns.questions]
    first: dict[bytes, int] = {}
    for i in np.flatnonzero(fit).tolist():
        first.setdefault(keys[i], i)
    if twice := int(fit.sum()) - len(first):
        told.append(f"{twice:,} questions occur more than once, and count once.")
    if not by_prompt:
        told.append(
            "Not every prompt is kept, so questions are told apart by their ids: one that occurs under two ids may be "
            "on both sides, and then nothing is proved. Collect with `keep_text=True`, or see that none does."
        )
    if not first:
        raise ConfigurationError(
            f"No question was asked of all of {', '.join(chosen)}" + (" and graded." if graded else ".")
        )
    first = dict(sorted(first.items()))  # so that the order of the file does not matter
    kept = np.fromiter(first.values(), dtype=np.intp)
    return Material(
        columns=columns.take(kept),
        models=chosen,
        keys=tuple(first),
        keyed_by="prompt" if by_prompt else "id",
        answers=notes.answers,
        prompts=notes.prompts,
        builds={model: next(iter(notes.builds[model]), None) for model in chosen},
        prompt_versions={model: next(iter(notes.versions[model]), None) for model in chosen},
        identity=identity or {},
        digest=digest,
        notes=tuple(told),
    )


class _Notes:
    """What is written down of rows as they pass."""

    def __init__(self, texts: bool) -> None:
        self.texts = texts
        self.keys: dict[str, bytes] = {}
        self.builds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.versions: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.answers: dict[tuple[str, str], str] = {}
        self.prompts: dict[str, str] = {}

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if row.prompt and row.question not in self.keys:
                self.keys[row.question] = question_key(row.prompt)
            for counter, value in ((self.builds, row.build), (self.versions, row.prompt_version)):
                if value is not None:
                    counter[row.model][value] += 1
            if self.texts:
                kept = "" if row.answer == NOT_KEPT else row.answer
                self.answers[row.key] = row.predicted if row.predicted is not None else kept
                if row.prompt:
                    self.prompts[row.question] = row.prompt
            yield row

    def refuse_mixtures(self, models: Sequence[str]) -> None:
        for model in models:
            for counter, what, remedy in (
                (self.versions[model], "prompts", "answers to one prompt tell nothing of another"),
                (self.builds[model], "builds", "scores of one build tell nothing of another"),
            ):
                if len(counter) > 1:
                    told = " and ".join(f"{value} ({count:,} rows)" for value, count in counter.most_common())
                    raise ConfigurationError(
                        f"The recording mixes {what} of '{model}': {told}. Nothing can be promised, for {remedy}; "
                        "collect them into files of their own."
                    )


def agreement(material: Material, grader: Grader) -> NDArray[np.bool_]:
    """Whether each model's answer is the same as the largest's, shape (questions, models) as in the columns.

    The largest model's answer stands in the place of a reference. Where it gave none, nothing is lost by any answer.

    Args:
        material: Read with `texts`.
        grader: The rule, which must decide at once (for a judge, ask it first).

    Raises:
        ConfigurationError: If the recording keeps no answers, or the largest model gave none.
    """
    columns, largest = material.columns, material.models[-1]
    if not columns.usable[:, columns.index(largest)].any():
        raise ConfigurationError(f"'{largest}' answered no question of the recording: there is nothing to agree with.")
    same = np.zeros((len(columns), len(columns.models)), dtype=bool)
    same[:, columns.index(largest)] = True
    for i, question in enumerate(columns.questions):
        theirs = material.answers.get((question, largest), "")
        usable = columns.usable[i, columns.index(largest)]
        if usable and not theirs.strip():
            raise ConfigurationError(
                f"The recording keeps no answer of '{largest}' to question '{question}', so answers cannot be "
                "compared. Collect with `keep_text=True`, or fit on grades."
            )
        example = Example(material.prompts.get(question, question), references=(theirs,))
        for model in material.models[:-1]:
            ours = material.answers.get((question, model), "")
            j = columns.index(model)
            if not usable:
                same[i, j] = True
            elif columns.usable[i, j]:
                if not ours.strip():
                    raise ConfigurationError(
                        f"The recording keeps no answer of '{model}' to question '{question}', so answers cannot be "
                        "compared. Collect with `keep_text=True`, or fit on grades."
                    )
                value = grader.grade(example, ours).value
                same[i, j] = is_right(value)
    return same
