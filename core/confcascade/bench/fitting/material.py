"""A recording as thresholds are chosen from it: each draw of a question, asked one way of one build of each model."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from confcascade.bench.recording.columns import Columns
from confcascade.bench.recording.provenance import meta_path
from confcascade.bench.recording.reading import Recording
from confcascade.bench.recording.row import NOT_KEPT, Row
from confcascade.bench.replay.policy import models_in_order
from confcascade.cost import Architecture, Prices
from confcascade.errors import ConfigurationError
from confcascade.graders import Grader
from confcascade.graders.example import Example
from confcascade.graders.grade import is_right
from confcascade.policy import question_key

__all__ = ["FitData", "FitNotes", "agreement", "material_of", "read_material"]


@dataclass(frozen=True)
class FitData:
    """Questions that every model was asked, and what else a policy must know of them.

    Attributes:
        columns: The numbers; a question that was drawn several times is there as often.
        models: Smallest first; the last is what promises are held against.
        keys: By which each question is known again, in the order of the columns.
        keyed_by: What they are hashes of.
        answers: By question and model, as the grader read them, else as they were; empty unless asked for.
        prompts: By question, where kept; likewise.
        references: Right answers by question, where kept; likewise.
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
    references: Mapping[str, str] = field(default_factory=dict)
    builds: Mapping[str, str | None] = field(default_factory=dict)
    prompt_versions: Mapping[str, str | None] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.intp]) -> FitData:
        """That of some questions."""
        return FitData(
            **{
                **vars(self),
                "columns": self.columns.take(rows),
                "keys": tuple(self.keys[i] for i in rows),
                "notes": (),
            }
        )

    @property
    def repeated(self) -> int:
        """How many of the draws repeat the question of another."""
        return len(self.keys) - len(set(self.keys))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each model's answer to each question is right, shape (questions, models) as in the columns."""
        return np.asarray(is_right(self.columns.grades))


def read_material(path: str | Path, *, texts: bool = False, **options: Any) -> FitData:
    """That of a recording, with what `collect` wrote down beside it.

    Args:
        path: The recording.
        texts: As for `material_of`, as are the others.
        **options: Of `FitNotes.data`.

    Raises:
        ConfigurationError: As `material_of`, and if a row cannot be read: a score that is no number, say.
    """
    recording, beside = Recording(path), meta_path(path)
    identity: Mapping[str, Any] = {}
    if beside.exists():
        identity = json.loads(beside.read_text(encoding="utf-8")).get("identity", {})
    notes = FitNotes(texts)
    columns = Columns.of(notes.passing(recording.rows()))
    return notes.data(columns, identity=identity, digest=recording.digest, **options)


def material_of(rows: Iterable[Row], *, texts: bool = False, **options: Any) -> FitData:
    """What thresholds can be chosen from: every draw of a question, by its prompt where that is kept.

    Args:
        rows: A recording.
        texts: Hold answers and prompts, for comparing answers.
        **options: Of `FitNotes.data`.

    Raises:
        ConfigurationError: As by `FitNotes.data`.
    """
    notes = FitNotes(texts)
    return notes.data(Columns.of(notes.passing(rows)), **options)


class FitNotes:
    """What `fit` must know of a recording beside its columns, written down as the rows pass.

    Args:
        texts: Hold answers and prompts, for comparing answers.
    """

    def __init__(self, texts: bool = False) -> None:
        self.texts = texts
        self.keys: dict[str, bytes] = {}
        self.builds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.versions: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.answers: dict[tuple[str, str], str] = {}
        self.prompts: dict[str, str] = {}
        self.references: dict[str, str] = {}

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows."""
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
                if row.reference is not None:
                    self.references[row.question] = row.reference
            yield row

    def data(
        self,
        columns: Columns,
        *,
        models: Sequence[str] | None = None,
        graded: bool = True,
        architectures: Mapping[str, Architecture] | None = None,
        prices: Mapping[str, Prices] | None = None,
        identity: Mapping[str, Any] | None = None,
        digest: str | None = None,
    ) -> FitData:
        """What thresholds can be chosen from.

        Args:
            columns: Of the rows that passed.
            models: Smallest first; by default all, by their sizes or prices, else as they come.
            graded: Leave out questions without a grade.
            architectures: By model.
            prices: By model.
            identity: What `collect` wrote down.
            digest: Of the recording.

        Raises:
            ConfigurationError: If a model was asked with several prompts, or in several builds, or no question is left.
        """
        chosen = tuple(models) if models else models_in_order(columns, architectures or {}, prices or {})[0]
        at = [columns.index(model) for model in chosen]
        self._refuse_mixtures(chosen)
        told = []
        fit = columns.recorded[:, at].all(axis=1)
        if missing := int((~fit).sum()):
            told.append(f"{missing:,} of {len(columns):,} questions are left out: not every model was asked them.")
        if graded:
            known = (~np.isnan(columns.grades[:, at]) | columns.failed[:, at]).all(axis=1)
            if missing := int((fit & ~known).sum()):
                told.append(f"{missing:,} of {len(columns):,} questions are left out: not every answer was graded.")
            fit &= known
        by_prompt = all(question in self.keys for question in columns.questions)
        keys = [self.keys[q] if by_prompt else question_key(q) for q in columns.questions]
        # sorted, so that the order of the file does not matter
        kept = sorted(np.flatnonzero(fit).tolist(), key=lambda i: (keys[i], columns.questions[i]))
        texts_of = {keys[i] for i in kept}
        if len(texts_of) < len(kept):
            told.append(
                f"{len(kept) - len(texts_of):,} of {len(kept):,} questions repeat another: each counts as often as it "
                "was drawn, and the promise is about questions that repeat themselves as these do."
            )
        if not by_prompt:
            told.append(
                "Not every prompt is kept, so questions are told apart by their ids: one that occurs under two ids may "
                "train a calibrator and judge it. The proof stands, but policies may be chosen worse. Collect with "
                "`keep_text=True`, or see that none does."
            )
        if not kept:
            raise ConfigurationError(
                f"No question was asked of all of {', '.join(chosen)}" + (" and graded." if graded else ".")
            )
        return FitData(
            columns=columns.take(kept),
            models=chosen,
            keys=tuple(keys[i] for i in kept),
            keyed_by="prompt" if by_prompt else "id",
            answers=self.answers,
            prompts=self.prompts,
            references=self.references,
            builds={model: next(iter(self.builds[model]), None) for model in chosen},
            prompt_versions={model: next(iter(self.versions[model]), None) for model in chosen},
            identity=identity or {},
            digest=digest,
            notes=tuple(told),
        )

    def _refuse_mixtures(self, models: Sequence[str]) -> None:
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


def agreement(material: FitData, grader: Grader) -> NDArray[np.bool_]:
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
