"""What a recording was made with, in a file beside it: ``rec.jsonl.meta.json`` for ``rec.jsonl``.

The recording itself holds rows alone. Rows that were asked otherwise must not go into one file, so a run that would ask
otherwise is refused; a model may be added, for no row of another is touched by it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from confcascade.asks import LanguageModel
from confcascade.bench.questions.prompts import Prompt
from confcascade.bench.recording.digest import digest
from confcascade.cascade_model import CascadeModel
from confcascade.cost import Architecture, Prices
from confcascade.decoding import Decoding, asked_with
from confcascade.errors import ConfigurationError
from confcascade.graders import Grader
from confcascade.stage import Stage
from confcascade.stepwise_cascade import StepwiseCascade

__all__ = ["Noted", "bind", "identity_of", "meta_path", "noted", "versions"]

FORMAT = 1
_DECODING = {each.name for each in fields(Decoding)}
_PACKAGES = ("confcascade", "numpy", "torch", "transformers", "openai")


def meta_path(recording: str | Path) -> Path:
    """The file beside a recording."""
    return Path(f"{recording}.meta.json")


def identity_of(
    data: str | Path | None,
    stages: Sequence[Stage],
    prompt: Prompt,
    grader: Grader,
    parameters: Mapping[str, Any],
    *,
    part: str | None = None,
) -> dict[str, Any]:
    """All that decides what the rows of a recording say, JSON-ready.

    Thresholds, prices and rate limits are no part of it, but of a cascade that writes step by step and is recorded as a
    model (`CascadeModel`) they are, for they make its answers and their costs; so is `part`, of data that hold several.
    Of questions that come from no file, `data` is None: they are known by their ids only.
    """
    return {
        **({} if data is None else {"data": digest(data)}),
        **({} if part is None else {"part": part}),
        "prompt": prompt.version,
        "grader": dict(grader.identity()),
        "parameters": dict(parameters),
        "models": {
            stage.model.name: {
                "fingerprint": getattr(stage.model, "fingerprint", None),
                "decoding": asked_with(stage.model, stage.decoding, parameters),
                "signals": {signal.name: dict(signal.identity()) for signal in stage.signals},
                **_in_turn(stage.model, parameters),
            }
            for stage in stages
        },
    }


def _in_turn(model: LanguageModel, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a cascade as a model writes by, step by step: all that a policy of it must know."""
    cascade = model.cascade if isinstance(model, CascadeModel) else None
    if not isinstance(cascade, StepwiseCascade):
        return {}
    stages = [
        {
            "model": stage.model.name,
            "fingerprint": getattr(stage.model, "fingerprint", None),
            "decoding": asked_with(stage.model, stage.decoding, parameters),
            "signals": {signal.name: dict(signal.identity()) for signal in stage.signals},
            "thresholds": dict(stage.thresholds),
            "prices": None if stage.prices is None else asdict(stage.prices),
        }
        for stage in cascade.stages
    ]
    return {"stepwise": {"steps": asdict(cascade.steps), "stages": stages}}


@dataclass(frozen=True)
class Noted:
    """What is noted of a recording's models, for whoever judges it: no row hangs on it.

    Attributes:
        architectures: By the model's name, without the models whose sizes are not known.
        prices: Likewise.
    """

    architectures: Mapping[str, Architecture] = field(default_factory=dict)
    prices: Mapping[str, Prices] = field(default_factory=dict)

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Noted:
        """What the models of stages tell of themselves, and the stages of prices."""
        sizes = {stage.model.name: stage.model.architecture for stage in stages}
        prices = {stage.model.name: stage.prices for stage in stages}
        return cls(
            {name: size for name, size in sizes.items() if size is not None},
            {name: price for name, price in prices.items() if price is not None},
        )


def noted(recording: str | Path) -> Noted:
    """What `bind` noted beside a recording; nothing, if the recording comes from elsewhere.

    Raises:
        ConfigurationError: If the file beside it cannot be read.
    """
    path = meta_path(recording)
    if not path.exists():
        return Noted()
    told = _read(path).get("models", {})
    try:
        return Noted(
            {name: Architecture(**each["architecture"]) for name, each in told.items() if "architecture" in each},
            {name: Prices(**each["prices"]) for name, each in told.items() if "prices" in each},
        )
    except (TypeError, AttributeError) as error:
        raise ConfigurationError(f"'{path}' does not tell sizes and prices as it should: {error}.") from error


