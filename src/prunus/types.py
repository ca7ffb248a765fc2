"""The values that travel between the parts of Prunus. They are frozen and carry no behaviour beyond reading themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

from prunus.budgets import Budget
from prunus.costs import Cost, CostModel
from prunus.errors import UnknownName

Role: TypeAlias = Literal["writes", "reads", "scales", "statistics"]
ExampleInputs: TypeAlias = "Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]"
ForwardFn: TypeAlias = Callable[[nn.Module, Any], Any]
LossFn: TypeAlias = Callable[[Any, Any], Tensor]


def call_model(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> Any:
    """Call ``model`` on a tensor, a tuple (positional) or a dict (keyword), or through ``forward_fn``."""
    if forward_fn is not None:
        return forward_fn(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    if isinstance(inputs, tuple):
        return model(*cast("tuple[Any, ...]", inputs))
    return model(inputs)


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of one parameter or buffer (``parameter`` is its dotted name) and what it does with the channels."""

    parameter: str
    axis: int
    role: Role


@dataclass(frozen=True, eq=False)
class GroupMember:
    """A parameter axis of a group; ``positions[c]`` are the indices on it that belong to channel c: int64 (num_channels, k)."""

    parameter_axis: ParameterAxis
    positions: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are stored together; removing channel c removes ``positions[c]`` of every member.

    ``frozen_because`` says why the group is never pruned; ``mixing`` is true where an operation computes statistics over
    the channels (layer norm, softmax, ...), so that removal equals that operation evaluated on the kept channels only.
    """

    name: str
    num_channels: int
    members: tuple[GroupMember, ...]
    frozen_because: str | None = None
    mixing: bool = False

    def with_role(self, *roles: Role) -> list[GroupMember]:
        """The members whose role is one of ``roles``."""
        return [m for m in self.members if m.parameter_axis.role in roles]

    @property
    def width_factor(self) -> int:
        """Positions that a channel takes in the layer that writes the group: 32 in a convolution of 32 groups, mostly 1."""
        return self.with_role("writes")[0].positions.shape[1]


@dataclass(frozen=True)
class Window:
    """How a convolution slides: ``input_size`` of its call (batch, channels, pixels ...), the rest by pixel axis."""

    input_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a convolution or matrix product; ``reads`` and ``writes``: channel ids along its weight's two axes.

    ``window`` is None where nothing slides."""

    name: str
    kind: str
    reads: Tensor
    writes: Tensor
    kernel_size: tuple[int, ...]
    groups: int
    output_size: tuple[int, ...]
    window: Window | None = None


@dataclass(frozen=True, eq=False)
class HeldWidth:
    """An attribute of a module that repeats a number of channels (``item``: of a sequence, which one), found while tracing.

    ``slots``: group name -> the channel at each position that is counted, int64 (k,); ``fixed``: positions of no group;
    ``named``: the statement that used the width names the attribute, not just the function around it.
    """

    module: str
    attribute: str
    item: int | None
    slots: Mapping[str, Tensor]
    fixed: int
    named: bool

    def width(self, keep: Mapping[str, Tensor]) -> int:
        """The number once only the kept channels (group name -> bool (num_channels,)) are left."""
        left = (int(keep[g].cpu()[slots].sum()) if g in keep else len(slots) for g, slots in self.slots.items())
        return self.fixed + sum(left)


@dataclass(frozen=True, eq=False)
class HeldIndex:
    """A buffer of channel numbers into an axis; ``groups`` and ``channels`` say what lies at each position of that axis: the
    index of the group in the graph (-1: of none) and the channel, int64 (size of the axis,)."""

    buffer: str
    groups: Tensor
    channels: Tensor

    def renumbered(self, index: Tensor, keep: Sequence[Tensor | None]) -> Tensor:
        """The buffer for the kept channels: numbers of removed ones left out, the others counted anew. ``keep``: by group."""
        left = torch.ones(len(self.groups), dtype=torch.bool)
        for group in self.groups.unique().tolist():
            mask = keep[group] if group >= 0 else None
            if mask is not None:
                here = self.groups == group
                left[here] = mask.cpu()[self.channels[here]]
        old = index.cpu().long()
        return (left.cumsum(0) - 1)[old[left[old]]]


@dataclass(frozen=True)
class Units:
    """What is removed as one where a layer divides its channels: the same slot of every group, or a group as a whole.

    ``groups``: whole groups of grouped convolutions; ``norm_groups``: of group norms; ``heads``: path and number of
    heads of the modules whose attention loses whole heads (because the width of a head is part of its scale).
    """

    groups: bool = False
    norm_groups: bool = False
    heads: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True)
