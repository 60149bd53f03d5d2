"""Every model is asked every question once, and the recording says what the live cascade would have seen."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from confcascade import Cascade, ConfigurationError, ModelError, Prices, Request, Stage, TokenProbability
from confcascade.bench.collecting.collect import collect, collect_rows, with_default_signals
from confcascade.bench.collecting.rate_limit import RateLimiter
from confcascade.bench.questions.prompts import PROMPTS, Prompt
from confcascade.bench.questions.splitting import sample
from confcascade.bench.recording import RecordingWriter, read_columns, read_rows
from confcascade.bench.recording.provenance import bind, digest, identity_of, meta_path, noted
from confcascade.bench.replay import PolicyStage, replay
from confcascade.graders import ExactMatch, Function, LLMJudge, NormalizedMatch
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.testing import Reply, ScriptedModel

EXAMPLES = [Example(f"q{i}", references=(f"a{i}",), group="even" if i % 2 == 0 else "odd") for i in range(12)]


def says(request: Request) -> Reply:
    """The small model knows half of the answers."""
    number = int(request.messages[-1].content.removeprefix("q"))
    return Reply(f"a{number}" if number % 2 else "I don't know", probability=0.9 if number % 2 else 0.4)


def small(**more) -> ScriptedModel:
    return ScriptedModel("small", says, **more)


def large() -> ScriptedModel:
    return ScriptedModel("large", lambda request: "a" + request.messages[-1].content.removeprefix("q"))


def gathered(path, models, examples=EXAMPLES, **options):
    """Collect into a file; the result and the rows."""
    stages = [Stage(model, [TokenProbability()] if i == 0 else []) for i, model in enumerate(models)]
    given = {"prompt": PROMPTS["plain"], "grader": ExactMatch()} | options
    stages = given.pop("stages", stages)
    with RecordingWriter(path) as writer:
        collected = collect(examples, stages, writer, **given)
    return collected, list(read_rows(path))


def asked(model: ScriptedModel) -> list[str]:
    return [ask.request.messages[-1].content for call in model.calls for ask in call]


# ---------------------------------------------------------------------- rows


def test_a_row_has_all_of_an_attempt(tmp_path):
    """Prompt, answer, grade, scores, tokens, usage and who said it, for every question and model."""
    models = [small(), large()]
    collected, rows = gathered(tmp_path / "rec.jsonl", models)
    assert (collected.ended, collected.rows, collected.left) == ("complete", 24, 0)
    assert {row.key for row in rows} == {(e.id, name) for e in EXAMPLES for name in ("small", "large")}
    row = next(row for row in rows if row.prompt == "q3" and row.model == "small")
    assert (row.answer, row.grade, row.refused, row.predicted, row.reference) == ("a3", 1.0, False, "a3", "a3")
    assert (row.group, row.error, row.finish_reason, row.prompt_version) == (
        "odd",
        None,
        "stop",
        PROMPTS["plain"].version,
    )
    assert row.scores["p_t"].value == pytest.approx(0.9)
    assert [token.text for token in row.tokens] == ["a3"]
    assert (row.usage.output_tokens, row.build) == (1, "scripted-small")
    tally = collected.tallies["small"]
    assert (tally.n, tally.accuracy, tally.refused, tally.errors) == (12, 0.5, 6, 0)
    assert collected.tallies["large"].accuracy == 1.0
    assert sorted(asked(models[0])) == sorted(e.question for e in EXAMPLES)


def test_a_correcting_signal_is_graded_for_each_other_label(tmp_path):
    """What the grader says of the answer with that label in it, so that a corrected answer can be replayed."""
    examples = [Example(f"q{i}", references=("yes" if i % 3 else "no",)) for i in range(6)]
    unsure = ScriptedModel("small", lambda _: Reply("No.", 0.6, {"No": 0.6, "yes": 0.4}))
    stages = [Stage(unsure, [TokenProbability(["yes", "no"], corrects=True)]), Stage(large())]
    _, rows = gathered(tmp_path / "rec.jsonl", [], examples, stages=stages, grader=NormalizedMatch())
    ours = [row for row in rows if row.model == "small"]
    for row in ours:
        details = row.scores["p_t"].details
        assert details["probabilities"] == {"no": pytest.approx(0.6), "yes": pytest.approx(0.4)}
        assert details["grades"] == {"yes": float(row.reference == "yes")}
    columns = read_columns(tmp_path / "rec.jsonl")
    policy = [PolicyStage("small", {"p_t": {"yes": 0.3, "no": 0.9}}), PolicyStage("large")]
    played = replay(columns, policy)
    cascade = Cascade([Stage(unsure, stages[0].signals, policy[0].thresholds), Stage(large())])
    for i, question in enumerate(columns.questions):
        outcome = cascade.run(next(e.question for e in examples if e.id == question))
        assert (outcome.text, outcome.stage) == ("yes.", played.stage[i])
        assert played.grade[i] == float(next(e for e in examples if e.id == question).references == ("yes",))


def test_the_last_model_is_scored_too(tmp_path):
    """By the P(T) of the stages before it, which later tells whether it would do in an earlier place; if it can."""
    _, rows = gathered(tmp_path / "rec.jsonl", [small(), large()])
    assert all(row.scores["p_t"].value == pytest.approx(0.99) for row in rows if row.model == "large")
    silent = ScriptedModel("large", logprobs=False)
    assert with_default_signals([Stage(small(), [TokenProbability()]), Stage(silent)])[1].signals == ()


def test_without_text_nothing_of_it_is_kept(tmp_path):
    """Neither questions nor answers are in the file; figures and the letters of choices are."""
    examples = [
        Example("Who rang the bell?", references=("the miller",)),
        Example("Who forged the bell?", choices=("the smith", "the miller"), references=("A",)),
    ]
    model = ScriptedModel("small", lambda request: "A" if "smith" in request.messages[-1].content else "the miller")
    grader = Function(lambda example, answer: Grade(1.0, predicted=answer))
    _, rows = gathered(tmp_path / "rec.jsonl", [model], examples, keep_text=False, grader=grader)
    text = (tmp_path / "rec.jsonl").read_text()
    assert not any(said in text for said in ("bell", "miller", "smith"))
    assert all(row.usable and row.tokens is None and row.scores["p_t"].value == pytest.approx(0.99) for row in rows)
    assert {row.predicted for row in rows} == {None, "A"}


def test_a_grader_may_ask_a_model(tmp_path):
    """Its calls go out with the others, and are counted apart."""
    judge = ScriptedModel("judge", lambda request: "Verdict: yes" if "a3" in request.messages[-1].content else "no")
    collected, rows = gathered(tmp_path / "rec.jsonl", [small()], grader=LLMJudge(judge))
    assert {row.prompt: row.grade for row in rows}["q3"] == 1.0
    assert sum(row.grade for row in rows) == 1.0
    assert len(judge.calls) == 12
    assert collected.used["judge"].output_tokens > 0
    assert collected.tallies["small"].usage.output_tokens == sum(row.usage.output_tokens for row in rows)


def test_the_recording_decides_as_the_live_cascade(tmp_path):
    """Bundled models with P(IK) and P(T): the replay of what was collected keeps and passes on what the live one does.

    Batches differ in padding, so questions with a score within 1e-4 of a threshold are left out.
    """
    pytest.importorskip("torch")
    from confcascade.demo import bundled_stages
    from confcascade.demo.world import World

    stages = bundled_stages()[:1] + bundled_stages()[-1:]
    world = World().questions("test", ("facts", "sums"), per_task=20)
    examples = [Example(question.prompt, references=(question.reference,)) for question in world]
    with RecordingWriter(tmp_path / "rec.jsonl") as writer:
        collect(examples, stages, writer, prompt=PROMPTS["plain"], grader=NormalizedMatch())
    rows = {row.key: row for row in read_rows(tmp_path / "rec.jsonl")}
    live = Cascade(stages).run_batch([PROMPTS["plain"].messages(example) for example in examples])
    columns = read_columns(tmp_path / "rec.jsonl")
    played = replay(columns, [PolicyStage(stage.model.name, stage.thresholds) for stage in stages])
    first, compared = stages[0], 0
    for example, outcome in zip(examples, live, strict=True):
        scores = rows[example.id, first.model.name].scores
        if any(abs(scores[name].value - threshold) < 1e-4 for name, threshold in first.thresholds.items()):
            continue
        compared += 1
        at = list(columns.questions).index(example.id)
        assert played.stage[at] == outcome.record.stage
        answering = rows[example.id, outcome.record.answered_by]
        assert answering.answer == outcome.text
        usage = outcome.record.attempts[0].usage
        assert (played.input_tokens[at, 0], played.output_tokens[at, 0]) == (usage.input_tokens, usage.output_tokens)
        assert played.aborted[at, 0] == outcome.record.attempts[0].aborted
    assert compared >= 30
    assert 0 < np.mean(played.stage == 0) < 1


# ---------------------------------------------------------------------- resuming


def test_it_goes_on_where_it_was(tmp_path):
    """What the file has is not asked again, and counts in the tally."""
    gathered(tmp_path / "rec.jsonl", [small(), large()], EXAMPLES[:5])
    model = small()
    collected, rows = gathered(tmp_path / "rec.jsonl", [model, large()])
    assert sorted(asked(model)) == sorted(e.question for e in EXAMPLES[5:])
    assert len(rows) == len({row.key for row in rows}) == 24
    assert (collected.rows, collected.tallies["small"].n) == (14, 12)
    assert collected.tallies["small"].accuracy == 0.5


def test_what_it_is_made_with_is_beside_it(tmp_path):
    """As of the command line: another run must ask in the same way, may add models and questions, and is noted."""
    path, given = tmp_path / "rec.jsonl", {"prompt": "plain", "grader": "exact"}
    stages = [Stage(small(), [TokenProbability()]), Stage(large(), prices=Prices(1, 2))]
    collect(EXAMPLES[:3], stages[:1], path, **given, temperature=0.0)
    collect(EXAMPLES, stages, path, **given, temperature=0.0)
    meta = json.loads(meta_path(path).read_text())
    assert [run["command"] for run in meta["runs"]] == [["confcascade.collect"]] * 2
    assert list(meta["identity"]["models"]) == ["small", "large"]
    assert "data" not in meta["identity"]
    assert noted(path).prices == {"large": Prices(1, 2)}
    for other in ({"temperature": 0.5}, {"grader": "contains"}, {"prompt": "open-ended"}):
        with pytest.raises(ConfigurationError, match="collected otherwise"):
            collect(EXAMPLES, stages, path, **({"temperature": 0.0} | given | other))
    assert len(list(read_rows(path))) == 24


def test_what_a_caller_has_noted_stays(tmp_path):
    """The command line notes the data and the run itself; a run that recorded nothing binds nobody."""
    path, data = tmp_path / "rec.jsonl", tmp_path / "data.jsonl"
    data.write_text("questions")
    told = {"stages": [Stage(small(), [TokenProbability()])], "prompt": PROMPTS["plain"], "grader": ExactMatch()}
    bind(path, identity_of(data, **told, parameters={}), {"command": ["mine"]})
    for examples in (EXAMPLES[:3], EXAMPLES):  # with a writer of its own each
        gathered(path, [small()], examples)
        meta = json.loads(meta_path(path).read_text())
        assert meta["identity"]["data"] == digest(data)
        assert [run["command"] for run in meta["runs"]] == [["mine"]]
    stale = tmp_path / "stale.jsonl"
    bind(stale, identity_of(data, **told, parameters={"max_tokens": 5}), {"command": ["mine"]})
    gathered(stale, [small()])
    meta = json.loads(meta_path(stale).read_text())
    assert "data" not in meta["identity"]
    assert [run["command"] for run in meta["runs"]] == [["confcascade.collect"]]


def test_rows_of_unknown_making_are_told_of(tmp_path, caplog):
    """They are gone on with, and nothing is claimed of them."""
    path = tmp_path / "rec.jsonl"
    gathered(path, [small()], EXAMPLES[:3])
    meta_path(path).unlink()
    _, rows = gathered(path, [small()])
    assert len(rows) == 12
    assert not meta_path(path).exists()
    assert "collect into another file" in caplog.text


def test_a_question_that_comes_twice_is_asked_once(tmp_path):
    """It counts as often as it comes; two different ones of the same id are an error, before anything is asked."""
    model = small()
    collected, rows = gathered(tmp_path / "rec.jsonl", [model], [*EXAMPLES, *EXAMPLES[:1], *EXAMPLES[:1]])
    assert len(asked(model)) == 12
    assert [row.drawn for row in rows if row.question == EXAMPLES[0].id] == [3]
    assert sum(row.drawn for row in rows) == 14
    columns = read_columns(tmp_path / "rec.jsonl")
    assert columns.questions.count(EXAMPLES[0].id) == 3
    assert collected.tallies["small"].accuracy == columns.grades.mean()
    model = small()
    with pytest.raises(ConfigurationError, match="have the id 'same'"):
        gathered(tmp_path / "b.jsonl", [model], [Example("q1", id="same"), Example("q2", id="same")])
    assert not model.calls


def test_what_is_drawn_again_later_is_not_paid_for_again(tmp_path):
    """A larger sample repeats what was asked: the answers stand, count as often, and cost nothing more."""
    path, prices = tmp_path / "rec.jsonl", Prices(1e6, 1e6)
    models = [small(), large()]
    priced = [Stage(model, prices=prices) for model in models]
    before, rows = gathered(path, models, EXAMPLES[:4], stages=priced)
    for _ in range(2):  # the second time nothing is left to say
        after, more = gathered(path, models, [*EXAMPLES[:4], *EXAMPLES[:2]], stages=priced)
        assert len(more) == len(rows) + 4
    assert [len(asked(model)) for model in models] == [4, 4]
    assert after.spent_usd == before.spent_usd
    assert after.tallies["small"].accuracy == pytest.approx(3 / 6)
    assert len(read_columns(path)) == 6


def test_a_prompt_that_does_not_fit_shows_at_once(tmp_path):
    """Not at the four-hundredth question."""
    model = small()
    with pytest.raises(ConfigurationError, match="context"):
        gathered(tmp_path / "rec.jsonl", [model], prompt=Prompt("p", None, "{context} is the text.\n{question}"))
    assert not model.calls


def test_errors_are_rows_and_are_asked_again_on_demand(tmp_path):
    """A model's error is recorded; asked again, the later row holds."""

    def fails(request):
        if request.messages[-1].content in ("q2", "q5"):
            return Reply("", error=ModelError("down"))
        return says(request)

    path = tmp_path / "rec.jsonl"
    collected, rows = gathered(path, [ScriptedModel("small", fails)])
    assert {row.prompt: row.error for row in rows if row.error} == {"q2": "ModelError: down", "q5": "ModelError: down"}
    assert (collected.ended, collected.tallies["small"].errors) == ("complete", 2)
    model = small()
    gathered(path, [model])
    assert asked(model) == []
    collected, rows = gathered(path, [model], retry_errors=True)
    assert sorted(asked(model)) == ["q2", "q5"]
    assert (collected.tallies["small"].n, collected.tallies["small"].errors) == (12, 0)
    assert not read_columns(path).failed.any()
    again = small()
    gathered(path, [again], retry_errors=True)
    assert asked(again) == []


