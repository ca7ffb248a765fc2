"""The closed-form cost: layers, parameters and activations are products of widths, widths are linear in the channels kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from prunus.costs import Cost, CostTable, Terms
from prunus.graph.labels import LabelVector

Floats = npt.NDArray[np.float64]


class WidthTable:
    """Collects label vectors as rows: width = constant + sum over groups of (positions per channel) x (channels kept)."""

    def __init__(self, group_of_label: npt.NDArray[np.int64], group_sizes: npt.NDArray[np.int64]) -> None:
        self._group_of_label = np.append(group_of_label, -1)  # the last entry answers for label -1
        self._sizes = group_sizes
        self._fixed = {0: 1.0}
        self._vectors: dict[int, LabelVector] = {}
        self._known: dict[int, int] = {}
        self._count = 1

    def row(self, labels: LabelVector | int) -> int:
        """Index of the width of this label vector (or of a fixed number)."""
        known = None if isinstance(labels, int) else self._known.get(id(labels))
        if known is not None:
            return known
        index, self._count = self._count, self._count + 1
        if isinstance(labels, int):
            self._fixed[index] = float(labels)
        else:
            self._known[id(labels)] = index
            self._vectors[index] = labels
        return index

    def matrices(self) -> tuple[Floats, csr_matrix]:
        """Constants (rows,) and coefficients (rows, groups)."""
        constant = np.zeros(self._count)
        constant[list(self._fixed)] = list(self._fixed.values())
        rows = np.repeat(list(self._vectors), [len(v) for v in self._vectors.values()]).astype(np.int64)
        labels = np.concatenate([np.zeros(0, np.int64), *self._vectors.values()])
        groups = self._group_of_label[labels]
        np.add.at(constant, rows[groups < 0], 1.0)
        rows, groups = rows[groups >= 0], groups[groups >= 0]
        shape = (self._count, len(self._sizes))
        # duplicate entries are summed: positions per channel
        positions = csr_matrix((np.ones(len(rows)), (rows, groups)), shape=shape)
        positions.data /= self._sizes[positions.indices]
        return constant, positions


def product_table(entries: list[tuple[float, list[int]]]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Factors (n,) and width rows (n, most), padded with row 0, whose width is 1."""
    most = max((len(rows) for _, rows in entries), default=0)
    table = np.zeros((len(entries), most), dtype=np.int64)
    for i, (_, rows) in enumerate(entries):
        table[i, : len(rows)] = rows
    return np.array([f for f, _ in entries]), table


@dataclass(frozen=True)
class StoredFile:
    """``tensors``: bytes as products of widths; ``fixed``: bytes of the header that no plan changes; ``slices``: width row, fixed
    bytes and bytes per entry of what the record says of an axis that got narrower."""

    tensors: list[tuple[float, list[int]]]
    fixed: float
    slices: list[tuple[int, float, float]]


NO_FILE = StoredFile([], 0.0, [])


