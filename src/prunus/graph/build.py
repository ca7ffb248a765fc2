"""From the records of a trace to channel groups: resolve the label pairs, split into groups, attach members and reasons."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from prunus.graph.balance import balance
from prunus.graph.branches import EMPTIABLE, emptiable
from prunus.graph.cost import ClosedFormCost, StoredFile, WidthTable
from prunus.graph.file_size import stored_file
from prunus.graph.held import Held
from prunus.graph.labels import LabelSpace, LabelVector, named_tensors, resolve
from prunus.graph.tracer import Tracer
from prunus.types import ChannelGraph, ChannelGroup, GroupMember, HeldIndex, HeldWidth, Layer, NormAffine, ParameterAxis, Role

Ints = npt.NDArray[np.int64]
_ROLE_ORDER: tuple[Role, ...] = ("writes", "reads", "scales", "statistics")
ONE_CHANNEL = "all its positions must stay together: it is a single channel"


def fingerprint(model: nn.Module) -> str:
    """Hash of the names and shapes of all parameters and buffers: two networks of one architecture have the same."""
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(named_tensors(model), key=lambda item: item[0]))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass
class _Resolved:
    """Per label: its class, its group (-1: none) and its channel within the group."""

    classes: Ints
    group: Ints
    channel: Ints
    sizes: Ints


def build_graph(
    model: nn.Module,
    space: LabelSpace,
    tracers: list[Tracer],
    kept: Callable[[str], str | None],
    mixing: str,
    batch: int,
    notes: list[str],
) -> ChannelGraph:
    """Groups, layers and closed-form cost. ``kept(parameter)`` gives the reason why a parameter must keep its shape."""
    classes = resolve(space.size, [pair for t in tracers for pair in t.pairs])
    classes = balance(classes, [split for t in tracers for split in (*t.splits, *_shared_widths(t))])
    axis_of = np.repeat(np.arange(len(space.ranges)), [r.size for r in space.ranges])
    roles = _roles(space, tracers)
    resolved = _partition(space, classes, axis_of, roles, tracers)
    reasons = _reasons(space, tracers, resolved, kept)
    mixed = _classes_of([m for t in tracers for m in t.mixing], classes)
    mixing_groups = set(resolved.group[np.isin(classes, mixed)].tolist())
    names = _group_names(space, axis_of, roles, resolved, tracers)
    members = _members(space, axis_of, roles, resolved)
    groups: list[ChannelGroup] = []
    for index in range(len(resolved.sizes)):
        is_mixing = index in mixing_groups
        reason = reasons.get(index) or (ONE_CHANNEL if resolved.sizes[index] == 1 else None)
        if reason is None and is_mixing and mixing == "freeze":
            reason = "an operation computes statistics over its channels, and mixing='freeze' was asked for"
        groups.append(ChannelGroup(names[index], int(resolved.sizes[index]), tuple(members[index]), reason, is_mixing))
    unsupported = tracers[0].unsupported.copy()
    for tracer in tracers[1:]:
        unsupported |= tracer.unsupported
    norms = tuple(dict.fromkeys(NormAffine(*n) for t in tracers for n in t.norms))
    layers, held = _layers(tracers[0], resolved), _held(tracers, resolved, groups)
    indices = _indices(tracers, resolved)
    widths = WidthTable(resolved.group, resolved.sizes)
    stored = stored_file(model, space, widths, held, indices)
    cost = _cost(model, space, tracers[0], widths, stored, groups, batch)
    may = emptiable(
        tracers, resolved.group, [i for i, g in enumerate(groups) if g.frozen_because is None and _removable(model, g)]
    )
    return ChannelGraph(
        tuple(groups),
        layers,
        unsupported,
        fingerprint(model),
        cost,
        norms,
        tuple(notes),
        held,
        indices,
        emptiable=frozenset(groups[i].name for i in may),
    )


def _roles(space: LabelSpace, tracers: list[Tracer]) -> list[set[Role]]:
    """Roles of every parameter axis; an axis that only meets channels in element-wise operations scales them."""
    found: list[set[Role]] = [set() for _ in space.ranges]
    bases = space.bases()
    marked: dict[tuple[int, Role], LabelVector] = {(id(v), role): v for t in tracers for v, role in t.roles}
    for (_, role), labels in marked.items():
        own = space.range_of_vector.get(id(labels))
        if own is not None:  # the axis of a parameter as it is; the search is for vectors that operations made
            found[own].add(role)
            continue
        for axis in np.unique(np.searchsorted(bases, labels[labels >= 0], side="right") - 1):
            found[axis].add(role)
    for first, other in (pair for t in tracers for pair in reversed(t.terms)):
        into = np.unique(np.searchsorted(bases, other[other >= 0], side="right") - 1)
        for axis in np.unique(np.searchsorted(bases, first[first >= 0], side="right") - 1):
            for term in into:
                found[term] |= found[axis] & {"reads", "writes"}
    return [roles or {"scales"} for roles in found]


def _classes_of(vectors: list[LabelVector], classes: Ints) -> Ints:
    if not vectors:
        return np.zeros(0, np.int64)
    labels = np.concatenate(vectors)
    return np.unique(classes[labels[labels >= 0]])


def _partition(space: LabelSpace, classes: Ints, axis_of: Ints, roles: list[set[Role]], tracers: list[Tracer]) -> _Resolved:
    """Channels with the same memberships form a group: hash the (axis, count) pairs of every class and compare the sums."""
    written = _classes_of([v for t in tracers for v, role in t.roles if role == "writes"], classes)
    labels = np.flatnonzero(np.isin(classes, written))
    pairs, counts = np.unique(classes[labels] * len(space.ranges) + axis_of[labels], return_counts=True)
    owners, axes = pairs // len(space.ranges), pairs % len(space.ranges)
    signature = np.zeros(space.size, np.uint64)
    np.add.at(signature, owners, _hash(axes * 1_000_003 + counts))
    first_label = np.full(space.size, space.size, np.int64)
    np.minimum.at(first_label, classes[labels], labels)
    order = written[np.argsort(first_label[written], kind="stable")]
    _, first, inverse = np.unique(signature[order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # groups in order of their first channel
    group_of_class = np.full(space.size, -1, np.int64)
    group_of_class[order] = rank[inverse]
    channel_of_class = np.full(space.size, -1, np.int64)
    by_group = np.argsort(rank[inverse], kind="stable")
    sizes = np.bincount(rank[inverse], minlength=len(first)) if len(order) else np.zeros(0, np.int64)
    starts = np.cumsum(sizes) - sizes
    channel_of_class[order[by_group]] = np.arange(len(order)) - np.repeat(starts, sizes)
    return _Resolved(classes, group_of_class[classes], channel_of_class[classes], sizes.astype(np.int64))


def _hash(values: Ints) -> npt.NDArray[np.uint64]:
    """Splitmix64: spreads small integers over 64 bits."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def _reasons(space: LabelSpace, tracers: list[Tracer], resolved: _Resolved, kept: Callable[[str], str | None]) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for tracer in tracers:
        for labels, reason in tracer.frozen:
            for group in np.unique(resolved.group[labels[labels >= 0]]):
                reasons.setdefault(int(group), reason)
    for parameter_axis in space.ranges:
        reason = kept(parameter_axis.parameter)
        if reason is not None:
            for group in np.unique(resolved.group[parameter_axis.base : parameter_axis.base + parameter_axis.size]):
                reasons.setdefault(int(group), reason)
    return reasons


