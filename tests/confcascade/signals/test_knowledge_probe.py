from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confcascade import ConfigurationError, KnowledgeProbe, Message, Request, SignalUnavailableError, Usage
from confcascade.extending import Evidence, Prefilled
from confcascade.signals.knowledge_probe import ProbeCard, _split, resolve_layer
from confcascade.signals.probe_fitting import PENALTIES
from confcascade.testing import ScriptedModel
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

D = 8
MODEL = ScriptedModel("m", hidden_size=D, batch_size=4)
REQUEST = Request((Message("user", "q"),))
QUICK: dict[str, Any] = {"hidden_layers": (256, 128), "max_epochs": 40, "patience": 5}


def states(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, size=(n, D)).astype(np.float32)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of which two dimensions tell, not quite surely, whether the answer is right."""
    x = states(n, seed)
    noise = np.random.default_rng(seed + 1).normal(size=n)
    return x, (x[:, 0] - 3) * 2 + (x[:, 5] - 3) + noise > 0


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small are slower with more threads."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def probe() -> KnowledgeProbe:
    return KnowledgeProbe.fit(MODEL, *planted(600, seed=0), layer=2, **QUICK)


# ---------------------------------------------------------------------- what it predicts


@pytest.fixture(scope="module")
def oracle() -> tuple[MLPClassifier, KnowledgeProbe, np.ndarray, np.ndarray]:
    """scikit-learn's own network, and a probe of the same weights."""
    x, y = planted(200, seed=3)
    mean, scale = x.mean(0), x.std(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        network = MLPClassifier((16, 8), max_iter=30, learning_rate_init=0.01, random_state=0).fit(
            (x - mean) / scale, y
        )
    weights = {"mean": mean, "scale": scale}
    for i, (w, b) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights |= {f"weight.{i}": w.astype(np.float32), f"bias.{i}": b.astype(np.float32)}
    card = ProbeCard("m", MODEL.fingerprint, 2, D, (1, 1, 1), 0.5, (0.5, 0.5), 0.25, 1, 0)
    return network, KnowledgeProbe(card, weights), mean, scale


@settings(max_examples=50, deadline=None)
@given(x=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(D)), elements=st.floats(-50, 50, width=32)))
def test_it_predicts_what_scikit_learn_does(oracle: Any, x: np.ndarray):
    """On standardised inputs, P(IK) is `MLPClassifier.predict_proba` of the same weights."""
    network, probe, mean, scale = oracle

    expected = network.predict_proba((x - mean) / scale)[:, 1]

    np.testing.assert_allclose(probe.predict(x), expected, rtol=1e-4, atol=1e-6)


def test_it_decides_as_scikit_learn_does(oracle: Any):
    """On examples of both kinds, too, the two agree to the last digits."""
    network, probe, mean, scale = oracle
    x, _ = planted(500, seed=4)

    expected = network.predict_proba((x - mean) / scale)[:, 1]

    assert expected.min() < 0.2 < 0.8 < expected.max()
    np.testing.assert_allclose(probe.predict(x), expected, rtol=1e-4, atol=1e-6)


