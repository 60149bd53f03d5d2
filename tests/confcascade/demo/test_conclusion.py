"""What is concluded from a few dozen answers is true of them, and says what to do next."""

from pathlib import Path

import pytest
import yaml
from confcascade import Cascade, Stage, TokenProbability
from confcascade.demo.asking import answer
from confcascade.demo.comparison import Comparison, Contender
from confcascade.demo.conclusion import caution, drafts_of, next_steps, verdict
from confcascade.graders import Example
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Cost


def contender(name, right, flops, n=10):
    costs = tuple(Cost(flops=flops / n, tokens=5, usd=None, seconds=0.1) for _ in range(n))
    return Contender(name, tuple(i < right for i in range(n)), costs, costs)


def concluded(small, cascade, large=(9, 100.0), models=2, **options):
    named = zip(("small", "cascade", "large"), (small, cascade, large), strict=True)
    return verdict(Comparison.of(*(contender(name, *each) for name, each in named), **options), models=models)


@pytest.mark.parametrize(
    ("small", "cascade", "told"),
    [
        ((5, 10.0), (9, 40.0), "The cascade saved 60% of what large alone costs, and got as many right."),
        ((5, 10.0), (10, 40.0), "saved 60% of what large alone costs, and got 1 of 10 more right."),
        ((5, 10.0), (7, 40.0), "got 2 of 10 fewer right. A higher --threshold loses fewer and saves less."),
        ((5, 30.0), (9, 120.0), "does not pay here: it cost 120% of what large alone costs, and got as many right. "
         "small alone costs 30% of it, and so has to keep more than 30% of its answers"),
        ((5, 130.0), (9, 220.0), "small alone costs more than that, so no threshold can save anything."),
        ((9, 10.0), (9, 40.0), "small alone gets 9 of 10 right, and large 9. It costs 10% of that."),
    ],
)  # fmt: skip
def test_the_verdict_is_what_the_figures_say(small, cascade, told):
    assert told in concluded(small, cascade)


def test_a_break_even_is_of_two_models():
    """With a model between them, the smallest one's share is not what decides."""
    assert "has to keep" not in concluded((5, 30.0), (9, 120.0), models=3)


def test_where_nothing_was_right_nothing_is_concluded():
    assert "nothing can be said" in concluded((0, 10.0), (0, 40.0), (0, 100.0))


def test_tokens_are_no_saving():
    """A token of one model is not worth one of another."""
    costs = (Cost(flops=None, tokens=10, usd=None, seconds=0.5),) * 2
    small, large = (Contender(name, (right, True), costs, costs) for name, right in (("s", False), ("l", True)))
    assert "--prices" in verdict(Comparison.of(small, large, large), models=2)


def drafts(*replies, threshold=0.8):
    """The answers of a cascade whose small model says these, of which "yes" is right."""
    small = ScriptedModel("small", lambda request: replies[int(request.messages[-1].content)])
    cascade = Cascade(
        [Stage(small, [TokenProbability()], {"p_t": threshold}), Stage(ScriptedModel("large", lambda _: "yes"))]
    )
    return [answer(cascade, Example(str(i), references=("yes",))) for i in range(len(replies))]


def test_of_drafts_it_is_said_what_became_of_them():
    """How many were kept and right, how many were escalated in vain, and how well P(T) ranks them."""
    answered = drafts(Reply("yes", 0.9), Reply("no", 0.85), Reply("yes", 0.7), Reply("no", 0.6))
    assert drafts_of(answered, 0, "small") == (
        "small kept 2 of 4 answers, 1 of them right, and escalated 2, 1 of which would have been right. "
        "A right answer had a higher P(T) than a wrong one in 75% of all pairs (chance is 50%)."
    )
    assert drafts_of(drafts(Reply("no", 0.1)), 0, "small") == (
        "small kept none of 1 answers, and escalated 1, none of which would have been right."
    )


def test_missing_scores_and_failures_are_said():
    """Without log-probabilities nothing can be kept; a call that failed costs an unknown sum."""
    assert "None of its answers had a P(T)" in drafts_of(drafts(Reply("yes", 0.9, error=OSError())), 0, "small")
    failed = drafts_of(drafts(Reply("yes", 0.9), Reply("yes", error=OSError())), 0, "small")
    assert "1 of its calls failed" in failed


def test_the_fewest_questions_are_the_planners():
    assert "44 questions of ours" in caution(44)
    assert "at least 299 graded questions" in caution(44)


def test_the_next_steps_can_be_taken(tmp_path):
    """The cascade file can be read as it is printed, with paths that hold from anywhere; names of the hub stay."""
    (tmp_path / "a b.gguf").touch()
    shown = next_steps([f"llamacpp:{tmp_path}/../{tmp_path.name}/a b.gguf", "local:Qwen/Qwen3-0.6B"], 0.75)
    block = shown.partition("cascade.yaml\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(block) == {
        "models": [f"llamacpp:{Path(tmp_path).resolve() / 'a b.gguf'}", "local:Qwen/Qwen3-0.6B"],
        "threshold": 0.75,
    }
    assert "confcascade collect questions.jsonl -o rec.jsonl --cascade cascade.yaml" in shown
    # only with --cascade does the policy say how its signals are made
    assert "confcascade fit rec.jsonl -o policy.json --cascade cascade.yaml --max-drop 0.01" in shown
