"""Which probe is chosen, what it is judged on, and what is said about it."""

import hashlib
import json
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
from confcascade import ConfigurationError, KnowledgeProbe, ModelError
from confcascade.bench.metrics.health import signal_health
from confcascade.bench.metrics.ranking import auroc, auroc_interval
from confcascade.bench.questions import side
from confcascade.bench.training import StateCache, labelled, train_probe
from confcascade.bench.training.folder import write_probe
from confcascade.bench.training.probes import SHARES, Candidate, _chosen, layers_of
from confcascade.bench.training.states import key_of
from confcascade.bench.training.verdict import can_route, verdict
from confcascade.graders.example import Example
from confcascade.testing import ScriptedModel


@pytest.fixture(scope="module")
def trained_and_more(knowing, tmp_path_factory):
    model = knowing()
    material = labelled(model.rows(1_500), model)
    cache = StateCache(tmp_path_factory.mktemp("states"), model, (1, 2, 3, 4))
    return train_probe(model, material, cache, kinds=("linear",)), model, material, cache


def test_the_block_that_knows_is_chosen(trained_and_more):
    """Of four blocks, of which one tells, that one; it does on fresh questions what its figures promise."""
    trained, model, _, _ = trained_and_more
    assert trained.probe.card.layer == trained.chosen.layer == 2
    assert {each.layer: each.auroc > 0.8 for each in trained.candidates} == {1: False, 2: True, 3: False, 4: False}
    texts = [f"fresh {i}" for i in range(2_000)]
    states = np.stack([model.noise(text, 2) for text in texts])
    right = np.array([model.right(text) for text in texts])
    states[:, 3] += 2 * right - 1
    fresh = auroc(right, trained.probe.predict(states))
    standard_error = (trained.test.high - trained.test.low) / (2 * 1.96)
    assert abs(fresh - trained.test.auroc) < 4 * standard_error
    assert trained.test.n == trained.probe.card.examples[2]
    assert trained.test.auroc == pytest.approx(trained.probe.card.auroc[1])


def test_parts_are_told_by_a_hash_of_the_question(trained_and_more):
    """So that they can be found again: the test figures are those of the questions on that side."""
    trained, _, material, cache = trained_and_more
    test = [each for each in material.asked if side(Example(each.kept_with), SHARES) == "test"]
    p = trained.probe.predict(cache.read([key_of(each.request) for each in test], 2))
    assert auroc([each.right for each in test], p) == pytest.approx(trained.test.auroc)
    assert sum(trained.probe.card.examples) == 1_500
    assert len(test) == trained.probe.card.examples[2]


def test_the_test_part_has_no_hand_in_it(trained_and_more):
    """With every label of the test part turned round, the same probe is chosen, and judged the worse for it."""
    trained, model, material, cache = trained_and_more
    turned = [
        replace(each, right=each.right != (side(Example(each.kept_with), SHARES) == "test")) for each in material.asked
    ]
    other = train_probe(model, replace(material, asked=tuple(turned)), cache, kinds=("linear",))
    assert other.probe.identity() == trained.probe.identity()
    assert (other.chosen, other.curve) == (trained.chosen, trained.curve)
    assert other.test.auroc == pytest.approx(1 - trained.test.auroc)
    assert not can_route(other)


def test_the_best_is_chosen_and_of_equals_the_plainest():
    """The greatest validation AUROC, whatever comes first; then the linear one, then the earlier block."""

    def chosen(*told):
        return _chosen([(Candidate(kind, layer, area, 1), {"layer": layer}) for kind, layer, area in told])[0]

    assert chosen(("linear", 1, 0.7), ("mlp", 2, 0.8), ("linear", 3, 0.79)).layer == 2
    assert chosen(("mlp", 1, 0.8), ("linear", 2, 0.8), ("linear", 3, 0.8), ("mlp", 3, 0.7)).layer == 2
    assert chosen(("linear", 3, 0.5), ("linear", 2, 0.5)).layer == 2


def test_of_noise_nothing_is_claimed(model, tmp_path):
    """Right by coin toss: the probe says of itself that it cannot route.

    The lower end of a 95 % interval lies above 0.5 of a useless score in one of forty splits; this is not one.
    """
    material = labelled(model.rows(1_000), model)
    trained = train_probe(model, material, StateCache(tmp_path, model, (1, 3)), kinds=("linear",))
    assert not can_route(trained)
    assert verdict(trained)[0].startswith("This probe cannot route: test AUROC 0.")


def test_the_learning_curve_ends_with_all(trained_and_more):
    """Nested parts of the training rows, the last of them all: what the chosen candidate reached."""
    trained, *_ = trained_and_more
    sizes = [point.examples for point in trained.curve]
    assert sizes == sorted(sizes)
    assert sizes[-1] == trained.probe.card.examples[0]
    assert trained.curve[-1].auroc == pytest.approx(trained.chosen.auroc)
    assert all(point.low < point.auroc < point.high for point in trained.curve)


def test_what_is_kept_and_passed_on_adds_up(trained_and_more):
    """Of every share, right answers among the kept and wrong ones among the others make the base rate."""
    test = trained_and_more[0].test
    for share, accuracy, wrong in test.kept:
        k = max(1, round(share * test.n))
        others = 0 if wrong is None else (test.n - k) * (1 - wrong)
        assert k * accuracy + others == pytest.approx(test.n * test.base_rate)


