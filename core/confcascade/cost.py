"""What an attempt costs: floating-point operations, tokens, dollars and seconds, in two accountings.

*All stages* (the default everywhere) charges every model that ran. *Answering stage* charges only the model whose
answer was kept, as the tables of "Confidence-Driven Multi-Scale Model Selection" do; it hides the work of the models
that were asked in vain, so it is printed beside the first, never instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from confcascade.errors import ConfigurationError
from confcascade.types import Cost, Prefilled, Usage

__all__ = [
    "Architecture",
    "Prices",
    "attempt_cost",
    "break_even_retention",
    "chain_cost",
    "extension_flops",
    "forward_flops",
    "parameter_count",
    "stopped_flops",
    "token_flops",
]


@dataclass(frozen=True)
class Architecture:
    """The numbers of a decoder that decide its compute.

    Attributes:
        parameters: N, weights that take part in a matrix product for a token: of a mixture the experts that it is sent
            to, of embeddings those that are multiplied (tied ones once, input embeddings that are looked up not).
        layers: n_layer.
        hidden_size: d_model.
        outside_blocks: How many of N are not in the blocks, such as the output layer's: those that a pass which ends
            behind a block never comes to. 0 where that is not known.
    """

    parameters: int
    layers: int
    hidden_size: int
    outside_blocks: int = 0


_UNITS = {"K": 3, "M": 6, "B": 9, "T": 12}


def parameter_count(text: str) -> int:
    """A number of parameters as people write it.

    Raises:
        ValueError: If it is none, or not above 0.

    >>> parameter_count("0.5B"), parameter_count("494e6")
    (500000000, 494000000)
    """
    unit = _UNITS.get(text.strip()[-1:].upper())
    try:
        number = Decimal(text.strip() if unit is None else text.strip()[:-1].rstrip()).scaleb(unit or 0)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError("must be a number of parameters, such as 8B, 350M or 8.03e9")
    if round(number) <= 0:
        raise ValueError("parameters must be above 0")
    return round(number)


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens, as providers state them.

    Attributes:
        input_usd: Of the prompt.
        output_usd: Of the answer and its thoughts.
        cached_input_usd: Of the part of the prompt that the provider read from its cache; None: as the rest. Replays
            bill all of a prompt at `input_usd`: what was cached while a recording was made says nothing of other calls.
    """

    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "cached_input_usd" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigurationError(
                    f"`{name}` must be a price in dollars per million tokens, at least 0. Got {value!r}."
                )

    def of(self, usage: Usage) -> float:
        """What `usage` costs, in US dollars."""
        usd = usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd
        if self.cached_input_usd is not None:
            cached = min(usage.input_details.get("cache_read", 0), usage.input_tokens)
            usd += cached * (self.cached_input_usd - self.input_usd)
        return usd / 1e6


def forward_flops(architecture: Architecture, usage: Usage) -> float:
    """Floating-point operations of reading a prompt and writing an answer.

    Equation 2 of the paper, C_forward = 2N + 2 n_layer n_ctx d_model per token, summed over the p + o tokens with
    each token's own context n_ctx = 1 ... p + o. (Its equation 5 drops the second term, its equation 6 multiplies by
    queries where equation 2 counts tokens; neither shortcut is taken here.)

    Args:
        architecture: N, n_layer and d_model.
        usage: p input and o output tokens.

    Returns:
        Operations, at least 0.

    >>> tiny = Architecture(parameters=1000, layers=2, hidden_size=10)
    >>> forward_flops(tiny, Usage(3, 1))  # 2*1000*4 + 2*2*10*(1+2+3+4)
    8400.0
    """
    flops: float = token_flops(architecture, usage.total_tokens)
    return flops


def token_flops(architecture: Architecture, tokens: Any) -> Any:
    """`forward_flops` of a number of tokens, or of a numpy array of such numbers."""
    contexts = tokens * (tokens + 1) / 2
    return 2.0 * architecture.parameters * tokens + 2.0 * architecture.layers * architecture.hidden_size * contexts


