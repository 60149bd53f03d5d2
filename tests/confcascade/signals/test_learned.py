from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confcascade import (
    Cascade,
    ConfigurationError,
    LearnedScorer,
    Message,
    Request,
    SignalUnavailableError,
    Stage,
    TextRouter,
    ToolCall,
)
from confcascade.bench.recording import Columns, PlaybackModel, Row, score_of
from confcascade.bench.replay import PolicyStage, replay
from confcascade.extending import Evidence, Response
from confcascade.testing import ScriptedModel
from sklearn.metrics import roc_auc_score

TOPICS = {"bell": True, "song": True, "tower": False, "king": False}  # what the model knows about
NAMES = "Ann Bo Cid Dee Eve Fay Gus Hal Ida Jo".split()


def made(n: int, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Questions, answers and whether they are right: by the topic nine times in ten; a wrong one is often "unsure"."""
    rng = np.random.default_rng(seed)
    topics, names = rng.choice(list(TOPICS), n), rng.choice(NAMES, n)
    right = np.array([TOPICS[topic] for topic in topics]) ^ (rng.random(n) < 0.1)
    unsure = ~right & (rng.random(n) < 0.7)
    questions = [f"Was it {name} with the {topic}?" for name, topic in zip(names, topics, strict=True)]
    return questions, [f"Perhaps {n}." if u else f"It was {n}." for n, u in zip(names, unsure, strict=True)], right


QUESTIONS, ANSWERS, RIGHT = made(200, seed=0)


@pytest.fixture(scope="module")
def router() -> TextRouter:
    return TextRouter.fit(QUESTIONS, RIGHT, model="small")


@pytest.fixture(scope="module")
def scorer() -> LearnedScorer:
    return LearnedScorer.fit(QUESTIONS, ANSWERS, RIGHT, model="small")


def asked(*messages: Message) -> Evidence:
    return Evidence(Request(messages))


def answered(question: str, response: Response) -> Evidence:
    return Evidence(Request((Message("user", question),)), response=response)


# ---------------------------------------------------------------------- what they learn


def test_they_find_what_is_there(router: TextRouter, scorer: LearnedScorer):
    """On fresh questions they tell right from wrong, as their cards promise; the answer tells the scorer more."""
    questions, answers, right = made(1000, seed=1)
    fresh = [roc_auc_score(right, p) for p in (router.predict(questions), scorer.predict(questions, answers))]

    assert fresh[0] > 0.85
    assert fresh[1] > fresh[0] + 0.03
    assert [router.card.auroc, scorer.card.auroc] == pytest.approx(fresh, abs=0.06)
    assert router.card.brier < 0.15


def test_they_find_nothing_where_nothing_is():
    """On coin tosses the card says so: four standard errors of the AUROC of 400 rows in five folds are allowed."""
    questions, answers, _ = made(400, seed=2)
    tosses = np.random.default_rng(3).random(400) < 0.5

    assert abs(TextRouter.fit(questions, tosses).card.auroc - 0.5) < 0.12
    assert abs(LearnedScorer.fit(questions, answers, tosses).card.auroc - 0.5) < 0.12


def test_the_card_tells_how_it_was_made(router: TextRouter, scorer: LearnedScorer):
    """What a signal is for, and how well it does, goes with it."""
    for signal in (router, scorer):
        card = signal.card
        assert (card.signal, card.target, card.model) == (type(signal).__name__, "right", "small")
        assert (card.examples, card.base_rate, card.seed) == (200, RIGHT.mean(), 0)
        assert len(card.aurocs) == 5
        shown = f"{card.signal}(model='small', target='right', held-out AUROC={card.auroc:.3f})"
        assert repr(signal) == shown


def test_held_out_predictions_are_those_of_the_card(router: TextRouter, scorer: LearnedScorer):
    """`cross_predict` gives what the card was reckoned from, so that rows can be reported that were learnt from."""
    held_out = TextRouter.cross_predict(QUESTIONS, RIGHT), LearnedScorer.cross_predict(QUESTIONS, ANSWERS, RIGHT)

    for signal, p in zip((router, scorer), held_out, strict=True):
        assert float(np.mean((p - RIGHT) ** 2)) == pytest.approx(signal.card.brier)
        assert p.shape == (200,)
    assert not np.allclose(held_out[0], router.predict(QUESTIONS))


def test_a_router_can_ask_where_the_larger_does_no_better():
    """Then it keeps what both get wrong, too (Hybrid LLM's gap), and grades may lie between 0 and 1."""
    small = np.where(RIGHT, 0.75, 0.0)
    larger = np.array([0.5 if "king" not in question else 0.0 for question in QUESTIONS])
    router = TextRouter.fit(QUESTIONS, small, larger=larger)
    hopeless, lost = router.predict(["Was it Ann with the king?", "Was it Ann with the tower?"])

    assert router.card.target == "no worse"
    assert router.card.base_rate == (small >= larger).mean()
    assert hopeless > 0.6 > 0.4 > lost
    p = TextRouter.cross_predict(QUESTIONS, small, larger=larger)
    assert roc_auc_score(small >= larger, p) > 0.85


def test_the_same_seed_makes_the_same_signal(router: TextRouter):
    """It can be made again, to the bit; the seed is of the folds alone."""
    again, other = (TextRouter.fit(QUESTIONS, list(map(int, RIGHT)), model="small", seed=seed) for seed in (0, 1))

    assert (again.identity(), again.card) == (router.identity(), router.card)
    assert other.identity() == router.identity()
    assert other.card.aurocs != router.card.aurocs


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (lambda: TextRouter.fit(QUESTIONS[:20], RIGHT[:20]), "at least 30 examples"),
        (lambda: TextRouter.fit([], []), "at least 30 examples"),
        (lambda: TextRouter.fit(QUESTIONS, [True] * 200), "nothing to learn: all 200 labels are True"),
        (lambda: LearnedScorer.fit(QUESTIONS, ANSWERS, np.zeros(200)), "all 200 labels are False"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT, larger=np.zeros(200)), "all 200 labels are True"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT[:9]), "`labels` must have shape (200,), as many as texts. Got (9,)"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT, larger=[1]), "`larger` must have shape (200,)"),
        (lambda: TextRouter.fit(QUESTIONS, [0.5] * 200), "grades between them need `larger`"),
        (lambda: TextRouter.fit(QUESTIONS, [np.nan] * 200), "only True and False"),
        (lambda: TextRouter.fit(QUESTIONS, ["yes"] * 200), "`labels` must be true or false, or grades"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT, larger=[2] * 200), "must lie in [0, 1]"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT, larger=[np.nan] * 200), "must lie in [0, 1]"),
        (lambda: TextRouter.fit("a question", RIGHT), "lists of texts"),
        (lambda: TextRouter.fit([1] * 200, RIGHT), "lists of texts"),  # type: ignore[list-item]
        (lambda: LearnedScorer.fit(QUESTIONS, ANSWERS[:9], RIGHT), "one answer to each question. Got 200, 9"),
        (lambda: TextRouter.fit(QUESTIONS, RIGHT, groups=["g"] * 200), "of different groups). Got 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_learnt_from_is_refused(fit: Callable[[], Any], said: str):
    """Too little, one class only, labels that are none: each is named before training."""
    with pytest.raises(ConfigurationError) as raised:
        fit()

    assert said in str(raised.value)


# ---------------------------------------------------------------------- as signals


def test_what_they_read(router: TextRouter, scorer: LearnedScorer):
    """The last message of the user's, whatever stands before and after it, and the answer."""
    question = "Was it Ann with the bell?"
    alone = router.score(asked(Message("user", question))).value

    assert alone == router.predict([question])[0]
    assert alone == pytest.approx(
        router.score(
            asked(Message("system", "king"), Message("user", "tower"), Message("user", question), Message("tool", "1"))
        ).value
    )
    assert scorer.score(answered(question, Response("It was Ann."))).value == pytest.approx(
        float(scorer.predict([question], ["It was Ann."])[0])
    )
    assert (router.phase, router.logprobs, router.early, router.name) == ("pre", False, False, "router")
    assert (scorer.phase, scorer.logprobs, scorer.early, scorer.name) == ("post", False, False, "scorer")


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (asked(Message("system", "be brief")), "no message of the user's"),
        (asked(Message("user", " ")), "has no text"),
    ],
    ids=["no user", "no text"],
)
def test_without_a_question_there_is_no_score(router: TextRouter, evidence: Evidence, said: str):
    """No value is invented."""
    with pytest.raises(SignalUnavailableError, match=said):
        router.score(evidence)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (None, "no whole answer"),
        (Response("", tool_calls=(ToolCall("ring", {}),)), "call of a tool"),
        (Response("", finish_reason="tool_calls"), "call of a tool"),
    ],
    ids=["none", "call", "unread call"],
)
def test_without_an_answer_in_words_there_is_no_score(scorer: LearnedScorer, response: Any, said: str):
    """No value is invented."""
    with pytest.raises(SignalUnavailableError, match=said):
        scorer.score(answered("q", response))


