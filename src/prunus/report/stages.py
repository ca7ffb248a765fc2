"""Which evaluations of a run stand for the network before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEFORE = "before pruning"


def first_and_last(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluation before pruning (else the first) and the last; one evaluation only once.

    What comes before it, as the evaluation of a network with a new head that is yet to be trained as a whole, is no beginning.
    """
    if not stages:
        return []
    first = next((stage for stage in stages if stage["stage"] == BEFORE), stages[0])
    return [first] if first is stages[-1] else [first, stages[-1]]
