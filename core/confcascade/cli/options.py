"""Options of several commands, and what they say: NAME=VALUE, and sizes, prices and thresholds as values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.cost import Architecture, Prices
    from confcascade.signals import Threshold

__all__ = [
    "DataFormat",
    "GraderOfAll",
    "Limit",
    "LocalModel",
    "Models",
    "Parameters",
    "PerToken",
    "PromptOrFiles",
    "Unit",
    "architecture",
    "pair",
    "prices",
    "threshold",
]

T = TypeVar("T")
DataFormat: TypeAlias = Annotated[
    str,
    typer.Option("--format", help="auto, own, mmlu, mmlu_pro, gpqa, popqa, gsm8k, arc, squad or truthfulqa."),
]
LocalModel: TypeAlias = Annotated[
    str | None, typer.Option(help="local:NAME or bundled:SIZE; with --cascade, the name of one of its models.")
]
PromptOrFiles: TypeAlias = Annotated[
    str | None,
    typer.Option(help="How questions are put: a prompt's name. By default the cascade file's, else plain."),
]
GraderOfAll: TypeAlias = Annotated[
    str | None,
    typer.Option(help="As of `confcascade collect`. By default choice, if every question has choices."),
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Use so many questions, drawn by a hash: a larger number adds to them.")
]
Models: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Smallest first: small,large. By default all, by their prices or sizes, else as they come."),
]
PerToken: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="MODEL=INPUT,OUTPUT: dollars per million tokens. Repeat for each model. By default as the cascade "
        "file says, or as was noted at the collecting. So are --parameters."
    ),
]
Parameters: TypeAlias = Annotated[
    str | None,
    typer.Option(help="MODEL=NUMBER,...: parameters, 2N operations a token: small=8B,large=70.6e9."),
]
Unit: TypeAlias = Annotated[
    str | None,
    typer.Option(help="In which costs count: flops, usd, tokens or seconds. By default the first that is known."),
]


def pair(text: str, option: str, read: Callable[[str], T]) -> tuple[str, T]:
    """NAME=VALUE, the value read."""
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise ConfigurationError(f"{option} takes NAME=VALUE. Got '{text}'.")
    try:
        return name.strip(), read(value.strip())
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{option} '{text}': {str(error).rstrip('.')}.") from error


def threshold(text: str) -> Threshold:
    """A number, "always" or "never"."""
    if text in ("always", "never"):
        return text  # type: ignore[return-value]
    if not math.isfinite(number := _number(text)):
        raise ValueError("must be a number, such as 0.9 (90 % is 0.9), or always, or never")
    return number


def architecture(text: str) -> Architecture:
    """A number of parameters: 8030000000, 8.03e9 or 8.03B."""
    from confcascade.cost import Architecture, parameter_count

    return Architecture(parameter_count(text), 0, 0)  # of layers and width nothing is known: 2N a token


def prices(text: str) -> Prices:
    """INPUT,OUTPUT in dollars per million tokens; one number is for both."""
    from confcascade.cost import Prices

    told = [_number(part) for part in text.split(",")]
    if len(told) > 2 or not all(map(math.isfinite, told)):
        raise ValueError("must be dollars per million tokens, read and written, such as 0.15,0.6")
    return Prices(told[0], told[-1])


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