def test_predictions_are_probabilities_without_overflow(oracle: Any):
    """Absurd inputs give 0 or 1, in silence."""
    probe = oracle[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = probe.predict(np.array([[1e6] * D, [-1e6] * D, [0.0] * D]))

    assert p.shape == (3,)
    assert np.all((p >= 0) & (p <= 1))


@pytest.mark.parametrize("shape", [(D,), (3, D + 1), (2, 3, D)], ids=str)
def test_other_shapes_are_refused(probe: KnowledgeProbe, shape: tuple[int, ...]):
    """Hidden states of another shape are an error that names both."""
    with pytest.raises(ConfigurationError, match=rf"`hidden` must have shape \(n, {D}\)"):
        probe.predict(np.zeros(shape))


# ---------------------------------------------------------------------- what it learns


def test_it_finds_what_is_there(probe: KnowledgeProbe):
    """On a planted signal, fresh examples are told apart with an AUROC above 0.9, as the card promises."""
    x, y = planted(2_000, seed=100)
    auroc = roc_auc_score(y, probe.predict(x))

    assert auroc > 0.9
    assert min(probe.card.auroc) > 0.85
    assert probe.card.brier < 0.15


def test_it_finds_nothing_where_nothing_is():
    """On noise, fresh examples are not told apart: a probe that saw something there would have leaked.

    The standard error of the AUROC of a useless score is 0.013 here; four of them are allowed.
    """
    right = np.random.default_rng(7).random(600) < 0.5
    probe = KnowledgeProbe.fit(MODEL, states(600, seed=0), right, layer=2, **QUICK)

    fresh = roc_auc_score(np.random.default_rng(8).random(2_000) < 0.5, probe.predict(states(2_000, seed=9)))

    assert abs(fresh - 0.5) < 0.052


def test_the_card_tells_how_it_was_made(probe: KnowledgeProbe):
    """What a probe is for, and how well it does, goes with it."""
    _, y = planted(600, seed=0)
    card = probe.card

    assert (card.model, card.fingerprint, card.layer, card.hidden_size) == ("m", "scripted-m", 2, D)
    assert card.examples == (480, 60, 60)
    assert card.base_rate == pytest.approx(y.mean())
    assert 1 <= card.epochs <= QUICK["max_epochs"]
    assert repr(probe) == f"KnowledgeProbe(model='m', layer=2, test AUROC={card.auroc[1]:.3f})"


def test_the_same_seed_makes_the_same_probe():
    """A probe can be made again, to the bit; another seed makes another."""
    x, y = planted(120, seed=0)
    few: dict[str, Any] = {"hidden_layers": (4,), "max_epochs": 3}
    one, same, other = (KnowledgeProbe.fit(MODEL, x, y, seed=seed, **few) for seed in (1, 1, 2))

    assert one.identity() == same.identity()
    assert one.card == same.card
    assert one.identity() != other.identity()


def test_fitting_is_quiet_and_changes_nothing():
    """No warning reaches the user, and the caller's arrays stay as they were."""
    x, y = planted(150, seed=0)
    before = x.copy(), y.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KnowledgeProbe.fit(MODEL, x, list(map(int, y)), hidden_layers=(4,), max_epochs=2)

    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


def test_the_best_epoch_is_kept(monkeypatch):
    """Training ends `patience` epochs after the least validation loss, and the weights are those of the least."""
    steps = []
    partial_fit = MLPClassifier.partial_fit

    def counted(self: MLPClassifier, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return partial_fit(self, *args, **kwargs)

    monkeypatch.setattr(MLPClassifier, "partial_fit", counted)
    x, y = states(120, seed=2), np.random.default_rng(2).random(120) < 0.5
    stopped = KnowledgeProbe.fit(MODEL, x, y, hidden_layers=(64, 64), max_epochs=80, patience=3)
    assert stopped.card.epochs + 3 < 80
    assert len(steps) == 2 * (stopped.card.epochs + 3)  # 96 rows are two batches

    again = KnowledgeProbe.fit(MODEL, x, y, hidden_layers=(64, 64), max_epochs=stopped.card.epochs)
    assert again.identity() == stopped.identity()


def test_without_hidden_layers_it_is_a_logistic_regression():
    """A linear probe is scikit-learn's regression of the penalty with the least validation loss."""
    x, y = planted(600, seed=0)
    probe = KnowledgeProbe.fit(MODEL, x, y, layer=2, hidden_layers=())
    train, validation, _ = _split(600, None, 0)
    mean, scale = x[train].mean(0), x[train].std(0) + 1e-6
    fitted = [LogisticRegression(C=C, max_iter=1000).fit((x[train] - mean) / scale, y[train]) for C in PENALTIES]
    told = [each.predict_proba((x - mean) / scale)[:, 1] for each in fitted]
    best = min(told, key=lambda p: log_loss(y[validation], p[validation]))

    assert probe.kind == "linear"
    np.testing.assert_allclose(probe.predict(x), best, atol=1e-4)
    assert probe.card.auroc[1] > 0.85


@pytest.mark.parametrize("hidden_layers", [(), (32,)], ids=["linear", "mlp"])
def test_a_balanced_probe_still_predicts_probabilities(hidden_layers: tuple[int, ...]):
    """Of a model that is right once in eight times, the mean P(IK) stays near that share, balanced or not."""
    x = states(1_600, seed=0)
    y = (x[:, 0] - 3) + np.random.default_rng(1).normal(size=1_600) > 2.6
    assert 0.08 < y.mean() < 0.2
    options: dict[str, Any] = {"layer": 2, "hidden_layers": hidden_layers, "max_epochs": 60, "patience": 5}
    plain, balanced = (KnowledgeProbe.fit(MODEL, x, y, balanced=balanced, **options) for balanced in (False, True))

    assert (plain.card.balanced, balanced.card.balanced) == (False, True)
    assert plain.identity() != balanced.identity()
    for probe in (plain, balanced):
        assert probe.predict(x).mean() == pytest.approx(y.mean(), abs=0.06)
        assert probe.card.auroc[1] > 0.75


# ---------------------------------------------------------------------- how it splits


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.integers(0, 60).map(str), min_size=31, max_size=300), seed=st.integers(0, 9))
def test_parts_never_share_a_group(groups: list[str], seed: int):
    """Every row is in one part, every group wholly in one part, and no part is empty."""
    if len(set(groups)) < 30:
        with pytest.raises(ConfigurationError, match="at least 30"):
            _split(len(groups), groups, seed)
        return
    parts = _split(len(groups), groups, seed)

    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    named = [{groups[row] for row in part} for part in parts]
    assert all(named)
    assert not named[0] & named[1]
    assert not named[0] & named[2]
    assert not named[1] & named[2]