def extension_flops(architecture: Architecture, before: int, tokens: int) -> float:
    """`forward_flops` of so many tokens behind others that are in the KV cache and cost nothing again.

    >>> tiny = Architecture(parameters=1000, layers=2, hidden_size=10)
    >>> extension_flops(tiny, 3, 1)  # 2*1000*1 + 2*2*10*4
    2160.0
    """
    flops: float = token_flops(architecture, before + tokens) - token_flops(architecture, before)
    return flops


def stopped_flops(architecture: Architecture, tokens: Any, depth: float) -> Any:
    """`token_flops` of a prompt whose pass ended behind a share of the blocks: that share of what all of them take.

    Args:
        architecture: Its blocks count as of one size; what is outside of them is not charged.
        tokens: Of the prompt, or a numpy array of such numbers.
        depth: The share, in (0, 1].

    >>> tiny = Architecture(parameters=1000, layers=2, hidden_size=10, outside_blocks=200)
    >>> stopped_flops(tiny, 3, 0.5)  # half of 2*800*3 + 2*2*10*(1+2+3)
    2520.0
    """
    blocks = replace(architecture, parameters=architecture.parameters - architecture.outside_blocks)
    return depth * token_flops(blocks, tokens)


def attempt_cost(
    usage: Usage,
    elapsed_s: float,
    architecture: Architecture | None,
    prices: Prices | None,
    prefilled: Prefilled | None = None,
) -> Cost:
    """The cost of one attempt; what cannot be known is None.

    Args:
        usage: All of it.
        elapsed_s: Likewise.
        architecture: Of the model.
        prices: Of its tokens. A prompt whose pass was ended has all its tokens, and is priced by them.
        prefilled: The pass over the prompt, if one was made: only the operations up to where it ended are charged. Of
            one that was a call of its own, all are, and the answer's own reading of the prompt as well, whatever the
            server's cache may have saved: `usage` has what it reports of that.
    """
    usd = flops = None
    unknown = usage.estimated and not usage.total_tokens  # the model told none
    if prices is not None and not unknown:
        usd = prices.of(usage)
    if architecture is not None and not unknown:
        read = 0 if prefilled is None else prefilled.usage.total_tokens
        if prefilled is not None and prefilled.apart:
            flops = token_flops(architecture, read) + token_flops(architecture, usage.total_tokens - read)
        elif prefilled is None or prefilled.depth is None:
            flops = forward_flops(architecture, usage)
        else:
            flops = stopped_flops(architecture, read, prefilled.depth)
            flops += extension_flops(architecture, read, usage.total_tokens - read)
    return Cost(
        flops=flops,
        tokens=usage.total_tokens,
        usd=usd,
        seconds=elapsed_s,
    )


def chain_cost(kept: Sequence[float], cost: Sequence[float]) -> tuple[float, float]:
    """What a cascade costs if every query costs a stage the same, in both accountings.

    With cost 2 N_j for a query (the paper's equation 6: one token, no context) the second is its "computational cost".

    Args:
        kept: Queries that each stage answers (or shares of them), smallest stage first.
        cost: Of one query at each stage.

    Returns:
        All stages (every query pays for each stage that it reached), and the answering stage alone.

    Raises:
        ValueError: If the two differ in length.

    >>> chain_cost([594, 836], [2 * 8, 2 * 70])  # billions, of the paper's Table 8: 8B -> 70B
    (139920.0, 126544)
    """
    answering = sum(k * c for k, c in zip(kept, cost, strict=True))
    reached = sum(kept)
    every = 0.0
    for k, c in zip(kept, cost, strict=True):
        every += reached * c
        reached -= k
    return every, answering


def break_even_retention(small: float, large: float) -> float:
    """The share of queries that a small first stage must answer before two stages cost less than the large one alone.

    Every query pays for the small stage, and the rest for the large: c_small + (1 - r) c_large < c_large where
    r > c_small / c_large.

    Args:
        small: Cost of a query at the small stage, at least 0.
        large: At the large one, above 0.

    Returns:
        A share; at 1 and beyond no cascade of the two can save anything.

    >>> break_even_retention(3e9, 8e9)
    0.375
    """
    if not (small >= 0 and large > 0):
        raise ValueError(f"`small` must be at least 0 and `large` above 0. Got small={small}, large={large}.")
    return small / large
