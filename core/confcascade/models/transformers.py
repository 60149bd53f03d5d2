"""Local models: any causal language model of the hub or a folder, through `transformers`.

One forward pass over the prompt gives the hidden state of the last prompt token, the distribution of the first answer
token and the KV cache that generation continues from: confidence costs no second pass.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confcascade.asks import Generate, Prefill
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, ModelError, require
from confcascade.models import Blocking, Capability, Chunk
from confcascade.models.decoder import Capture, Decoder
from confcascade.models.generation import Row, Speaker
from confcascade.types import Prefilled, Request, Response, Usage

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersModel"]

_log = logging.getLogger("confcascade")


class TransformersModel(Blocking):
    """A causal language model in this process.

    Prompts are rendered with the tokenizer's chat template, or, where it has none, completed as raw text.
    Greedy unless a request has a temperature above 0. Log-probabilities are those of the raw logits.

    Args:
        model: A `transformers` causal language model, in evaluation mode; never changed.
        tokenizer: Its tokenizer; never changed.
        name: Shown in records; by default the folder's or the hub's name.
        max_new_tokens: Most tokens of an answer, where the request does not say.
        batch_size: Most queries in one forward pass; 1 if the trial shows that the model does not answer in a batch as
            it does alone.
        template_options: Further arguments of the chat template, such as ``{"enable_thinking": False}``.

    Raises:
        ConfigurationError: If a trial pass shows that the model is not a decoder that continues from a KV cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        max_new_tokens: int = 512,
        batch_size: int = 32,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._name = name or Path(str(getattr(model, "name_or_path", "") or "model")).name
        self._template_options = dict(template_options or {})
        config = model.config.get_text_config(decoder=True)
        self._decoder = Decoder(model, config)
        if batch_size > 1 and not self._decoder.batches:
            _log.warning("Model '%s' does not answer in a batch as it does alone. It is asked one by one.", self._name)
        context = getattr(config, "max_position_embeddings", None)
        self._capability = Capability(
            logprobs=True,
            top_logprobs=config.vocab_size,
            layers=len(self._decoder.blocks),
            hidden_size=config.hidden_size if self._decoder.blocks else 0,
            prompt_labels=True,
            batch_size=batch_size if self._decoder.batches else 1,
            context_window=context,
        )
        ends = model.generation_config.eos_token_id if model.generation_config else None
        ends = tokenizer.eos_token_id if ends is None else ends
        self._speaker = Speaker(
            name=self._name,
            tokenizer=tokenizer,
            ends=frozenset(ends if isinstance(ends, list | tuple) else [ends]),
            max_new_tokens=max_new_tokens,
            context=context,
            device=model.device,
        )
        self._embedded = model.get_input_embeddings().weight.shape[0]
        self._labels: dict[tuple[str, str], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"TransformersModel({self._name!r})"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        name: str | None = None,
        max_new_tokens: int = 512,
        batch_size: int = 32,
        template_options: Mapping[str, Any] | None = None,
        **loading: Any,
    ) -> TransformersModel:
        """Load a model from a folder or the hub.

        Args:
            name_or_path: A folder, or a name on the hub.
            device: Where it runs; by default a GPU if there is one.
            dtype: Precision of the weights; "auto" takes the checkpoint's (float32 instead of float16 on a CPU).
            revision: Branch, tag or commit on the hub, of weights and tokenizer alike; by default the newest.
            trust_remote_code: Run code that comes with the weights. Off unless asked.
            **loading: Further arguments of ``AutoModelForCausalLM.from_pretrained``.

        The other arguments are those of the class.

        Raises:
            MissingExtraError: Without torch and transformers.
            ConfigurationError: If nothing can be loaded from there, or weights are missing.
        """
        torch = require("torch", "local")
        transformers = require("transformers", "local")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            common = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(name_or_path), **common)
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                str(name_or_path), dtype=dtype, output_loading_info=True, **common, **loading
            )
        except (OSError, ValueError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"No causal language model can be loaded from '{name_or_path}': {why} "
                "Give a folder with config.json, weights and tokenizer, or the name of one on the hub."
            ) from error
        if absent := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
            raise ConfigurationError(
                f"The checkpoint '{name_or_path}' lacks {len(absent)} of the model's weights, such as {absent[0]}, and "
                "transformers would fill them with random numbers. Save or download it again."
            )
        if device == "cpu" and model.dtype == torch.float16:
            model = model.float()  # half precision is slow on most CPUs, and some operations lack it
        return cls(
            model.to(device).eval(),
            tokenizer,
            name=name or Path(str(name_or_path)).name,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            template_options=template_options,
        )

    # ------------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        return self._name

    @property
    def capability(self) -> Capability:
        return self._capability

    @cached_property
    def architecture(self) -> Architecture:
        config = self.model.config.get_text_config(decoder=True)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        if not config.tie_word_embeddings:  # an input embedding is looked up, not multiplied
            parameters -= self.model.get_input_embeddings().weight.numel()
        return Architecture(parameters, config.num_hidden_layers, config.hidden_size)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of all that its hidden states hang on.

        Configuration (with its quantisation), precision, chat template with its options, and a sample of the weights,
        of a quantised model with those that are kept as buffers.
        """
        config = self.model.config.to_dict()
        for volatile in ("transformers_version", "_name_or_path"):
            config.pop(volatile, None)
        described = [
            json.dumps(config, sort_keys=True, default=str),
            str(self.model.dtype),
            str(self.tokenizer.chat_template),
        ]
        if self._template_options:
            described.append(json.dumps(self._template_options, sort_keys=True, default=str))
        weights = list(self.model.parameters())
        if "quantization_config" in config:  # GPTQ and AWQ pack what they quantise into buffers
            weights += self.model.buffers()
        digest = hashlib.sha256("\n".join(described).encode())
        for weight in weights:  # the first 256 numbers of every tensor
            digest.update(weight.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    # ------------------------------------------------------------------ LanguageModel

    def prefill(self, asks: Sequence[Prefill]) -> Sequence[Prefilled | Exception]:
        found: list[Any] = [None] * len(asks)
        readable: list[tuple[int, Prefill, list[int], dict[str, tuple[int, ...]]]] = []
        for i, ask in enumerate(asks):  # a prompt that cannot be read fails alone, not its batch
            try:
                self._check_layers(ask.layers)
                text = self.render(ask.request)
                ids = {label: self._label_ids(text, label) for label in ask.labels}
                readable.append((i, ask, self._encode(text), ids))
            except Exception as error:
                found[i] = error
        if not readable:
            return found
        layers = sorted({layer for _, ask, _, _ in readable for layer in ask.layers})
        batch, hidden = self._read([encoded for _, _, encoded, _ in readable], layers)
        logprobs = batch.logits.float().log_softmax(-1)
        broken = _not_finite(logprobs)
        for row, (i, ask, _, ids) in enumerate(readable):
            if broken[row]:
                _State(batch, row).close()
                found[i] = self._overflow()
                continue
            found[i] = Prefilled(
                usage=Usage(batch.prompt_lengths[row], 0),
                hidden_states={layer: hidden[layer][row] for layer in ask.layers},
                label_logprobs={label: float(logprobs[row, list(which)].logsumexp(-1)) for label, which in ids.items()},
                state=_State(batch, row),
            )
        return found

    def generate(self, asks: Sequence[Generate]) -> Sequence[Response | Exception]:
        answers: list[Any] = [None] * len(asks)
        for group in self._groups(asks):
            rows: list[Row] = []
            kept: list[int] = []
            for i in group:  # a prompt that cannot be read fails alone, not its batch
                try:
                    rows.append(self._row(asks[i], len(rows)))
                    kept.append(i)
                except Exception as error:
                    answers[i] = error
            for _ in self._decode(rows):
                pass
            for i, row in zip(kept, rows, strict=True):
                answers[i] = row.error or row.response()
        return answers

    def stream(self, ask: Generate) -> Iterator[Chunk | Response]:
        row = self._row(ask, 0)
        for _ in self._decode([row]):
            yield from row.new_chunks()
        if row.error is not None:
            raise row.error
        yield row.response()

    # ------------------------------------------------------------------ prompts

    def render(self, request: Request) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        if self.tokenizer.chat_template is None:
            return "\n".join(message.content for message in request.messages)
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._template_options
        )
        return text

    def hidden_states(self, requests: Sequence[Request], layer: int) -> Any:
        """Hidden states of the last prompt token after block `layer`, before any final norm: (n, hidden_size)."""
        import numpy as np

        self._check_layers([layer])
        size = self._capability.batch_size
        found = []
        for start in range(0, len(requests), size):
            part = [self._encode(self.render(request)) for request in requests[start : start + size]]
            _, hidden = self._read(part, [layer])
            found.append(hidden[layer])
        return np.concatenate(found)

    def _tokenize(self, text: str) -> list[int]:
        # a rendered template brings its special tokens; raw text gets the tokenizer's own
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.tokenizer.chat_template is None)["input_ids"]
        return ids

    def _encode(self, text: str) -> list[int]:
        """The tokens of a rendered prompt that fits the context."""
        ids = self._tokenize(text)
        if not ids:
            raise ModelError("The prompt has no tokens.")
        if max(ids) >= self._embedded:  # on a GPU, the pass would end the process's use of it
            raise ModelError(
                f"The prompt has the token {self.tokenizer.convert_ids_to_tokens(max(ids))!r}, id {max(ids)}; model "
                f"'{self._name}' knows the ids below {self._embedded}. Its tokenizer must be that of the model: resize "
                "the model's embedding after adding tokens."
            )
        context = self._speaker.context
        if context is not None and len(ids) >= context:
            raise ModelError(f"The prompt has {len(ids)} tokens; the context of model '{self._name}' holds {context}.")
        return ids

    def _label_ids(self, prompt: str, label: str) -> tuple[int, ...]:
        """The tokens that say `label` right after `prompt`, with and without a space: found in context, never alone."""
        key = prompt[-32:], label
        if key not in self._labels:
            before = self._tokenize(prompt)
            ids: dict[int, None] = {}
            for variant in (label, f" {label}"):
                after = self._tokenize(prompt + variant)
                if len(after) == len(before) + 1 and after[:-1] == before:
                    ids[after[-1]] = None
            if not ids:
                raise ModelError(
                    f"The label {label!r} is not a single token of model '{self._name}' after this prompt."
                )
            self._labels[key] = tuple(ids)
        return self._labels[key]

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

    def _read(self, encoded: Sequence[Sequence[int]], layers: Sequence[int]) -> tuple[_Batch, dict[int, Any]]:
        """One forward pass over prompts: the batch to continue from, and hidden states (rows, hidden_size) by layer."""
        import torch

        longest = max(map(len, encoded))
        device = self.model.device
        ids = torch.zeros(len(encoded), longest, dtype=torch.long)
        mask = torch.zeros(len(encoded), longest, dtype=torch.long)
        for i, row in enumerate(encoded):  # padded on the left, so that all answers begin in one column
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        with Capture([self._decoder.blocks[layer - 1] for layer in layers]) as captured:
            batch = _Batch(list(map(len, encoded)), mask)
            batch.logits, batch.cache = self._decoder(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        return batch, dict(zip(layers, captured.states, strict=True))

    def _groups(self, asks: Sequence[Generate]) -> list[list[int]]:
        """Which asks can be decoded together: those that continue from the same pass, and those that begin."""
        groups: dict[int, list[int]] = {}
        for i, ask in enumerate(asks):
            groups.setdefault(id(ask.prefilled.state.batch) if ask.prefilled else 0, []).append(i)
        return list(groups.values())

    def _row(self, ask: Generate, position: int) -> Row:
        return Row(ask, self._speaker, [] if ask.prefilled else self._encode(self.render(ask.request)), position)

    def _decode(self, rows: list[Row]) -> Iterator[None]:
        """Generate token by token until every row has ended; yields after each step."""
        import torch

        if not rows:
            return
        states = [row.ask.prefilled.state for row in rows if row.ask.prefilled is not None]
        if states:
            batch = states[0].batch.take([state.row for state in states])
        else:
            batch, _ = self._read([row.prompt for row in rows], [])
        for row in rows:
            row.begin(batch.prompt_lengths[row.position])
        active = rows
        while active:
            raw = batch.logits.float()
            logprobs = raw.log_softmax(-1)
            chosen = logprobs.argmax(-1)
            broken = _not_finite(logprobs)
            for row in active:
                if broken[row.position]:
                    row.fail(self._overflow())
                elif row.samples:
                    chosen[row.position] = row.sample(raw[row.position])
            picked = logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
            for row in active:
                if row.error is None:
                    try:
                        row.push(int(chosen[row.position]), picked[row.position], logprobs[row.position])
                    except Exception as error:  # a watch's, say: this row fails, not its batch
                        row.fail(error)
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


@dataclass
class _Batch:
    """Prompts that were read together, and where they stand."""

    prompt_lengths: list[int]
    mask: torch.Tensor  # (rows, tokens so far)
    cache: Any = None
    logits: Any = None  # (rows, vocabulary) of the last position
    open: set[int] = field(default_factory=set)  # rows whose state nobody has closed

    def __post_init__(self) -> None:
        self.open = set(range(len(self.prompt_lengths)))

    def take(self, rows: list[int]) -> _Batch:
        """These rows, to continue from; the others' cache is kept only while somebody may still want it."""
        import copy

        if not set(rows) <= self.open:
            raise ModelError("This prefill was closed, or was continued before; a KV cache can be continued once.")
        self.open -= set(rows)
        cache = copy.deepcopy(self.cache) if self.open else self.cache
        taken = _Batch([self.prompt_lengths[row] for row in rows], self.mask, cache, self.logits)
        if rows != list(range(len(self.prompt_lengths))):
            taken.select(rows)
        if not self.open:
            self.cache = self.logits = None
        return taken

    def select(self, rows: list[int]) -> None:
        """Keep these rows of the tensors, in this order."""
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.logits = self.logits[index]
        self.cache.reorder_cache(index)  # which layers without attention have, too


@dataclass
class _State:
    """One row of a batch, as a `Prefilled` carries it."""

    batch: _Batch
    row: int

    def close(self) -> None:
        self.batch.open.discard(self.row)
        if not self.batch.open:
            self.batch.cache = self.batch.logits = None


def _not_finite(logprobs: torch.Tensor) -> list[bool]:
    """Which rows of log-probabilities (rows, vocabulary) are NaN: all of a row is, if a logit is NaN or infinite."""
    flags: list[bool] = logprobs[:, 0].isnan().tolist()
    return flags
