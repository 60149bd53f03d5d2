"""Local models: any causal language model of the hub or a folder, through `transformers`.

One forward pass over the prompt gives the hidden state of the last prompt token, the distribution of the first answer
token and the KV cache that generation continues from: confidence costs no second pass.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from confcascade.asks import Capability, Chunk, Generate, Prefill, Session
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, ModelError
from confcascade.models.base import InThreads, Waiting
from confcascade.models.gguf import model_name
from confcascade.models.local.batch import Batch, RowState
from confcascade.models.local.decoder import Capture, Decoder
from confcascade.models.local.dequantised import GgufCache
from confcascade.models.local.detokenizer import call_marks_of, marks_of
from confcascade.models.local.generation import DecoderSettings, GrowingAnswer
from confcascade.models.local.identity import fingerprint_of
from confcascade.models.local.loading import DeviceMap, Quantization, load
from confcascade.models.local.prompts import Prompts
from confcascade.models.local.sampling import GenerationSettings
from confcascade.models.local.sessions import Sessions, position_of
from confcascade.models.local.stopping import StoppablePass
from confcascade.notices import log_failed_batch
from confcascade.thoughts import may_open_mark
from confcascade.types import Prefilled, Request, Response, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersModel"]

_log = logging.getLogger("confcascade")
T = TypeVar("T")


class TransformersModel(InThreads):
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
        template_options: Mapping[str, Any] | None = None,
        generation_options: Mapping[str, Any] | None = None,
    ) -> None:
        _check_count("batch_size", batch_size)
        if max_new_tokens is not None:
            _check_count("max_new_tokens", max_new_tokens)
        self.model = model
        self.tokenizer = tokenizer
        name = name or Path(str(getattr(model, "name_or_path", "") or "model")).name
        config = model.config.get_text_config(decoder=True)
        self._decoder = Decoder(model, config)
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
        self._set_options(name, max_new_tokens, template_options or {}, generation_options or {})

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
        )

        self._sessions = Sessions(
            self._decoder, self._prompts, self._speaker, self._decode, self._overflow, self.model.device
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
        model, tokenizer = load(
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
        return cls(
            model,
            tokenizer,
            name=name or model_name(name_or_path if adapter is None else adapter),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
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
        if any(ask.session is not None for ask in asks):
            return self._apart(asks, self._sessions.read, self.prefill)
        found: list[Any] = [None] * len(asks)
        readable: list[tuple[int, Prefill, list[int], dict[str, tuple[int, ...]], str]] = []
        for i, ask in enumerate(asks):  # a prompt that cannot be read fails alone, not its batch
            try:
                self._check_layers(ask.layers)
                text = self.render(ask.request)
                ids = {label: self._prompts.label_ids(text, label) for label in ask.labels}
                readable.append((i, ask, self._prompts.encode(text), ids, self._prompts.opened(ask.request, text)))
            except Exception as error:
                found[i] = error
        for part in self._parts(readable):
            batch, passed = self._read_gated([encoded for _, _, encoded, *_ in part], [ask for _, ask, *_ in part])
            for row, layer in passed.ended.items():
                i, _, encoded, *_ = part[row]
                depth = layer / self._capability.layers
                found[i] = Prefilled(Usage(len(encoded), 0), hidden_states=passed.states[row], depth=depth)
            if batch is None:
                continue
            logprobs = batch.logits.float().log_softmax(-1)
            broken = _not_finite(logprobs)
            likeliest = logprobs.argmax(-1).tolist()
            for row, read in enumerate(passed.rows):
                i, ask, _, ids, opened = part[read]
                if broken[row]:
                    RowState(batch, row).close()
                    found[i] = self._overflow()
                    continue
                if opened or (ids and self._begins_thoughts(likeliest[row])):
                    ids = {}  # what comes first are thoughts, so that labels are read behind them
                label_logprobs = {label: logprobs[row, list(which)].logsumexp(-1) for label, which in ids.items()}
                found[i] = Prefilled(
                    usage=Usage(len(batch.prompts[row]), 0),
                    hidden_states=passed.states[read],
                    label_logprobs={label: float(logprob) for label, logprob in label_logprobs.items()},
                    following=position_of(batch.logits[row]) if ask.following else None,
                    state=RowState(batch, row, opened),
                )
        return found

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        if any(_goes_on(ask) for ask in asks):
            return self._apart([_in_session(ask) for ask in asks], self._sessions.write, self.generate)
        answers: list[Any] = [None] * len(asks)
        for group in self._groups(asks):
            rows: list[GrowingAnswer] = []
            kept: list[int] = []
            for i in group:  # a prompt that cannot be read fails alone, not its batch
                try:
                    rows.append(self._row(asks[i], len(rows)))
                    kept.append(i)
                except Exception as error:
                    answers[i] = error
            self._decode_all(rows)
            for i, row in zip(kept, rows, strict=True):
                answers[i] = row.error or row.response()
        return answers

    def _apart(
        self, asks: Sequence[Any], in_sessions: Callable[[Sequence[Any]], Sequence[Any]], others: Callable[..., Any]
    ) -> list[Any]:
        """Those that belong to a session, and the others."""
        answers: list[Any] = [None] * len(asks)
        for answer, of_session in ((in_sessions, True), (others, False)):
            which = [i for i, ask in enumerate(asks) if (ask.session is not None) == of_session]
            for part in self._parts(which):
                for i, told in zip(part, answer([asks[i] for i in part]), strict=True):
                    answers[i] = told
        return answers

    def _decode_all(self, rows: list[GrowingAnswer]) -> None:
        """Decode to the end. If a pass fails, rows that have ended keep their answers, and the others begin anew."""
        try:
            for _ in self._decode(rows):
                pass
        except ModelError:  # a prefill that was continued before
            raise
        except Exception as error:
            cut_off = [i for i, row in enumerate(rows) if row.finish_reason is None]
            if len(rows) == 1:
                rows[0].fail(error)
                return
            log_failed_batch(self._name, error, len(cut_off))
            # the error is gone by the time they are asked, and with it what it kept in memory
        else:
            return
        for i in cut_off:
            rows[i] = self._row(replace(rows[i].ask, prefilled=None), 0)
            self._decode_all([rows[i]])

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        if _goes_on(ask):
            yield from self._sessions.stream(_in_session(ask))
            return
        row = self._row(ask, 0)
        for _ in self._decode([row]):
            yield from row.new_chunks()
        if row.error is not None:
            raise row.error
        yield row.response()

    # ------------------------------------------------------------------ prompts

    def render(self, request: Request) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        return self._prompts.render(request)

    def encode(self, request: Request) -> list[int]:
        """The tokens of `render`.

        Raises:
            ModelError: If they do not fit the context.
        """
        return self._prompts.encode(self._prompts.render(request))

    def encode_behind(self, request: Request, text: str) -> list[int]:
        """The tokens of a text behind a request and what has been written, as this model reads what others write."""
        return self._prompts.encode_behind(self._prompts.render(request) + request.written, text)

    def _adds_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer adds its own: a rendered template brings them."""
        del prompt
        return self._prompts.template is None

    def hidden_states(self, requests: Sequence[Request], layer: int) -> Any:
        """Hidden states of the last prompt token after block `layer`, before any final norm: (n, hidden_size)."""
        import numpy as np

        self._check_layers([layer])
        found = []
        for part in self._parts(requests):
            _, hidden = self._read([self._prompts.encode(self.render(request)) for request in part], [layer])
            found.append(hidden[layer])
        return np.concatenate(found)

    # ------------------------------------------------------------------ forward passes

    def _check_layers(self, layers: Sequence[int]) -> None:
        blocks = self._capability.layers
        if not all(1 <= layer <= blocks for layer in layers):
            known = f"1 to {blocks}" if blocks else "of no block: they do not have the shape (tokens, hidden size)"
            raise ModelError(f"Model '{self._name}' gives hidden states {known}. Got the layers {tuple(layers)}.")

    def _overflow(self) -> ModelError:
        return ModelError(
            f"The logits of model '{self._name}' are not finite: its numbers overflow in {self.model.dtype}, or its "
            'weights are broken. Load it in another precision, such as dtype="float32".'
        )

    def _read(self, encoded: Sequence[Sequence[int]], layers: Sequence[int]) -> tuple[Batch, dict[int, Any]]:
        """One forward pass over prompts: the batch to continue from, and hidden states (rows, hidden_size) by layer."""
        ids, mask, positions = self._padded(encoded)
        with Capture([self._decoder.blocks[layer - 1] for layer in layers]) as captured:
            batch = Batch(list(encoded), mask)
            batch.logits, batch.cache = self._decoder(ids, mask, positions, hooked=bool(layers))
        self._check_seen(state is not None for state in captured.states)
        return batch, dict(zip(layers, captured.states, strict=True))

    def _read_gated(
        self, encoded: Sequence[Sequence[int]], asks: Sequence[Prefill]
    ) -> tuple[Batch | None, StoppablePass]:
        """One forward pass over prompts, which goes no further than the asks' gates let it.

        Returns:
            The batch of the rows that went to the end, None if there are none; and the pass: what was seen of each row.
        """
        ids, mask, positions = self._padded(encoded)
        layers, gates = [ask.layers for ask in asks], [ask.gate for ask in asks]
        logits = cache = None
        with StoppablePass(self._decoder.blocks, layers, gates, self._decoder.row_arguments) as passed:
            logits, cache = self._decoder(ids, mask, positions, hooked=any(layers))
        self._check_seen(set(layers[row]) <= set(passed.states[row]) for row in passed.rows)
        if not passed.rows:
            return None, passed
        return Batch([encoded[row] for row in passed.rows], mask[passed.rows], cache, logits), passed

    def _padded(self, encoded: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts side by side: tokens, mask and positions, each of shape (rows, tokens)."""
        import torch

        longest = max(map(len, encoded))
        ids = torch.zeros(len(encoded), longest, dtype=torch.long)
        mask = torch.zeros(len(encoded), longest, dtype=torch.long)
        for i, row in enumerate(encoded):  # padded on the left, so that all answers begin in one column
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)

    def _check_seen(self, seen: Iterable[bool]) -> None:
        if not all(seen):
            raise ModelError(
                f"Model '{self._name}' shows no hidden states: parts of it are compiled, and compiled code passes over "
                "hooks. Compile it as a whole, by `torch.compile(model)` or `model.compile()`."
            )

    def _parts(self, items: Sequence[T]) -> list[Sequence[T]]:
        """No more than can be read together."""
        size = self._capability.batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _groups(self, asks: Sequence[Generate]) -> list[Sequence[int]]:
        """Which asks can be decoded together: those that continue from the same pass, and those that begin."""
        groups: dict[int, list[int]] = {}
        for i, ask in enumerate(asks):
            groups.setdefault(id(ask.prefilled.state.batch) if ask.prefilled else 0, []).append(i)
        return [part for group in groups.values() for part in self._parts(group)]

    def _row(self, ask: Generate, position: int) -> GrowingAnswer:
        if ask.prefilled is not None:
            return GrowingAnswer(ask, self._speaker, [], position, ask.prefilled.state.opened)
        text = self.render(ask.request)
        opened = self._prompts.opened(ask.request, text)
        return GrowingAnswer(ask, self._speaker, self._prompts.encode(text), position, opened)

    def _begins_thoughts(self, token: int) -> bool:
        """Whether an answer that begins with this token begins with a mark of thoughts."""
        return may_open_mark(self.tokenizer.decode([token]))

    def _decode(self, rows: list[Any], batch: Batch | None = None) -> Iterator[None]:
        """Generate token by token until every row has ended; yields after each step.

        Args:
            rows: `GrowingAnswer` or `GrowingStep` objects.
            batch: What they go on from; by default their prefills', or else their prompts are read.
        """
        import torch

        if not rows:
            return
        states = [row.ask.prefilled.state for row in rows if row.ask.prefilled is not None]
        if batch is not None:
            pass
        elif states:
            batch = states[0].batch.take([state.row for state in states])
        else:
            batch, _ = self._read([row.prompt for row in rows], [])
        for row in rows:
            row.begin(batch.prompts[row.position])
        waiting = Waiting.current()
        active = rows
        while active:
            raw = batch.logits.float()
            logprobs = raw.log_softmax(-1)
            chosen = logprobs.argmax(-1)
            broken = _not_finite(logprobs)
            for row in active:
                if broken[row.position]:
                    row.fail(self._overflow())
                    continue
                try:
                    if (token := row.choose(raw[row.position])) is not None:
                        chosen[row.position] = token
                except Exception as error:  # probabilities that are all 0, say
                    row.fail(error)
            picked = logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
            for row in active:
                if row.error is None:
                    try:
                        row.push(int(chosen[row.position]), picked[row.position], logprobs[row.position])
                    except Exception as error:  # a watch's, say: this row fails, not its batch
                        row.fail(error)
            if waiting is not None and waiting.is_left:
                for row in active:
                    if row.finish_reason is None and not waiting.wants(row.ask):
                        row.leave()
            for row in active:
                if row.finish_reason is not None:
                    row.keep(batch)
            yield
            active = [row for row in active if row.finish_reason is None]
            if not active:
                return
            if 2 * len(active) <= batch.mask.shape[0]:  # drop the rows that have ended once they are half
                kept = [row.position for row in active]
                batch.select(kept)
                chosen = chosen[kept]
                for position, row in enumerate(active):
                    row.position = position
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones(batch.mask.shape[0], 1)], 1)
            positions = batch.mask.sum(-1, keepdim=True) - 1
            batch.logits, batch.cache = self._decoder(chosen[:, None], batch.mask, positions, batch.cache)


def _goes_on(ask: Generate) -> bool:
    """Whether an answer goes on from what was written, or ends with a step."""
    return ask.session is not None or bool(ask.request.written or ask.until)


def _in_session(ask: Generate) -> Generate:
    return replace(ask, session=Session()) if _goes_on(ask) and ask.session is None else ask


def _not_finite(logprobs: torch.Tensor) -> list[bool]:
    """Which rows of log-probabilities (rows, vocabulary) are NaN: all of a row is, if a logit is NaN or infinite."""
    flags: list[bool] = logprobs[:, 0].isnan().tolist()
    return flags


def _check_count(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"`{argument}` must be a whole number of at least 1. Got {value!r}.")
