"""Local models: any causal language model of the hub or a folder, through `transformers`.

One forward pass over the prompt gives the hidden state of the last prompt token, the distribution of the first answer
token and the KV cache that generation continues from: confidence costs no second pass.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from confcascade.asks import Capability, Chunk, Generate, Prefill, Session
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError
from confcascade.models.base import Waiting
from confcascade.models.gguf import model_name
from confcascade.models.local.continuous import ContinuousBatching
from confcascade.models.local.decoder import Decoder
from confcascade.models.local.dequantised import GgufCache
from confcascade.models.local.detokenizer import call_marks_of, marks_of
from confcascade.models.local.generation import DecoderSettings
from confcascade.models.local.identity import fingerprint_of
from confcascade.models.local.jobs import Job, aresults, astreamed, results, streamed
from confcascade.models.local.loading import DeviceMap, Quantization, load
from confcascade.models.local.prefix_cache import PrefixCache
from confcascade.models.local.prompts import Prompts
from confcascade.models.local.runner import ModelRunner
from confcascade.models.local.sampling import GenerationSettings
from confcascade.models.local.worker import in_own_thread
from confcascade.types import Prefilled, Request, Response

__all__ = ["ModelOptions", "TransformersModel"]

_log = logging.getLogger("confcascade")
_KEPT_SHARE, _KEPT_LEAST = 0.1, 256 * 2**20  # of the weights' memory, or bytes, for the beginnings of prompts


class ModelOptions(TypedDict, total=False):
    """The options of a `TransformersModel`, which says what each means."""

    name: str | None
    max_new_tokens: int | None
    batch_size: int
    prefix_cache_mb: float | None
    template_options: Mapping[str, Any] | None
    generation_options: Mapping[str, Any] | None


class TransformersModel:
    """A causal language model in this process.

    Prompts are rendered with the tokenizer's chat template, or, where it has none, completed as raw text.
    A conversation is handed to the template in the form in which nothing of it is left out: system text before the
    user's where the template has no system turn, turns of one role joined where it wants them to alternate.

    Greedy unless a request has a temperature above 0. The penalties and limits of the model's generation_config hold as
    in ``model.generate``; its top_p, top_k and min_p where a request is sampled. Log-probabilities are those of the raw
    logits.

    Args:
        model: A `transformers` causal language model, in evaluation mode; never changed.
        tokenizer: Its tokenizer; never changed.
        name: Shown in records; by default the folder's or the hub's name.
        max_new_tokens: Most tokens of an answer, where the request does not say; by default what the generation_config
            says, or 512.
        batch_size: Most queries in one forward pass; 1 if the trial shows that the model does not answer in a batch as
            it does alone.
        prefix_cache_mb: Most memory, in MiB, for what prompts have in common at their beginning, such as a system
            prompt and examples, which is then read once; 0 keeps nothing between passes. By default a tenth of what
            the weights take, or 256.
        template_options: Further arguments of the chat template, such as ``{"enable_thinking": False}``.
        generation_options: Settings that replace those of the generation_config, such as
            ``{"repetition_penalty": 1.0}``.

    Raises:
        ConfigurationError: If a trial pass shows that the model is not a decoder that continues from a KV cache, if its
            template or its generation_config cannot be followed, or an argument is out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        prefix_cache_mb: float | None = None,
        template_options: Mapping[str, Any] | None = None,
        generation_options: Mapping[str, Any] | None = None,
    ) -> None:
        _check_count("batch_size", batch_size)
        if prefix_cache_mb is not None and not 0 <= prefix_cache_mb < math.inf:
            raise ConfigurationError(f"`prefix_cache_mb` must be a number of at least 0. Got {prefix_cache_mb!r}.")
        if max_new_tokens is not None:
            _check_count("max_new_tokens", max_new_tokens)
        self.model = model
        self.tokenizer = tokenizer
        name = name or Path(str(getattr(model, "name_or_path", "") or "model")).name
        config = model.config.get_text_config(decoder=True)
        self._decoder = in_own_thread(lambda: self._decoder_of(model, config))
        if batch_size > 1 and not self._decoder.batches:
            _log.warning("Model '%s' does not answer in a batch as it does alone. It is asked one by one.", name)
        self._capability = Capability(
            logprobs=True,
            top_logprobs=config.vocab_size,
            layers=len(self._decoder.blocks),
            hidden_size=config.hidden_size if self._decoder.blocks else 0,
            stops=self._decoder.stops,
            prompt_labels=True,
            batch_size=batch_size if self._decoder.batches else 1,
            context_window=getattr(config, "max_position_embeddings", None),
            continues=True,
        )
        self._architecture = Architecture(
            self._decoder.multiplied, config.num_hidden_layers, config.hidden_size, self._decoder.outside_blocks
        )
        weights = sum(each.nelement() * each.element_size() for each in model.parameters())
        kept = max(int(weights * _KEPT_SHARE), _KEPT_LEAST) if prefix_cache_mb is None else int(prefix_cache_mb * 2**20)
        self._prefix_cache = PrefixCache(self._decoder, model.device, kept)
        self._batching = ContinuousBatching(self._decoder, self._capability.batch_size, model.device)
        self._set_options(name, max_new_tokens, template_options or {}, generation_options or {})

    def _decoder_of(self, model: Any, config: Any) -> Decoder:
        """What calls the model, once it has tried it."""
        return Decoder(model, config)

    def _set_options(
        self,
        name: str,
        max_new_tokens: int | None,
        template_options: Mapping[str, Any],
        generation_options: Mapping[str, Any],
    ) -> None:
        """How the weights are asked."""
        self._name = name
        self._generation_options = dict(generation_options)
        context = self._capability.context_window
        self._prompts = Prompts(
            self.tokenizer,
            name=name,
            context=context,
            embedded=self.model.get_input_embeddings().weight.shape[0],
            template_options=template_options,
            adds_special_tokens=self._adds_special_tokens,
            own=self._own_prompt,
        )
        template = self._prompts.template
        self._capability = replace(self._capability, tool_history=template is not None and template.tool_history)
        self._speaker = DecoderSettings(
            name=name,
            tokenizer=self.tokenizer,
            marks=marks_of(self.tokenizer),
            call_marks=call_marks_of(self.tokenizer),
            max_new_tokens=max_new_tokens,
            context=context,
            settings=GenerationSettings(
                self.model,
                name=name,
                eos=self.tokenizer.eos_token_id,
                eos_ends_turns=template is not None and template.ends_turns_with_eos,
                changes=generation_options,
            ),
            dtype=self.model.dtype,
        )
        self._runner = ModelRunner(
            self._decoder, self._prompts, self._speaker, self._prefix_cache, device=self.model.device
        )

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.generation_settings.items())
        return f"TransformersModel({self._name!r}{settings})"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        device_map: DeviceMap = None,
        dtype: str = "auto",
        quantization: Quantization = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        gguf_cache: GgufCache = None,
        name: str | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        prefix_cache_mb: float | None = None,
        template_options: Mapping[str, Any] | None = None,
        generation_options: Mapping[str, Any] | None = None,
        **loading: Any,
    ) -> TransformersModel:
        """Load a model from a folder, a GGUF file or the hub.

        Args:
            name_or_path: A folder, a GGUF file, a name on the hub, or the folder of a PEFT adapter, which names its
                base. The weights of a GGUF file are dequantised by transformers, and kept for the next load.
            adapter: A PEFT adapter of the model, such as a LoRA: a folder, or a name on the hub.
            device: Where it runs; by default a GPU if there is one.
            device_map: Instead, where each part of it runs: "auto" fills GPUs, then memory, then disk (with
                ``offload_folder``).
            dtype: Precision of the weights; "auto" takes the checkpoint's (float32 instead of float16 on a CPU, and
                for GGUF files).
            quantization: Weights in "8bit" or "4bit", by bitsandbytes; others by transformers' own
                ``quantization_config``.
            revision: Branch, tag or commit on the hub, of weights and tokenizer alike; by default the newest.
            trust_remote_code: Run code that comes with the weights. Off unless asked.
            gguf_cache: The folder for dequantised weights; False keeps none. By default ``CONFCASCADE_GGUF_CACHE`` (a
                folder, or "off"), or ``~/.cache/confcascade/gguf``.
            **loading: Further arguments of ``AutoModelForCausalLM.from_pretrained``.

        The other arguments are those of the class.

        Raises:
            MissingExtraError: Without torch and transformers, or what a way of loading needs.
            ConfigurationError: If nothing can be loaded from there, weights are missing, or this machine lacks what was
                asked for.
        """
        model, tokenizer = in_own_thread(
            lambda: load(
                name_or_path,
                adapter=adapter,
                device=device,
                device_map=device_map,
                dtype=dtype,
                quantization=quantization,
                revision=revision,
                trust_remote_code=trust_remote_code,
                gguf_cache=gguf_cache,
                **loading,
            )
        )
        return cls(
            model,
            tokenizer,
            name=name or model_name(name_or_path if adapter is None else adapter),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            prefix_cache_mb=prefix_cache_mb,
            template_options=template_options,
            generation_options=generation_options,
        )

    def with_options(
        self,
        *,
        name: str,
        max_new_tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        generation_options: Mapping[str, Any] | None = None,
    ) -> TransformersModel:
        """The same weights, asked in another way, as a model of its own: "the same, thinking" as the next stage.

        Nothing is loaded or tried again.

        Args:
            name: Its own, in records.
            max_new_tokens: Instead of this model's.
            template_options: Instead of this model's; part of the fingerprint, and so of its probes.
            generation_options: Instead of this model's.

        Raises:
            ConfigurationError: If the template or the generation_config does not have such options.
        """
        if max_new_tokens is not None:
            _check_count("max_new_tokens", max_new_tokens)
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other._set_options(
            name,
            self._speaker.max_new_tokens if max_new_tokens is None else max_new_tokens,
            self.template_options if template_options is None else template_options,
            self._generation_options if generation_options is None else generation_options,
        )
        return other

    # ------------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def generation_settings(self) -> dict[str, Any]:
        """What of the generation_config is followed and changes an answer.

        Penalties and limits always hold; ``top_k``, ``top_p``, ``min_p`` and the like where a request has a temperature
        and does not set its own.
        """
        return self._speaker.settings.followed

    @property
    def template_options(self) -> dict[str, Any]:
        """Further arguments of the chat template."""
        return dict(self._prompts.template_options)

    @property
    def architecture(self) -> Architecture:
        return self._architecture

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of all that its hidden states and greedy answers depend on (`fingerprint_of`)."""
        penalties = self._speaker.settings.penalties
        return fingerprint_of(self.model, self.tokenizer, self._prompts.template_options, penalties)

    # ------------------------------------------------------------------ LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return results([self._job(ask) for ask in asks], self._submit)

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return results([self._job(ask) for ask in asks], self._submit)

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        return streamed(self._job(ask), self._submit)

    async def aprefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        return await aresults([self._job(ask) for ask in asks], self._submit)

    async def agenerate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        return await aresults([self._job(ask) for ask in asks], self._submit)

    def astream(self, ask: Generate) -> AsyncIterator[Chunk | Response]:
        return astreamed(self._job(ask), self._submit)

    def submit(self, ask: Prefill | Generate) -> Future[Any]:
        """Let it answer, and return at once (`SelfBatching`)."""
        job = self._job(ask)
        self._submit(job)
        return job.future

    @property
    def open_prefills(self) -> int:
        """How many prompts have been read that somebody may go on from."""
        return self._batching.open_prefills

    def _job(self, ask: Prefill | Generate) -> Job:
        return Job(self._runner, self._asked(ask) if isinstance(ask, Generate) else ask, ask, Waiting.current())

    def _asked(self, ask: Generate) -> Generate:
        """An ask with all that its answer needs; one that goes on from what was written needs a session."""
        goes_on = ask.session is not None or bool(ask.request.written or ask.until)
        return replace(ask, session=Session()) if goes_on and ask.session is None else ask

    def _submit(self, job: Job) -> None:
        """Let a job wait its turn; returns at once."""
        self._batching.submit(job)

    # ------------------------------------------------------------------ prompts

    def render(self, request: Request) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        return self._prompts.render(request)

    def encode(self, request: Request) -> list[int]:
        """The tokens of `render`.

        Raises:
            ModelError: If they do not fit the context.
        """
        return self._prompts.encode(self.render(request))

    def encode_behind(self, request: Request, text: str) -> list[int]:
        """The tokens of a text behind a request and what has been written, as this model reads what others write."""
        return self._prompts.encode_behind(self.render(request) + request.written, text)

    def _own_prompt(self, request: Request) -> str | None:
        """A prompt that the chat template does not write; none here."""
        del request
        return None

    def _adds_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer adds its own: a rendered template brings them."""
        del prompt
        return self._prompts.template is None

    def hidden_states(self, requests: Sequence[Request], layer: int) -> Any:
        """Hidden states of the last prompt token after block `layer`, before any final norm: (n, hidden_size)."""
        import numpy as np

        self._runner.check_layers([layer])
        found = []
        for start in range(0, len(requests), self._capability.batch_size):
            part = requests[start : start + self._capability.batch_size]
            for read in self.prefill([Prefill(self, request, (layer,)) for request in part]):
                if isinstance(read, Exception):
                    raise read
                read.close()
                found.append(read.hidden_states[layer])
        return np.stack(found)


def _check_count(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"`{argument}` must be a whole number of at least 1. Got {value!r}.")
