"""Fingerprints: the same for the same model, however it is kept and however often it was used; another for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade.models.bundled import WEIGHTS
from confcascade.models.local import TransformersModel
from confcascade.models.local.identity import fingerprint_of

torch.set_num_threads(1)
FOLDER = WEIGHTS / "small"


def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()


def test_the_tokenizer_is_part_of_it(model: Any, tmp_path: Path):
    """Another normalizer, an added token or other merges make other ids of the same prompt."""
    plain = fingerprint_of(model, tokenizer(), {}, {})
    added = tokenizer()
    added.add_tokens(["born"])
    saved = json.loads((FOLDER / "tokenizer.json").read_text())
    saved["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    (tmp_path / "tokenizer_config.json").write_text((FOLDER / "tokenizer_config.json").read_text())
    lower = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lower.chat_template = added.chat_template

    assert len({plain, fingerprint_of(model, added, {}, {}), fingerprint_of(model, lower, {}, {})}) == 3


def test_it_does_not_change_with_use(model: Any, tmp_path: Path):
    """Nor by saving and loading: padding and cutting, which a call sets in the tokenizer, are not part of it."""
    used = tokenizer()
    plain = fingerprint_of(model, used, {}, {})
    used(["What", "is it?"], padding="max_length", truncation=True, max_length=8)
    model.save_pretrained(tmp_path)
    used.save_pretrained(tmp_path)

    assert fingerprint_of(model, used, {}, {}) == plain
    assert TransformersModel.from_pretrained(tmp_path).fingerprint == plain


def test_offloaded_weights_are_read_where_they_are_kept(tmp_path: Path):
    """The same model, on disk or in memory."""
    accelerate = pytest.importorskip("accelerate")
    weights = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()
    plain = TransformersModel(weights, tokenizer()).fingerprint

    accelerate.disk_offload(weights, tmp_path / "offload")

    assert all(weight.is_meta for weight in weights.parameters())
    assert fingerprint_of(weights, tokenizer(), {}, {}) == plain


def test_tensors_made_of_others_are_sampled_by_these(model: Any):
    """torchao's, which refuse to be flattened."""
    from torch.testing._internal.two_tensor import TwoTensor

    def with_second(second: float) -> str:
        made = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()
        weight = made.lm_head.weight.detach()
        made.lm_head.weight = torch.nn.Parameter(TwoTensor(weight, weight + second), requires_grad=False)
        return fingerprint_of(made, tokenizer(), {}, {})

    assert with_second(1.0) == with_second(1.0)
    assert with_second(1.0) != with_second(2.0)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_packs_anew_before_the_fingerprint_is_taken(bits: int):
    """On a CPU its first pass changes the 4-bit weights: the trial pass is that first one."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=1387, pad_token_id=0, **shape)
    plain = transformers.LlamaForCausalLM(config)
    quantised = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})

    def loaded() -> TransformersModel:
        weights = transformers.LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=plain.state_dict(), quantization_config=quantised
        )
        return TransformersModel(weights.eval(), tokenizer())

    first = loaded()
    before = first.fingerprint
    first.model(input_ids=torch.tensor([[5, 6, 7]]))

    assert fingerprint_of(first.model, first.tokenizer, {}, {}) == before == loaded().fingerprint
    assert first.architecture.parameters == TransformersModel(plain.eval(), tokenizer()).architecture.parameters


def test_an_adapters_weights_and_its_scale_are_part_of_it():
    """LoRA's alpha is in no weight, and PEFT's layers multiply by it."""
    peft = pytest.importorskip("peft")

    def adapted(alpha: int, seed: int = 0) -> Any:
        base = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()
        torch.manual_seed(seed)
        settings = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        return peft.get_peft_model(base, settings).get_base_model()

    def of(model: Any) -> str:
        return fingerprint_of(model, tokenizer(), {}, {})

    one = adapted(8)

    assert of(one) == of(adapted(8))
    assert len({of(one), of(adapted(16)), of(adapted(8, seed=1))}) == 3


def test_a_torchao_model_keeps_its_fingerprint_over_loads():
    """Its weights are tensors made of others; P(T) judges it in a cascade."""
    pytest.importorskip("torchao")
    pytest.importorskip("accelerate")
    from confcascade import Cascade, Stage, TokenProbability
    from confcascade.models.bundled import bundled_model
    from torchao.quantization import Int8WeightOnlyConfig

    def loaded() -> TransformersModel:
        packed = transformers.TorchAoConfig(Int8WeightOnlyConfig())
        return TransformersModel.from_pretrained(FOLDER, dtype="float32", quantization_config=packed)

    model = loaded()
    assert any(type(weight).__name__ == "Int8Tensor" for weight in model.model.parameters())
    stage = Stage(model, [TokenProbability()], {"p_t": "always"})
    outcome = Cascade([stage, Stage(bundled_model("large"))]).run("Where was Bren born?")

    assert 0 < outcome.record.attempts[0].scores["p_t"].value < 1
    assert model.fingerprint == loaded().fingerprint != TransformersModel.from_pretrained(FOLDER).fingerprint
    assert model.architecture == bundled_model("small").architecture


def test_what_is_penalised_is_part_of_it(model):
    """For another answer follows; a limit of sampling, which no greedy answer feels, is not."""
    made = TransformersModel(model, tokenizer(), name="m")
    others = [
        made.with_options(name="o", generation_options={key: value})
        for key, value in (("repetition_penalty", 1.5), ("top_k", 5), ("repetition_penalty", 1.0))
    ]
    assert [other.fingerprint == made.fingerprint for other in others] == [False, True, True]
