"""Hidden states are read once, all blocks in one pass, and outlive a kill."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confcascade import ConfigurationError, Message, ModelError, Request
from confcascade.asks import Prefill
from confcascade.bench.training import StateCache, read_states
from confcascade.bench.training.states import key_of
from confcascade.testing import Reply, ScriptedModel
from confcascade.types import Prefilled, Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent


def requests(n):
    return [Request((Message("user", f"question {i}?"),)) for i in range(n)]


def test_all_blocks_come_of_one_pass(model, tmp_path):
    """One call for a batch, whatever the number of blocks; what is kept is what the model gave, in any order."""
    asked = requests(40)
    cache = StateCache(tmp_path, model, (1, 2, 4))
    assert read_states(model, asked, cache) == {}
    assert model.passes == 3  # of 16, 16 and 8
    assert model.open_caches == 0
    keys = [key_of(request) for request in reversed(asked)]
    given = model.prefill([Prefill(model, request, (1, 2, 4)) for request in reversed(asked)])
    for layer in (1, 2, 4):
        assert np.array_equal(cache.read(keys, layer), np.stack([each.hidden_states[layer] for each in given]))


def test_what_is_kept_is_not_read_again(model, tmp_path):
    """Also by another process, which finds the shards; a changed prompt is another one."""
    read_states(model, requests(40), StateCache(tmp_path, model, (1, 2)))
    before = model.passes
    seen = []
    again = StateCache(tmp_path, model, (1, 2))
    read_states(model, requests(48), again, progress=lambda *told: seen.append(told))
    assert model.passes == before + 1
    assert seen == [(48, 48)]
    assert all(key_of(request) in again for request in requests(48))
    system = Request((Message("system", "Be brief."), *requests(1)[0].messages))
    assert key_of(system) not in again


KILLED = """
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("shared", {conftest!r})
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
from confcascade import Message, Request
from confcascade.bench.training import StateCache, read_states, states
states._SHARD_ROWS = 32

class Dying(shared.Knowing):
    def prefill(self, asks):
        if self.passes == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prefill(asks)