def test_they_are_refused_on_another_model(router: TextRouter):
    """Where they know whose answers they were trained on."""
    with pytest.raises(ConfigurationError, match="answers of model 'small'; the stage's model is 'other'"):
        router.check(ScriptedModel("other", logprobs=False))
    router.check(ScriptedModel("small", logprobs=False))
    TextRouter(replace(router.card, model=None), router._weights).check(ScriptedModel("other"))


def test_their_identity_is_their_weights(router: TextRouter):
    """Another number in a weight is another signal; what the card says besides is not."""
    moved = router._weights | {"bias": router._weights["bias"] + np.float32(1e-6)}

    assert TextRouter(replace(router.card, seed=9), router._weights).identity() == router.identity()
    assert TextRouter(router.card, moved).identity() != router.identity()
    assert json.loads(json.dumps(router.identity())) == router.identity()


def test_they_decide_in_a_cascade(router: TextRouter, scorer: LearnedScorer):
    """The router before the model is asked, the scorer by what it said, in every driver alike."""
    said = {"Was it Ann with the bell?": "It was Ann.", "Was it Bo with the song?": "Perhaps Bo."}
    queries = [*said, "Was it Cid with the king?"]
    small = ScriptedModel("small", said, logprobs=False)
    cascade = Cascade([Stage(small, [router, scorer], {"router": 0.5, "scorer": 0.5}), Stage(ScriptedModel("large"))])
    outcomes = [cascade.run(query) for query in queries]

    assert [outcome.record.stage for outcome in outcomes] == [0, 1, 1]
    assert [len(outcome.record.attempts[0].scores) for outcome in outcomes] == [2, 2, 1]
    assert outcomes[2].record.attempts[0].usage.total_tokens == 0  # the model was never asked
    assert len(small.calls) == 2
    batch = [outcome.record for outcome in cascade.run_batch(queries)]
    assert [record.stage for record in batch] == [0, 1, 1]
    assert [record.attempts[0].scores for record in batch] == [o.record.attempts[0].scores for o in outcomes]


