"""Settings of every test: one thread of computation per process, and no network; and a server on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on more
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Serves bundled models as others serve theirs: llama.cpp's own server, here in this process.

    ``served("small")`` is the ``base_url`` for OpenAI clients. A model is converted and started when first asked for,
    in a tenth of a second, and stays. Keys and model names are not checked, and the default temperature is not 0.
    """
    xllamacpp = pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from confcascade.demo import WEIGHTS
    from confcascade.demo.gguf import write_gguf

    folder = tmp_path_factory.mktemp("gguf")
    servers: dict[str, Any] = {}

    def serve(size: str) -> str:
        if size not in servers:
            path = folder / f"{size}.gguf"
            write_gguf(WEIGHTS / size, path)
            parameters = xllamacpp.CommonParams()
            parameters.model.path = str(path)
            parameters.model_alias = {size}
            parameters.hostnames = ["127.0.0.1"]
            parameters.port = 0  # any free one
            parameters.n_parallel = 4
            parameters.n_ctx = 4 * 1024  # shared by the four
            parameters.n_threads_http = 32  # at least as many as clients keep connections open
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
            # single precision throughout, as in `TransformersModel`: half would move log-probabilities by 0.01
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.n_gpu_layers = 0
            parameters.use_jinja = parameters.offline = True
            parameters.warmup = parameters.fit_params = False
            parameters.verbosity = -1
            servers[size] = xllamacpp.Server(parameters)
        return f"{servers[size].listening_address}/v1"

    yield serve
    servers.clear()  # a server stops when nobody holds it
