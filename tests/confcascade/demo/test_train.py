"""The training code: its forward pass is Llama's, and its batches are what they say."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade.demo import WEIGHTS
from confcascade.demo.train import BOS, END, PAD, SIZES, Size, answer_logits, batches, build_tokenizer, new_model, train
from confcascade.demo.world import World


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(World())


def test_forward_pass_is_transformers_own(tokenizer):
    """The bfloat16 pass written out for speed gives transformers' float32 logits, to bfloat16's precision."""
    torch.manual_seed(0)
    model = new_model(Size(hidden=32, layers=3, heads=2, million_tokens=1, learning_rate=1e-3, batch_tokens=512))
    tokens, learned, _ = next(batches(tokenizer, World(), 1, 512))
    where = learned.roll(-1, 1)
    where[:, -1] = False
    with torch.no_grad():
        ours, theirs = answer_logits(model, tokens, where), model(input_ids=tokens).logits[where]
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.9995


def test_only_replies_are_learned(tokenizer):
    """The mask covers the assistant's tokens and their end, nothing of the user's."""
    tokens, learned, _ = next(batches(tokenizer, World(), 1, 512))
    assert (tokens[:, 0] == BOS).all()
    assert not learned[tokens == PAD].any()
    assert learned[tokens == END].all()
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert not learned[tokens == user].any()


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
    monkeypatch.setitem(
        SIZES, "tiny", Size(hidden=16, layers=2, heads=2, million_tokens=1, learning_rate=4e-3, batch_tokens=1024)
    )
    first = train("tiny", tmp_path / "a", million_tokens=0.03)
    second = train("tiny", tmp_path / "b", million_tokens=0.03)
    assert first["sha256"] == second["sha256"]
    from confcascade import Cascade, Stage, TransformersModel

    outcome = Cascade([Stage(TransformersModel.from_pretrained(tmp_path / "a"))]).run(
        "Which letter is each?", max_tokens=3
    )
    assert outcome.record.answered_by == "a"
