"""What a step of an answer is, in cascade files and in policies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from confcascade.schema import Entry

__all__ = ["StepsFields"]


class StepsFields(Entry):
    """What a step of an answer is, and who ends the answer (`Steps`)."""

    delimiter: str = Field(default="\n\n", min_length=1, description="What ends a step; in YAML with double quotes.")
    max_steps: int = Field(default=64, ge=1, description="After so many, the large model writes the rest.")
    final: Literal["author", "large"] = Field(default="author", description="Who may write the last step.")
