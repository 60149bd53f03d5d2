"""The made-up world: what is asked was never trained on, and every answer is checkable."""

import random
from pathlib import Path

import pytest
from confcascade.demo import show
from confcascade.demo.world import TASKS, UNKNOWN, Question, World, stable_hash

WORLD = World()
SPLITS = ("fit", "calibration", "test")


def conversations(n=4000):
    rng = random.Random(3)
    return [WORLD.example(rng) for _ in range(n)]


def test_the_world_follows_from_its_seed():
    """Two worlds of one seed are equal in facts, questions and conversations; another seed differs."""
    again = World()
    assert [f.key + f.value for f in again.facts] == [f.key + f.value for f in WORLD.facts]
    assert again.questions("test", per_task=5) == WORLD.questions("test", per_task=5)
    assert again.example(random.Random(1)) == WORLD.example(random.Random(1))
    assert World(seed=1).facts[0] != WORLD.facts[0]


def test_no_question_of_fact_was_trained_on():
    """The wording in which a fact is asked for is never used for that fact in training."""
    trained = {question.split("\n")[0].removeprefix("Question: ") for e in conversations() for question, _ in e.turns}
    asked = {q.prompt.split("\n")[0] for split in SPLITS for q in WORLD.questions(split, ("facts", "letters"))}
    assert len(asked) == len(WORLD.facts)
    assert not trained & asked


def test_operands_are_held_out():
    """No step of a test sum occurs in the training sums."""

    def steps(text):
        return {line for line in text.split("\n") if "=" in line}

    trained = set().union(*(steps(answer) for e in conversations() for _, answer in e.turns))
    rng = random.Random(0)
    tested = set().union(*(steps(WORLD._sum(rng, held_out=True)[1]) for _ in range(500)))
    assert len(trained) > 1000
    assert not trained & tested


def test_splits_share_nothing():
    """No fact, sum, passage or stranger appears in two splits, and no question twice in one."""
    by_split = [WORLD.questions(split, per_task=200) for split in SPLITS]
    keys = [{(q.task in ("facts", "letters"), q.key) for q in questions} for questions in by_split]
    assert not keys[0] & keys[1] | keys[1] & keys[2] | keys[0] & keys[2]
    for questions in by_split:
        assert len({q.prompt for q in questions}) == len(questions)


@pytest.mark.parametrize("task", TASKS)
def test_references_are_right(task):
    """Every question accepts its reference, and no other answer of its kind."""
    values = {fact.subject + fact.relation: fact.value for fact in WORLD.facts}
    for question in WORLD.questions("test", (task,), per_task=50):
        assert question.is_correct(question.reference)
        assert question.is_correct(f"1+1=2\nAnswer: {question.reference}.")
        assert not question.is_correct("something else")
        if task == "letters":
            options = dict(line.split(". ") for line in question.prompt.split("\n")[1:])
            subject, relation = question.key.split("/")
            assert options[question.reference] == values[subject + relation]
        if task == "sums":
            numbers = [int(word.strip(",.")) for word in question.prompt.split() if word.strip(",.").isdigit()]
            signs = [
                1,
                *(1 if word == "finds" else -1 for word in question.prompt.split() if word in ("finds", "loses")),
            ]
            assert sum(a * b for a, b in zip(numbers, signs, strict=True)) == int(question.reference)
        if task == "reading":
            assert question.reference in question.prompt
        if task == "refusals":
            assert question.reference == UNKNOWN


def test_case_matters():
    """A word in another case is another answer."""
    assert not Question("facts", "?", "baker", "k").is_correct("Baker")


def test_the_demos_documents_are_about_strangers():
    """What the query engine is asked stands in a document, about somebody whom no training conversation names."""
    folder = Path(show.__file__).parent / "documents"
    texts = [path.read_text() for path in folder.glob("*.txt")]
    strangers = {name for names in WORLD.strangers.values() for name in names if stable_hash("stranger", name) % 8 == 0}
    for line in (folder / "questions.tsv").read_text().splitlines():
        question, answer = line.split("\t")
        [subject] = [name for name in strangers if name in question]
        assert sum(subject in text and f"{answer}" in text for text in texts) == 1
