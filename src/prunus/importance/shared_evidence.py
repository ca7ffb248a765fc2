"""Several processes divide the minibatches of a collection among them: evidence that is a mean over data comes out the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus.errors import EvidenceError
from prunus.importance.evidence import DataRun, NoBatches
from prunus.importance.processes import OTHER_DATA, SAME_ORDER, gathered, raise_together, several_processes
from prunus.types import ChannelGraph, first_tensor

Found: TypeAlias = dict[str, dict[str, Tensor]]

MEANS: dict[str, Literal["batches", "examples"]] = {
    **dict.fromkeys(("gate_gradients", "example_gate_gradients", "absolute_products", "weight_products"), "batches"),
    **dict.fromkeys(("norm_products", "norm_scale_products", "second_order_changes", "gate_curvatures"), "batches"),
    **dict.fromkeys(("product_means", "gradient_means", "apoz", "activation_mean", "feature_map_rank"), "examples"),
}
"""Kinds of evidence that are means over minibatches, or over examples; the others need all data in one place (a standard
deviation, a drawn sample, an order of removal), or divide channels instead (the oracle)."""

_TOLERANCE = 1e-6  # of the sums that tell batches apart: relative


def collect_shared(
    kinds: Collection[str], model: nn.Module, graph: ChannelGraph, run: DataRun, collect: Callable[..., Found]
) -> Found:
    """Evidence of the ``kinds`` in `MEANS` that several processes find faster: each collects it on every n-th minibatch.

    All must be called with the same data, and all get the same figures, to the last bit. Empty where one process runs.

    Raises:
        EvidenceError: the data differ between the processes, or another process failed.
    """
    wanted = sorted(kind for kind in kinds if kind in MEANS)
    if not wanted or not several_processes():
        return {}
    share, found = _Share(run), Found()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = device if dist.get_backend() != "gloo" else torch.device("cpu")
    error: Exception | None = None
    try:
        found = collect(wanted, model, graph, replace(run, data=share, batches=None))
    except NoBatches as empty:  # more processes than minibatches: this one has nothing to add
        error = None if share.sums else empty
    except Exception as own:  # the others wait for this process: they must hear of it before it is raised
        error = own
    raise_together(error, device)
    share.check_same(device)
    counts = gathered(torch.tensor([float(share.own), float(share.examples)], dtype=torch.float64), device)
    weights = dict(zip(("batches", "examples"), counts.unbind(dim=1), strict=True))
    every = gathered(_flat(found, wanted, graph), device)
    return {kind: _mean(every, weights[MEANS[kind]], wanted.index(kind), graph) for kind in wanted}


class _Share:
    """The minibatches of one process; counts them and, of all, remembers a sum that tells them apart."""

    def __init__(self, run: DataRun) -> None:
        self.run = run
        self.sums: list[float] = []
        self.own = self.examples = 0

    def __iter__(self) -> Iterator[Any]:
        self.sums, self.own, self.examples = [], 0, 0
        rank, world = dist.get_rank(), dist.get_world_size()
        for number, batch in enumerate(islice(self.run.data, self.run.batches)):
            inputs = first_tensor(self.run.inputs(batch))
            self.sums.append(0.0 if inputs is None else float(inputs.detach().double().sum()))
            if number % world == rank:
                self.own += 1
                self.examples += 1 if inputs is None or inputs.ndim == 0 else len(inputs)
                yield batch

    def check_same(self, device: torch.device) -> None:
        """Raise `EvidenceError` where another process had other minibatches."""
        counts = gathered(torch.tensor([float(len(self.sums))], dtype=torch.float64), device)
        if bool((counts != counts[0]).any()):
            raise EvidenceError(f"{OTHER_DATA}: they don't have the same number of batches. {_SAME}")
        every = gathered(torch.tensor(self.sums, dtype=torch.float64), device)
        differ = ((every - every[0]).abs() > _TOLERANCE * every[0].abs()).any(dim=0).nonzero().flatten().tolist()
        if differ:
            raise EvidenceError(f"{OTHER_DATA}: batch {differ[0] + 1} isn't the same in all of them. {_SAME}")


_SAME = f"Minibatches are divided while scoring, so {SAME_ORDER}"


def _flat(found: Mapping[str, Mapping[str, Tensor]], kinds: list[str], graph: ChannelGraph) -> Tensor:
    """All evidence as one vector: for every kind and group whether it is there, then its values."""
    parts: list[Tensor] = []
    for kind in kinds:
        for group in graph.groups:
            values = found.get(kind, {}).get(group.name)
            there = torch.tensor([float(values is not None)], dtype=torch.float64)
            parts += [there, torch.zeros(group.num_channels, dtype=torch.float64) if values is None else values.double().cpu()]
    return torch.cat(parts)


def _mean(every: Tensor, weights: Tensor, place: int, graph: ChannelGraph) -> dict[str, Tensor]:
    """The weighted mean over the processes of the kind at this place; groups that no process has evidence of are left out."""
    sizes = [size for group in graph.groups for size in (1, group.num_channels)]
    parts = every[:, place * sum(sizes) : (place + 1) * sum(sizes)].split(sizes, dim=1)
    found: dict[str, Tensor] = {}
    for group, there, values in zip(graph.groups, parts[::2], parts[1::2], strict=True):
        factors = there.flatten() * weights
        if bool(factors.any()):
            found[group.name] = (values * factors[:, None]).sum(0) / factors.sum()
    return found
