"""Every error and warning that Prunus raises on purpose.

A message says what happened, where, why, and what to do next, in one readable paragraph.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_LONGEST = 4_000


class PrunusError(Exception):
    """Base class: catch this to catch every error that Prunus raises on purpose."""

    def __init__(self, message: str = "") -> None:
        """A message of a reasonable length: names that come from a file can be of any."""
        if len(message) > _LONGEST:
            half = _LONGEST // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)


class UnknownName(PrunusError):
    """A criterion, allocator, model, data set or selector that names nothing."""

    @classmethod
    def among(cls, kind: str, name: object, known: Iterable[str]) -> UnknownName:
        """Build the error with the nearest known names, e.g. ``unknown criterion 'l3': did you mean l1?``."""
        names = sorted(known)
        near = get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(names)}"
        return cls(f"unknown {kind} {str(name)!r}: {hint}")


class UnsupportedNetwork(PrunusError):
    """The network can't be traced or operated on as it was given (wrapped, compiled, lazy, non-finite, ...)."""


class NothingPruned(PrunusError):
    """There is no channel to remove: everything is frozen, or the request removes nothing."""


class InvalidBudget(PrunusError):
    """A budget that can't be read: zero, negative, a fraction above one, an unknown unit."""


class BudgetNotMet(PrunusError):
    """No allowed plan meets the budget. ``plan`` is the nearest one that was found, or None."""

    def __init__(self, message: str, plan: Any = None) -> None:
        super().__init__(message)
        self.plan = plan


class ProcessError(PrunusError):
    """Of several processes that carry out one run, another one failed, or they don't agree on a result."""


class EvidenceError(PrunusError):
    """Data for a criterion are missing, empty, or give a non-finite loss."""


class VerificationFailed(PrunusError):
    """The small network differs from the silenced one. ``report`` holds the figures."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class ArtifactError(PrunusError):
    """A file that can't be read or written as a Prunus artifact or as weights."""


class RecipeError(PrunusError):
    """A recipe or a command-line setting that doesn't fit the schema."""


class DataError(PrunusError):
    """Images or labels that can't be loaded."""


class TrainingError(PrunusError):
    """Training can't go on: non-finite loss, a loader that yields nothing, a checkpoint of another run."""


class ExportError(PrunusError):
    """An export failed or doesn't agree with the PyTorch network."""


class PrunusWarning(UserWarning):
    """Something the user should know and that doesn't stop the work."""


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise `MemoryError` if that is what happened, in PyTorch's words or Python's: it says nothing about the network."""
    said = isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in str(error) or "out of memory" in str(error))
    if said or isinstance(error, MemoryError):
        raise MemoryError(
            "memory ran out. A check holds up to five copies of the network, two of them in float64: free memory, take smaller "
            f"example_inputs, or leave the check out with verify=False ({error})"
        ) from error
