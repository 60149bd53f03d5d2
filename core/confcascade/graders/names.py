"""Graders by name, for the command line and for files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from confcascade.errors import ConfigurationError
from confcascade.graders.choice import ChoiceLetter
from confcascade.graders.function import Function
from confcascade.graders.grader import REFUSAL, Grader
from confcascade.graders.judge import LLMJudge
from confcascade.graders.numeric import Numeric
from confcascade.graders.structured import StructuredMatch
from confcascade.graders.texts import ContainsAny, ExactMatch, NormalizedMatch

__all__ = ["grader_from_string"]

_PLAIN: dict[str, Callable[..., Grader]] = {
    grader.name: grader for grader in (ChoiceLetter, ExactMatch, NormalizedMatch, ContainsAny)
}
_FORMS = (*_PLAIN, "numeric", "numeric:TOLERANCE", "structured:MODULE:CLASS", "structured:MODULE:CLASS#FIELD")


def grader_from_string(name: str, *, refusal: str = REFUSAL) -> Grader:
    """The grader that a text names.

    Args:
        name: "choice", "exact", "normalized", "contains", "numeric", "numeric:0.01" (its tolerance),
            "structured:module:Class", "structured:module:Class#field", "judge:MODEL" (such as "judge:openai:gpt-4o"),
            or "module:function" for a function of your own. Modules are imported: name only those you trust.
        refusal: See `Grader`.

    Raises:
        ConfigurationError: If it names none, or what it names cannot be imported.
    """
    kind, _, rest = name.partition(":")
    if name in _PLAIN:
        return _PLAIN[name](refusal=refusal)
    if kind == Numeric.name:
        return Numeric(tolerance=_tolerance(rest) if rest else 0.0, refusal=refusal)
    if kind == LLMJudge.name and rest:
        return LLMJudge(rest, refusal=refusal)
    if kind == StructuredMatch.name and ":" in rest:
        place, _, key = rest.partition("#")
        return StructuredMatch(_imported(place), key=key or None, refusal=refusal)
    if kind and rest and kind not in (*_PLAIN, StructuredMatch.name):
        return Function(_imported(name), refusal=refusal)
    raise ConfigurationError(
        f"A grader must be one of {', '.join(_FORMS)}, judge:MODEL, or module:function. Got '{name}'."
    )


def _tolerance(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"The tolerance of the grader 'numeric:{text}' must be a number.") from error


def _imported(place: str) -> Any:
    module, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"The module '{module}' of the grader '{place}' cannot be imported: {error}."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"The module '{module}' has no '{path}'.")
        found = getattr(found, part)
    return found
