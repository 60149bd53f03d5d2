"""The training code: its forward pass is Llama's, growth keeps the function, and a seed repeats."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade.demo.lessons import NOTHING
from confcascade.demo.train import ROUNDS, Round, Size, before, forward, grow, new_model, train
from confcascade.errors import ConfigurationError

TINY = Size(hidden=32, layers=3, heads=2, recall=2)
ROUND = Round(TINY, "look-up", million_tokens=1, learning_rate=4e-3)


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


def test_a_grown_model_computes_what_the_small_one_does(some):
    """Twice as wide and two layers deeper, a model gives the same logits, but for the noise that lets copies part."""
    torch.manual_seed(0)
    small, tokens, asked = new_model(TINY), some[0].tokens, before(some[0].learned)
    for name, parameter in small.named_parameters():  # as after training: no norm is all ones
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    wider = Size(64, layers=5, heads=4, recall=2)
    with torch.no_grad():
        theirs = small(input_ids=tokens).logits[asked]
        exact, noisy = (grow(small, wider, noise)(input_ids=tokens).logits[asked] for noise in (0.0, 0.01))
    assert torch.allclose(exact, theirs, atol=1e-4)
    assert 0 < (noisy - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_training_learns_and_repeats(tmp_path, monkeypatch):
    """A short training of a tiny size lowers the loss, is the same twice, and loads as any model does."""
    monkeypatch.setitem(ROUNDS, "tiny", ROUND)
    first = train("tiny", tmp_path / "a", million_tokens=0.03)
    second = train("tiny", tmp_path / "b", million_tokens=0.03)
    assert first["sha256"] == second["sha256"]
    assert first["begins_with"] is None
    monkeypatch.setitem(ROUNDS, "tiny", replace(ROUND, begins="a"))
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
