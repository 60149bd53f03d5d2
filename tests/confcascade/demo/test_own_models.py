"""The demo on one's own models: what is shown of each question, and that the table is of what was answered."""

import contextlib
import io
import re

import pytest
from confcascade import Cascade, Prices, Stage
from confcascade.bench.questions.prompts import PROMPTS
from confcascade.cost import Architecture
from confcascade.demo.own_models import ask_all, short_names, show_conclusion, stages_of
from confcascade.demo.questions import shipped_questions
from confcascade.errors import ConfigurationError, ModelError
from confcascade.testing import Reply, ScriptedModel
from rich.console import Console

EXAMPLES = shipped_questions()
RIGHT = 0.95  # P(T) of the small model where it is right, at the threshold 0.9


def said(example, knows, sure):
    return Reply(example.references[0], sure) if knows else Reply("[/b] nobody knows", 0.5)


def scripted(name, parameters, knows, **options):
    """Knows the questions at places of which `knows` says so, and is sure of those."""

    def reply(request):
        asked = request.messages[-1].content
        place = next(i for i, example in enumerate(EXAMPLES) if asked.startswith(example.question))
        model.asked.append(place)
        return said(EXAMPLES[place], knows(place), RIGHT)

    model = ScriptedModel(name, reply, architecture=parameters and Architecture(parameters, 2, 64), **options)
    model.asked = []
    return model


def small(**options):
    return scripted("small-0.1B-Instruct.Q4_K_M", 1_000_000, lambda place: place % 3 == 0, **options)


def large(**options):
    return scripted("large-it", 10_000_000, lambda place: place % 5 != 1, **options)


@pytest.fixture
def progress():
    """Keeps what it is told in `steps`."""

    @contextlib.contextmanager
    def begun(_console):
        yield lambda *step: begun.steps.append(step)

    begun.steps = []
    return begun


def played(models, progress, count=15, width=100, prices=None):
    console = Console(width=width, file=io.StringIO())
    stages = stages_of(models, 0.9, prices or {})
    answered, compared = ask_all(console, stages, EXAMPLES[:count], progress)
    show_conclusion(console, stages, answered, compared)
    return answered, compared, console.file.getvalue()


def flowing(shown):
    """Without its line breaks."""
    return " ".join(shown.split())


def test_each_question_is_shown_with_every_draft(progress):
    """Who said what, right or wrong, by which score, at what cost; and what is right where the answer was not."""
    answered, _, shown = played([small(), large()], progress, count=3)
    rows = [line.split() for line in shown.splitlines() if line.endswith(" MFLOP")]
    assert [(row[0], "right" in row, "wrong" in row) for row in rows] == [
        ("small-0.1B", True, False),
        ("small-0.1B", False, True),
        ("large", False, True),
        ("small-0.1B", False, True),
        ("large", True, False),
    ]
    assert "p_t 0.95 >= 0.9" in shown
    assert "p_t 0.5 < 0.9" in shown
    assert "[/b] nobody knows" in shown
    assert f"it is {EXAMPLES[1].references[0]}" in shown
    assert [each.outcome.stage for each in answered] == [0, 1, 1]


def test_the_largest_model_answers_each_question_once(progress):
    """In the cascade or afterwards, and the bar goes on with the latter."""
    models = small(), large()
    played(models, progress, count=12)
    assert models[0].asked == list(range(12))
    assert models[1].asked == [1, 2, 4, 5, 7, 8, 10, 11, 0, 3, 6, 9]
    assert progress.steps == [("large", i, 4) for i in (1, 2, 3, 4)]


def test_the_table_is_what_each_would_have_done_alone(progress):
    """Accuracy and cost of the smallest and the largest model are those of asking them only."""
    _, compared, shown = played([small(), large()], progress)
    for model, contender in ((small(), compared.smallest), (large(), compared.largest)):
        outcomes = [Cascade([Stage(model)]).run(PROMPTS["plain"].messages(example)) for example in EXAMPLES[:15]]
        assert [cost.flops for cost in contender.every] == [outcome.record.cost.flops for outcome in outcomes]
        assert list(contender.right) == [
            outcome.text == example.references[0] for outcome, example in zip(outcomes, EXAMPLES, strict=False)
        ]
    assert re.search(r"cascade +│ +13 \(86\.7%\)", shown), shown


