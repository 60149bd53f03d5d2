"""The tokenizer is the shipped one, and batches are what they say."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade.demo.lessons import BOS, END, NOTHING, PAD
from confcascade.demo.world import LABELS, World
from confcascade.models.bundled import WEIGHTS


def test_guides_lead_to_what_is_said(tokenizer, some):
    """A letter's guide leads to its value, a value's to its letter, and a reply read from a passage to itself."""
    letters = {tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0]: label for label in LABELS}
    replies = 0
    for batch in some:
        for layer, guides in batch.guides.items():
            for row, _, here, there in guides.T.tolist():
                assert there <= here
                ids, task = batch.tokens[row].tolist(), batch.tasks[row]
                if layer == 2:  # where facts are recalled
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
