"""What each of two processes does in `test_two_processes.py`: score, and run into errors that only one of them has.

Called as ``python one_of_two_processes.py RANK FOLDER``; leaves ``RANK.json`` in the folder.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import prunus
from prunus.importance.evidence import DataRun
from prunus.importance.oracle_batches import Ablation, Batch
from prunus.importance.shared_evidence import MEANS
from prunus.surgery import randomise
from small_nets import Plain, batches, images

SHARED: list[tuple[str, dict[str, Any]]] = [
    ("oracle", {}),
    ("oracle", {"signed": True}),
    ("oracle", {"racing": True}),
    ("oracle", {"greedy": "absolute"}),
]
"""Criteria whose work the processes share."""
DIVIDED: list[tuple[str, dict[str, Any]]] = [(name, {}) for name, row in prunus.CRITERIA.items() if row.needs & MEANS.keys()]
"""Criteria whose minibatches the processes divide."""
ALONE: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name, row in prunus.CRITERIA.items() if row.needs - MEANS.keys() and name != "oracle"
]
"""Criteria that every process computes for itself."""
Found = dict[str, dict[str, list[float]]]


def network() -> tuple[torch.nn.Module, prunus.ChannelGraph]:
    torch.manual_seed(0)
    model = randomise(Plain((5, 6, 7))).double().eval()
    with torch.no_grad():
        model.two[0].weight[:, 1] *= 1e-4  # the one that a race is sure to find lowest
    return model, prunus.trace(model, images(dtype=torch.float64))


def data(number: int) -> list[tuple[Tensor, Tensor]]:
    return batches(number, 4, torch.float64)


def every_score() -> Found:
    """Scores of every criterion that sees data: name and options -> group -> scores."""
    model, graph = network()
    found: Found = {}
    for criterion, options in (*SHARED, *DIVIDED, *ALONE):
        some = data(60 if "racing" in options else 1 if "greedy" in options else 2)
        if (
            criterion,
            options,
        ) in DIVIDED:  # five batches, the last of them smaller: three for one process, two for the other
            some = [*data(4), tuple(part[:1] for part in data(1)[0])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", prunus.PrunusWarning)
            scores = prunus.score(model, graph, criterion, some, seed=4, **options)
        found[f"{criterion} {options}"] = {name: values.tolist() for name, values in scores.by_group.items()}
    return found


def own_batches() -> int:
    """How many of five minibatches go through the network here for a first-order criterion."""
    model, graph = network()
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    prunus.score(model, graph, "taylor", data(5))
    return len(seen)


def own_share() -> list[int]:
    """How many channels this process silences itself of each group, on one batch."""
    counts: list[int] = []
    plain = Ablation._losses

    def counted(self: Ablation, batch: Batch, name: str, channels: Tensor) -> Tensor:
        counts.append(len(channels))
        return plain(self, batch, name, channels)

    Ablation._losses = counted
    try:
        prunus.score(*network(), "oracle", data(1))
    finally:
        Ablation._losses = plain
    return counts


def agreed(rank: int) -> list[list[float]]:
    """What a process takes its own figures for, where the work is shared and where it isn't."""
    model, graph = network()
    own = torch.tensor([float(rank), 5.0], dtype=torch.float64)
    return [Ablation(model, graph, DataRun(data(1)), shared=shared).agreed(lambda: own).tolist() for shared in (True, False)]


def error_of(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def errors(rank: int) -> dict[str, str]:
    """What each process hears when data differ, or when the second one fails."""
    model, graph = network()
    shared = Ablation(model, graph, DataRun(data(1)), shared=True)

    def oracle(some: Any, loss_fn: Any = None) -> Callable[[], Any]:
        return lambda: prunus.score(model, graph, "oracle", some, loss_fn)

    def broken() -> Iterator[Any]:
        yield data(1)[0]
        if rank == 1:
            raise OSError("the disk is gone")
        yield data(1)[0]

    calls = 0

    def nan_once_channels_are_silent(output: Tensor, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = torch.nn.functional.cross_entropy(output, batch[1])
        return loss * float("nan") if rank == 1 and calls > 1 else loss

    return {
        "sharded": error_of(oracle(data(4)[rank::2])),
        "sharded, one loss": error_of(oracle(data(4)[rank::2], lambda output, _: output.sum() * 0 + 1)),
        "more": error_of(oracle(data(2 + rank))),
        "broken": error_of(oracle(broken())),
        "nan": error_of(oracle(data(1), nan_once_channels_are_silent)),
        "empty": error_of(oracle([])),
        "sizes": error_of(lambda: shared.agreed(lambda: torch.zeros(2 + rank, dtype=torch.float64))),
        "taylor, sharded": error_of(lambda: prunus.score(model, graph, "taylor", data(4)[rank::2])),
        "taylor, more": error_of(lambda: prunus.score(model, graph, "taylor", data(2 + rank))),
        "taylor, broken": error_of(lambda: prunus.score(model, graph, "taylor", broken())),
        "taylor, empty": error_of(lambda: prunus.score(model, graph, "taylor", [])),
        "taylor, one batch": error_of(lambda: prunus.score(model, graph, "taylor", data(1))),
        "well": error_of(oracle(data(1))),  # nobody is out of step afterwards
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {
        "scores": every_score(),
        "share": own_share(),
        "batches": own_batches(),
        "agreed": agreed(rank),
        "errors": errors(rank),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
