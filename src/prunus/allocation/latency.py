"""Latency as a cost: layer times measured against width, put together for any plan, and corrected by whole networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from prunus.costs import Cost, CostModel, CostTable, Terms
from prunus.graph.cost import ClosedFormCost
from prunus.types import ChannelGraph

Floats = npt.NDArray[np.float64]
_TRUST = 0.1
"""Weight of "layers take as long in the network as alone" beside one measured network, in the least squares of `calibrated`."""


@dataclass(frozen=True, eq=False)
class TimeTable:
    """Milliseconds of one layer: ``ms`` (reads, writes) at the widths ``reads`` and ``writes``, ascending; never falling."""

    reads: Floats
    writes: Floats
    ms: Floats

    @classmethod
    def measured(cls, reads: Sequence[int], writes: Sequence[int], ms: Floats) -> TimeTable:
        """From raw times: what a wider layer seemed to save is evened out, half way between running maximum and minimum."""
        rising, falling = ms, ms
        for axis in (0, 1):
            rising = np.maximum.accumulate(rising, axis=axis)
            falling = np.flip(np.minimum.accumulate(np.flip(falling, axis), axis=axis), axis)
        return cls(np.array(reads, dtype=np.float64), np.array(writes, dtype=np.float64), (rising + falling) / 2)

    def at(self, reads: Floats, writes: Floats) -> Floats:
        """Interpolated, (n,) for widths (n,); below the narrowest point as there, nothing at width zero."""
        return _Stack([self]).at(reads[None], writes[None])[0]

    def as_products(self) -> tuple[float, float, float, float]:
        """The nearest c0 + c1 reads + c2 writes + c3 reads writes with no negative factor: calls, memory, arithmetic."""
        reads, writes = (m.ravel() for m in np.meshgrid(self.reads, self.writes, indexing="ij"))
        scale = np.array([1.0, self.reads[-1], self.writes[-1], self.reads[-1] * self.writes[-1]])
        columns = np.stack([np.ones(len(reads)), reads, writes, reads * writes], axis=1) / scale
        found = _without_negatives(columns, self.ms.ravel()) / scale
        return tuple(found.tolist())

    @property
    def floor_share(self) -> float:
        """Share of the full width's time that the narrowest point still takes."""
        return float(self.ms[0, 0] / self.ms[-1, -1])


def _without_negatives(columns: Floats, wanted: Floats) -> Floats:
    """The least-squares factors of the columns (n, factors) for what is wanted (n,), none negative."""
    from scipy.optimize import nnls  # a third of the time that `import prunus` would take

    return nnls(columns, wanted)[0]


class _Stack:
    """Tables of equal size, the smaller ones padded, so that all are read at once."""

    def __init__(self, tables: Sequence[TimeTable]) -> None:
        rows, columns = (max(2, *(getattr(t, axis).size for t in tables)) for axis in ("reads", "writes"))
        self.reads = np.stack([_padded(t.reads, rows) for t in tables])
        self.writes = np.stack([_padded(t.writes, columns) for t in tables])
        pads = [[(0, rows - t.reads.size), (0, columns - t.writes.size)] for t in tables]
        self.ms = np.stack([np.pad(t.ms, pad, mode="edge") for t, pad in zip(tables, pads, strict=True)])

    def at(self, reads: Floats, writes: Floats) -> Floats:
        """Bilinear, (tables, n) for widths (tables, n)."""
        row, down = _place(self.reads, reads)
        column, right = _place(self.writes, writes)
        table = np.arange(len(self.ms))[:, None]
        upper = self.ms[table, row, column] * (1 - right) + self.ms[table, row, column + 1] * right
        lower = self.ms[table, row + 1, column] * (1 - right) + self.ms[table, row + 1, column + 1] * right
        return np.where((reads > 0) & (writes > 0), upper * (1 - down) + lower * down, 0.0)


def _padded(axis: Floats, size: int) -> Floats:
    """Points beyond the last, at which a table stays as it is: an axis that never changes has only one."""
    return np.concatenate([axis, axis[-1] + np.arange(1, size - axis.size + 1)])


