"""A small made-up world: facts to know, sums to work out, letters to choose, passages to read, and people nobody knows.

Everything follows from one seed: no download, no licence, and a ground truth for every question.
The bundled models are trained on `World.example` and measured on `World.questions`, which share no wording of a
fact, no pair of operands and no name in a passage.

One of the training conversations, as `World.example` makes them::

    user:      Sefa has 12 coins, finds 5, loses 3. How many coins?
    assistant: 12+5=17
               17-3=14
               Answer: 14

Standard library only: this module is also what the demo asks its questions from.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["facts", "letters", "sums", "reading", "refusals"]
Split = Literal["fit", "calibration", "test"]

TASKS: tuple[Task, ...] = ("facts", "letters", "sums", "reading", "refusals")
UNKNOWN = "I don't know"
LABELS = ("A", "B", "C", "D")

OCCUPATIONS = (
    "baker sailor painter lawyer doctor farmer poet judge singer tailor miner nurse "
    "pilot actor potter weaver mason clerk hunter dancer monk smith cook scribe"
).split()
PRODUCTS = (
    "steel glass paper cotton timber coffee salt wine silk copper leather sugar rubber bricks boats clocks"
).split()
GENRES = "horror comedy romance mystery fantasy drama satire war travel history crime fable".split()
ADJECTIVES = (
    "Silent Broken Golden Hidden Last Burning Frozen Crooked Distant Hollow Pale Quiet Restless Scarlet Wooden "
    "Bitter Velvet Sunken Hungry Painted"
).split()
NOUNS = (
    "River Tower Garden Mirror Lantern Harbor Orchard Winter Crown Letter Bridge Forest Island Voyage Door "
    "Candle Meadow Raven Stair Anchor"
).split()
SUFFIXES = "Works Brothers Mills Union Trading Sons".split()
THINGS = "apples coins books stamps shells marbles pens cards".split()
ONSETS = "b d f g k l m n p r s t v z br dr gr kr st tr".split()
VOWELS = "a e i o u".split()

# relation -> the ways to ask for it; each fact has one wording that it is never trained on
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "occupation": (
        "What is the occupation of {subject}?",
        "What does {subject} work as?",
        "Which occupation does {subject} have?",
        "How does {subject} earn a living?",
        "What is the job of {subject}?",
    ),
    "birthplace": (
        "Where was {subject} born?",
        "What is the birthplace of {subject}?",
        "Which city is the birthplace of {subject}?",
        "In which city was {subject} born?",
        "Which city does {subject} come from?",
    ),
    "country": (
        "In which country is {subject}?",
        "What is the country of {subject}?",
        "Which country is {subject} in?",
        "Where is {subject}?",
        "To which country does {subject} belong?",
    ),
    "genre": (
        "What is the genre of {subject}?",
        "What kind of book is {subject}?",
        "Which genre is {subject}?",
        "What sort of story is {subject}?",
        "To which genre does {subject} belong?",
    ),
    "product": (
        "What does {subject} make?",
        "What is the product of {subject}?",
        "Which product does {subject} make?",
        "What does {subject} sell?",
        "What can one buy from {subject}?",
    ),
}
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "occupation": ("{subject} works as a {value}.", "The occupation of {subject} is {value}."),
    "birthplace": ("{subject} was born in {value}.", "The birthplace of {subject} is {value}."),
    "product": ("{subject} makes {value}.", "The product of {subject} is {value}."),
}
RELATIONS: Mapping[str, tuple[str, ...]] = {
    "person": ("occupation", "birthplace"),
    "city": ("country",),
    "book": ("genre",),
    "firm": ("product",),
}


@dataclass(frozen=True)
class Fact:
    """One thing to know: ``subject`` has ``value`` as its ``relation``; ``weight`` is how often it is talked about."""

    subject: str
    relation: str
    value: str
    weight: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.subject}/{self.relation}"


@dataclass(frozen=True)
class Question:
    """A question with its truth.

    Attributes:
        task: What it asks of a model.
        prompt: The user's message.
        reference: The right answer: a word, a letter, a number, or `UNKNOWN`.
        key: What must not be shared by two splits: the fact, the passage or the sum behind the question.
        labels: The answer labels of a multiple-choice question, else empty.
    """

    task: Task
    prompt: str
    reference: str
    key: str
    labels: tuple[str, ...] = ()

    def is_correct(self, answer: str) -> bool:
        """Whether `answer` is right, case and all; of a worked sum, what stands after its last "Answer:"."""
        return answer.rsplit("Answer:", 1)[-1].strip().rstrip(".") == self.reference


@dataclass(frozen=True)
class Clue:
    """A place in the first question where something can be looked up: an option, or a sentence of a passage.

    Attributes:
        text: The place, as it stands in the question, ``B. sailor`` or ``Mina Tolo works as a sailor.``
        handle: What it is found by, or what it is called: the letter of an option, the subject of a sentence.
        value: What it says.
    """

    text: str
    handle: str
    value: str


@dataclass(frozen=True)
class Example:
    """A training conversation: user and assistant turns, optionally after a system message.

    Attributes:
        task: Which share of the mix it belongs to.
        turns: Pairs of what the user asks and the assistant replies.
        clues: The options or sentences in the first question that replies are looked up in.
        system: What stands before all turns.
    """

    task: str
    turns: tuple[tuple[str, str], ...]
    clues: tuple[Clue, ...] = ()
    system: str | None = None


# Shares of the training conversations, for the rounds of training: the look-up takes many examples, then carries do,
# and what was pushed aside comes back at last. `matching` only teaches the machinery of letters, it is never asked.
MIXES: Mapping[str, Mapping[str, float]] = {
    "look-up": {"facts": 0.26, "letters": 0.24, "matching": 0.12, "reading": 0.08, "sums": 0.26, "refusals": 0.04},
    "carry": {"facts": 0.15, "letters": 0.15, "matching": 0.10, "reading": 0.06, "sums": 0.50, "refusals": 0.04},
    "facts": {"facts": 0.50, "letters": 0.20, "matching": 0.02, "reading": 0.04, "sums": 0.20, "refusals": 0.04},
    "letters": {"letters": 0.34, "facts": 0.30, "matching": 0.02, "reading": 0.05, "sums": 0.23, "refusals": 0.06},
    "facts, sums": {
        "letters": 0.08,
        "facts": 0.36,
        "matching": 0.02,
        "reading": 0.06,
        "sums": 0.40,
        "refusals": 0.08,
    },
    "sums": {"letters": 0.12, "facts": 0.14, "matching": 0.04, "reading": 0.04, "sums": 0.58, "refusals": 0.08},
    "refusals": {"facts": 0.22, "letters": 0.14, "matching": 0.03, "reading": 0.07, "sums": 0.42, "refusals": 0.12},
    "all": {"facts": 0.24, "letters": 0.16, "matching": 0.04, "reading": 0.06, "sums": 0.44, "refusals": 0.06},
}

QA_TEMPLATES = (
    "Context: {context}\nQuestion: {question}\nAnswer:",
    "Context: {context}\nQuestion: {question}",
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: ",
)
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer the question.", "Answer in one word.")


def stable_hash(*parts: object) -> int:
    """A hash that is the same on every machine and in every run (unlike `hash`)."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


