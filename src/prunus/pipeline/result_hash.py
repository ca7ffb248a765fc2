"""What of a result is the same whenever the same recipe runs on the same machine, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

_MEASURED = frozenset(
    {"created", "command", "seconds", "images_per_second", "training_images_per_second", "measured", "peak_memory_bytes"}
    | {"latency", "latency_before", "latency_after", "environment", "warnings", "hash", "sha256", "ms"}
)
"""Keys of times and memory, of where and how the run was started, and of warnings, which a resumed run has one more of."""


def without_times(tree: Any) -> Any:
    """``tree`` without what a clock measured or what a stop and another start change."""
    if isinstance(tree, Mapping):
        items = cast("Mapping[str, Any]", tree).items()
        return {key: without_times(value) for key, value in items if key not in _MEASURED}
    return [without_times(value) for value in cast("list[Any]", tree)] if isinstance(tree, list | tuple) else tree


def result_hash(result: Mapping[str, Any]) -> str:
    """SHA-256 of `without_times`: the same recipe on the same device, with the same versions and threads, gives the same."""
    return hashlib.sha256(json.dumps(without_times(result), sort_keys=True).encode()).hexdigest()
