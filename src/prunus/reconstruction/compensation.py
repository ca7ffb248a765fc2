"""Mean compensation: what removed channels gave on average is put into the network that is left."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, PrunusWarning
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun
from prunus.reconstruction.constants import FoldingReport, Shifts, check_plan, find_shifts
from prunus.reconstruction.means import measure_reads
from prunus.surgery import SurgeryRecord, add_bias, remove
from prunus.surgery.remove import averaged_copy
from prunus.types import ChannelGraph, ForwardFn, PruningPlan


@dataclass(frozen=True, eq=False)
class Compensation:
    """A small network whose remaining biases (or batch-norm means) stand in for the channels removed, its record and report."""

    model: nn.Module
    record: SurgeryRecord
    report: FoldingReport


def compensate(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    data: Iterable[Any] | None,
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> Compensation:
    """`prunus.remove`, each removed channel replaced by its mean activation, which is folded into what reads it.

    Means are measured in one pass over ``data`` on the unpruned network; see `fold_constants` for the formula and for what is
    exact. A layer that has no bias, and no batch norm of its own behind it, gets a bias: the record repeats it, with the removal.
    A `PrunusWarning` names layers that can't be compensated.

    Args:
        optimizer, ema: moved along, see `prunus.remove`. Averages are compensated like the weights; new biases get a parameter
            group of their own, without weight decay.

    Raises:
        EvidenceError: there are no data, or activations aren't finite.
        PrunusError: what `channel_means`, `fold_constants` and `prunus.remove` raise.
    """
    check_plan(model, graph, plan)
    if data is None:
        raise EvidenceError("mean activations are measured on data: give batches of images (data=LOADER), or don't compensate")
    small, record = remove(model, graph, plan, optimizer, ema)
    found = compensate_removed(model, small, graph, record, data, forward_fn=forward_fn, batches=batches, ema=ema)
    if optimizer is not None and found.record.biases:
        new = [small.get_submodule(layer).bias for layer in found.record.biases]
        decay = {"weight_decay": 0.0} if "weight_decay" in optimizer.defaults else {}
        optimizer.add_param_group({"params": new, **decay})
    return found


def compensate_removed(
    model: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    record: SurgeryRecord,
    data: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
    ema: nn.Module | None = None,
) -> Compensation:
    """`compensate` after the removal: ``small`` is what ``record`` left of ``model``, and is changed in place.

    ``graph`` is that of ``model``. ``small`` may have been trained since; what is added are the amounts that the removed channels
    gave in ``model``.

    Raises:
        PrunusError: see `compensate`.
    """
    means, layers = measure_reads(model, graph, DataRun(data, forward_fn=forward_fn, batches=batches))
    shifts, report = find_shifts(model, _removed_reads(model, graph, record), means, layers, new_biases=True)
    if report.not_folded:
        shown = "; ".join(f"`{name}`: {why}" for name, why in list(report.not_folded.items())[:3])
        warnings.warn(
            f"removed channels aren't compensated in {len(report.not_folded)} layers: {shown}", PrunusWarning, stacklevel=3
        )
    left = {name for name, module in small.named_modules() if getattr(module, "weight", None) is not None}
    layers_left = [name for name in shifts.by_layer if name in left and f"{name}.bias" not in dict(named_tensors(small))]
    both = add_bias(small, record, layers_left)
    _add(small, record, shifts)
    if ema is not None:
        averaged = averaged_copy(ema)
        add_bias(averaged, record, layers_left)
        _add(averaged, record, shifts)
    return Compensation(small, both, report)


def _removed_reads(model: nn.Module, graph: ChannelGraph, record: SurgeryRecord) -> dict[tuple[str, int], Tensor]:
    """(reading weight, axis) -> indices that are gone."""
    kept, tensors = record.kept, dict(named_tensors(model))
    found: dict[tuple[str, int], Tensor] = {}
    for group in graph.groups:
        for member in group.with_role("reads"):
            name, axis = member.parameter_axis.parameter, member.parameter_axis.axis
            if axis in kept.get(name, {}):
                gone = torch.ones(tensors[name].shape[axis], dtype=torch.bool)
                gone[kept[name][axis]] = False
                found[name, axis] = gone.nonzero().squeeze(1)
    return found


@torch.no_grad()
def _add(small: nn.Module, record: SurgeryRecord, shifts: Shifts) -> None:
    """Add, to what is left of every tensor, what is left of its shift."""
    kept: Mapping[str, Mapping[int, Tensor]] = record.kept
    tensors = dict(named_tensors(small))
    for name, amount in shifts.by_tensor.items():
        if name in tensors:
            tensors[name] += _left(amount, kept.get(name, {})).to(tensors[name])
    for layer, amount in shifts.by_layer.items():
        bias: Tensor | None = tensors.get(f"{layer}.bias")
        if bias is not None:
            bias += _left(amount, kept.get(f"{layer}.weight", {})).to(bias)


def _left(amount: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    return amount[kept[0].to(amount.device)] if 0 in kept else amount