def _group_names(
    space: LabelSpace, axis_of: Ints, roles: list[set[Role]], resolved: _Resolved, tracers: list[Tracer]
) -> list[str]:
    """Named after the module whose parameter writes the group first; a number is added where one module writes several groups."""
    names: dict[int, str] = {}
    used: dict[str, int] = {}
    for labels in (v for t in tracers for v, role in t.roles if role == "writes"):
        found, first = np.unique(resolved.group[labels[labels >= 0]], return_index=True)
        for group in found[np.argsort(first)].tolist():
            if group >= 0 and group not in names:
                label = int(labels[labels >= 0][0])
                base = re.sub(r"(\.parametrizations)?\.\w+(\.original\d*)?$", "", space.ranges[axis_of[label]].parameter)
                used[base] = used.get(base, 0) + 1
                names[group] = base if used[base] == 1 else f"{base}#{used[base]}"
    return [names[i] for i in range(len(resolved.sizes))]


def _members(space: LabelSpace, axis_of: Ints, roles: list[set[Role]], resolved: _Resolved) -> list[list[GroupMember]]:
    """For every group and parameter axis, the positions of each channel, as one sort over all labels."""
    labels = np.flatnonzero(resolved.group >= 0)
    labels = labels[np.lexsort((labels, resolved.channel[labels], axis_of[labels], resolved.group[labels]))]
    members: list[list[GroupMember]] = [[] for _ in resolved.sizes]
    if not len(labels):
        return members
    key = resolved.group[labels] * len(space.ranges) + axis_of[labels]
    for chunk in np.split(labels, np.flatnonzero(np.diff(key)) + 1):
        group, axis = int(resolved.group[chunk[0]]), space.ranges[axis_of[chunk[0]]]
        positions = torch.from_numpy((chunk - axis.base).reshape(int(resolved.sizes[group]), -1))
        for role in sorted(roles[axis_of[chunk[0]]], key=_ROLE_ORDER.index):
            members[group].append(GroupMember(ParameterAxis(axis.parameter, axis.axis, role), positions))
    return [sorted(m, key=lambda member: _ROLE_ORDER.index(member.parameter_axis.role)) for m in members]


