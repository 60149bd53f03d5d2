"""A model whose second block knows what it knows, and what it was asked."""

import hashlib

import numpy as np
import pytest
from confcascade.bench.recording import Row
from confcascade.testing import ScriptedModel
from confcascade.types import Prefilled
from threadpoolctl import threadpool_limits

D = 6


def noise(text, layer):
    seed = int.from_bytes(hashlib.sha256(f"{text}{layer}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=D).astype(np.float32)


class Knowing(ScriptedModel):
    """Four blocks of noise; after the second, one dimension nearly tells whether the answer will be right."""

    def __init__(self, name="m", told=2):
        super().__init__(name, hidden_size=D, batch_size=16)
        self.told = told
        self.passes = 0

    noise = staticmethod(noise)

    def right(self, text):
        return bool(noise(text, "answer")[0] > 0)

    def prefill(self, asks):
        self.passes += 1
        found = []
        for prefilled, ask in zip(super().prefill(asks), asks, strict=True):
            text = ask.request.messages[-1].content
            states = {layer: noise(text, layer) for layer in ask.layers}
            if self.told in states:
                states[self.told][3] += 2 * self.right(text) - 1
            found.append(Prefilled(prefilled.usage, states, {}, prefilled.state))
        return found

    def rows(self, n, **fields):
        """A recording's."""
        texts = [f"question {i}?" for i in range(n)]
        return [
            Row(
                question=f"q{i}",
                model=self.name,
                prompt=text,
                answer="yes",
                grade=float(self.right(text)),
                build=self.fingerprint,
                **fields,
            )
            for i, text in enumerate(texts)
        ]


@pytest.fixture(scope="session")
def knowing():
    """The class, for tests that change it."""
    return Knowing


@pytest.fixture
def model():
    return Knowing()


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small are slower with more threads."""
    with threadpool_limits(1):
        yield
