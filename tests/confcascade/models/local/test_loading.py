"""Ways of loading, against the same model loaded plainly; and what cannot be loaded, in one line."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from confcascade import ConfigurationError, Message, MissingExtraError, OnDemandModel, Request, TransformersModel
from confcascade.asks import Generate
from confcascade.models.bundled import WEIGHTS

BASE = WEIGHTS / "small"
QUESTION = Request((Message("user", "How does Nebros Krurer earn a living?"),))


@pytest.fixture(scope="module")
def plain():
    return TransformersModel.from_pretrained(BASE)


def said(model):
    (answer,) = model.generate([Generate(model, QUESTION)])
    if isinstance(answer, Exception):
        raise answer
    return answer.text, [token.logprob for token in answer.tokens]


def refused(place=BASE, **arguments):
    """The one line that says why."""
    with pytest.raises(ConfigurationError) as raised:
        TransformersModel.from_pretrained(place, **arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def copied(tmp_path, **files):
    """The bundled model, some of its files with other contents."""
    shutil.copytree(BASE, tmp_path / "copy", ignore=shutil.ignore_patterns("probe"))
    for name, content in files.items():
        (tmp_path / "copy" / name.replace("__", ".")).write_bytes(content)
    return tmp_path / "copy"


# ---------------------------------------------------------------------- device maps


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_that_needs_no_offload_changes_nothing(plain, device_map):
    pytest.importorskip("accelerate")
    mapped = TransformersModel.from_pretrained(BASE, device_map=device_map)

    assert said(mapped) == said(plain)
    assert mapped.fingerprint == plain.fingerprint


def test_parts_on_disk_stay_there_and_answer_alike(plain, tmp_path):
    """The model is not moved where some of its parts have no weights of their own."""
    pytest.importorskip("accelerate")
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers"], "cpu")
    places.pop("model.layers")
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(plain.capability.layers)}
    offloaded = TransformersModel.from_pretrained(
        BASE, device_map=places, offload_folder=str(tmp_path), dtype="float32"
    )

    assert any(parameter.device.type == "meta" for parameter in offloaded.model.parameters())
    assert said(offloaded) == said(plain)


def test_a_device_and_a_device_map_exclude_each_other():
    assert "`device` and `device_map` exclude each other" in refused(device="cpu", device_map="auto")


# ---------------------------------------------------------------------- what cannot be loaded


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"device": "meta"}, '`device="meta"` cannot be used here: it holds no weights'),
        ({"device": "nonsense"}, '`device="nonsense"` cannot be used here'),
        ({"dtype": "nonsense"}, '`dtype` must be "auto", "float32", "bfloat16" or "float16". Got \'nonsense\''),
        ({"dtype": "int8"}, "Got 'int8'"),
        ({"attn_implementation": "flash_attention_2"}, "Install what it names, or leave out the argument"),
        ({"attn_implementation": "nonsense"}, "Check the arguments of loading: `attn_implementation`"),
        ({"nonsense": 1}, "Check the arguments of loading: `nonsense`"),
        ({"device_map": "nonsense"}, "Check the arguments of loading: `device_map`"),
        ({"quantization": "2bit"}, '`quantization` must be "8bit" or "4bit". Got \'2bit\''),
        ({"quantization": "4bit", "quantization_config": {}}, "exclude each other"),
        ({"place": "nobody/nothing"}, "Give a folder with config.json, weights and tokenizer, a GGUF file"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_cannot_be_met_are_refused_in_one_line(arguments, told):
    if "device_map" in arguments or "quantization" in arguments:
        pytest.importorskip("accelerate")
    assert told in refused(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert '`device="cuda"` cannot be used here' in refused(device="cuda")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_off_are_refused(tmp_path, share):
    data = (BASE / "model.safetensors").read_bytes()
    folder = copied(tmp_path, model__safetensors=data[: int(share * len(data))])

    assert "is cut off or damaged: download or save it again" in refused(folder)


def test_a_type_that_is_no_language_model_is_named_without_all_that_are(tmp_path):
    """transformers lists some two hundred."""
    told = refused(copied(tmp_path, config__json=b'{"model_type": "vit"}'))

    assert "Unrecognized configuration class" in told
    assert "ViTConfig" in told
    assert "Model type should be" not in told


def test_other_broken_files_are_refused(tmp_path):
    """Pages of errors in the place of files, as broken downloads leave them."""
    page = b"<html>503</html>"
    for i, name in enumerate(["model__safetensors", "config__json", "tokenizer__json"]):
        refused(copied(tmp_path / str(i), **{name: page}))


@pytest.mark.parametrize("arguments", [{}, {"ignore_mismatched_sizes": True}])
def test_weights_of_other_shapes_than_the_configuration_says_are_refused_by_name(tmp_path, arguments):
    """transformers points at a report in the log, or fills them with random numbers."""
    import json

    config = json.loads((BASE / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    folder = copied(tmp_path, config__json=json.dumps({**config, "intermediate_size": 2 * inner}).encode())

    told = refused(folder, **arguments)

    assert "weights of the checkpoint" in told
    assert f"mlp.down_proj.weight: ({width}, {inner}) instead of ({width}, {2 * inner})" in told


def test_a_checkpoint_in_shards_is_whole_or_refused(plain, tmp_path):
    plain.model.save_pretrained(tmp_path, max_shard_size="200KB")
    plain.tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))

    assert len(shards) > 1
    assert said(TransformersModel.from_pretrained(tmp_path)) == said(plain)

    from safetensors.torch import load_file, save_file

    weights = load_file(shards[0])
    lost = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, shards[0], metadata={"format": "pt"})
    assert f"lacks 1 of the model's weights, such as {lost}" in refused(tmp_path)
    shards[0].unlink()
    assert shards[0].name in refused(tmp_path)


# ---------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A random LoRA of the bundled model, and PEFT's own model with it."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(folder)
    return folder, adapted


def test_an_adapter_is_what_peft_makes_of_it(plain, lora):
    """Given with its base or by its own folder, which names the base and has no tokenizer."""
    folder, theirs = lora
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.inference_mode():
        expected, before = theirs(ids).logits, plain.model(ids).logits
    for ours in (TransformersModel.from_pretrained(BASE, adapter=folder), TransformersModel.from_pretrained(folder)):
        with torch.inference_mode():
            assert (ours.model(ids).logits - expected).abs().max() < 1e-4
        assert ours.name == "lora"
        assert ours.fingerprint != plain.fingerprint
        assert ours.capability.layers == plain.capability.layers
        assert said(ours)
    assert (expected - before).abs().max() > 0.1


def test_an_adapters_own_tokenizer_is_used(plain, lora, tmp_path):
    shutil.copytree(lora[0], tmp_path / "own")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = "Own: {{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "own")

    assert TransformersModel.from_pretrained(BASE, adapter=tmp_path / "own").render(QUESTION).startswith("Own: ")


@pytest.mark.parametrize("layers", [2, 6])
def test_an_adapter_of_another_base_is_refused(lora, tmp_path, layers):
    """Even where all shapes agree, and only layers lack or are spare, which peft says nothing or warns of."""
    config = transformers.AutoConfig.from_pretrained(BASE)
    config.num_hidden_layers = layers
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path)

    assert "does not fit the base" in refused(tmp_path, adapter=lora[0])
    assert "does not fit the base" in refused(WEIGHTS / "large", adapter=lora[0])


def test_what_is_no_adapter_is_refused(lora, tmp_path):
    import json

    assert "is not an adapter: it has no adapter_config.json" in refused(adapter=BASE)
    assert "No adapter can be read from" in refused(adapter=tmp_path / "absent")
    folder = shutil.copytree(lora[0], tmp_path / "moved")
    settings = json.loads((folder / "adapter_config.json").read_text())
    for base, told in (("/nowhere/base", "which is not there"), (None, "does not say which base")):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        assert told in refused(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"<html>")
    assert "No adapter can be read from" in refused(adapter=folder)


# ---------------------------------------------------------------------- weights in fewer bits


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    import sys

    pytest.importorskip("accelerate")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r'quantization="8bit".*pip install "confcascade\[quantized\]"'):
        TransformersModel.from_pretrained(BASE, quantization="8bit")


def test_a_version_that_shows_nothing_without_weights_is_refused(monkeypatch):
    """With transformers 5.0, a model on demand would give no hidden states, and nobody would know why."""
    monkeypatch.setattr("confcascade.models.local.on_demand.version", lambda _name: "5.0.0")
    with pytest.raises(ConfigurationError, match="not loaded on demand with transformers 5"):
        OnDemandModel("anything")
