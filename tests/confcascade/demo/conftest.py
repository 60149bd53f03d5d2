"""The tokenizer of the bundled models, and a few batches of their lessons."""

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    pytest.importorskip("transformers")
    from confcascade.demo.lessons import build_tokenizer
    from confcascade.demo.world import World

    return build_tokenizer(World())


@pytest.fixture(scope="session")
def some(tokenizer):
    """Batches with every task in them; facts are recalled after two layers."""
    pytest.importorskip("torch")
    from confcascade.demo.lessons import batches
    from confcascade.demo.world import MIXES, World

    stream = batches(tokenizer, World(), 1, mix="look-up", recall=2, batch_tokens=1024, pool=256)
    found = [next(stream) for _ in range(12)]
    assert {task for batch in found for task in batch.tasks} == set(MIXES["look-up"])
    return found