# ---------------------------------------------------------------------- ending early


def test_a_model_that_always_fails_ends_it(tmp_path):
    """A wrong key does not fill the recording with errors."""
    broken = ScriptedModel("small", lambda request: Reply("", error=ModelError("no key")))
    collected, rows = gathered(tmp_path / "rec.jsonl", [broken], give_up_after=3, max_concurrency=2)
    assert collected.ended == "failing"
    assert "'small' failed 3 times in a row, at last with ModelError: no key" in collected.problem
    assert 3 <= len(rows) <= 5


def all_at_once(pairs, asking, *, max_concurrency, lines):
    """As a cluster asks: everything is handed out before the first row is there, and what is no longer wanted, lost."""
    for pair in list(pairs):
        yield from collect_rows([pair], asking, max_concurrency=max_concurrency, lines=RateLimiter(lines.limits))
        if lines.stop.is_set() or lines.given_up:
            return


def test_who_asks_can_be_another(tmp_path):
    """Rows are the same; where they end early, it is said why, and the same command goes on."""
    path = tmp_path / "rec.jsonl"
    broken = ScriptedModel("small", lambda request: Reply("", error=ModelError("no key")))
    collected, rows = gathered(path, [broken], give_up_after=3, ask_all=all_at_once)
    assert (collected.ended, len(rows), collected.left) == ("failing", 3, 9)
    stop = threading.Event()
    first = {"stop": stop, "progress": lambda _, row: row and stop.set()}
    collected, rows = gathered(path, [small()], ask_all=all_at_once, **first)
    assert (collected.ended, len(rows), collected.left) == ("stopped", 4, 8)
    collected, rows = gathered(path, [small()], retry_errors=True, ask_all=all_at_once)
    assert (collected.ended, collected.left) == ("complete", 0)
    _, alone = gathered(tmp_path / "alone.jsonl", [small()])
    told = {row.question: row.model_dump(exclude={"latency_s"}) for row in rows}
    assert told == {row.question: row.model_dump(exclude={"latency_s"}) for row in alone}