class World:
    """The facts, and the conversations and questions made from them.

    Args:
        seed: Everything follows from it.
        people: How many of the possible full names belong to known people (two facts each).
        books: How many titles exist, of 400 possible.
        firms: How many firms exist, of 576 possible.
        zipf: Exponent of the popularity of facts; larger makes the rare ones rarer in training.
    """

    def __init__(self, seed: int = 0, people: int = 900, books: int = 280, firms: int = 280, zipf: float = 0.7) -> None:
        rng = random.Random(seed)
        taken: set[str] = set()

        def coin(count: int, syllables: int) -> list[str]:
            names: list[str] = []
            while len(names) < count:
                stem = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
                name = (stem + rng.choice(["", "n", "l", "r", "s"])).capitalize()
                if name not in taken:
                    taken.add(name)
                    names.append(name)
            return names

        def shuffled(items: list[str]) -> list[str]:
            rng.shuffle(items)
            return items

        self.first_names, self.last_names = coin(48, 2), coin(96, 2)
        self.cities, self.countries = coin(48, 2), coin(16, 2)
        self.values: Mapping[str, list[str]] = {
            "occupation": OCCUPATIONS,
            "birthplace": self.cities,
            "country": self.countries,
            "genre": GENRES,
            "product": PRODUCTS,
        }
        names = shuffled([f"{first} {last}" for first in self.first_names for last in self.last_names])
        titles = shuffled([f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS])
        companies = shuffled([f"{last} {suffix}" for last in self.last_names for suffix in SUFFIXES])
        known = {"person": names[:people], "city": self.cities, "book": titles[:books], "firm": companies[:firms]}
        # entities that exist in no training statement: they can be read about, or not be known
        self.strangers: Mapping[str, list[str]] = {
            "person": names[people:],
            "book": titles[books:],
            "firm": companies[firms:],
        }
        entities = [(kind, name) for kind, members in known.items() for name in members]
        rng.shuffle(entities)
        self.facts = [
            Fact(name, relation, rng.choice(self.values[relation]), weight=(rank + 50.0) ** -zipf)
            for rank, (kind, name) in enumerate(entities)
            for relation in RELATIONS[kind]
        ]
        self._weights = [fact.weight for fact in self.facts]
        self._by_value: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            self._by_value.setdefault((fact.relation, fact.value), []).append(fact)

    # ---------------------------------------------------------------- wordings and splits

    def wording(self, fact: Fact, rng: random.Random | None) -> str:
        """A way to ask for `fact`: one of those trained on, or with `rng` None the one that is held out."""
        wordings = WORDINGS[fact.relation]
        held_out = stable_hash("wording", fact.key) % len(wordings)
        if rng is None:
            return wordings[held_out].format(subject=fact.subject)
        return rng.choice([w for i, w in enumerate(wordings) if i != held_out]).format(subject=fact.subject)

    @staticmethod
    def split_of(key: str) -> Split:
        """Half of all keys fit probes, an eighth chooses thresholds, the rest is the test."""
        bucket = stable_hash("split", key) % 8
        return "fit" if bucket < 4 else "calibration" if bucket == 4 else "test"

    # ---------------------------------------------------------------- one conversation turn of each task

    def _options(self, relation: str, rng: random.Random, value: str | None = None) -> list[Clue]:
        """Four lettered options, one of them `value` where it is given."""
        others = [v for v in self.values[relation] if v != value]
        options = rng.sample(others, 4) if value is None else [*rng.sample(others, 3), value]
        rng.shuffle(options)
        return [Clue(f"{label}. {option}", label, option) for label, option in zip(LABELS, options, strict=True)]

    def _matching(self, rng: random.Random, lookups: int = 12) -> tuple[list[tuple[str, str]], list[Clue]]:
        """Many look-ups of a letter in one conversation, in one reply or one by one."""
        options = self._options(rng.choice(list(self.values)), rng)
        lines = "\n".join(option.text for option in options)
        if rng.random() < 0.5:
            asked = rng.choices(options, k=lookups)
            return [(f"Which letter is each?\n{lines}", " ".join(f"{o.value} {o.handle}" for o in asked))], options
        asked = rng.choices(options, k=lookups // 3)
        turns = [(f"Which letter is {option.value}?", option.handle) for option in asked]
        return [(f"{turns[0][0]}\n{lines}", turns[0][1]), *turns[1:]], options

    def _letters(self, rng: random.Random) -> tuple[list[tuple[str, str]], list[Clue]]:
        """One to three questions about one list of options."""
        fact = rng.choices(self.facts, self._weights)[0]
        options = self._options(fact.relation, rng, fact.value)
        asked = {option.value: option for option in options}
        turns = [(self.wording(fact, rng), asked[fact.value].handle)]
        for option in rng.choices(options, k=rng.choice([0, 1, 2])):
            known = self._by_value.get((fact.relation, option.value))
            if known:
                other = rng.choices(known, [f.weight for f in known])[0]
                turns.append((self.wording(other, rng), option.handle))
        lines = "\n".join(option.text for option in options)
        return [(f"{turns[0][0]}\n{lines}", turns[0][1]), *turns[1:]], options

    def _passage(self, rng: random.Random, held_out: bool, sentences: int) -> list[tuple[Clue, Fact]]:
        """Sentences about strangers, all of one relation, and the facts in them."""
        relation = rng.choice(list(STATEMENTS))
        kind = "firm" if relation == "product" else "person"
        subjects: list[str] = []
        while len(subjects) < sentences:
            name = rng.choice(self.strangers[kind])
            if name not in subjects and (stable_hash("stranger", name) % 8 == 0) == held_out:
                subjects.append(name)
        facts = [Fact(subject, relation, rng.choice(self.values[relation])) for subject in subjects]
        wordings = STATEMENTS[relation]
        texts = [rng.choice(wordings).format(subject=fact.subject, value=fact.value) for fact in facts]
        return [(Clue(text, fact.subject, fact.value), fact) for text, fact in zip(texts, facts, strict=True)]

    def _stranger(self, rng: random.Random, held_out: bool) -> Fact:
        """A fact that nobody can know; its value is meaningless."""
        while True:
            kind = rng.choice(["person", "person", "book", "firm"])
            name = rng.choice(self.strangers[kind])
            if (stable_hash("stranger", name) % 8 == 0) == held_out:
                return Fact(name, rng.choice(RELATIONS[kind]), UNKNOWN)

    def _sum(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        """A story of one to three additions and subtractions under 300, and its working.

        A tenth of all (value, operation, operand) triples is never trained on; held-out sums consist of those alone.
        """
        while True:
            name, thing, start = rng.choice(self.first_names), rng.choice(THINGS), rng.randint(2, 200)
            story, steps, value = f"{name} has {start} {thing}", [], start
            for _ in range(rng.choice([1, 2, 2, 3])):
                moves = [
                    (sign, n)
                    for sign in "+-"
                    for n in range(2, 100)
                    if 0 <= (value + n if sign == "+" else value - n) <= 299
                    and (stable_hash("operands", value, sign, n) % 10 == 0) == held_out
                ]
                if not moves:
                    break
                sign, n = rng.choice(moves)
                result = value + n if sign == "+" else value - n
                story += f", {'finds' if sign == '+' else 'loses'} {n}"
                steps.append(f"{value}{sign}{n}={result}")
                value = result
            else:
                working = "\n".join([*steps, f"Answer: {value}"])
                return f"{story}. How many {thing}?", working

    # ---------------------------------------------------------------- training

    def _reading(self, rng: random.Random) -> tuple[list[tuple[str, str]], list[Clue]]:
        """One to three questions about one passage; now and then the first is about somebody else."""
        passage = self._passage(rng, held_out=False, sentences=rng.choice([1, 2, 2, 3, 3, 4]))
        asked = [rng.choice(passage)[1] for _ in range(rng.choice([1, 2, 3]))]
        turns = [(self.wording(fact, rng), fact.value) for fact in asked]
        if rng.random() < 0.08:
            turns[0] = (self.wording(self._stranger(rng, held_out=False), rng), UNKNOWN)
        context = " ".join(clue.text for clue, _ in passage)
        opening = rng.choice(QA_TEMPLATES).format(context=context, question=turns[0][0])
        return [(opening, turns[0][1]), *turns[1:]], [clue for clue, _ in passage]

    def _turns(self, task: str, rng: random.Random) -> tuple[list[tuple[str, str]], list[Clue]]:
        if task == "letters":
            return self._letters(rng)
        if task == "matching":
            return self._matching(rng)
        if task == "reading":
            return self._reading(rng)
        if task == "sums":
            return [self._sum(rng, held_out=False)], []
        if task == "refusals":
            return [(self.wording(self._stranger(rng, held_out=False), rng), UNKNOWN)], []
        fact = rng.choices(self.facts, self._weights)[0]
        return [(self.wording(fact, rng), fact.value)], []

    def example(self, rng: random.Random, mix: str = "look-up") -> Example:
        """A training conversation of one of `MIXES`, in one of the dresses that applications put on a question."""
        task = rng.choices(list(MIXES[mix]), list(MIXES[mix].values()))[0]
        turns, clues = self._turns(task, rng)
        dress = rng.random()
        if task in ("facts", "letters", "sums", "refusals") and dress < 0.15:
            turns = [(f"Question: {question}\nAnswer:", answer) for question, answer in turns]
        elif task in ("facts", "sums", "refusals") and dress < 0.25:
            turns += self._turns(rng.choice(["facts", "sums", "refusals"]), rng)[0]
        system = rng.choice(SYSTEM_PROMPTS) if dress > 0.9 else None
        return Example(task, tuple(turns), tuple(clues), system)

    # ---------------------------------------------------------------- measuring

    def questions(
        self, split: Split, tasks: Sequence[Task] = TASKS, per_task: int | None = None, seed: int = 1
    ) -> list[Question]:
        """Held-out questions: wordings, operands and strangers that no training conversation contains.

        Facts are asked about uniformly, popular or not. No fact, story or stranger is asked about in two splits.

        Args:
            split: "fit" (probes), "calibration" (thresholds) or "test".
            tasks: Which tasks, in this order.
            per_task: Most questions per task (of some tasks there are fewer); by default as many as facts.
            seed: Chooses distractors, passages and sums, and which facts come first.

        Returns:
            Questions, task by task.
        """
        found: list[Question] = []
        facts = [fact for fact in self.facts if self.split_of(fact.key) == split]
        for task in tasks:
            rng = random.Random(stable_hash(seed, split, task))
            count = len(facts) if per_task is None else per_task
            order = rng.sample(facts, len(facts))
            made: dict[str, Question] = {}
            for _ in range(40 * count):
                if len(made) == count or (task in ("facts", "letters") and not order):
                    break
                question = self._question(task, order, rng)
                if task in ("facts", "letters") or self.split_of(question.key) == split:
                    made.setdefault(question.prompt, question)
            found += made.values()
        return found

    def facts_in_every_wording(self, split: Split) -> list[Question]:
        """The facts of a split, each asked in all its wordings, trained on or not: what a probe learns from."""
        return [
            Question("facts", wording.format(subject=fact.subject), fact.value, fact.key)
            for fact in self.facts
            if self.split_of(fact.key) == split
            for wording in WORDINGS[fact.relation]
        ]

    def _question(self, task: Task, order: list[Fact], rng: random.Random) -> Question:
        if task == "facts":
            fact = order.pop()
            return Question(task, self.wording(fact, None), fact.value, fact.key)
        if task == "letters":
            fact = order.pop()
            options = self._options(fact.relation, rng, fact.value)
            lines = "\n".join(option.text for option in options)
            label = next(option.handle for option in options if option.value == fact.value)
            return Question(task, f"{self.wording(fact, None)}\n{lines}", label, fact.key, LABELS)
        if task == "sums":
            story, working = self._sum(rng, held_out=True)
            return Question(task, story, working.rsplit("Answer: ", 1)[1], story)
        if task == "reading":
            passage = self._passage(rng, held_out=True, sentences=rng.choice([2, 3]))
            fact = rng.choice(passage)[1]
            context = " ".join(clue.text for clue, _ in passage)
            prompt = QA_TEMPLATES[0].format(context=context, question=self.wording(fact, None))
            return Question(task, prompt, fact.value, fact.subject)
        stranger = self._stranger(rng, held_out=True)
        return Question(task, self.wording(stranger, None), UNKNOWN, stranger.subject)
