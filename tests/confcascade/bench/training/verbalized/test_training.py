"""The whole way on the small bundled model: it learns to state its confidence, and a killed run is gone on with."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from confcascade import ConfigurationError

pytest.importorskip("trl")
pytest.importorskip("peft")
from confcascade.bench.training.verbalized import Reinforced, Sampling, Supervised, train_verbalized
from confcascade.bench.training.verbalized.following import read_log
from confcascade.models.bundled import bundled_folder, bundled_model
from confcascade.models.local import TransformersModel

SETTINGS = {
    "sampling": Sampling(group=4, rows=64),
    "reinforced": Reinforced(steps=6, questions=16, rate=1e-3),
    "supervised": Supervised(epochs=3, answers=4, rate=1e-2, texts=16),
    "every": 2,
}


@pytest.fixture(scope="module")
def folder(questions, tmp_path_factory):
    """Of a whole run, all weights trained."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_verbalized(bundled_model("small"), questions, folder, rank=0, **SETTINGS)


def test_it_learns_to_state_a_confidence(folder):
    _, trained = folder
    before, taught, after = (each["test"].stated for each in (trained.before, trained.taught, trained.after))
    assert before.scored == 0  # the bundled models know nothing of confidences
    assert taught.scored > 0.6 * taught.n
    assert after.scored > 0.6 * after.n


def test_every_step_is_logged(folder):
    _, trained = folder
    log = read_log(trained.log)
    steps = {told["step"]: told for told in log if "reward" in told}
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    for told in steps.values():
        parts = [told[f"rewards/{name}/mean"] for name in ("correct", "format", "brier")]
        assert told["reward"] == pytest.approx(sum(parts), abs=1e-5)
        assert 0 <= told["stated/read"] <= 1
    assert [told["step"] for told in log if "validation" in told] == [2, 4, 6]


def test_what_earned_most_is_kept(folder, questions):
    """The weights in the folder answer the validation questions as the best step's did."""
    path, trained = folder
    checks = {told["step"]: told["validation"] for told in read_log(trained.log) if "validation" in told}
    best = max(checks, key=lambda step: checks[step]["earned"])
    kept = TransformersModel.from_pretrained(path / "model", name="kept", max_new_tokens=40)
    rows = [json.loads(line) for line in (path / "validation" / f"step-{best:06d}.jsonl").read_text().splitlines()]
    for example, row in zip(questions.validation[:5], rows, strict=False):
        row = next(each for each in rows if each["question"] == example.id)
        answer = kept.generate([_ask(kept, questions, example)])[0]
        assert questions.signal.reads(questions.request(example), answer).text == row["answer"]


def _ask(model, questions, example):
    from confcascade.asks import Generate

    return Generate(model, questions.asked(example))


@pytest.mark.parametrize("when", [pytest.param("teaching the form", marks=pytest.mark.slow), "reinforcing"])
def test_a_stopped_training_goes_on_to_the_same_losses(folder, questions, tmp_path, when):
    whole, trained = folder
    stop = threading.Event()

    def halfway(what, done, of):
        if what == when and done == of // 2:
            stop.set()

    settings = SETTINGS | {"rank": 0}
    assert (
        train_verbalized(bundled_model("small"), questions, tmp_path, progress=halfway, stop=stop, **settings) is None
    )
    # as a kill would leave it: lines behind the checkpoint, and one cut
    log = tmp_path / ("taught/log.jsonl" if when == "teaching the form" else "log.jsonl")
    log.write_text(log.read_text() + '{"step": 1000, "loss": 1.0}\n{"step": 10')
    again = train_verbalized(bundled_model("small"), questions, tmp_path, **settings)
    for name in ("taught/log.jsonl", "log.jsonl"):
        expected, found = (
            {t["step"]: t["loss"] for t in read_log(path / name) if "loss" in t} for path in (whole, tmp_path)
        )
        assert list(found) == list(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-6)
    assert again.after["test"].stated == trained.after["test"].stated


@pytest.mark.slow
def test_an_adapter_answers_as_the_model_that_was_trained(questions, tmp_path):
    """Saved, and loaded onto the base by its name: the same texts."""
    settings = SETTINGS | {"reinforced": Reinforced(steps=2, questions=16, rate=1e-3, beta=0.1)}
    base = str(bundled_folder("small"))
    trained = train_verbalized(bundled_model("small"), questions, tmp_path, rank=8, base=base, **settings)
    loaded = TransformersModel.from_pretrained(tmp_path / "model", max_new_tokens=40)
    asks = [_ask(model, questions, example) for model in (trained.model, loaded) for example in questions.test]
    count = len(questions.test)
    mine, others = (model.generate(part) for model, part in ((trained.model, asks[:count]), (loaded, asks[count:])))
    assert [answer.text for answer in mine] == [answer.text for answer in others]
    plain = bundled_model("small").generate([replace(ask, model=loaded) for ask in asks[:count]])
    assert [answer.text for answer in mine] != [answer.text for answer in plain]


def test_supervised_ends_there(folder, questions, tmp_path):
    shutil.copy(folder[0] / "rollouts.jsonl", tmp_path)
    trained = train_verbalized(bundled_model("small"), questions, tmp_path, method="supervised", rank=0, **SETTINGS)
    assert trained.taught == {}
    assert trained.log == tmp_path / "taught" / "log.jsonl"
    assert trained.after["test"].stated.scored > 0
    assert not (tmp_path / "best").exists()


def test_questions_that_are_all_right_teach_nothing(questions, tmp_path):
    anything = replace(questions, grader=_Always())
    with pytest.raises(ConfigurationError, match="All sampled answers of 'small' are right"):
        train_verbalized(bundled_model("small"), anything, tmp_path, rank=0, **SETTINGS)


def _Always():  # noqa: N802 - stands for a class
    from confcascade.graders import NormalizedMatch

    class Always(NormalizedMatch):
        def grade(self, example, answer):
            return replace(super().grade(example, answer), value=1.0)

    return Always()


def test_a_model_with_an_adapter_is_not_given_another(questions, small):
    import peft
    from confcascade.bench.training.verbalized.weights import Weights

    peft.get_peft_model(small.model, peft.LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ConfigurationError, match="has an adapter already"):
        Weights(small)