PRICES = Prices(input_usd=0, output_usd=1e6)  # a dollar for each word


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_the_cap_is_kept(tmp_path, concurrency):
    """No more is spent than allowed, whatever is under way, and a raised cap goes on from there."""
    words = ScriptedModel("m", lambda request: "one two three")
    stages = [Stage(words, prices=PRICES)]
    options = {"stages": stages, "max_concurrency": concurrency, "max_tokens": 3}
    collected, rows = gathered(tmp_path / "rec.jsonl", [words], max_usd=17, **options)
    assert (collected.ended, collected.spent_usd, len(rows)) == ("budget", 15.0, 5)
    assert collected.left == 7
    collected, rows = gathered(tmp_path / "rec.jsonl", [words], max_usd=24, **options)
    assert (collected.ended, collected.spent_usd, len(rows)) == ("budget", 24.0, 8)
    collected, rows = gathered(tmp_path / "rec.jsonl", [words], max_usd=1_000, **options)
    assert (collected.ended, collected.spent_usd, len(rows)) == ("complete", 36.0, 12)
    assert len(words.calls) == 12


def test_a_cap_needs_prices(tmp_path):
    """Of every model behind an API, a judge too; local ones cost no dollars."""
    with pytest.raises(ConfigurationError, match="prices of model 'small'"):
        gathered(tmp_path / "a.jsonl", [small()], max_usd=1)
    collected, _ = gathered(tmp_path / "b.jsonl", [small(batch_size=4)], max_usd=1)
    assert (collected.ended, collected.spent_usd) == ("complete", None)
    judge = LLMJudge(ScriptedModel("judge", lambda request: "yes"))
    stages = [Stage(small(), prices=Prices(0, 0))]
    collected, rows = gathered(
        tmp_path / "c.jsonl", [], stages=stages, max_usd=1, grader=judge, max_concurrency=1, max_tokens=5
    )
    assert collected.ended == "failing"
    assert "asks model 'judge', whose prices are not known" in collected.problem
    assert len(rows) == 1


