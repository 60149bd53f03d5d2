"""What the head of a GGUF file says, and which file of a folder is meant."""

from __future__ import annotations

import pytest

np = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")

from confcascade import Architecture, ConfigurationError
from confcascade.models.gguf import GgufFile, find_gguf, model_name

SHAPES = {"token_embd": (10, 4), "output": (10, 4), "blk.0.ffn_up": (6, 4), "blk.0.ffn_up_exps": (8, 6, 4)}


def write(path, shapes=SHAPES, value=1.0, **metadata):
    """A file as the package `gguf` writes it, with these weights and numbers of the model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(4)
    writer.add_context_length(64)
    writer.add_token_list(["a", "b", "ü"])
    for key, number in metadata.items():
        writer.add_uint32(f"llama.{key}", number)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_head_says_what_the_packages_own_reader_says(tmp_path):
    """Numbers, strings, names and shapes, but no weights."""
    path = write(tmp_path / "m.gguf", expert_count=8, expert_used_count=2)
    file, theirs = GgufFile(path), gguf.GGUFReader(path)

    assert (file.architecture_name, file.context_length, file.chat_template) == ("llama", 64, None)
    assert [(t.name, list(t.shape)) for t in file.tensors] == [(t.name, list(t.shape)) for t in theirs.tensors]
    assert file.metadata["tokenizer.ggml.tokens"] == 3


def test_parameters_are_those_that_a_token_meets(tmp_path):
    """Not the embedding that is looked up, and two of eight experts; tied embeddings are the output, too."""
    routed = GgufFile(write(tmp_path / "m.gguf", expert_count=8, expert_used_count=2)).architecture
    tied = GgufFile(write(tmp_path / "t.gguf", {"token_embd": (10, 4), "blk.0.ffn_up": (6, 4)})).architecture

    assert routed == Architecture(10 * 4 + 6 * 4 + 2 * 6 * 4, 1, 4)
    assert tied == Architecture(10 * 4 + 6 * 4, 1, 4)


def test_a_digest_is_of_the_contents(tmp_path):
    """Another place is the same model; other weights of the same shapes are not."""
    path = write(tmp_path / "m.gguf")
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(path.read_bytes())

    assert GgufFile(moved).digest == GgufFile(path).digest != GgufFile(write(tmp_path / "o.gguf", value=2.0)).digest


def test_what_is_no_whole_gguf_is_refused(tmp_path):
    """At whichever byte it was cut: in the head, or before its last tensor."""
    path = write(tmp_path / "m.gguf")
    data, last = path.read_bytes(), GgufFile(path).tensors[-1].size * 4
    cut = tmp_path / "cut.gguf"
    for length in range(4, len(data) - last - 32, 7):
        cut.write_bytes(data[:length])
        with pytest.raises(ConfigurationError, match="cut off or damaged"):
            GgufFile(cut)
    cut.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigurationError, match=r"is not a GGUF file.*Git LFS pointer"):
        GgufFile(cut)
    with pytest.raises(ConfigurationError, match="There is no GGUF file"):
        GgufFile(tmp_path / "absent.gguf")


def test_a_model_in_parts_is_whole_or_names_what_is_missing(tmp_path):
    first = write(tmp_path / "m-00001-of-00003.gguf", {"token_embd": (10, 4)})
    write(tmp_path / "m-00003-of-00003.gguf", {"blk.0.ffn_up": (6, 4)})
    with pytest.raises(ConfigurationError, match=r"1 are not in .*: m-00002-of-00003\.gguf"):
        GgufFile(first)

    write(tmp_path / "m-00002-of-00003.gguf", {"output": (10, 4)})
    file = GgufFile(first)

    assert len(file.tensors) == 3
    assert model_name(first) == "m"
    assert find_gguf(tmp_path) == first


def test_the_one_gguf_of_a_folder_is_meant(tmp_path):
    """Projectors of pictures do not count, and beside a config.json none does."""
    (tmp_path / "mmproj-m.gguf").touch()
    assert find_gguf(tmp_path) is None
    (tmp_path / "m.Q4_0.gguf").touch()
    assert find_gguf(tmp_path) == tmp_path / "m.Q4_0.gguf"
    (tmp_path / "m.Q8_0.gguf").touch()
    with pytest.raises(ConfigurationError, match=r"has 2 GGUF models: m\.Q4_0\.gguf, m\.Q8_0\.gguf\. Name one"):
        find_gguf(tmp_path)
    (tmp_path / "config.json").touch()
    assert find_gguf(tmp_path) is None


@pytest.mark.parametrize(
    ("place", "name"),
    [("a/m.Q4_0.gguf", "m.Q4_0"), ("m-00001-of-00002.GGUF", "m"), ("org/Model-1.5B", "Model-1.5B"), ("x/m.v2", "m.v2")],
)
def test_names(place, name):
    assert model_name(place) == name
