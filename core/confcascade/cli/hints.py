"""Which option of the command line gives an argument that a message of the library names."""

from __future__ import annotations

import re

__all__ = ["with_options"]

OPTIONS = {
    "architectures": "--parameters",
    "by_group": "--by-group",
    "described": "--cascade",
    "examples": "--data",
    "keep_text": "--text",
    "late_share": "--late-share",
    "max_asked": "--max-asked",
    "max_drop": "--max-drop",
    "models": "--models",
    "most_tokens": "--most-tokens",
    "part": "--part",
    "prices": "--prices",
    "prompt": "--prompt",
    "timeout": "--timeout",
    "unit": "--unit",
}


def with_options(message: str) -> str:
    """The message, with the option of each argument that it names as ``name=value`` in backticks, once.

    >>> with_options("Give sizes (`architectures=...`) of every model.")
    'Give sizes (`architectures=...`) of every model. (Here: `architectures` is --parameters.)'
    """
    named = dict.fromkeys(re.findall(r"`(\w+)=", message))
    options = [f"`{name}` is {OPTIONS[name]}" for name in named if name in OPTIONS]
    return f"{message} (Here: {', '.join(options)}.)" if options else message
