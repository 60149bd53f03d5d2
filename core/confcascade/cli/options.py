"""What options of several commands say: NAME=VALUE, and sizes, prices and thresholds as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from confcascade.errors import ConfigurationError

if TYPE_CHECKING:
    from confcascade.cost import Architecture, Prices
    from confcascade.signals import Threshold

__all__ = ["architecture", "pair", "prices", "threshold"]

T = TypeVar("T")


def pair(text: str, option: str, read: Callable[[str], T]) -> tuple[str, T]:
    """NAME=VALUE, the value read."""
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise ConfigurationError(f"{option} takes NAME=VALUE. Got '{text}'.")
    try:
        return name.strip(), read(value.strip())
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{option} '{text}': {error}.") from error


def threshold(text: str) -> Threshold:
    """A number, "always" or "never"."""
    return text if text in ("always", "never") else float(text)  # type: ignore[return-value]


def architecture(text: str) -> Architecture:
    """A number of parameters."""
    from confcascade.cost import Architecture

    number = int(float(text))
    if number <= 0:
        raise ValueError("parameters must be above 0")
    return Architecture(number, 0, 0)  # of layers and width nothing is known: 2N a token


def prices(text: str) -> Prices:
    """INPUT,OUTPUT in dollars per million tokens."""
    from confcascade.cost import Prices

    read, _, written = text.partition(",")
    return Prices(float(read), float(written or read))
