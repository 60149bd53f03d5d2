"""What `confidence_driven` asks: a stand-in for each data set of the paper, and the probes that are trained for it.

- **letters** for MMLU: a fact, and four lettered options.
- **two steps** for GPQA: "In which country was Sefa Dorin born?" takes two facts at once, with four lettered options.
  Neither the models nor the probes ever met such a question, and it is much harder, as GPQA is beside MMLU.
- **facts** for PopQA: the same facts without options; the models may say "I don't know".
- **strangers**, of which the paper has none: people, books and firms that nobody knows, and "I don't know" is right.

Questions are of the bundled world's split "test"; probes learn from its split "fit". A split is of facts: the
birthplace behind a question of two steps is of its split, the country of that city may be of any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confcascade import Cascade, KnowledgeProbe, Stage, TokenProbability, TransformersModel
from confcascade.demo.measure import DEPTH, request
from confcascade.demo.world import LABELS, Question, Split, Task, World, stable_hash
from confcascade.signals.knowledge_probe import resolve_layer

TWO_STEPS = (
    "In which country was {subject} born?",
    "In which country is the birthplace of {subject}?",
    "To which country does the birthplace of {subject} belong?",
)


@dataclass(frozen=True)
class QuestionSet:
    """A stand-in for a data set.

    Attributes:
        name: Of the set.
        stands_for: The paper's, if there is one.
        questions: Of the split "test".
        probe: Which probes judge it, by what they learnt from.
        labels: Answer labels, of multiple choice.
    """

    name: str
    stands_for: str | None
    questions: tuple[Question, ...]
    probe: str
    labels: tuple[str, ...] = ()

    def p_t(self) -> TokenProbability:
        """P(T): of multiple choice the paper's equation 1, of open questions the answer's own first token.

        The paper's first token is "Answer", by a prompt which these models do not speak.
        """
        return TokenProbability(self.labels) if self.labels else TokenProbability(aggregate="first")


def two_steps(world: World, split: Split) -> list[Question]:
    """Multiple choice about the country of a person's birthplace."""
    rng = random.Random(stable_hash("two steps", split))
    country = {fact.subject: fact.value for fact in world.facts if fact.relation == "country"}
    found = []
    for fact in world.facts:
        if fact.relation != "birthplace" or world.split_of(fact.key) != split:
            continue
        value = country[fact.value]
        options = [*rng.sample([other for other in world.countries if other != value], 3), value]
        rng.shuffle(options)
        lines = "\n".join(f"{label}. {option}" for label, option in zip(LABELS, options, strict=True))
        asked = rng.choice(TWO_STEPS).format(subject=fact.subject)
        found.append(Question("letters", f"{asked}\n{lines}", LABELS[options.index(value)], fact.key, LABELS))
    return found


def question_sets(world: World, most: int | None = None) -> tuple[QuestionSet, ...]:
    """The sets, of `most` questions each; by default all there are."""

    def some(task: Task) -> tuple[Question, ...]:
        return tuple(world.questions("test", [task])[:most])

    return (
        QuestionSet("letters", "MMLU", some("letters"), "letters", LABELS),
        QuestionSet("two steps", "GPQA", tuple(two_steps(world, "test")[:most]), "letters", LABELS),
        QuestionSet("facts", "PopQA", some("facts"), "open"),
        QuestionSet("strangers", None, some("refusals"), "open"),
    )


def lessons(world: World, rounds: int = 5) -> dict[str, list[Question]]:
    """What probes learn from, by their name: all of the split "fit".

    Args:
        world: The bundled one.
        rounds: With how many sets of wrong options each fact is asked about: the medium model errs on so few that one
            set teaches nothing.
    """
    lettered = [
        question for seed in range(1, rounds + 1) for question in world.questions("fit", ["letters"], seed=seed)
    ]
    opened = world.facts_in_every_wording("fit") + world.questions("fit", ["refusals"])
    return {"letters": lettered, "open": opened}


def train_probe(
    model: TransformersModel, questions: Sequence[Question], told: Callable[[], object] = lambda: None
) -> KnowledgeProbe:
    """A P(IK) probe from what `model` says to `questions`; questions about the same fact stay in one part."""
    outcomes = Cascade([Stage(model)]).run_batch([request(question) for question in questions])
    told()
    hidden = model.hidden_states([request(q) for q in questions], resolve_layer(DEPTH, model.capability.layers))
    told()
    correct = [question.is_correct(outcome.text) for question, outcome in zip(questions, outcomes, strict=True)]
    return KnowledgeProbe.fit(model, hidden, correct, layer=DEPTH, groups=[question.key for question in questions])
