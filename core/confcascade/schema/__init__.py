"""Parts of files that make a cascade, cascade files and policies: no unknown keys, and values of the very type.

What they have in common is here, the signals in `signals`.

Not imported by `confcascade` itself: this package needs pydantic at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from confcascade.signals import OneThreshold, Threshold

__all__ = ["Entry", "PromptValue", "ThresholdValue", "ThresholdValues", "existing", "located", "suggestion"]

T = TypeVar("T")

SECRET = "keys are not kept in the file; name the environment variable that holds it, such as `api_key_env: MY_KEY`"


def located(problem: str, *keys: str | int) -> PydanticCustomError:
    """An error about a key below the part that is being validated."""
    return PydanticCustomError("cascade_file", "{problem}", {"problem": problem, "keys": keys})


def suggestion(wrong: Any, known: list[str]) -> str:
    """What may have been meant, or all that there is."""
    close = get_close_matches(str(wrong), known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there is {', '.join(f'`{name}`' for name in known)}"


class Entry(BaseModel):
    """A part of a cascade file."""

    # a value may be a key by mistake, so errors do not show it
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, Mapping) else ():
            if key not in known:
                told = SECRET if key == "api_key" else f"unknown key; {suggestion(key, known)}"
                raise located(told, key)
        return data


def existing(folder: Path, path: str) -> Path:
    """A path of the file: relative to its folder, or absolute; "~" is the user's home."""
    return folder / Path(path).expanduser()


def _one_threshold(value: Any) -> OneThreshold:
    if isinstance(value, str) and value in ("always", "never"):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise located('must be a number such as 0.9, "always" or "never"')
    return float(value)


def _threshold(value: Any) -> Threshold:
    return _each(value, _one_threshold) if isinstance(value, Mapping) else _one_threshold(value)


def _thresholds(value: Any) -> Threshold | dict[str, Threshold]:
    return _each(value, _threshold) if isinstance(value, Mapping) else _one_threshold(value)


def _each(values: Mapping[Any, Any], read: Callable[[Any], T]) -> dict[str, T]:
    found = {}
    for name, each in values.items():
        if not isinstance(name, str):  # YAML reads a bare `yes` as true
            raise located(f"write {name!r} in quotes, as it is a text", str(name))
        try:
            found[name] = read(each)
        except PydanticCustomError as error:
            told = error.context or {}
            raise located(told["problem"], name, *told["keys"]) from None
    return found


_ONE: dict[str, Any] = {"anyOf": [{"type": "number"}, {"enum": ["always", "never"]}]}
_BY_LABEL = {"type": "object", "additionalProperties": _ONE}
_ANY = {"anyOf": [*_ONE["anyOf"], _BY_LABEL]}
_MANY = {"type": "object", "additionalProperties": _ANY}
ThresholdValue: TypeAlias = Annotated[Threshold, PlainValidator(_threshold), WithJsonSchema(_ANY)]
ThresholdValues: TypeAlias = Annotated[
    Threshold | dict[str, Threshold], PlainValidator(_thresholds), WithJsonSchema({"anyOf": [*_ONE["anyOf"], _MANY]})
]


def _prompt(value: Any) -> str | dict[str, str]:
    told = value.values() if isinstance(value, Mapping) else [value]
    if not told or not all(isinstance(each, str) for each in told):
        raise located("must be the name of a prompt, or a mapping of templates, {system: ..., user: ...}")
    return dict(value) if isinstance(value, Mapping) else str(value)


PromptValue: TypeAlias = Annotated[
    str | dict[str, str],
    PlainValidator(_prompt),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