def test_a_recording_replays_them(router: TextRouter, scorer: LearnedScorer):
    """Scored once by `score_of`, both replays decide as the live cascade did."""
    small, large = ScriptedModel("small", logprobs=False), ScriptedModel("large")
    thresholds = {"router": 0.5, "scorer": 0.6}
    live = Cascade([Stage(small, [router, scorer], thresholds), Stage(large)])
    questions, answers, right = (part[:40] for part in made(200, seed=5))
    small._script = dict(zip(questions, answers, strict=True))
    outcomes = live.run_batch(questions)
    rows = []
    for i, question in enumerate(questions):
        request = Request((Message("user", question),))
        response = Response(small.reply(request).text)
        evidence = Evidence(request, None, None, response)
        scores = {signal.name: score_of(signal, evidence) for signal in (router, scorer)}
        assert (scores["router"].phase, scores["router"].prefill) == ("pre", False)
        rows.append(Row(question=f"{i}", model="small", answer=response.text, grade=float(right[i]), scores=scores))
        rows.append(Row(question=f"{i}", model="large", answer="large", grade=1.0))
    played = replay(Columns.of(rows), [PolicyStage("small", thresholds), PolicyStage("large")])
    recorded = PlaybackModel("small", rows)
    again = Cascade(
        [
            Stage(recorded, [recorded.signal(name) for name in thresholds], thresholds),
            Stage(PlaybackModel("large", rows)),
        ]
    ).run_batch([f"{i}" for i in range(40)])

    stages = [outcome.record.stage for outcome in outcomes]
    assert {0, 1} == set(stages)
    assert played.stage.tolist() == stages
    assert [outcome.record.stage for outcome in again] == stages


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["router", "scorer"])
def test_a_saved_signal_is_the_same(kind: str, tmp_path: Path, request: pytest.FixtureRequest):
    """Saved and loaded it predicts the same to the bit, under the same identity and card."""
    signal = request.getfixturevalue(kind)
    signal.save(tmp_path / "new" / "folder")
    loaded = type(signal).load(tmp_path / "new" / "folder")
    columns = made(50, seed=7)[: signal.columns]

    assert np.array_equal(loaded.predict(*columns), signal.predict(*columns))
    assert (loaded.identity(), loaded.card, loaded.name) == (signal.identity(), signal.card, signal.name)