class ClosedFormCost:
    """Cost of a plan from the number of channels kept in each group, in microseconds and without a second trace."""

    def __init__(
        self,
        groups: Mapping[str, int],
        widths: WidthTable,
        layers: list[tuple[float, list[int]]],
        parameters: list[tuple[float, list[int]]],
        storages: list[tuple[float, list[int]]],
        live_at: list[list[int]],
        stored: StoredFile = NO_FILE,
    ) -> None:
        self._names = list(groups)
        self._index = {name: i for i, name in enumerate(groups)}
        self._linears: dict[int, dict[tuple[str, ...], float]] = {}
        self.full = np.array(list(groups.values()), dtype=np.float64)
        self._constant, self._coefficients = widths.matrices()
        self._layers, self._parameters, self._storages = map(product_table, (layers, parameters, storages))
        rows = np.repeat(np.arange(len(live_at)), [len(live) for live in live_at])
        columns = np.array([i for live in live_at for i in live], dtype=np.int64)
        self._tensors, self._header = product_table(stored.tensors), stored.fixed
        self._slices = np.array([row for row, _, _ in stored.slices], dtype=np.int64)
        self._slice_bytes = np.array([[fixed, each] for _, fixed, each in stored.slices]).reshape(-1, 2)
        self._full_slices = (self._constant + self._coefficients @ self.full)[self._slices]
        self._live = csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(live_at), len(storages)))

    def cost(self, kept: Mapping[str, int]) -> Cost:
        """Cost per input at batch 1; groups that ``kept`` doesn't name are whole."""
        costs = self.costs(list(kept), np.array([list(kept.values())], dtype=np.float64))
        return Cost(**{name: round(float(values[0])) for name, values in costs.items()})

    def costs(self, names: Sequence[str], kept: Floats) -> dict[str, Floats]:
        """Costs (plans,) of many plans at once, by the names of the fields of `Cost`; ``kept``: channels (plans, names)."""
        widths = self._widths_of(names, kept)

        def products(table: tuple[Floats, npt.NDArray[np.int64]]) -> Floats:
            return self._products(table, widths)

        live = self._live @ products(self._storages)
        return {
            "macs": products(self._layers).sum(axis=0),
            "parameters": products(self._parameters).sum(axis=0),
            "activation_bytes": live.max(axis=0) if len(live) else np.zeros(len(kept)),
            "file_size": products(self._tensors).sum(axis=0) + self._header + self._record_bytes(widths),
        }

    def _record_bytes(self, widths: Floats) -> Floats:
        """What the record of surgery says of every axis that got narrower: widths (rows, plans) -> (plans,)."""
        left = widths[self._slices]
        told = self._slice_bytes[:, :1] + self._slice_bytes[:, 1:] * left
        return np.where(left < self._full_slices[:, None] - 0.5, told, 0.0).sum(axis=0)

    def _widths_of(self, names: Sequence[str], kept: Floats) -> Floats:
        counts = np.repeat(self.full[:, None], len(kept), axis=1)
        counts[[self._index[name] for name in names]] = kept.T
        return self._constant[:, None] + self._coefficients @ counts

    @staticmethod
    def _products(table: tuple[Floats, npt.NDArray[np.int64]], widths: Floats) -> Floats:
        factors, rows = table
        result = np.repeat(factors[:, None], widths.shape[1], axis=1)
        for column in rows.T:
            result *= widths[column]
        return result

    @property
    def targets(self) -> frozenset[str]:
        """What a budget may ask for."""
        return frozenset({"macs", "parameters", "activation_bytes", "file_size"})

    @property
    def multiples(self) -> Mapping[str, int]:
        """Of counted costs no width is better than another."""
        return {}

    def tables(self, target: str) -> Sequence[CostTable]:
        """None: counted costs are products."""
        return ()

    def layer_widths(self) -> list[list[Terms]]:
        """For each of the graph's layers its widths (read, written, others) as sums over the groups' channels."""
        return [[self._linear(int(row)) for row in rows[rows > 0]] for rows in self._layers[1]]

    def written_bytes(self, names: Sequence[str], kept: Floats) -> Floats:
        """Bytes of all activations that a pass writes, by plan: see `costs`."""
        return self._products(self._storages, self._widths_of(names, kept)).sum(axis=0)

    def written_bytes_terms(self) -> Terms:
        """The same written out, see `terms`."""
        return self._expanded(*self._storages)

    def terms(self, target: str) -> list[Terms]:
        """The cost written out: products of the groups' channels and their factors; see `CostModel.terms`.

        The file's size is written as if every axis got narrower, so that it's never below that of a plan.
        """
        if target == "file_size":
            factors, rows = product_table(
                [(each, [row]) for row, each in zip(self._slices, self._slice_bytes[:, 1], strict=True)]
            )
            found = self._expanded(*self._tensors), self._expanded(factors, rows)
            constant = {(): self._header + float(self._slice_bytes[:, 0].sum())}
            return [dict(sum((Counter(terms) for terms in (*found, constant)), Counter()))]
        if target != "activation_bytes":
            factors, rows = {"macs": self._layers, "parameters": self._parameters}[target]
            return [self._expanded(factors, rows)]
        factors, rows = self._storages
        moments = {tuple(self._live.indices[a:b]) for a, b in zip(self._live.indptr, self._live.indptr[1:], strict=False)}
        return [self._expanded(factors[list(alive)], rows[list(alive)]) for alive in sorted(moments)]

    def _expanded(self, factors: Floats, rows: npt.NDArray[np.int64]) -> Terms:
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for factor, widths in zip(factors, rows, strict=True):
            product: dict[tuple[str, ...], float] = {(): float(factor)}
            for width in widths[widths > 0]:
                linear = self._linear(int(width))
                wider: dict[tuple[str, ...], float] = defaultdict(float)
                for names, value in product.items():
                    for name, coefficient in linear.items():
                        wider[tuple(sorted(names + name))] += value * coefficient
                product = wider
            for names, value in product.items():
                found[names] += value
        return dict(found)

    def _linear(self, row: int) -> dict[tuple[str, ...], float]:
        """A width as a constant, under the key of no group, and what a channel of each group adds."""
        if row not in self._linears:
            start, stop = self._coefficients.indptr[row : row + 2]
            groups = zip(self._coefficients.indices[start:stop], self._coefficients.data[start:stop], strict=True)
            found: dict[tuple[str, ...], float] = {(self._names[group],): float(value) for group, value in groups}
            self._linears[row] = found | ({(): float(self._constant[row])} if self._constant[row] else {})
        return self._linears[row]
