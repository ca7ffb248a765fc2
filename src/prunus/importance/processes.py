"""Several processes share the work of scoring: by channels or by batches, and all of them end with the same scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from prunus.errors import EvidenceError


def several_processes() -> bool:
    """Whether a process group of more than one process is running (torchrun, accelerate launch)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def split(evaluate: Callable[[Tensor], Tensor], channels: Tensor, device: torch.device) -> Tensor:
    """``evaluate(channels)``, float64 (n,) on the CPU, of which every process computes a part; the same bits in all of them.

    ``device`` is one that the process group can communicate on.

    Raises:
        EvidenceError: another process failed; where ``evaluate`` fails, that process raises its own error.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    found = torch.zeros(len(channels), dtype=torch.float64)
    error: Exception | None = None
    try:
        found[rank::world] = evaluate(channels[rank::world])
    except Exception as own:  # the others wait for this process: they must hear of it before it is raised
        error = own
    found = _summed(found, device)
    raise_together(error, device)
    return found


def in_step(batches: Iterator[Tensor], device: torch.device, tolerances: Tensor) -> Iterator[None]:
    """Go through ``batches``, each described by figures, float64 (k,), and make sure that all processes are at the same one.

    Raises:
        EvidenceError: figures differ by more than their relative ``tolerances`` (k,), one process has more batches than another,
            or another process failed.
    """
    number = 0
    while True:
        error: Exception | None = None
        figures: Tensor | None = None
        try:
            figures = next(batches, None)
        except Exception as own:
            error = own
        raise_together(error, device)
        number += 1
        going_on = gathered(torch.tensor([float(figures is not None)], dtype=torch.float64), device)
        if not bool(going_on.any()):
            return
        if figures is None or not bool(going_on.all()):
            raise EvidenceError(f"{OTHER_DATA}: some have no batch {number}. {_EVERY_BATCH}")
        every = gathered(figures, device)
        if bool(((every - every[0]).abs() > tolerances * every[0].abs()).any()):
            raise EvidenceError(f"{OTHER_DATA}: batch {number} isn't the same in all of them. {_EVERY_BATCH}")
        yield


def as_the_first(compute: Callable[[], Tensor], device: torch.device) -> Tensor:
    """``compute()``, float64 on the CPU, as process 0 found it: what depends on it is then the same everywhere, to the last bit.

    Raises:
        EvidenceError: the results differ in size, or another process failed.
    """
    found = torch.zeros(0, dtype=torch.float64)
    error: Exception | None = None
    try:
        found = compute()
    except Exception as own:
        error = own
    raise_together(error, device)
    sizes = gathered(torch.tensor([float(found.numel())], dtype=torch.float64), device)
    if bool((sizes != sizes[0]).any()):
        raise EvidenceError(f"{OTHER_DATA}: they don't have the same number of batches. {_EVERY_BATCH}")
    return _summed(found if dist.get_rank() == 0 else torch.zeros_like(found), device)


OTHER_DATA = "the processes of this run score on different data (or on different weights)"
SAME_ORDER = (
    "every process must see all batches in the same order: give a loader that isn't sharded (no DistributedSampler, no "
    "accelerator.prepare) and shuffles, if at all, with the same seed"
)
_EVERY_BATCH = f"The oracle splits channels, not data, so {SAME_ORDER}"


def raise_together(error: Exception | None, device: torch.device) -> None:
    """Raise this process's error, or that another process has one."""
    failed = (
        gathered(torch.tensor([float(error is not None)], dtype=torch.float64), device).flatten().nonzero().flatten().tolist()
    )
    if error is not None:
        raise error
    if failed:
        raise EvidenceError(f"scoring stopped because process {failed[0]} failed: its own message says why")


def gathered(figures: Tensor, device: torch.device) -> Tensor:
    """The figures of all processes, float64 (processes, k)."""
    every = torch.zeros(dist.get_world_size(), len(figures), dtype=torch.float64)
    every[dist.get_rank()] = figures
    return _summed(every, device)


def _summed(values: Tensor, device: torch.device) -> Tensor:
    """Every place is zero in all processes but one, so that the sum is exact."""
    shared = values.to(device)
    dist.all_reduce(shared)
    return shared.cpu()
