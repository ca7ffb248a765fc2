"""The dispatch mode that carries channel labels through one forward pass."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import PrunusWarning, raise_if_out_of_memory
from prunus.graph.activations import LiveActivations
from prunus.graph.dry_run import ValuesNeeded, needs_values, shape_only
from prunus.graph.held import Held
from prunus.graph.labels import LabelField, LabelSpace, LabelVector
from prunus.graph.op_call import NO_LABELS, OpCall, is_mutating
from prunus.graph.op_rules import rule_for
from prunus.types import Role, Units, Window, call_model

_CHECKS_WIDTH = "`nn.MultiheadAttention` insists on the width that it was made with"
_ATTRIBUTE = "_prunus_labels"
_NOT_THE_NETWORK = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}", "<")


class _Mark:
    """The labels that a tensor carries while ``owner`` is tracing; copies and pickles of the tensor carry none."""

    __slots__ = ("field", "owner")

    def __init__(self, owner: object, field: LabelField) -> None:
        self.owner, self.field = owner, field

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_mark, ()


def _no_mark() -> None:
    return None


def unlabel(tensor: Tensor) -> None:
    """Take the labels of an earlier trace off a tensor that outlives it."""
    vars(tensor).pop(_ATTRIBUTE, None)


class LayerCall:
    """A convolution or matrix product as the tracer met it, labels not yet resolved."""

    def __init__(
        self,
        name: str,
        kind: str,
        widths: Sequence[Any],
        kernel: tuple[int, ...],
        groups: int,
        out: Tensor,
        factor: float,
        weighted: bool,
        window: Window | None,
    ) -> None:
        self.name, self.kind, self.kernel, self.groups, self.factor = name, kind, kernel, groups, factor
        self.weighted, self.window = weighted, window
        self.reads, self.writes, *self.others = widths
        self.output_size = tuple(out.shape)


class Tracer(TorchDispatchMode):
    """Runs a network and records which channels belong together.

    With ``dry`` the costly operations return zeros of the right shape, so that a trace costs little more than dispatch; a network
    that looks at values raises `ValuesNeeded`, and the caller traces again with real values.
    """

    def __init__(self, model: nn.Module, space: LabelSpace, dry: bool, units: Units) -> None:
        super().__init__()
        self.space = space
        self.units = units
        self.heads: set[tuple[str, int]] = set()
        self.token = object()
        self.written: dict[int, tuple[Tensor, Tensor]] = {}
        self.storages = {parameter.untyped_storage().data_ptr(): parameter for parameter in model.parameters()}
        self.dry = dry
        self.paths = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.arguments: list[tuple[LabelField, ...]] = []
        self.last_entered = ""
        self.inputs: dict[int, LabelField] = {}
        self.keep_alive: list[Any] = []
        self.pairs: list[tuple[LabelVector, LabelVector]] = []
        self.splits: list[tuple[LabelVector, int]] = []
        self.roles: list[tuple[LabelVector, Role]] = []
        self.terms: list[tuple[LabelVector, LabelVector]] = []  # weights of one shape that are added
        self.frozen: list[tuple[LabelVector, str]] = []
        self.mixing: list[LabelVector] = []
        self.held: list[Held] = []
        self.indices: list[tuple[str, LabelVector]] = []
        self.layers: list[LayerCall] = []
        self.norms: list[tuple[str, str | None, str | None]] = []
        self.unsupported: Counter[str] = Counter()
        self.activations = LiveActivations()

    # -- labels of tensors

    def field(self, tensor: Tensor) -> LabelField:
        """Labels of a tensor: a parameter's own, an activation's as they were set; constants have none."""
        known = self.space.fields.get(id(tensor)) or self.inputs.get(id(tensor))
        if known is not None:
            return known
        mark = getattr(tensor, _ATTRIBUTE, None)
        return mark.field if mark is not None and mark.owner is self.token else NO_LABELS

    def set_field(self, tensor: Tensor, field: LabelField) -> None:
        """Labels live on the tensor object itself, so that they die with it and pin no activation."""
        if id(tensor) not in self.space.fields:
            setattr(tensor, _ATTRIBUTE, _Mark(self.token, field))

    def add_inputs(self, tensors: Sequence[Tensor]) -> None:
        """The user's inputs: no labels, but not constants either."""
        for tensor in tensors:
            self.inputs[id(tensor)] = LabelField({}, False)
            self.keep_alive.append(tensor)
        self.activations.record(list(tensors), self)

    # -- what op calls record

    def freeze(self, labels: LabelVector, reason: str) -> str:
        """Record a reason; the source line is looked up here because freezing is rare."""
        line = source_line()
        reason = f"{reason}{f', {line}' if line else ''}"
        self.frozen.append((labels, reason))
        return reason

    def fix(self, labels: LabelVector, why: str) -> None:
        """Like `freeze`, for the many axes that belong to no group unless a weight is used twice: no source line is looked up."""
        self.frozen.append((labels, f"{why} (in `{self.module_path or 'the network'}`)"))

    def freeze_numbered(self, tensors: Sequence[Tensor], reason: str) -> None:
        """Freeze the channels whose numbers these tensors hold."""
        for tensor in tensors:
            for labels in self.field(tensor).numbers:
                self.freeze(labels, reason)

    def mixed(
        self,
        op: OpCall,
        slices: Sequence[tuple[int, int]],
        labels: LabelVector,
        out_axis: int | None,
        replace: Callable[[int], dict[int, Any]] | None,
    ) -> None:
        """An operation that mixes channels: remembered (and evaluated on kept channels by `silence`'s subclass)."""
        self.mixing.append(labels)

    def reading(self, op: OpCall, index: int, axis: int) -> None:
        """Argument ``index`` is a weight that reads channels along ``axis``; here `silence` zeroes computed weights."""

    def prefer_heads(self, count: int) -> None:
        """The module that is running has so many attention heads and must lose whole ones; if it was traced otherwise, that is
        done again."""
        self.heads.add((self.module_path, count))

    def add_layer(
        self,
        op: OpCall,
        kind: str,
        widths: Sequence[Any],
        kernel: tuple[int, ...],
        groups: int,
        factor: float,
        weighted: bool = True,
        window: Window | None = None,
    ) -> None:
        """A call that costs ``factor`` x width(reads) x width(writes) (x the width of any other labelled axis) multiply-adds.

        ``weighted``: one of the two is a weight, not both activations.
        """
        self.layers.append(LayerCall(self.module_path, kind, widths, kernel, groups, op.outs[0], factor, weighted, window))

    @property
    def module_path(self) -> str:
        """Dotted name of the module that is running."""
        return self.stack[-1] if self.stack else ""

    # -- running

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.dry and needs_values(func):
            raise ValuesNeeded(str(func))
        if is_mutating(func):
            self._remember_parameter(args)
        out = shape_only(func, args) if self.dry else None
        if out is None:
            out = func(*args, **kwargs)
        call = OpCall(self, func, args, kwargs, out)
        for tensor in call.tensors:
            for labels in self.field(tensor).numbers:
                call.freeze(labels, "the number of a channel is used")
        rule = rule_for(func)
        if rule is None:
            self._unknown(call)
        else:
            self._apply(rule, call)
        self.activations.record([o for o in call.outs if not self.field(o).parametric], self)
        return call.out

    def _apply(self, rule: Callable[[OpCall], None], call: OpCall) -> None:
        """A rule that fails is a bug (ours or that of a rule that was registered): what the operation touches is frozen."""
        try:
            rule(call)
        except Exception as error:
            raise_if_out_of_memory(error)
            failed = f"the rule for this operation fails ({type(error).__name__}: {error})"
            warnings.warn(f"{failed} at {call.place}; its channels are frozen: please report it", PrunusWarning, stacklevel=2)
            call.freeze_all(failed)

    def _remember_parameter(self, args: tuple[Any, ...]) -> None:
        """Before the first write to a parameter (an embedding that renormalises itself), keep its values."""
        for tensor in args:
            written = self.storages.get(tensor.untyped_storage().data_ptr()) if isinstance(tensor, Tensor) else None
            if written is not None and id(written) not in self.written:
                self.written[id(written)] = (written, written.detach().clone())

    def undo_writes(self) -> None:
        """Give every parameter that was written to its values back."""
        with torch.no_grad():
            for parameter, values in self.written.values():
                parameter.copy_(values)
        self.written.clear()

    def _unknown(self, call: OpCall) -> None:
        if any(self.field(t).axes for t in call.tensors):
            self.unsupported[call.name] += 1
            call.freeze_all("no rule for this operation (register one with `prunus.op_rule`)")
        else:
            for out in call.outs:
                call.set(out, {})

    @contextmanager
    def watching_modules(self) -> Generator[None]:
        """Keep `module_path` up to date; hooks also switch off fused fast paths that would hide operations."""

        def enter(module: nn.Module, args: Any) -> None:
            self.arguments.append(tuple(self.field(a) if isinstance(a, Tensor) else NO_LABELS for a in args))
            self.stack.append(self.paths.get(id(module), self.module_path))
            self.last_entered = self.stack[-1]
            if isinstance(module, nn.MultiheadAttention):
                for field in self.arguments[-1]:
                    for labels in field.axes.values():
                        self.frozen.append((labels, f"{_CHECKS_WIDTH} (`{self.last_entered}`)"))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.stack.pop()
            self.arguments.pop()

        hooks = (
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def source_line() -> str:
    """``file.py:12`` of the innermost frame of the network's own code: neither PyTorch, nor the tracer, nor its caller."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code is not call_model.__code__:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_THE_NETWORK):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