def _layers(tracer: Tracer, resolved: _Resolved) -> tuple[Layer, ...]:
    def ids(labels: LabelVector | int) -> torch.Tensor:
        return (
            torch.full((labels,), -1)
            if isinstance(labels, int)
            else torch.from_numpy(np.where(labels >= 0, resolved.classes[labels], -1))
        )

    return tuple(
        Layer(c.name, c.kind, ids(c.reads), ids(c.writes), c.kernel, c.groups, c.output_size, c.window) for c in tracer.layers
    )


def _shared_widths(tracer: Tracer) -> list[tuple[LabelVector, int]]:
    """Axes whose sizes one attribute holds must keep equal numbers of channels, like the parts of a split."""
    vectors: dict[tuple[Any, ...], dict[bytes, LabelVector]] = {}
    for held in tracer.held:
        if held.named and bool((held.labels >= 0).all()):
            vectors.setdefault(held.key, {})[held.labels.tobytes()] = held.labels
    return [(np.concatenate(list(several.values())), len(several)) for several in vectors.values() if len(several) > 1]


def _held(tracers: list[Tracer], resolved: _Resolved, groups: list[ChannelGroup]) -> tuple[HeldWidth, ...]:
    """Held widths in terms of groups and channels; those that no removal can change are left out."""
    found: dict[tuple[Any, ...], HeldWidth] = {}

    def among(held: Held) -> bytes:
        return np.unique(resolved.group[held.labels[held.labels >= 0]]).tobytes()

    sole = {(h.key, among(h)) for t in tracers for h in t.held if h.named and not h.rivals}
    for held in (h for t in tracers for h in t.held):
        if held.rivals and (held.key, which := among(held)) not in sole and any((rival, which) in sole for rival in held.rivals):
            continue  # elsewhere it is clear which of the two attributes counts these channels
        real = held.labels[held.labels >= 0]
        owners, channels = resolved.group[real], resolved.channel[real]
        key = (*held.key, held.named, owners.tobytes(), channels.tobytes())
        present = np.unique(owners[owners >= 0])
        if key in found or not any(groups[g].frozen_because is None for g in present):
            continue
        slots = {groups[g].name: torch.from_numpy(channels[owners == g]) for g in present}
        fixed = len(held.labels) - sum(map(len, slots.values()))
        found[key] = HeldWidth(held.module, held.attribute, held.item, slots, fixed, held.named)
    return tuple(found.values())


def _removable(model: nn.Module, group: ChannelGroup) -> bool:
    """Whether the layers of a group can do without it."""
    paths = {m.parameter_axis.parameter.rpartition(".")[0] for m in group.members}
    return not group.mixing and all(type(model.get_submodule(path)) in EMPTIABLE for path in paths)


def _indices(tracers: list[Tracer], resolved: _Resolved) -> tuple[HeldIndex, ...]:
    group_of, channel_of = (torch.from_numpy(np.append(table, -1)) for table in (resolved.group, resolved.channel))
    return tuple(HeldIndex(name, group_of[labels], channel_of[labels]) for t in tracers for name, labels in t.indices)


def _cost(
    model: nn.Module,
    space: LabelSpace,
    tracer: Tracer,
    widths: WidthTable,
    stored: StoredFile,
    groups: list[ChannelGroup],
    batch: int,
) -> ClosedFormCost:
    layers = [(call.factor / batch, [widths.row(w) for w in (call.reads, call.writes, *call.others)]) for call in tracer.layers]
    parameters: list[tuple[float, list[int]]] = []
    for parameter in model.parameters():
        axes = space.fields[id(parameter)].axes
        fixed = float(parameter.numel())
        for labels in axes.values():
            fixed /= len(labels)
        parameters.append((fixed, [widths.row(labels) for labels in axes.values()]))
    live = tracer.activations
    storages = [(fixed / batch, [widths.row(v) for v in vectors]) for fixed, vectors in live.storages]
    return ClosedFormCost({g.name: g.num_channels for g in groups}, widths, layers, parameters, storages, live.live_at, stored)