class NormAffine:
    """The parameter names of one normalisation layer (None where it has none), as its operation received them."""

    kind: str
    scale: str | None
    shift: str | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every channel, higher = keep: group name -> (num_channels,).

    ``comparable`` says whether scores of different groups are on one scale; where they are not, a global ranking divides each
    group's scores by their mean.
    """

    by_group: Mapping[str, Tensor]
    criterion: str
    comparable: bool = False


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which channels stay: group name -> bool (num_channels,). Groups that are absent stay whole."""

    keep: Mapping[str, Tensor]
    predicted: Cost
    provenance: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())

    def counts(self) -> dict[str, int]:
        """Number of channels kept in every group the plan names."""
        if not self.keep:
            return {}
        joined = torch.cat(list(self.keep.values())).cpu().numpy()  # one sum for all groups: this is in the hot path of costs
        starts = np.cumsum([0, *(len(mask) for mask in self.keep.values())])[:-1]
        return dict(zip(self.keep, np.add.reduceat(joined, starts, dtype=np.int64).tolist(), strict=True))

    @property
    def num_removed(self) -> int:
        """Channels that the plan removes, over all groups."""
        return sum(int((~mask).sum()) for mask in self.keep.values())


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What `prunus.trace` found: groups of channels, the layers that cost, and what it could not follow.

    ``notes`` are remarks for the user (a training-mode trace that failed, ...); ``held``, ``indices`` and ``units``: what surgery
    must set, and how divided channels are cut; ``emptiable``: groups of branches that may go as a whole. Print it for a table.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    unsupported_ops: Counter[str]
    fingerprint: str
    cost_model: CostModel
    norms: tuple[NormAffine, ...] = ()
    notes: tuple[str, ...] = ()
    held: tuple[HeldWidth, ...] = ()
    indices: tuple[HeldIndex, ...] = ()
    units: Units = Units()
    emptiable: frozenset[str] = frozenset()

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Groups that may lose channels."""
        return tuple(g for g in self.groups if g.frozen_because is None)

    @property
    def frozen(self) -> tuple[ChannelGroup, ...]:
        """Groups that may not, each with its reason in ``frozen_because``."""
        return tuple(g for g in self.groups if g.frozen_because is not None)

    @property
    def num_prunable_channels(self) -> int:
        """Layer channels that the prunable groups hold (a channel that takes k positions in its layer counts k times)."""
        return sum(group.num_channels * group.width_factor for group in self.prunable)

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise UnknownName.among("group", name, (g.name for g in self.groups))

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def cost(self, plan: PruningPlan | None = None) -> Cost:
        """Cost of the network, or of what ``plan`` leaves of it, without touching the network."""
        return self.cost_model.cost(plan.counts() if plan is not None else {})

    def freeze(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """The same graph with the named groups frozen for the given reasons."""
        groups = tuple(replace(g, frozen_because=g.frozen_because or reasons.get(g.name)) for g in self.groups)
        return replace(self, groups=groups)

    def without_held(self, names: Collection[str]) -> ChannelGraph:
        """The same graph, the attributes that seemed to hold widths of these groups left alone."""
        return replace(self, held=tuple(h for h in self.held if not any(name in h.slots for name in names)))

    def __str__(self) -> str:
        rows = [("group", "channels", "written by", "state")]
        for g in self.groups:
            state = f"frozen: {g.frozen_because}" if g.frozen_because else ("prunable, mixing" if g.mixing else "prunable")
            writers = {m.parameter_axis.parameter for m in g.with_role("writes")}
            rows.append((g.name, str(g.num_channels), f"{len(writers)} parameter{'s' * (len(writers) != 1)}", state))
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r[:3], widths, strict=True)) + "  " + r[3] for r in rows]
        cost = self.cost()
        lines.append(
            f"{cost.macs:,} MACs, {cost.parameters:,} parameters; {len(self.prunable)} of {len(self.groups)} groups prunable"
        )
        lines += [f"no rule for {op}: {n} call{'s' * (n != 1)}" for op, n in self.unsupported_ops.items()] + list(self.notes)
        return "\n".join(lines)


@dataclass(frozen=True)
class VerificationReport:
    """Largest output difference between two networks in float64, relative to the largest output magnitude."""

    max_error: float
    tolerance: float
    passed: bool
    detail: str = ""


@runtime_checkable
class GroupViewLike(Protocol):
    """What a criterion sees of a group: every member as a matrix (num_channels, n); see `prunus.graph.group_view`."""

    @property
    def group(self) -> ChannelGroup: ...

    def matrices(self, *roles: Role) -> list[Tensor]: ...


class Criterion(Protocol):
    """A pure function from the matrices of a group (and evidence from data) to importance, higher = keep."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def paper(self) -> str: ...
    def score(self, view: Any, evidence: Any) -> Tensor | None: ...


class Allocator(Protocol):
    """Turns scores and a budget into a plan; ``evaluate`` (accuracy) and ``measure`` (ms) are handed in by the pipeline."""

    def allocate(
        self,
        graph: ChannelGraph,
        scores: Scores,
        budget: Budget,
        *,
        evaluate: Callable[[PruningPlan], float] | None = None,
        measure: Callable[[PruningPlan], float] | None = None,
    ) -> PruningPlan: ...


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a nest of tuples, lists and dicts, or None."""
    leaves: list[Any] = pytree.tree_leaves(value)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of tuples, lists and dicts with ``change(tensor)`` in place of every tensor."""

    def at_leaf(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(at_leaf, value)
