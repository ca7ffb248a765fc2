"""Silencing: the original network in which nothing reads a removed channel. The reference that removal is checked against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.labels import LabelField, LabelSpace, LabelVector, named_tensors
from prunus.graph.op_call import OpCall
from prunus.graph.trace import tensors_in
from prunus.graph.tracer import Tracer
from prunus.surgery.remove import removed_positions
from prunus.types import ChannelGraph, PruningPlan, Units
from prunus.wrapping import refuse_wrapped

Positions = dict[tuple[str, int], Tensor]


def silence(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """A copy of ``model``, same shapes, in which every weight slice that reads a removed channel is zero.

    Only readers are zeroed: the channels are still computed, so that an error in what removal does to their writers can't hide.
    Where
    the plan touches a group marked ``mixing``, the copy evaluates each mixing operation on the kept channels only.

    Raises:
        UnsupportedNetwork: the model is wrapped or divided (DDP, FSDP).
    """
    refuse_wrapped(model)
    memo: dict[int, Any] = {}
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for (name, axis), gone in removed_positions(graph, plan, ("reads",)).items():
            source = tensors[name]
            values = memo.get(id(source))
            if values is None:
                values = memo[id(source)] = _duplicate(source)
            values.index_fill_(axis, gone.to(source.device), 0)
    silent = copy.deepcopy(model, memo)
    if any(group.mixing and group.name in plan.keep for group in graph.groups):
        _evaluate_on_kept(silent, removed_positions(graph, plan), graph.units)
    return silent


def _duplicate(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _evaluate_on_kept(model: nn.Module, removed: Positions, units: Units) -> None:
    """Run every forward pass of ``model`` under a tracer that knows which labels are removed."""
    running: list[ExitStack] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        tracer = KeptOnlyTracer(module, removed, units)
        tracer.add_inputs(tensors_in([args, kwargs]))
        tracer.arguments.append(())
        tracer.stack.append("")  # this module was entered before the tracer could see it, and will be left under its eyes
        stack = ExitStack()
        stack.enter_context(tracer.watching_modules())
        stack.enter_context(tracer)
        running.append(stack)

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        running.pop().close()

    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, always_call=True)


class KeptOnlyTracer(Tracer):
    """Propagates labels through a real forward pass and re-evaluates mixing operations without the removed channels."""

    def __init__(self, model: nn.Module, removed: Positions, units: Units) -> None:
        super().__init__(model, LabelSpace(model), dry=False, units=units)
        self._last: _Reduced | None = None
        self.removed = np.zeros(self.space.size + 1, dtype=bool)  # the last entry answers for label -1
        for axis_range in self.space.ranges:
            gone = removed.get((axis_range.parameter, axis_range.axis))
            if gone is not None:
                self.removed[axis_range.base + gone.numpy()] = True

    def reading(self, op: OpCall, index: int, axis: int) -> None:
        """Zero what reads a removed channel in a weight that is computed: zeros in its parameters needn't become zeros in it."""
        weight = op.args[index]
        labels = self.field(weight).axes.get(axis)
        if labels is None or id(weight) in self.space.fields or not self.removed[labels].any():
            return
        reduced = self._reduced(op)
        gone = torch.from_numpy(np.flatnonzero(self.removed[labels])).to(weight.device)
        reduced.args[index] = reduced.args[index].index_fill(axis, gone, 0)
        self._evaluate_again(op, reduced)

    def mixed(
        self,
        op: OpCall,
        slices: Sequence[tuple[int, int]],
        labels: LabelVector,
        out_axis: int | None,
        replace: Callable[[int], dict[int, Any]] | None,
    ) -> None:
        """Evaluate on the kept slices; where the axis stays, silenced entries of the result are zero."""
        kept = torch.from_numpy(np.flatnonzero(~self.removed[labels]))
        if len(kept) == len(labels):
            return
        reduced = self._reduced(op)
        for index, axis in slices:
            reduced.args[index] = reduced.args[index].index_select(axis, kept.to(reduced.args[index].device))
        for index, value in (replace(len(kept)) if replace else {}).items():
            reduced.args[index] = value
        if out_axis is not None:
            reduced.axes.append((out_axis, kept, len(labels)))
        self._evaluate_again(op, reduced)

    def _reduced(self, op: OpCall) -> _Reduced:
        """What the operation has lost so far: it may mix channels of several axes."""
        if self._last is None or self._last.op is not op:
            self._last = _Reduced(op, list(op.args), [])
        return self._last

    def _evaluate_again(self, op: OpCall, reduced: _Reduced) -> None:
        result = op.func(*reduced.args, **op.kwargs)
        fields = [self.field(out) for out in op.outs]
        outs = [result] if isinstance(result, Tensor) else list(result)
        spread = [_spread(new, old, reduced.axes) for new, old in zip(outs, op.outs, strict=True)]
        for out, field in zip(spread, fields, strict=True):
            self.set_field(out, LabelField(field.axes, field.parametric))
        op.out = spread[0] if isinstance(op.out, Tensor) else tuple(spread)


class _Reduced(NamedTuple):
    """An operation, its arguments without removed channels, and (axis, kept, full size) of those axes that its results keep."""

    op: OpCall
    args: list[Any]
    axes: list[tuple[int, Tensor, int]]


def _spread(new: Tensor, old: Tensor, axes: Sequence[tuple[int, Tensor, int]]) -> Tensor:
    for axis, kept, size in axes:
        if new.shape != old.shape and axis < new.ndim and new.shape[axis] == len(kept):
            full = new.new_zeros(*new.shape[:axis], size, *new.shape[axis + 1 :])
            new = full.index_copy_(axis, kept.to(new.device), new)
    return new
