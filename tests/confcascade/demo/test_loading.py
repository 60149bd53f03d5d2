"""What cannot be a cascade of one's own models is said at once, before anything is loaded."""

import io
import sys
import warnings

import pytest
from confcascade.cost import Architecture
from confcascade.demo import loading
from confcascade.demo.loading import check_models, load_models, size_of
from confcascade.errors import ConfigurationError, MissingExtraError
from confcascade.models.bundled import WEIGHTS
from confcascade.testing import ScriptedModel
from rich.console import Console


@pytest.fixture
def gguf(tmp_path):
    """Writes a GGUF file of so many layers, each of 32 parameters, with a chat template or without."""
    package = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")

    def write(name, layers, template="{{ messages }}"):
        path = tmp_path / f"{name}.gguf"
        writer = package.GGUFWriter(str(path), "llama")
        writer.add_block_count(layers)
        writer.add_embedding_length(4)
        if template:
            writer.add_chat_template(template)
        for layer in range(layers):
            writer.add_tensor(f"blk.{layer}.ffn_up.weight", np.zeros((8, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def extras(monkeypatch):
    """As if every package of every extra were installed."""
    for package in ("torch", "xllamacpp", "openai"):
        monkeypatch.setitem(sys.modules, package, sys)


def test_one_model_is_no_cascade():
    with pytest.raises(ConfigurationError, match=r"at least two models, smallest first\. Got 1"):
        check_models(["bundled:large"])


def test_a_string_of_no_kind_is_refused(extras):
    """Also where the first model could be loaded."""
    with pytest.raises(ConfigurationError, match='Got "gpt-4o"'):
        check_models(["bundled:small", "gpt-4o"])


@pytest.mark.parametrize("kind", ["local", "llamacpp"])
def test_a_file_that_is_not_there_is_named(extras, kind, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no GGUF file '.*nowhere\.gguf'"):
        check_models(["bundled:small", f"{kind}:{tmp_path / 'nowhere.gguf'}"])


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("local", "torch", "local"), ("llamacpp", "xllamacpp", "llamacpp"), ("openai", "openai", "openai")],
)
def test_a_missing_extra_is_named(extras, monkeypatch, kind, package, extra):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"confcascade\[{extra}\]"):
        check_models([f"{kind}:a", f"{kind}:b"])


def test_a_base_model_is_refused_by_its_file(extras, gguf):
    """It has no chat template, and would go on with the question instead of answering it."""
    base, chat = gguf("base", 1, template=None), gguf("chat", 2)
    with pytest.raises(ConfigurationError, match=r"'base\.gguf' has no chat template"):
        check_models([f"llamacpp:{base}", f"llamacpp:{chat}"])


def test_a_base_model_is_refused_once_it_is_loaded(monkeypatch):
    """Where there is no head of a file that says so before."""
    bundled = pytest.importorskip("confcascade.models.local").TransformersModel.from_pretrained(WEIGHTS / "small")
    monkeypatch.setattr(bundled.tokenizer, "chat_template", None)
    monkeypatch.setattr(loading, "from_string", lambda _: bundled)
    with pytest.raises(ConfigurationError, match="'small' has no chat template"):
        load_models(["local:small", "local:large"], Console(file=io.StringIO()))


def test_a_larger_model_first_is_warned_of_by_its_file(extras, gguf):
    """With both sizes; the right order says nothing."""
    small, large = gguf("small", 1), gguf("large", 3)
    with pytest.warns(UserWarning, match=r"smallest first, and 'large' .* stands before 'small'"):
        check_models([f"llamacpp:{large}", f"local:{small}"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_models([f"llamacpp:{small}", f"local:{large}"])


def test_a_larger_model_first_is_warned_of_once_both_are_loaded(monkeypatch):
    """Where no file says so before; of unknown sizes nothing is said."""
    sizes = {"a": 2_000_000, "b": 1_000_000, "c": None}
    models = {
        f"openai:{name}": ScriptedModel(name, architecture=size and Architecture(size, 1, 1))
        for name, size in sizes.items()
    }
    monkeypatch.setattr(loading, "from_string", models.__getitem__)
    console = Console(file=io.StringIO())
    with pytest.warns(UserWarning, match="'a' .2M parameters. stands before 'b'"):
        assert load_models(["openai:a", "openai:b"], console) == [models["openai:a"], models["openai:b"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_models(["openai:a", "openai:c"], console)
    assert "Loading openai:b\n  1M parameters" in console.file.getvalue()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [(81_000, "81K"), (134_500_000, "134M"), (494_000_000, "494M"), (1_540_000_000, "1.5B"), (70_600_000_000, "70.6B")],
)
def test_sizes_are_written_as_people_do(parameters, told):
    assert size_of(Architecture(parameters, 1, 1)) == f"{told} parameters"
    assert size_of(None) == "size unknown"
