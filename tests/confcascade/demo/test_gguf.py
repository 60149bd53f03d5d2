"""A bundled model as GGUF: llama.cpp's server must say what `TransformersModel` says, from the same weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from confcascade import ConfigurationError, Message, MissingExtraError, OpenAICompatibleModel, Request
from confcascade.asks import Generate
from confcascade.demo.gguf import write_gguf
from confcascade.demo.world import World
from confcascade.models.bundled import SIZES, WEIGHTS, bundled_model

# Both compute in float32 and add up in another order: 3e-5 at most was seen in log-probabilities.
CLOSE = 1e-3

CONVERSATION = (
    Message("system", "Answer in one word."),
    Message("user", "Who is Ångström? 你好 🙂"),
    Message("assistant", "I don't know"),
    Message("user", "Sefa has 12 coins, finds 5, loses 3.\n\n  How many   coins?"),
)


@pytest.mark.parametrize("size", SIZES)
def test_a_server_answers_as_the_model_itself_does(size, served):
    """The same words with the same log-probabilities, unless two words were as likely as each other; same usage."""
    local, remote = bundled_model(size), OpenAICompatibleModel(size, base_url=served(size))
    questions = World().questions("test", ("facts", "sums"), per_task=12)
    requests = [Request((Message("user", question.prompt),), 64, temperature=0) for question in questions]
    requests.append(Request(CONVERSATION, 64, temperature=0))
    expected = local.generate([Generate(local, request, top_logprobs=2) for request in requests])
    found = remote.generate([Generate(remote, request, top_logprobs=2) for request in requests])
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.usage.input_tokens == ours.usage.input_tokens
        for token, other in zip(ours.tokens, theirs.tokens, strict=False):
            (_, best), (_, second) = token.top
            if best - second < CLOSE:
                break  # a tie, after which the two may go different ways
            assert other.logprob == pytest.approx(token.logprob, abs=CLOSE)
            assert [logprob for _, logprob in other.top] == pytest.approx([best, second], abs=CLOSE)
        else:
            assert theirs.text == f" {ours.text}"  # the tokenizer's decoder takes the space away, llama.cpp shows it
            assert replace(theirs.usage, input_details={}) == ours.usage  # what its slots held of the prompt
            assert theirs.finish_reason == ours.finish_reason


def test_the_command_writes_the_file(tmp_path):
    """Beside float32 weights it holds tokens, merges and template; larger models make larger files."""
    sizes = []
    for size in SIZES[:2]:
        path = tmp_path / f"{size}.gguf"
        subprocess.run(
            [sys.executable, "-m", "confcascade.demo.gguf", size, "--out", str(path)], check=True, timeout=100
        )
        fields = gguf.GGUFReader(path).fields
        config = json.loads((WEIGHTS / size / "config.json").read_text())
        assert fields["llama.block_count"].contents() == config["num_hidden_layers"]
        assert len(fields["tokenizer.ggml.tokens"].contents()) == config["vocab_size"]
        assert fields["tokenizer.chat_template"].contents() == (WEIGHTS / size / "chat_template.jinja").read_text()
        sizes.append(path.stat().st_size)
    assert all(smaller < larger for smaller, larger in pairwise(sizes))


def test_without_gguf_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="pip install gguf"):
        write_gguf(WEIGHTS / "small", tmp_path / "small.gguf")


@pytest.mark.parametrize(
    ("file", "path", "value", "complaint"),
    [
        ("config.json", ("model_type",), "qwen3", "model type 'qwen3'"),
        ("config.json", ("rope_parameters", "rope_type"), "yarn", "RoPE of type 'yarn'"),
        ("tokenizer.json", ("model", "type"), "Unigram", "does not"),
        ("tokenizer.json", ("pre_tokenizer",), None, "does not"),
    ],
)
def test_what_llama_cpp_would_misread_is_refused(tmp_path, file, path, value, complaint):
    """A model that the file could not describe is named, and not written wrongly."""
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / "small", folder)
    content = json.loads((folder / file).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=complaint):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