def test_the_verdict_is_plain(trained_and_more):
    trained, *_ = trained_and_more
    first, saves, *_ = verdict(trained)
    assert first == (
        f"This probe can route: test AUROC {trained.test.auroc:.3f}, at least {trained.test.low:.3f} "
        f"({trained.test.n} questions, 95 % interval)."
    )
    assert saves.startswith(f"Where it saves: 'm' answers {trained.test.base_rate:.1%} of all questions right")


def test_groups_are_not_torn(model, tmp_path):
    """Wordings of a fact that share a group lie on one side, and widen the interval."""
    rows = [row.model_copy(update={"group": f"fact {i // 5}"}) for i, row in enumerate(model.rows(1_000))]
    material = labelled(rows, model, by_group=True)
    trained = train_probe(model, material, StateCache(tmp_path, model, (2,)), kinds=("linear",))
    assert trained.split_by == "group"
    assert all(size % 5 == 0 for size in trained.probe.card.examples)


def test_balance_goes_on_the_card(model, tmp_path):
    material = labelled(model.rows(400), model)
    cache = StateCache(tmp_path, model, (2,))
    plain, balanced = (train_probe(model, material, cache, kinds=("linear",), balanced=b) for b in (False, True))
    assert (plain.probe.card.balanced, balanced.probe.card.balanced) == (False, True)


def test_it_can_be_stopped_and_gone_on_with(model, tmp_path):
    stop = threading.Event()
    material = labelled(model.rows(400), model)

    def progress(what, done, of):
        if what == "training" and done == 1:
            stop.set()

    cache = StateCache(tmp_path, model, (1, 2))
    assert train_probe(model, material, cache, kinds=("linear",), progress=progress, stop=stop) is None
    read = model.passes
    assert train_probe(model, material, cache, kinds=("linear",)).chosen.layer == 2
    assert model.passes == read


def test_progress_reaches_its_end(model, tmp_path):
    told = []
    material = labelled(model.rows(400), model)
    cache = StateCache(tmp_path, model, (1, 2))
    train_probe(model, material, cache, kinds=("linear",), progress=lambda *each: told.append(each))
    for what in ("reading prompts", "training"):
        steps = [(done, of) for name, done, of in told if name == what]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_prompts_that_were_not_read_are_counted(knowing, tmp_path):
    """And if none was, it is said why."""

    class Short(knowing):
        least = 395

        def prefill(self, asks):
            texts = [ask.request.messages[-1].content for ask in asks]
            return [
                ModelError("The prompt is too long.") if int(text[9:-1]) >= self.least else each
                for text, each in zip(texts, super().prefill(asks), strict=True)
            ]

    model = Short()
    material = labelled(model.rows(400), model)
    trained = train_probe(model, material, StateCache(tmp_path / "a", model, (2,)), kinds=("linear",))
    assert trained.left_out == {"the prompt was not read (ModelError: The prompt is too long)": 5}
    assert sum(trained.probe.card.examples) == 395
    model.least = 0
    with pytest.raises(ConfigurationError, match="could not read any of the 400 prompts: ModelError"):
        train_probe(model, material, StateCache(tmp_path / "b", model, (2,)), kinds=("linear",))


def test_what_is_too_little_is_refused(model, tmp_path):
    def train(rows):
        return train_probe(model, labelled(rows, model), StateCache(tmp_path, model, (2,)), kinds=("linear",))

    with pytest.raises(ConfigurationError, match="at least 30 different questions with a grade"):
        train(model.rows(29))
    same = [row.model_copy(update={"prompt": "Why?"}) for row in model.rows(100)]
    with pytest.raises(ConfigurationError, match="Got 1"):
        train(same)
    with pytest.raises(ConfigurationError, match="right and wrong answers in every part"):
        train([row.model_copy(update={"grade": 1.0}) for row in model.rows(300)])
    with pytest.raises(ConfigurationError, match="does not give any"):
        layers_of(ScriptedModel("api"), [0.5])


def test_the_folder_tells_all(trained_and_more, tmp_path):
    """The probe as `KnowledgeProbe.load` reads it, every candidate, the curve, the split and the data's hash."""
    pytest.importorskip("matplotlib")
    trained, model, material, _ = trained_and_more
    source = tmp_path / "rec.jsonl"
    source.write_text("rows")
    write_probe(trained, tmp_path / "out", source=source, material=material, command=["confcascade", "train-probe"])
    loaded = KnowledgeProbe.load(tmp_path / "out")
    assert loaded.identity() == trained.probe.identity()
    loaded.check(model)
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert len(told["candidates"]) == 4
    assert told["chosen"] == asdict(trained.chosen)
    assert told["split"] == {"by": "prompt", "seed": 0, "shares": SHARES}
    assert told["data"]["sha256"] == hashlib.sha256(b"rows").hexdigest()
    assert told["verdict"] == verdict(trained)
    assert told["versions"]["scikit-learn"]
    for name in ("reliability", "learning_curve", "auroc_by_depth"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_probe_routes_where_fit_would_route_by_it(trained_and_more):
    """One bound decides in `train-probe`, `fit` and every report: an AUROC that is surely above 0.5 may be too low."""
    trained, *_ = trained_and_more
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    weak = 0.28 * right + rng.normal(size=400)
    health = signal_health(weak, right)
    interval = auroc_interval(right, weak)
    assert interval is not None
    assert interval[0] > 0.5  # by this alone, it would be said to route
    assert not health.can_route
    low, high = interval
    test = replace(trained.test, auroc=health.auroc, low=low, high=high, health=health)
    told = replace(trained, test=test)
    assert not can_route(told)
    assert "`fit` would leave it out: AUROC 0." in verdict(told)[0]