def test_nothing_executable_is_written(router: TextRouter, tmp_path: Path):
    """JSON and safetensors, nothing else; and nothing of the texts."""
    router.save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["learned.json", "learned.safetensors"]
    assert json.loads((tmp_path / "learned.json").read_text())["model"] == "small"
    assert not any(b"tower" in path.read_bytes() for path in tmp_path.iterdir())


def test_scoring_needs_no_scikit_learn(router: TextRouter, tmp_path: Path):
    """Which takes a second to import; a loaded signal reads texts without it."""
    router.save(tmp_path)
    code = (
        f"import sys; from confcascade import TextRouter; router = TextRouter.load({str(tmp_path)!r}); "
        "print(router.predict(['Was it Ann with the bell?'])[0], 'sklearn' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value, *loaded = done.stdout.split()

    assert float(value) == router.predict(["Was it Ann with the bell?"])[0]
    assert loaded == ["False", "False"]


def card_file(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "learned.json").read_text()) | changes
    (folder / "learned.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "learned.json").unlink(), "learned.json is missing. TextRouter.save writes one"),
        (lambda folder: (folder / "learned.safetensors").unlink(), "is missing. TextRouter.save writes one"),
        (lambda folder: (folder / "learned.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "learned.json").write_text("[]"), "is damaged"),
        (lambda folder: (folder / "learned.safetensors").write_bytes(b"no"), "is damaged"),
        (lambda folder: card_file(folder, format=2), "another format; this version reads format 1"),
        (lambda folder: card_file(folder, aurocs=None), "is damaged"),
        (lambda folder: card_file(folder, target=None), "is damaged"),
        (lambda folder: card_file(folder, extra=1), "is damaged"),
        (lambda folder: card_file(folder, signal="LearnedScorer"), "holds a LearnedScorer, not a TextRouter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_signal_is_refused(router: TextRouter, tmp_path: Path, damage: Callable[[Path], Any], said: str):
    """A folder that does not hold a whole one of this format and class is an error that says what is wrong with it."""
    router.save(tmp_path)
    damage(tmp_path)

    with pytest.raises(ConfigurationError) as raised:
        TextRouter.load(tmp_path)

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_signal_are_refused(router: TextRouter, scorer: LearnedScorer):
    """Those of two texts are not those of one."""
    with pytest.raises(ConfigurationError, match="not those of a TextRouter"):
        TextRouter(router.card, scorer._weights)