def bind(
    recording: str | Path,
    identity: Mapping[str, Any],
    run: Mapping[str, Any],
    notes: Noted | None = None,
    *,
    prompt: Prompt | None = None,
    noted: bool = False,
) -> None:
    """Write down what a recording is made with; or see that it goes on as it began, and note the run.

    Args:
        recording: Held open by its writer, so that nobody else does the same.
        identity: By `identity_of`.
        run: Further facts of this run, JSON-ready; versions and the time are added.
        notes: Of the models, in the place of what was noted of them before.
        prompt: That of `identity`, whose templates are kept in words, too: a version alone says nothing to a reader.
        noted: Whether this run is noted already, if what is noted agrees with `identity`.

    Raises:
        ConfigurationError: If it was made otherwise, naming what differs, or by something other than ``collect``.
    """
    path = meta_path(recording)
    ours = json.loads(json.dumps(identity, default=_told))
    meta: dict[str, Any] = {"format": FORMAT, "identity": ours, "runs": []}
    begun = Path(recording).exists() and Path(recording).stat().st_size > 0
    known = _read(path) if path.exists() and (begun or noted) else None
    differing = None
    if known is not None:
        theirs = known["identity"]
        ours = {name: theirs[name] for name in ("data", "part") if "data" not in ours and name in theirs} | ours
        shared = [name for name in ours["models"] if name in theirs["models"]]
        differing = next(_differences(_compared(theirs, shared), _compared(ours, shared)), None)
    if known is not None and differing is not None and begun:  # of a run that recorded nothing, nothing has to fit
        what, *sides = differing
        was, given = map(_brief, sides)
        if what == "prompt":
            was += _templates(known.get("prompt"))
            given += _templates(None if prompt is None else asdict(prompt))
        raise ConfigurationError(
            f"'{recording}' was collected otherwise: {what} was {was} and is now {given}. Its rows "
            "would not fit together; collect into another file, or ask as before."
        )
    if known is not None and differing is None:
        meta = known
        meta["identity"]["models"] |= ours["models"]
    elif begun:
        raise ConfigurationError(
            f"'{recording}' holds rows, but '{path.name}' is not beside it, so how they were asked for is not known. "
            "Collect into another file."
        )
    if prompt is not None:
        meta["prompt"] = asdict(prompt)
    models = meta.setdefault("models", {})
    for key, facts in (("architecture", notes.architectures), ("prices", notes.prices)) if notes is not None else ():
        for name, fact in facts.items():
            models.setdefault(name, {})[key] = asdict(fact)
    if not (noted and meta["runs"]):
        started = datetime.now(UTC).isoformat(timespec="seconds")
        meta["runs"].append({"started": started, **run, "versions": versions()})
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)  # whole or not at all


def _told(value: Any) -> Any:
    """What JSON has no form for: its fields, or its class, for a repr may hold an address."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return type(value).__qualname__


def _read(path: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if meta["format"] == FORMAT and isinstance(meta["identity"]["models"], dict) and isinstance(meta["runs"], list):
            return meta
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigurationError(f"'{path}' does not tell what a recording was made with; collect into another file.")


def _compared(identity: Mapping[str, Any], shared: Sequence[str]) -> dict[str, Any]:
    """An identity, only these models in it; where it is of an older version, as if it had noted their decoding."""
    parameters = {name: value for name, value in identity["parameters"].items() if name not in _DECODING}
    asked = {name: value for name, value in identity["parameters"].items() if name in _DECODING}
    models = {name: {"decoding": asked, **identity["models"][name]} for name in shared}
    return {**identity, "parameters": parameters, "models": models}


def _differences(was: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(was.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif was != now:
        yield at, was, now


def _brief(value: Any) -> str:
    told = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 60 else told[:57] + "..."


def _templates(told: Mapping[str, Any] | None) -> str:
    """A prompt in brackets; nothing where it was not kept."""
    if told is None:
        return ""
    system = f"system {_brief(told['system'])}, " if told.get("system") else ""
    return f" ('{told.get('name')}': {system}user {_brief(told.get('user'))})"


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Of Python, and of those of `packages` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
