"""Weights in eight and four bits, from loading to a policy's decisions; skipped without bitsandbytes."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("bitsandbytes")

from confcascade import (
    Cascade,
    ConfigurationError,
    KnowledgeProbe,
    Message,
    Request,
    Stage,
    TokenProbability,
    TransformersModel,
)
from confcascade.asks import Generate, Prefill
from confcascade.models.bundled import WEIGHTS, bundled_model

REQUESTS = [Request((Message("user", f"Where was Bren {i} born?"),), max_tokens=6) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose sizes are multiples of 64, as kernels for four bits want them on a CPU."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "small")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_model_from_loading_to_decisions(folder, quantization):
    """Its numbers are plain transformers' own; P(T) and a probe on its states judge it in a cascade."""
    model = TransformersModel.from_pretrained(folder, quantization=quantization)
    assert any("bit" in type(module).__name__ for module in model.model.modules())
    assert any(parameter.dtype in (torch.int8, torch.uint8) for parameter in model.model.parameters())

    for request in REQUESTS[:8]:
        (answer,) = model.generate([Generate(model, request)])
        ids = torch.tensor([model.tokenizer(model.render(request), add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logprobs = model.model(ids).logits[0, -1].float().log_softmax(-1)
        assert answer.tokens[0].logprob == pytest.approx(float(logprobs.max()), abs=1e-4)

    (prefilled,) = model.prefill([Prefill(model, REQUESTS[0], layers=(3,), labels=("A", "B"))])
    assert prefilled.hidden_states[3].shape == (64,)
    states = model.hidden_states(REQUESTS, 3)
    right = states[:, 0] > np.median(states[:, 0])
    probe = KnowledgeProbe.fit(model, states, right, layer=3)
    large = Stage(bundled_model("large"))
    always = Cascade(
        [Stage(model, [probe, TokenProbability()], {"p_ik": "always", "p_t": "always"}), large], on_cut="keep"
    )
    scores = [outcome.record.attempts[0].scores for outcome in always.run_batch(REQUESTS)]
    known = [each["p_ik"].value for each in scores]
    assert all(0 < each["p_t"].value < 1 for each in scores)

    threshold = float(np.median(known))
    cascade = Cascade(
        [Stage(model, [probe, TokenProbability()], {"p_ik": threshold, "p_t": 0.0}), large], on_cut="keep"
    )
    stages = [outcome.record.stage for outcome in cascade.run_batch(REQUESTS)]
    assert 0 < stages.count(0) < len(stages)


def test_sizes_that_four_bits_do_not_take_on_a_cpu_are_named():
    """The smallest bundled model is 28 wide: it is a decoder, but not in four bits with newer kernels."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if version("bitsandbytes") < "0.50":
        pytest.skip("its older kernels take any size")
    with pytest.raises(ConfigurationError, match="cannot be run here with its weights in fewer bits"):
        TransformersModel.from_pretrained(WEIGHTS / "small", quantization="4bit")