def test_three_models_are_a_cascade_too(progress):
    """Each smaller one has its sentence; other thresholds are shown of two models only."""
    middle = scripted("middle", 5_000_000, lambda place: place % 2 == 0)
    _, compared, shown = played([small(), middle, large()], progress, width=120)
    assert "small-0.1B kept 5 of 15 answers" in shown
    assert "middle kept 5 of 10 answers" in shown
    assert "Other thresholds" not in shown
    assert "Other thresholds" in played([small(), large()], progress)[2]
    assert sum(compared.cascade.right) == 13


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_line_is_too_long(progress, width):
    """Of long names and long answers."""
    models = [
        scripted("Qwen2.5-Coder-0.5B-Instruct.Q4_K_M", 10**6, lambda _: False),
        ScriptedModel("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M", lambda _: "word " * 300),
    ]
    shown = played(models, progress, count=6, width=width)[2]
    assert max(map(len, shown.splitlines())) <= width
    assert "..." in shown


def test_a_model_that_fails_is_shown_and_escalates(progress):
    """With the reason, no cost, and no verdict on an answer that is not there."""
    broken = ScriptedModel("broken", lambda _: Reply("", error=TimeoutError()), architecture=Architecture(10**6, 2, 64))
    _, compared, shown = played([broken, large()], progress, count=4)
    assert re.search(r"broken +TimeoutError +no answer *\n", shown), shown
    assert "4 of its calls failed, and count as free" in flowing(shown)
    assert "has to keep" not in shown
    assert compared.share(compared.cascade) == 1


def test_the_last_model_that_fails_is_one_error(progress):
    """Of ours, with the model's name, behind others or when it is asked for comparison."""
    broken = ScriptedModel("broken", lambda _: Reply("", error=TimeoutError("after 60 s")))
    with pytest.raises(ModelError, match=r"'broken' failed\. TimeoutError: after 60 s"):
        played([small(), broken], progress, count=1)


def test_prices_are_of_all_models_and_of_no_other(progress):
    """And make costs dollars, of which a last model that costs nothing leaves nothing to save."""
    names = [model.name for model in (small(), large())]
    _, compared, shown = played([small(), large()], progress, prices={name: Prices(1, 2) for name in names})
    assert compared.unit == "usd"
    assert "$0.0" in shown
    for prices, message in (
        ({"smal": Prices(1, 2)}, "prices for 'smal'"),
        ({names[0]: Prices(1, 2)}, "those of 'large-it' are missing"),
        ({names[0]: Prices(1, 2), names[1]: Prices(0, 0)}, "costs nothing"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            stages_of([small(), large()], 0.9, prices)


def test_without_log_probabilities_it_says_why_nothing_is_kept(progress):
    """No score, no answer kept, and no thresholds to look back on."""
    silent = ScriptedModel("silent", lambda _: Reply("12", None), logprobs=None)
    shown = played([silent, large()], progress, count=3)[2]
    assert "None of its answers had a P(T)" in flowing(shown)
    assert "Other thresholds" not in shown


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["SmolLM2-135M-Instruct.Q4_1", "Qwen2.5-0.5B-Instruct.Q4_K_M"], ["SmolLM2-135M", "Qwen2.5-0.5B"]),
        (["gemma-3-1b-it", "gpt-4o"], ["gemma-3-1b", "gpt-4o"]),
        (["m.Q4_K_M", "m.Q8_0"], ["m.Q4_K_M", "m.Q8_0"]),
        (["small", "large"], ["small", "large"]),
        (["Instruct", "x-F16"], ["Instruct", "x"]),
    ],
)
def test_names_are_short_where_they_still_differ(names, short):
    assert short_names(names) == short
