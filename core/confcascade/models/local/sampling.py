"""Which token follows: the model's generation_config and a request's options, by `transformers`' own processors.

Greedy unless a request has a temperature above 0, and then as ``generate(do_sample=True)`` with what the checkpoint's
generation_config sets. Log-probabilities stay those of the raw logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from confcascade.errors import ConfigurationError, ModelError
from confcascade.types import Request

if TYPE_CHECKING:
    import torch

__all__ = ["GenerationSettings", "TokenChoice"]

_SAMPLING = ("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")  # need a temperature
_PENALTIES = (
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "renormalize_logits", "repetition_penalty", "sequence_bias", "suppress_tokens",
    "watermarking_config",
)  # fmt: skip
_LENGTHS = ("max_length", "max_new_tokens")
_NOT_FOLLOWED = {  # what cannot be, and what is neutral
    "dola_layers": None,
    "guidance_scale": 1,
    "max_time": None,
    "stop_strings": None,
    "token_healing": False,
}
_NOT_GREEDY = {"num_beams": 1, "penalty_alpha": None, "constraints": None, "force_words_ids": None}
_NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "n": 1}  # options of servers that change nothing


class GenerationSettings:
    """What decides which token follows, beside the logits.

    Args:
        model: A `transformers` model; its generation_config is copied.
        name: Of the model, for errors.
        eos: The tokenizer's end of text, if it has one.
        eos_ends_turns: Whether the chat template ends turns with it.
        changes: Settings that replace the generation_config's.

    Attributes:
        ends: The tokens that end an answer.
        max_new_tokens: Most tokens of an answer, where nobody else says; None if the generation_config does not.
        max_length: Most tokens of prompt and answer together, where nobody says how long the answer may be.

    Raises:
        ConfigurationError: If the generation_config asks for what is not done here, or has values that do not work.
    """

    def __init__(
        self, model: Any, *, name: str, eos: int | None, eos_ends_turns: bool, changes: Mapping[str, Any]
    ) -> None:
        from transformers import GenerationMixin

        self.name = name
        self.device = model.device
        self._config = _configured(model, changes)
        named = self._config.eos_token_id
        ends = set(named) if isinstance(named, list | tuple) else {named}
        if named is None or eos_ends_turns:
            ends.add(eos)
        self.ends = frozenset(ends - {None})
        self._make: Callable[..., Any] = getattr(model, "_get_logits_processor", None) or partial(
            GenerationMixin._get_logits_processor, model
        )
        self.max_new_tokens: int | None = self._config.max_new_tokens
        self.max_length: int | None = None if self.max_new_tokens is not None else self._config.max_length
        self._check()
        try:
            self.plain = not self.processors([0, 0, 0], 1, {})
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigurationError(f"The generation_config of model '{name}' does not work: {why}.") from error

    @property
    def followed(self) -> dict[str, Any]:
        """What is set: penalties and the like always hold, those that truncate hold where a request is sampled."""
        defaults = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "top_p": 1.0, "top_k": 0}
        values = ((key, getattr(self._config, key, None)) for key in (*_LENGTHS, *_PENALTIES, *_SAMPLING))
        return {key: value for key, value in values if value is not None and value != defaults.get(key, False)}

    @property
    def penalties(self) -> dict[str, Any]:
        """What of that changes a greedy answer, apart from its length."""
        return {key: value for key, value in self.followed.items() if key in _PENALTIES}

    def processors(self, prompt: Sequence[int], limit: int, settings: Mapping[str, Any]) -> Any:
        """What changes the logits of an answer, in `generate`'s order.

        Args:
            prompt: Its tokens.
            limit: Most tokens of the answer.
            settings: Of the request, which replace those of the generation_config.
        """
        import torch

        config = copy.copy(self._config)
        config.do_sample = "temperature" in settings
        config.max_length = len(prompt) + limit
        for key, value in settings.items():
            setattr(config, key, value)
        config._eos_token_tensor = torch.tensor(sorted(self.ends), device=self.device) if self.ends else None
        return self._make(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=torch.tensor([list(prompt)], device=self.device),
            device=self.device,
            model_kwargs={},
        )

    def _check(self) -> None:
        config = self._config
        greedy = copy.copy(config)
        greedy.do_sample, greedy.prompt_lookup_num_tokens, greedy.assistant_early_exit = False, None, None
        mode = str(greedy.get_generation_mode().value)
        neutral: dict[str, Any] = _NOT_FOLLOWED | (_NOT_GREEDY if "search" in mode and "greedy" not in mode else {})
        change = {key: value for key, value in neutral.items() if getattr(config, key, None) not in (None, value)}
        if change:
            raise ConfigurationError(
                f"The generation_config of model '{self.name}' asks for {' and '.join(change)}, which is not done "
                f"here. To go without: generation_options={change}."
            )


def _configured(model: Any, changes: Mapping[str, Any]) -> Any:
    from transformers import GenerationConfig

    config = copy.deepcopy(getattr(model, "generation_config", None) or GenerationConfig())
    for key, value in changes.items():
        if key not in (known := [name for name in vars(config) if not name.startswith("_")]):
            close = get_close_matches(key, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigurationError(f"`generation_options` has {key!r}, which no generation_config has{meant}")
        setattr(config, key, value)
    return config


class TokenChoice:
    """Which token follows in one answer.

    Args:
        settings: The model's.
        request: Its temperature and options.

    Raises:
        ModelError: If the request has options that are unknown, or out of range.
    """

    def __init__(self, settings: GenerationSettings, request: Request) -> None:
        self._settings = settings
        self._asked, self._seed = _asked(request, settings.name)
        self._processors: Any = None
        self._ids: Any = None
        self._random: Any = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return "temperature" in self._asked

    @property
    def random(self) -> Any:
        """The state of what tokens are drawn with; None where they are not."""
        return None if self._random is None else self._random.get_state()

    @property
    def plain(self) -> bool:
        """Whether the most probable token follows."""
        return self._settings.plain and not self._asked

    def begin(self, prompt: Sequence[int], limit: int, *, written: Sequence[int] = (), random: Any = None) -> None:
        """The prompt's tokens, how many may follow, those that have, and the state to draw on from."""
        if self.plain:
            return
        import torch

        self._processors = self._settings.processors(prompt, limit, self._asked)
        self._ids = torch.tensor([[*prompt, *written]], device=self._settings.device)
        if self.samples:
            self._random = torch.Generator(device=self._settings.device)
            if random is not None:
                self._random.set_state(random)
            elif self._seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(self._seed)

    def next(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token, from raw logits (vocabulary,)."""
        import torch

        scores = self._processors(self._ids, logits[None].clone())
        if self.samples:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._random)
        else:
            token = scores.argmax(-1, keepdim=True)
        self._ids = torch.cat([self._ids, token], 1)
        return token[0, 0]


# ---------------------------------------------------------------------- options of a request


def _asked(request: Request, name: str) -> tuple[dict[str, Any], int | None]:
    """What a request sets of a generation_config, and its seed."""
    options = {key: value for key, value in request.options.items() if value is not None}
    seed = options.pop("seed", None)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64):
        raise ModelError(f"`seed` must be a whole number. Got {seed!r}.")
    temperature = 0.0 if request.temperature is None else _number("temperature", request.temperature, least=0)
    asked: dict[str, Any] = {}
    if (top_p := options.pop("top_p", None)) is not None:
        asked["top_p"] = _number("top_p", top_p, least=0, most=1)
    if (top_k := options.pop("top_k", None)) is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < -1:
            raise ModelError(f"`top_k` must be a whole number, 0 or -1 for all tokens. Got {top_k!r}.")
        asked["top_k"] = max(top_k, 0)
    if (min_p := options.pop("min_p", None)) is not None:
        asked["min_p"] = _number("min_p", min_p, least=0, most=1) or None
    penalty = options.pop("repetition_penalty", None)
    if penalty is not None and not _number("repetition_penalty", penalty, least=0):
        raise ModelError(f"`repetition_penalty` must be above 0; 1 changes nothing. Got {penalty!r}.")
    unknown = sorted(key for key, value in options.items() if key not in _NEUTRAL or value != _NEUTRAL[key])
    if unknown:
        raise ModelError(
            f"Model '{name}' knows the options top_p, top_k, min_p, repetition_penalty and seed. "
            f"Got {', '.join(unknown)}."
        )
    settings = {"temperature": temperature, **asked} if temperature else {}
    if penalty is not None:
        settings["repetition_penalty"] = float(penalty)
    return settings, seed


def _number(option: str, value: Any, *, least: float, most: float = math.inf) -> float:
    given = not isinstance(value, bool) and isinstance(value, int | float)
    if given and math.isfinite(value) and least <= value <= most:
        return float(value)
    allowed = f"at least {least:g}" if math.isinf(most) else f"between {least:g} and {most:g}"
    raise ModelError(f"`{option}` must be a number {allowed}. Got {value!r}.")
