"""Whether two queries were decided alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["same_record"]


def same_record(first: Any, second: Any, tolerance: float = 1e-4) -> bool:
    """Whether two records (`Record.as_dict`) are equal, except for measured times and what was read from a cache.

    What failed attempts have cost is left out, too: of a stream that broke it is known what had come.

    Args:
        tolerance: Of scores: padding in a batch changes the last digits of floating-point sums.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = (set(first) | set(second)) - {"latency_s", "seconds", "reason", "input_details"}
        if any(each.get("decision") == "fail" for each in (first, *first.get("attempts", ()))):
            keys -= {"usage", "cost"}
        return all(key in first and key in second and same_record(first[key], second[key], tolerance) for key in keys)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(
            same_record(a, b, tolerance) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
    return bool(first == second)