def test_groups_do_not_leak():
    """Four copies of each of a hundred facts, right by coin toss, are learnt by heart if facts may cross into the test.

    Kept together they cannot be, and the card is honest about it.
    """
    facts = np.repeat(np.arange(100), 4)
    x, y = states(100, seed=2)[facts], (np.random.default_rng(2).random(100) < 0.5)[facts]
    settings: dict[str, Any] = {"hidden_layers": (256, 128), "max_epochs": 60, "patience": 60}

    apart = KnowledgeProbe.fit(MODEL, x, y, groups=[f"fact {fact}" for fact in facts], **settings)
    mixed = KnowledgeProbe.fit(MODEL, x, y, **settings)

    assert mixed.card.auroc[1] > 0.85
    assert apart.card.auroc[1] < 0.75


def test_depth_is_relative_or_absolute():
    """A float is a share of the model's depth, an int a block counted from 1."""
    assert [resolve_layer(layer, 32) for layer in (0.75, 24, 1.0, 0.001, 1, 32)] == [24, 24, 32, 1, 1, 32]
    for wrong in (0, 33, -1, 0.0, 1.01, -0.5):
        with pytest.raises(ConfigurationError, match=f"Got {wrong}"):
            resolve_layer(wrong, 32)


# ---------------------------------------------------------------------- what it refuses


def refused(x: Any, y: Any, **options: Any) -> Callable[[], Any]:
    return lambda: KnowledgeProbe.fit(options.pop("model", MODEL), x, y, **options)


def with_nan(x: np.ndarray) -> np.ndarray:
    x[3, 2] = math.nan
    return x


class Nameless(ScriptedModel):
    fingerprint = None  # type: ignore[assignment]


HALF = [i % 2 == 0 for i in range(100)]


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (refused(states(20, 0), HALF[:20]), "at least 30 examples"),
        (refused(states(0, 0), []), "at least 30 examples"),
        (refused(states(100, 0), HALF, groups=["one"] * 100), "at least 30 examples (of different groups). Got 1"),
        (refused(states(100, 0), HALF, groups=["one"] * 99), "one group for each of the 100 rows. Got 99"),
        (refused(states(100, 0), [True] * 100), "right and wrong answers in every part"),
        (refused(states(100, 0), [False] * 99 + [True]), "right and wrong answers in every part"),
        (refused(with_nan(states(100, 0)), HALF), "not finite"),
        (refused(states(100, 0), [0.3] * 100), "only True and False"),
        (refused(states(100, 0), [math.nan] * 100), "only True and False"),
        (refused(states(100, 0), ["yes"] * 100), "only True and False"),
        (refused(states(100, 0), HALF[:99]), "Got (100, 8) and (99,)"),
        (refused(states(100, 0), np.array(HALF)[:, None]), "Got (100, 8) and (100, 1)"),
        (refused(states(100, 0)[0], HALF), "Got (8,) and (100,)"),
        (refused(states(100, 0)[:, :5], HALF), "has hidden states of 8 dimensions. Got 5"),
        (refused(states(100, 0), HALF, layer=5), "the model's 4 blocks. Got 5"),
        (refused(states(100, 0), HALF, layer=1.5), "(0, 1]. Got 1.5"),
        (refused(states(100, 0), HALF, max_epochs=0), "`max_epochs` must be at least 1"),
        (refused(states(100, 0), HALF, model=ScriptedModel("api")), "has hidden states of 0 dimensions. Got 8"),
        (refused(states(100, 0), HALF, model=Nameless("anon", hidden_size=D)), "'anon' has no `fingerprint`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_learnt_from_is_refused(fit: Callable[[], Any], said: str):
    """Too little, one class only, values that are none, shapes that do not fit: each is named before training."""
    with pytest.raises(ConfigurationError) as raised:
        fit()

    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ScriptedModel("m"), "'m' does not give any"),
        (
            ScriptedModel("other", hidden_size=D),
            "the stage's model is 'other' (fingerprint scripted-other, 8 dimensions)",
        ),
        (ScriptedModel("m", hidden_size=D + 1), "9 dimensions"),
        (Nameless("m", hidden_size=D), "fingerprint None"),
    ],
    ids=["no hidden states", "fingerprint", "dimension", "no fingerprint"],
)
def test_it_is_refused_on_another_model(probe: KnowledgeProbe, model: ScriptedModel, said: str):
    """A probe serves the model that it was trained for, and no other."""
    with pytest.raises(ConfigurationError) as raised:
        probe.check(model)

    assert said in str(raised.value)
    probe.check(MODEL)


