"""Settings of every test: one thread of computation per process, and no network; and a server on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes is the machine's doing
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on more
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Serves bundled models as others serve theirs: llama.cpp's own server, here in this process.

    ``served("small")`` is the ``base_url`` for OpenAI clients. A model is converted and started when first asked for,
    in a tenth of a second, and stays. Keys and model names are not checked, and the default temperature is not 0.
    ``served("small", template)`` serves it with another chat template.
    """
    xllamacpp = pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from confcascade.demo.gguf import write_gguf
    from confcascade.models.bundled import WEIGHTS

    folder = tmp_path_factory.mktemp("gguf")
    servers: dict[str, Any] = {}

    def serve(size: str, template: str = "") -> str:
        key = size + template
        if key not in servers:
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
            if template:
                parameters.chat_template = template
            servers[key] = xllamacpp.Server(parameters)
        return f"{servers[key].listening_address}/v1"

    yield serve
    servers.clear()  # a server stops when nobody holds it


@pytest.fixture(scope="session")
def chat_openai(served: Callable[[str], str]) -> Callable[..., Any]:
    """Makes LangChain's `ChatOpenAI` of a served bundled model: ``chat_openai("small")``. Greedy."""
    httpx = pytest.importorskip("httpx")
    langchain_openai = pytest.importorskip("langchain_openai")

    def make(size: str, **parameters: Any) -> Any:
        # a client of its own: langchain-openai shares asynchronous clients by address, over event loops
        client = httpx.AsyncClient(verify=False, timeout=60)
        return langchain_openai.ChatOpenAI(
            model=size, base_url=served(size), api_key="none", temperature=0, http_async_client=client, **parameters
        )

    return make


@dataclass(frozen=True)
class Yardstick:
    """What a cascade over the bundled models in this process does, for cascades over served ones to be held against.

    Attributes:
        prompts: Held-out questions whose answers hang on no tie.
        threshold: Of P(T); a third of the answers at least lie on either side, none close to it.
        outcomes: What the local cascade made of the prompts.
    """

    # Server and library compute in float32 and add up in another order: log-probabilities differ by 3e-5
    tolerance: ClassVar[float] = 1e-3

    prompts: list[str]
    threshold: float
    outcomes: list[Any]

    def check(self, outcome: Any, text: str, record: dict[str, Any]) -> None:
        """Hold an answer and its record, as `Record.as_dict` gives it, against the local cascade's `outcome`."""
        assert text.removeprefix(" ") == outcome.text  # the local tokenizer's decoder takes a first space away
        ours, theirs = outcome.record.as_dict(), record
        assert (theirs["stage"], theirs["answered_by"]) == (ours["stage"], ours["answered_by"])
        assert len(theirs["attempts"]) == len(ours["attempts"])
        for mine, other in zip(ours["attempts"], theirs["attempts"], strict=True):
            assert other["decision"] == mine["decision"]
            for name, score in mine["scores"].items():
                assert other["scores"][name]["value"] == pytest.approx(score["value"], abs=self.tolerance)
                assert other["scores"][name]["passed"] == score["passed"]
        assert {name: theirs["usage"][name] for name in ours["usage"]} == ours["usage"]  # caches are the server's own


@pytest.fixture(scope="session")
def yardstick() -> Yardstick:
    """The bundled models "small" and "large" with P(T) of the answer between them, greedy, on 24 questions or so."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import math

    from confcascade import Cascade, Message, Request, Stage, TokenProbability
    from confcascade.asks import Generate
    from confcascade.demo.world import World
    from confcascade.models.bundled import bundled_model

    models = [bundled_model("small"), bundled_model("large")]
    asked = [question.prompt for question in World().questions("test", ("facts", "sums"), per_task=13)]
    requests = [Request((Message("user", prompt),)) for prompt in asked]
    answers = [model.generate([Generate(model, request, top_logprobs=2) for request in requests]) for model in models]
    tolerance = Yardstick.tolerance
    tied = {
        i
        for answered in answers
        for i, answer in enumerate(answered)
        if any(token.top[0][1] - token.top[1][1] < tolerance for token in answer.tokens)
    }
    kept = [i for i in range(len(asked)) if i not in tied]
    logprobs = [[token.logprob for token in answers[0][i].tokens] for i in kept]
    scores = sorted(math.exp(math.fsum(each) / len(each)) for each in logprobs)
    # the widest gap in the middle third
    lowest, highest = len(scores) // 3, 2 * len(scores) // 3
    gap, threshold = max(
        (b - a, (a + b) / 2) for a, b in zip(scores[lowest:], scores[lowest + 1 : highest], strict=False)
    )
    assert len(kept) >= 20
    assert gap > 2 * tolerance
    cascade = Cascade([Stage(models[0], [TokenProbability()], {"p_t": threshold}), Stage(models[1])])
    prompts = [asked[i] for i in kept]
    return Yardstick(prompts, threshold, cascade.run_batch(prompts))