def test_stopping_keeps_what_is_under_way(tmp_path):
    """Once it is stopped, no further question is begun, and every answer that was paid for is a row."""
    stop = threading.Event()

    def slowly(request):
        if request.messages[-1].content == "q3":
            stop.set()
        return replace(says(request), delay_s=0.05)

    model = ScriptedModel("small", slowly)
    collected, rows = gathered(tmp_path / "rec.jsonl", [model], stop=stop, max_concurrency=2)
    assert collected.ended == "stopped"
    assert 4 <= len(rows) == len(model.calls) <= 5
    assert collected.left == 12 - len(rows)


def test_progress_is_told(tmp_path):
    """Once before the first row, and after each; the counts rise."""
    told = []
    gathered(
        tmp_path / "rec.jsonl",
        [small()],
        progress=lambda state, row: told.append((state.tallies["small"].n, state.left, row and row.question)),
    )
    assert [n for n, _, _ in told] == list(range(13))
    assert told[0] == (0, 12, None)
    assert told[-1][1] == 0


# ---------------------------------------------------------------------- samples


def test_samples_nest():
    """A smaller sample is part of a larger one; both keep the order of the file and are the same every time."""
    few, more = sample(EXAMPLES, 4), sample(EXAMPLES, 9)
    assert len(few) == 4
    assert set(few) < set(more)
    assert more == [example for example in EXAMPLES if example in more]
    assert few == sample(EXAMPLES, 4)
    assert set(sample(reversed(EXAMPLES), 4)) == set(few)
    assert sample(EXAMPLES, 100) == EXAMPLES
    often = [*[Example(f"other {i}") for i in range(500)], *[EXAMPLES[0]] * 500]
    assert 30 < sample(often, 100).count(EXAMPLES[0]) < 70  # a sample of the draws, and not of the questions
    assert few != EXAMPLES[:4]
    with pytest.raises(ConfigurationError, match="at least 1"):
        sample(EXAMPLES, 0)