def _place(axes: Floats, widths: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The point of each axis (tables, points) at or before each width (tables, n), and how far to the next one, in [0, 1]."""
    before = (axes[:, None, :] <= widths[:, :, None]).sum(axis=2) - 1
    index = np.clip(before, 0, axes.shape[1] - 2)
    start, stop = np.take_along_axis(axes, index, axis=1), np.take_along_axis(axes, index + 1, axis=1)
    return index, np.clip((widths - start) / (stop - start), 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class TimedLayer:
    """A layer of the graph with its table; ``reads`` and ``writes``: its widths as sums over the groups' channels."""

    name: str
    reads: Terms
    writes: Terms
    table: TimeTable

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that its time depends on, sorted."""
        return tuple(sorted({name for width in (self.reads, self.writes) for names in width for name in names}))

    def at(self, kept: Floats) -> Floats:
        """Milliseconds by plan, for ``kept`` (plans, groups)."""
        (fixed, factors), (other, others) = (_linear(width, self.groups) for width in (self.reads, self.writes))
        return self.table.at(fixed + kept @ factors, other + kept @ others)

    def as_products(self) -> Terms:
        """Its time near to the table, in the form of `CostModel.terms`."""
        constant, by_reads, by_writes, by_both = self.table.as_products()
        found: dict[tuple[str, ...], float] = defaultdict(float, {(): constant})
        for factor, width in ((by_reads, self.reads), (by_writes, self.writes)):
            for key, value in width.items():
                found[key] += factor * value
        for first, value in self.reads.items():
            for second, other in self.writes.items():
                found[tuple(sorted(first + second))] += by_both * value * other
        return dict(found)


def _linear(width: Terms, names: Sequence[str]) -> tuple[float, Floats]:
    """The constant of a width and the factors of these groups' channels."""
    return width.get((), 0.0), np.array([width.get((name,), 0.0) for name in names])


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """A cost model that knows latency beside what ``counted`` does: what `ChannelGraph.cost_model` is once a network was timed.

    ms = ``by_layers`` x the layers' times + ``by_bytes`` x bytes of activations written + ``per_call``.
    """

    counted: ClosedFormCost
    layers: tuple[TimedLayer, ...]
    sizes: Mapping[str, int]
    by_layers: float = 1.0
    by_bytes: float = 0.0
    per_call: float = 0.0
    multiples: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def targets(self) -> frozenset[str]:
        """See `CostModel`."""
        return self.counted.targets | {"latency"}

    def parts(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Milliseconds of a plan by what they go to: ``layers``, ``memory`` (all other operations), ``calls``."""
        layers, written = self._features(list(kept), np.array([list(kept.values())], dtype=np.float64))
        return {
            "layers": self.by_layers * float(layers.sum()),
            "memory": self.by_bytes * float(written[0]),
            "calls": self.per_call,
        }

    def _features(self, names: Sequence[str], kept: Floats) -> tuple[Floats, Floats]:
        """Times of all layers alone (layers, plans) and bytes written (plans,)."""
        counts = np.repeat(np.array([list(self.sizes.values())], dtype=np.float64), len(kept), axis=0)
        counts[:, [self._index[name] for name in names]] = kept
        stack, (fixed_in, by_in), (fixed_out, by_out) = self._stacked
        times = stack.at(fixed_in[:, None] + by_in @ counts.T, fixed_out[:, None] + by_out @ counts.T)
        return times, self.counted.written_bytes(names, kept)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sizes)}

    @cached_property
    def _stacked(self) -> tuple[_Stack, tuple[Floats, Floats], tuple[Floats, Floats]]:
        """All tables, and all widths read and written: constants (layers,) and factors (layers, groups)."""
        read, written = (
            [_linear(width, list(self.sizes)) for width in widths]
            for widths in ([layer.reads for layer in self.layers], [layer.writes for layer in self.layers])
        )
        stacked = [(np.array([c for c, _ in part]), np.stack([factors for _, factors in part])) for part in (read, written)]
        return _Stack([layer.table for layer in self.layers]), stacked[0], stacked[1]

    def costs(self, names: Sequence[str], kept: Floats) -> dict[str, Floats]:
        """See `CostModel`; ``latency`` in ms."""
        layers, written = self._features(names, kept)
        ms = self.by_layers * layers.sum(axis=0) + self.by_bytes * written + self.per_call
        return {**self.counted.costs(names, kept), "latency": ms}

    def cost(self, kept: Mapping[str, int]) -> Cost:
        """See `CostModel`."""
        return replace(self.counted.cost(kept), latency_ms=sum(self.parts(kept).values()))

    def terms(self, target: str) -> list[Terms]:
        """See `CostModel`; of latency what isn't layers."""
        if target != "latency":
            return self.counted.terms(target)
        written = {names: self.by_bytes * value for names, value in self.counted.written_bytes_terms().items()}
        return [{**written, (): written.get((), 0.0) + self.per_call}]

    def tables(self, target: str) -> Sequence[CostTable]:
        """The layers' times."""
        return [self._table(layer) for layer in self.layers] if target == "latency" else ()

    def _table(self, layer: TimedLayer) -> CostTable:
        products = {names: self.by_layers * value for names, value in layer.as_products().items()}
        return CostTable(layer.groups, lambda kept: self.by_layers * layer.at(kept), products)

    def calibrated(self, measured: Sequence[tuple[Mapping[str, int], float]]) -> LatencyModel:
        """The factors that fit whole networks (channels kept, ms) best, in least squares of relative errors, none negative."""
        rows: list[list[float]] = []
        for kept, ms in measured:
            layers, written = self._features(list(kept), np.array([list(kept.values())], dtype=np.float64))
            rows.append([float(layers.sum()) / ms, float(written[0]) / ms, 1.0 / ms])
        scale = np.max(rows, axis=0)
        trust = [_TRUST * rows[0][0] / scale[0], 0.0, 0.0]
        wanted = [*[1.0] * len(rows), _TRUST * rows[0][0]]
        by_layers, by_bytes, per_call = (
            _without_negatives(np.array([*(np.array(rows) / scale), trust]), np.array(wanted)) / scale
        ).tolist()
        return replace(self, by_layers=by_layers, by_bytes=by_bytes, per_call=per_call)

    def relaxed(self) -> LatencyModel | None:
        """The same with liked multiples halved; None where any width is allowed already."""
        if not any(multiple > 1 for multiple in self.multiples.values()):
            return None
        return replace(self, multiples={name: max(1, multiple // 2) for name, multiple in self.multiples.items()})


def timed(graph: ChannelGraph, tables: Sequence[TimeTable], multiple: int = 1) -> ChannelGraph:
    """The graph with latency among its costs. ``tables``: one for each of ``graph.layers``; ``multiple``: widths that the runtime
    likes, which a group follows as far as it has room for four of them."""
    counted = cast("ClosedFormCost", graph.cost_model)
    layers = [
        TimedLayer(layer.name, widths[0], widths[1], table)
        for layer, widths, table in zip(graph.layers, counted.layer_widths(), tables, strict=True)
    ]
    multiples = {group.name: fitting_multiple(group.num_channels * group.width_factor, multiple) for group in graph.prunable}
    sizes = {group.name: group.num_channels for group in graph.groups}
    return replace(graph, cost_model=LatencyModel(counted, tuple(layers), sizes, multiples=multiples))


def fitting_multiple(width: int, multiple: int) -> int:
    """``multiple``, halved until a layer of ``width`` has room for four of them."""
    while multiple > 1 and width < 4 * multiple:
        multiple //= 2
    return multiple


def with_model(graph: ChannelGraph, model: CostModel) -> ChannelGraph:
    """The graph with another cost model."""
    return replace(graph, cost_model=model)


class Correction:
    """From predicted to measured ms and back: a line through the networks that were measured, in proportion beyond them."""

    def __init__(self, pairs: Sequence[tuple[float, float]]) -> None:
        """``pairs`` of predicted and measured ms; networks that broke the order by noise are evened out like a `TimeTable`."""
        ordered = np.array(sorted(pairs), dtype=np.float64)
        self._predicted = ordered[:, 0]
        rising = np.maximum.accumulate(ordered[:, 1])
        falling = np.minimum.accumulate(ordered[::-1, 1])[::-1]
        self._measured = (rising + falling) / 2

    def measured(self, predicted: float) -> float:
        """What a network that is predicted to take ``predicted`` ms will take."""
        return _through(predicted, self._predicted, self._measured)

    def predicted(self, measured: float) -> float:
        """What to ask the model for, so that ``measured`` ms come out."""
        return _through(measured, self._measured, self._predicted)


def _through(x: float, xs: Floats, ys: Floats) -> float:
    nearest = 0 if x < xs[0] else len(xs) - 1
    return x * float(ys[nearest] / xs[nearest]) if not xs[0] <= x <= xs[-1] else float(np.interp(x, xs, ys))