model = Dying()
asked = [Request((Message("user", f"question {{i}}?"),)) for i in range(200)]
read_states(model, asked, StateCache({folder!r}, model, (1, 2)))
"""


def test_a_kill_loses_the_unfinished_shard_alone(model, tmp_path):
    """Killed in its sixth pass of 16 prompts, the process leaves two shards of 32; the rest is read, and all fits."""
    folder = tmp_path / "killed"
    code = KILLED.format(conftest=str(HERE / "conftest.py"), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    shards = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert len(shards) == 2

    asked = requests(200)
    cache, whole = StateCache(folder, model, (1, 2)), StateCache(tmp_path / "whole", model, (1, 2))
    assert sum(key_of(request) in cache for request in asked) == 64
    read_states(model, asked, cache)
    assert model.passes == 9  # 136 of 200 prompts
    read_states(model, asked, whole)
    assert all(path.read_bytes() == content for path, content in shards.items())
    keys = [key_of(request) for request in asked]
    assert np.array_equal(cache.read(keys, 2), whole.read(keys, 2))


def test_a_file_that_was_being_written_is_no_shard(model, tmp_path):
    read_states(model, requests(8), StateCache(tmp_path, model, (1,)))
    (tmp_path / "abc.123.new").write_bytes(b"half")
    assert key_of(requests(1)[0]) in StateCache(tmp_path, model, (1,))


def test_stopping_keeps_what_was_read(model, tmp_path):
    stop = threading.Event()
    cache = StateCache(tmp_path, model, (1,))
    read_states(model, requests(64), cache, progress=lambda *_: stop.set(), stop=stop)
    assert model.passes == 1
    assert sum(key_of(request) in StateCache(tmp_path, model, (1,)) for request in requests(64)) == 16


def test_states_of_another_model_or_other_blocks_are_refused(model, knowing, tmp_path):
    StateCache(tmp_path, model, (1, 2))
    for other, layers in ((knowing("n"), (1, 2)), (model, (1, 3))):
        with pytest.raises(ConfigurationError, match="of another model or other depths"):
            StateCache(tmp_path, other, layers)


def test_a_damaged_shard_is_named(model, tmp_path):
    StateCache(tmp_path, model, (1,))
    (tmp_path / "abc.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match=r"abc\.safetensors' holds no hidden states; remove it"):
        StateCache(tmp_path, model, (1,))


def test_what_was_read_is_kept_where_the_model_fails(knowing, tmp_path):
    """Out of memory at the longest prompts of all, say."""

    class Failing(knowing):
        def prefill(self, asks):
            if self.passes == 2:
                raise MemoryError
            return super().prefill(asks)

    model = Failing()
    with pytest.raises(MemoryError):
        read_states(model, requests(64), StateCache(tmp_path, model, (1,)))
    cache = StateCache(tmp_path, model, (1,))
    assert sum(key_of(request) in cache for request in requests(64)) == 32


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_states_come_back_in_any_order(model, tmp_path_factory, sizes, seed):
    """However they were cut into shards, to the bit."""
    rng = np.random.default_rng(seed)
    cache = StateCache(tmp_path_factory.mktemp("cache"), model, (2, 4))
    known = {}
    for shard, size in enumerate(sizes):
        states = rng.normal(size=(size, 2, 6)).astype(np.float32)
        keys = [f"{shard}-{i}" for i in range(size)]
        cache.append(keys, states)
        known.update(zip(keys, states, strict=True))
    asked = rng.choice(list(known), size=10).tolist()
    again = StateCache(cache.folder, model, (2, 4))
    for at, layer in enumerate((2, 4)):
        assert np.array_equal(again.read(asked, layer), np.stack([known[key][at] for key in asked]))


def test_prompts_that_cannot_be_read_are_told_and_the_others_kept(tmp_path):
    """One too long for the model, one whose states overflow."""

    class Failing(ScriptedModel):
        def prefill(self, asks):
            found = list(super().prefill(asks))
            for i, ask in enumerate(asks):
                if "question 3?" in ask.request.messages[0].content:
                    found[i] = ModelError("The prompt is too long.")
            return found

    def script(request):
        return Reply("yes", hidden=[np.inf if "question 5?" in request.messages[0].content else 1.0] * 2)

    model = Failing("m", script, hidden_size=2, batch_size=4)
    cache = StateCache(tmp_path, model, (1, 2))
    asked = requests(10)
    problems = read_states(model, asked, cache)
    assert problems == {
        key_of(asked[3]): "ModelError: The prompt is too long.",
        key_of(asked[5]): "its hidden states are not finite",
    }
    assert [i for i, request in enumerate(asked) if key_of(request) not in cache] == [3, 5]


# ---------------------------------------------------------------------- of a server


class TooLongError(Exception):
    status_code = 400


class Served(ScriptedModel):
    """A server gives the states of two blocks of four, in a call for each prompt."""

    def __init__(self, **fails):
        super().__init__("m")
        given = {"layers": 4, "hidden_size": 6, "engine": "vllm", "served_layers": (3, 2)}
        self._capability = replace(self._capability, **given)
        self.fails = fails
        self.together = threading.Barrier(16)

    def prefill(self, asks):
        (ask,) = asks
        self.together.wait(timeout=10)
        number = ask.request.messages[-1].content.split()[1]
        if (error := self.fails.get(f"of{number}"[:-1])) or (error := self.fails.get("every")):
            raise error
        layers = ask.layers[: 1 if f"of{number}"[:-1] == "of7" else 2]
        state = np.full(6, float(number[:-1]), np.float32)
        return [Prefilled(Usage(3, 1), dict.fromkeys(layers, state), apart=True)]


def test_a_server_reads_several_at_a_time(tmp_path):
    """Prompts that it cannot read, or gives no state of, are told; the others are kept."""
    model = Served(of5=TooLongError("context"), of9=TooLongError("context"))
    asked = requests(16)
    cache = StateCache(tmp_path, model, (2, 3))

    problems = read_states(model, asked, cache)

    assert problems == {
        key_of(asked[5]): "TooLongError: context",
        key_of(asked[9]): "TooLongError: context",
        key_of(asked[7]): "the hidden state of block 3 was not given",
    }
    assert np.array_equal(cache.read([key_of(asked[12])], 3), np.full((1, 6), 12.0))


def test_a_server_that_is_gone_is_not_asked_for_all(tmp_path):
    """What it says to the first prompts is raised, and not counted as a fault of each."""
    model = Served(every=ConnectionError("refused"))

    with pytest.raises(ConnectionError, match="refused"):
        read_states(model, requests(160), StateCache(tmp_path, model, (2, 3)))


def test_states_of_a_server_are_no_others(tmp_path):
    """Of the same name and blocks, they are not mixed with those of a model here, nor of another engine."""
    served, other = Served(), Served()
    other._capability = replace(other._capability, engine="sglang", normalised=True)
    local = ScriptedModel("m", hidden_size=6)
    StateCache(tmp_path, served, (2, 3))

    for model in (other, local):
        with pytest.raises(ConfigurationError, match="another model or other depths"):
            StateCache(tmp_path, model, (2, 3))
