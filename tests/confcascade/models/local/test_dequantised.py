"""GGUF files through transformers: the same model as its weights in safetensors, kept, or refused by name."""

from __future__ import annotations

import logging
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
gguf = pytest.importorskip("gguf")

from confcascade import ConfigurationError, Message, Request, TransformersModel, from_string
from confcascade.asks import Generate, Prefill
from confcascade.demo.gguf import write_gguf
from confcascade.models.bundled import WEIGHTS, bundled_model

REQUEST = Request((Message("user", "How does Nebros Krurer earn a living?"),))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(WEIGHTS / "small", path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def assert_same(model, other):
    (text, numbers), (expected, others) = measured(model), measured(other)
    assert text == expected
    assert numbers == pytest.approx(others, abs=1e-5)


def measured(model):
    """What it says; and how sure, its state in the middle, and P of two labels, as far as the processor repeats it."""
    (answer,) = model.generate([Generate(model, REQUEST)])
    (read,) = model.prefill([Prefill(model, REQUEST, layers=(2,), labels=("A", "B"))])
    numbers = [
        *(token.logprob for token in answer.tokens),
        *read.hidden_states[2].tolist(),
        *read.label_logprobs.values(),
    ]
    return answer.text.strip(), numbers


def test_it_is_the_model_that_was_written(path, cache):
    """To the last digits, with its chat template, its ends and its costs; from a folder with the file only, too."""
    expected = bundled_model("small")
    for place in (path, path.parent):
        model = TransformersModel.from_pretrained(place, gguf_cache=cache)
        assert_same(model, expected)
        assert model.render(REQUEST) == expected.render(REQUEST)
        assert model.architecture == expected.architecture
    assert model.name == path.parent.name


def test_the_result_is_kept_and_read_again(path, cache, caplog, monkeypatch):
    """The first load says where; the second dequantises nothing and is the same model; any place can be chosen."""
    first = TransformersModel.from_pretrained(path, gguf_cache=cache / "new")
    assert str(cache / "new") in caplog.text
    (kept,) = (cache / "new").iterdir()
    assert kept.name.startswith("small-")
    caplog.clear()
    monkeypatch.setenv("CONFCASCADE_GGUF_CACHE", str(cache / "new"))
    monkeypatch.setattr("confcascade.models.local.dequantised._dequantise", None)
    again = from_string(f"local:{path}")

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert_same(again, first)
    assert again.fingerprint == first.fingerprint
    assert again.name == "small"


def test_nothing_is_kept_where_that_is_off(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CONFCASCADE_GGUF_CACHE", "off")
    model = TransformersModel.from_pretrained(path, dtype="bfloat16")

    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # made, and read again
        kept = TransformersModel.from_pretrained(path, dtype="bfloat16", gguf_cache=tmp_path / "kept")
    assert model.fingerprint == kept.fingerprint
    assert model.model.dtype == torch.bfloat16


def test_a_cache_that_cannot_be_written_is_said_and_done_without(path, tmp_path, caplog):
    (tmp_path / "file").touch()
    model = TransformersModel.from_pretrained(path, gguf_cache=tmp_path / "file")

    assert "cannot be kept" in caplog.text
    assert measured(model)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((b"llama", b"lhama"), r"cannot dequantise the architecture 'lhama'.* llamacpp:"),
        ((b"blk.0.attn_norm.weight", b"rope_freqs._norm.weight"[:22]), r"scales its rotary positions.* llamacpp:"),
        ((b"GGUF", b"GIF8"), "is not a GGUF file"),
    ],
)
def test_what_transformers_would_read_wrongly_is_refused(path, tmp_path, change, told):
    (tmp_path / "m.gguf").write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(ConfigurationError, match=told):
        TransformersModel.from_pretrained(tmp_path / "m.gguf", gguf_cache=False)


def test_a_file_that_lacks_its_last_numbers_is_refused(path, tmp_path):
    (tmp_path / "m.gguf").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="is cut off in its last tensor"):
        TransformersModel.from_pretrained(tmp_path / "m.gguf", gguf_cache=False)


def test_several_files_are_named_or_refused(path, tmp_path):
    """Parts of one model are llama.cpp's to read; of two models, one is to be named."""
    for part in (1, 2):
        shutil.copy(path, tmp_path / f"m-{part:05d}-of-00002.gguf")
    with pytest.raises(ConfigurationError, match=r"in 2 files .*llamacpp:"):
        TransformersModel.from_pretrained(tmp_path, gguf_cache=False)
    shutil.copy(path, tmp_path / "other.gguf")
    with pytest.raises(ConfigurationError, match=r"2 GGUF models: m-00001-of-00002\.gguf, other\.gguf"):
        TransformersModel.from_pretrained(tmp_path, gguf_cache=False)
    with pytest.raises(ConfigurationError, match="There is no GGUF file"):
        TransformersModel.from_pretrained(tmp_path, gguf_file="absent.gguf", gguf_cache=False)
    named = TransformersModel.from_pretrained(tmp_path, gguf_file="other.gguf", gguf_cache=False)
    assert measured(named)[0]