# ---------------------------------------------------------------------- on disk


def test_a_saved_probe_is_the_same(probe: KnowledgeProbe, tmp_path: Path):
    """Saved and loaded, a probe predicts the same to the bit, under the same identity and card."""
    probe.save(tmp_path / "new" / "folder")
    loaded = KnowledgeProbe.load(tmp_path / "new" / "folder")
    x = states(200, seed=5)

    assert np.array_equal(loaded.predict(x), probe.predict(x))
    assert loaded.identity() == probe.identity()
    assert loaded.card == probe.card


def test_nothing_executable_is_written(probe: KnowledgeProbe, tmp_path: Path):
    """A probe on disk is JSON and safetensors, nothing else; the JSON can be read by anybody."""
    probe.save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe.json", "probe.safetensors"]
    assert json.loads((tmp_path / "probe.json").read_text())["model"] == "m"


def card_file(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "probe.json").read_text()) | changes
    (folder / "probe.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "probe.json").unlink(), "probe.json is missing. KnowledgeProbe.save writes one"),
        (lambda folder: (folder / "probe.safetensors").unlink(), "is missing. KnowledgeProbe.save writes one"),
        (lambda folder: (folder / "probe.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "probe.json").write_text("[]"), "is damaged"),
        (lambda folder: (folder / "probe.safetensors").write_bytes(b"no"), "is damaged"),
        (lambda folder: card_file(folder, format=2), "another format; this version reads format 1"),
        (lambda folder: card_file(folder, auroc=None), "is damaged"),
        (lambda folder: card_file(folder, layer=None), "is damaged"),
        (lambda folder: card_file(folder, extra=1), "is damaged"),
        (lambda folder: card_file(folder, hidden_size=9), "not a probe of 9 dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_probe_is_refused(probe: KnowledgeProbe, tmp_path: Path, damage: Callable[[Path], Any], said: str):
    """A folder that does not hold a whole probe of this format is an error that says what is wrong with it."""
    probe.save(tmp_path)
    damage(tmp_path)

    with pytest.raises(ConfigurationError) as raised:
        KnowledgeProbe.load(tmp_path)

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_probe_is_refused(tmp_path: Path):
    """So is one that does not exist."""
    with pytest.raises(ConfigurationError, match="holds no probe"):
        KnowledgeProbe.load(tmp_path / "nowhere")


# ---------------------------------------------------------------------- as a signal


def test_it_scores_the_state_of_its_layer(probe: KnowledgeProbe):
    """Of a stage's prefill, the score is the prediction for the layer that the probe was trained on."""
    state, other = states(2, seed=6)
    evidence = Evidence(REQUEST, Prefilled(Usage(3), {1: other, 2: state}))

    assert probe.layers(MODEL) == (2,)
    assert probe.score(evidence).value == pytest.approx(float(probe.predict(state[None])[0]))
    assert (probe.phase, probe.logprobs, probe.name) == ("pre", False, "p_ik")


@pytest.mark.parametrize(
    ("prefilled", "said"),
    [
        (None, "layer 2 was not given"),
        (Prefilled(Usage(3), {1: np.zeros(D)}), "layer 2 was not given"),
        (Prefilled(Usage(3), {2: np.full(D, np.nan)}), "layer 2 is not finite"),
    ],
    ids=["no prefill", "another layer", "nan"],
)
def test_without_its_state_there_is_no_score(probe: KnowledgeProbe, prefilled: Any, said: str):
    """No value is invented for a hidden state that is missing or broken."""
    with pytest.raises(SignalUnavailableError, match=said):
        probe.score(Evidence(REQUEST, prefilled))


def test_its_identity_is_its_weights(probe: KnowledgeProbe):
    """Another layer or another number in a weight is another probe; what the card says besides is not."""
    weights = dict(probe._weights)
    moved = weights | {"bias.0": weights["bias.0"] + np.float32(1e-6)}

    assert KnowledgeProbe(replace(probe.card, seed=9), weights).identity() == probe.identity()
    assert KnowledgeProbe(probe.card, moved).identity() != probe.identity()
    assert KnowledgeProbe(replace(probe.card, layer=3), weights).identity() != probe.identity()
    assert json.loads(json.dumps(probe.identity())) == probe.identity()
