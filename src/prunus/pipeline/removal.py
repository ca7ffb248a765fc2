"""`prunus.remove`: removal, and what it puts in the removed channels' place if asked to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from prunus import surgery
from prunus.errors import EvidenceError, UnknownName
from prunus.reconstruction import FoldingReport
from prunus.reconstruction import compensate as compensated
from prunus.surgery import SurgeryRecord
from prunus.types import ChannelGraph, ForwardFn, PruningPlan

Compensate: TypeAlias = Literal["mean"]


def remove(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
    *,
    compensate: Compensate | None = None,
    data: Iterable[Any] | None = None,
    forward_fn: ForwardFn | None = None,
    batches: int | None = None,
) -> tuple[nn.Module, SurgeryRecord]:
    """Build the small network that ``plan`` leaves; ``model`` is untouched.

    Module classes, hooks, flags and shared parameters survive; attributes such as ``out_channels`` follow the new shapes.

    Args:
        optimizer: an optimizer over ``model``'s parameters; it is moved in place to the small network's, its state sliced along.
        ema: a module that holds averaged copies under the same names (a plain copy or `torch.optim.swa_utils.AveragedModel`);
            sliced in place.
        compensate: ``"mean"`` replaces every removed channel by its mean activation, folded into the bias of what reads it, or
            into the mean of the batch norm behind; a layer that has neither gets a bias, which the record repeats. Exact for
            constant channels where there is no zero padding; with padding the mean over the positions is added
            (`prunus.reconstruction.compensate` returns a report that says where).
        data: images to measure the means on, one pass in evaluation mode, at most ``batches``: batches of (inputs, targets)
            or inputs. For ``compensate`` alone.
        forward_fn: for a pass over ``data``, where the call isn't ``model(inputs)``.

    Raises:
        NothingPruned: the plan removes no channel.
        UnknownName: the plan names a group that the graph doesn't have, or one that is frozen; no such ``compensate``.
        UnsupportedNetwork: the model isn't the one that was traced, or the optimizer isn't over its parameters.
        EvidenceError: ``compensate`` without data.
    """
    wants_data(compensate, data)
    return removed(model, graph, plan, optimizer, ema, compensate, data, forward_fn, batches)[:2]


def wants_data(compensate: str | None, data: Iterable[Any] | None, recalibrate: bool = False) -> None:
    """Refuse an unknown way to compensate, or what needs data without them, before anything is computed."""
    if compensate not in (None, "mean"):
        raise UnknownName.among("way to compensate", compensate, ["mean"])
    if compensate is not None and data is None:
        raise EvidenceError(f'compensate="{compensate}" measures mean activations: give batches of images (data=LOADER)')
    if recalibrate and (data is None or isinstance(data, Iterator)):
        given = "there are none" if data is None else f"a {type(data).__name__} gives them only once"
        raise EvidenceError(
            f"recalibrate=True goes through the data once more, after pruning, and {given}: give a loader or a list of batches "
            "(data=LOADER)"
        )


def removed(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    optimizer: torch.optim.Optimizer | None,
    ema: nn.Module | None,
    compensate: Compensate | None,
    data: Iterable[Any] | None,
    forward_fn: ForwardFn | None,
    batches: int | None,
) -> tuple[nn.Module, SurgeryRecord, FoldingReport | None]:
    """`remove`, with the report of what was compensated."""
    if compensate is None:
        return *surgery.remove(model, graph, plan, optimizer, ema), None
    found = compensated(model, graph, plan, data, forward_fn=forward_fn, batches=batches, optimizer=optimizer, ema=ema)
    return found.model, found.record, found.report
