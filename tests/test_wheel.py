"""The built wheel holds what the packages need: weights, documents and type markers."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OPEN_WEIGHTS = """
import sys
sys.path.insert(0, sys.argv[1])
import confcascade
from confcascade.models.bundled import SIZES, WEIGHTS
from confcascade.demo import bundled_probe
from safetensors.numpy import load_file
assert confcascade.__file__.startswith(sys.argv[1]), confcascade.__file__
for size in SIZES:
    print(size, len(load_file(WEIGHTS / size / "model.safetensors")), bundled_probe(size).card.model)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=200)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_all_that_is_not_code(wheel):
    """Weights, tokenizers, probes, policy, documents and py.typed are in it; tests are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    demo = "confcascade/demo"
    for size in ("small", "medium", "large"):
        for file in (
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "probe/probe.safetensors",
        ):
            assert f"{demo}/weights/{size}/{file}" in names
    for file in ("weights/policy.json", "documents/questions.tsv", "questions.jsonl"):
        assert f"{demo}/{file}" in names
    for package in ("confcascade", "langchain_confcascade", "llamaindex_confcascade"):
        assert f"{package}/py.typed" in names
    assert not any(name.startswith(("tests/", "core/", "benchmarks/")) for name in names)


def test_wheel_opens_the_weights_without_torch(wheel, tmp_path):
    """Unpacked elsewhere, it finds its own weights and probes, and needs no torch to read them."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", OPEN_WEIGHTS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[::2] for line in done.stdout.splitlines()] == [[s, s] for s in ("small", "medium", "large")]
