"""Models of strings for the demo: what cannot work is refused before anything is loaded, and each is announced."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from confcascade.asks import LanguageModel
from confcascade.cost import Architecture
from confcascade.errors import ConfigurationError, require
from confcascade.models import from_string
from confcascade.models.gguf import GgufFile, find_gguf, is_gguf, model_name

__all__ = ["check_models", "load_models", "quiet", "show_bars", "size_of"]

_NEEDS = {  # by kind of model string: a package, and the extra that brings it
    "local": ("torch", "local"),
    "bundled": ("torch", "local"),
    "llamacpp": ("xllamacpp", "llamacpp"),
    "openai": ("openai", "openai"),
}
# what they say below that is of no use to who watches the demo
_LOGGERS = {
    "bm25s": logging.WARNING,
    "huggingface_hub": logging.ERROR,
    "llama_index": logging.ERROR,
    "transformers": logging.ERROR,
}


def check_models(models: Sequence[str]) -> None:
    """Refuse what can be seen not to work without loading a model, and warn if a larger one comes first.

    Raises:
        ConfigurationError: If there are fewer than two, a string is of no kind, a GGUF file is not there, or it has no
            chat template.
        MissingExtraError: If a package is not installed.
    """
    if len(models) < 2:
        raise ConfigurationError(
            f"A cascade needs at least two models, smallest first. Got {len(models)}. Give --models for each."
        )
    files = []
    for model in models:
        kind, _, name = model.partition(":")
        if kind not in _NEEDS or not name:
            from_string(model)  # it says what a model string is
        else:
            require(*_NEEDS[kind])
        files.append(_gguf(kind, name))
    for file in files:
        if file is not None and file.chat_template is None:
            raise _no_template(file.path.name)
    _warn_of_order(models, [None if file is None else file.architecture for file in files])


def load_models(models: Sequence[str], console: Console) -> list[LanguageModel]:
    """The models, each announced before it is loaded and once it is there.

    Raises:
        ConfigurationError: If one cannot be loaded, or completes text where it should answer.
    """
    loaded: list[LanguageModel] = []
    for model in models:
        started = time.perf_counter()
        console.print(f"Loading {escape(model)}", highlight=False, soft_wrap=True)
        kind, _, place = model.partition(":")
        show_bars(kind == "local" and not Path(place).expanduser().exists())  # it may have to be downloaded
        found = from_string(model)
        tokenizer = getattr(found, "tokenizer", None)  # of a model of transformers
        if tokenizer is not None and tokenizer.chat_template is None:
            raise _no_template(found.name)
        console.print(
            f"  {size_of(found.architecture)}, ready in {time.perf_counter() - started:.1f} s", highlight=False
        )
        loaded.append(found)
    if not all(_gguf(*model.partition(":")[::2]) for model in models):  # of GGUF files it was known before
        _warn_of_order(models, [model.architecture for model in loaded])
    return loaded


def quiet() -> None:
    """Keep the libraries' own messages out of the tables."""
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def show_bars(shown: bool) -> None:
    """Whether transformers and the hub show bars while they load and download."""
    with contextlib.suppress(ImportError):
        from transformers.utils.logging import disable_progress_bar, enable_progress_bar

        (enable_progress_bar if shown else disable_progress_bar)()


def size_of(architecture: Architecture | None) -> str:
    """Parameters as people write them: "135M parameters"."""
    if architecture is None:
        return "size unknown"
    parameters = architecture.parameters
    if parameters < 1e6:
        return f"{parameters / 1e3:.0f}K parameters"
    return f"{parameters / 1e9:.1f}B parameters" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M parameters"


def _gguf(kind: str, place: str) -> GgufFile | None:
    """The file that a model string names, its head read; None if it names something else."""
    if kind not in ("local", "llamacpp"):
        return None
    path = Path(place).expanduser()
    found = find_gguf(path)
    return GgufFile(found or path) if found is not None or kind == "llamacpp" or is_gguf(place) else None


def _warn_of_order(models: Sequence[str], architectures: Sequence[Architecture | None]) -> None:
    names = [model_name(model.partition(":")[2]) for model in models]
    for (first, before), (second, after) in pairwise(zip(names, architectures, strict=True)):
        if before is not None and after is not None and before.parameters > after.parameters:
            warnings.warn(
                f"Models go smallest first, and '{first}' ({size_of(before)}) stands before '{second}' "
                f"({size_of(after)}). Give --models the other way around.",
                stacklevel=3,
            )


def _no_template(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"'{name}' has no chat template: it is a base model, which continues a text and does not answer. Take one that "
        "is trained to follow instructions; its name often ends in Instruct, it or chat."
    )
