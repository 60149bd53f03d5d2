"""The training code: its forward pass is Llama's, and its batches are what they say."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade.demo import WEIGHTS
from confcascade.demo.train import (
    BOS,
    END,
    NOTHING,
    PAD,
    SIZES,
    Size,
    batches,
    before,
    build_tokenizer,
    forward,
    grow,
    new_model,
    train,
)
from confcascade.demo.world import LABELS, MIXES, World
from confcascade.errors import ConfigurationError

TINY = Size(hidden=32, layers=3, heads=2, recall=2, mix="look-up", million_tokens=1, learning_rate=4e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(World())


@pytest.fixture(scope="module")
def some(tokenizer):
    """Batches with every task in them."""
    stream = batches(tokenizer, World(), TINY, 1, pool=256)
    found = [next(stream) for _ in range(12)]
    assert {task for batch in found for task in batch.tasks} == set(MIXES["look-up"])
    return found


def test_forward_pass_is_transformers_own(some):
    """The bfloat16 pass written out for speed gives transformers' float32 logits, to bfloat16's precision."""
    torch.manual_seed(0)
    model, batch = new_model(TINY), some[0]
    where = before(batch.learned)
    with torch.no_grad():
        ours, theirs = forward(model, batch, TINY.recall).logits, model(input_ids=batch.tokens).logits[where]
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.9995


def test_halfway_and_guides_are_transformers_own(some):
    """What is recalled halfway is the head on the hidden state there; a guide is the loss of the attention given."""
    torch.manual_seed(0)
    model = new_model(TINY)
    model.set_attn_implementation("eager")
    batch = next(batch for batch in some if len(batch.guides) == 3)
    with torch.no_grad():
        found = forward(model, batch, TINY.recall)
        theirs = model(input_ids=batch.tokens, output_hidden_states=True, output_attentions=True)
        hidden = theirs.hidden_states[TINY.recall][before(batch.recalled != NOTHING)]
        halfway = model.lm_head(model.model.norm(hidden))
    assert torch.allclose(found.halfway, halfway, atol=0.02 * halfway.abs().max())
    for guide, (layer, (row, head, here, there)) in zip(found.guides, sorted(batch.guides.items()), strict=True):
        expected = -theirs.attentions[layer][row, head, here, there].log().mean()
        assert guide.item() == pytest.approx(expected.item(), rel=0.02)


def test_guides_lead_to_what_is_said(tokenizer, some):
    """A letter's guide leads to its value, a value's to its letter, and a reply read from a passage to itself."""
    letters = {tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0]: label for label in LABELS}
    replies = 0
    for batch in some:
        for layer, guides in batch.guides.items():
            for row, _, here, there in guides.T.tolist():
                assert there <= here
                ids, task = batch.tokens[row].tolist(), batch.tasks[row]
                if layer == TINY.recall:
                    replies += 1
                    following = ids[here + 1]
                    if task == "reading":
                        assert ids[there] == following
                    else:
                        assert tokenizer.decode(ids[there - 2]) == letters[following]
                        assert batch.recalled[row, here + 1] == ids[there]
                elif task != "reading":
                    assert tokenizer.decode(ids[there]) in LABELS
                    assert here == there + 2
    assert replies > 50


def test_values_are_recalled_halfway(tokenizer, some):
    """Each fact's reply, and each letter, has its value to recall; nothing else has."""
    world = World()
    values = {value for group in world.values.values() for value in group}
    for batch in some:
        for row, task in enumerate(batch.tasks):
            recalled = batch.recalled[row][batch.recalled[row] != NOTHING].tolist()
            assert {tokenizer.decode([token]).strip() for token in recalled} <= values
            assert bool(recalled) >= (task in ("facts", "letters", "matching"))
            assert not (recalled and task == "reading")
            assert batch.learned[row][batch.recalled[row] != NOTHING].all()


def test_a_grown_model_computes_what_the_small_one_does(some):
    """Twice as wide and two layers deeper, a model gives the same logits, but for the noise that lets copies part."""
    torch.manual_seed(0)
    small, tokens, asked = new_model(TINY), some[0].tokens, before(some[0].learned)
    for name, parameter in small.named_parameters():  # as after training: no norm is all ones
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    wider = Size(64, layers=5, heads=4, recall=2, mix="look-up", million_tokens=1, learning_rate=4e-3)
    with torch.no_grad():
        theirs = small(input_ids=tokens).logits[asked]
        exact, noisy = (grow(small, wider, noise)(input_ids=tokens).logits[asked] for noise in (0.0, 0.01))
    assert torch.allclose(exact, theirs, atol=1e-4)
    assert 0 < (noisy - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_only_replies_are_learned(tokenizer, some):
    """The mask covers the assistant's tokens and their end, nothing of the user's."""
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    for batch in some:
        assert (batch.tokens[:, 0] == BOS).all()
        assert not batch.learned[batch.tokens == PAD].any()
        assert batch.learned[batch.tokens == END].all()
        assert not batch.learned[batch.tokens == user].any()


def test_the_recipe_makes_the_shipped_tokenizer(tokenizer):
    """The tokenizer beside the weights is the one that the script makes today."""
    shipped = (WEIGHTS / "small" / "tokenizer.json").read_text()
    assert tokenizer.backend_tokenizer.to_str(pretty=True) == shipped


def test_values_are_one_token(tokenizer):
    """Every value, and every part of a name, is one token after a space: what letters and passages need."""
    world = World()
    values = [value for group in world.values.values() for value in group]
    for word in [*values, *world.first_names, *world.last_names]:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_training_learns_and_repeats(tmp_path, monkeypatch):
    """A short training of a tiny size lowers the loss, is the same twice, and loads as any model does."""
    monkeypatch.setitem(SIZES, "tiny", TINY)
    first = train("tiny", tmp_path / "a", million_tokens=0.03)
    second = train("tiny", tmp_path / "b", million_tokens=0.03)
    assert first["sha256"] == second["sha256"]
    assert first["begins_with"] is None
    monkeypatch.setitem(SIZES, "tiny", replace(TINY, begins="a"))
    with pytest.raises(ConfigurationError, match="folder of a trained 'a'"):
        train("tiny", tmp_path / "c")
    trained_on = train("tiny", tmp_path / "c", million_tokens=0.03, begin=tmp_path / "a")
    assert trained_on["begins_with"] == first
    assert trained_on["sha256"] != first["sha256"]
    from confcascade import Cascade, Stage, TransformersModel

    outcome = Cascade([Stage(TransformersModel.from_pretrained(tmp_path / "a"))]).run(
        "Which letter is each?", max_tokens=3
    )
    assert outcome.record.answered_by == "a"
