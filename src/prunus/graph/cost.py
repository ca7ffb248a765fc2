"""The closed-form cost: every layer, parameter and activation is a product of widths, every width is linear in the channels kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from prunus.graph.labels import LabelVector
from prunus.types import Cost

Floats = npt.NDArray[np.float64]


class WidthTable:
    """Collects label vectors as rows: width = constant + sum over groups of (positions per channel) x (channels kept)."""

    def __init__(self, group_of_label: npt.NDArray[np.int64], group_sizes: npt.NDArray[np.int64]) -> None:
        self._group_of_label = group_of_label
        self._sizes = group_sizes
        self._rows: list[tuple[float, npt.NDArray[np.int64], npt.NDArray[np.float64]]] = [(1.0, np.zeros(0, np.int64), np.zeros(0))]
        self._known: dict[int, int] = {}
        self._keep_alive: list[LabelVector] = []

    def row(self, labels: LabelVector | int) -> int:
        """Index of the width of this label vector (or of a fixed number)."""
        if isinstance(labels, int):
            self._rows.append((float(labels), np.zeros(0, np.int64), np.zeros(0)))
            return len(self._rows) - 1
        known = self._known.get(id(labels))
        if known is None:
            groups = np.where(labels >= 0, self._group_of_label[labels], -1)
            present, counts = np.unique(groups[groups >= 0], return_counts=True)
            constant = float(len(labels) - counts.sum())
            self._rows.append((constant, present, counts / self._sizes[present]))
            known = self._known[id(labels)] = len(self._rows) - 1
            self._keep_alive.append(labels)
        return known

    def matrices(self) -> tuple[Floats, csr_matrix]:
        """Constants (rows,) and coefficients (rows, groups)."""
        constant = np.array([c for c, _, _ in self._rows])
        lengths = [len(g) for _, g, _ in self._rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        indices = np.concatenate([g for _, g, _ in self._rows])
        data = np.concatenate([f for _, _, f in self._rows])
        return constant, csr_matrix((data, indices, indptr), shape=(len(self._rows), len(self._sizes)))


def product_table(entries: list[tuple[float, list[int]]]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Factors (n,) and width rows (n, most), padded with row 0, whose width is 1."""
    most = max((len(rows) for _, rows in entries), default=0)
    table = np.zeros((len(entries), most), dtype=np.int64)
    for i, (_, rows) in enumerate(entries):
        table[i, : len(rows)] = rows
    return np.array([f for f, _ in entries]), table


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
    ) -> None:
        self._index = {name: i for i, name in enumerate(groups)}
        self.full = np.array(list(groups.values()), dtype=np.float64)
        self._constant, self._coefficients = widths.matrices()
        self._layers, self._parameters, self._storages = map(product_table, (layers, parameters, storages))
        rows = np.repeat(np.arange(len(live_at)), [len(live) for live in live_at])
        columns = np.array([i for live in live_at for i in live], dtype=np.int64)
        self._live = csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(live_at), len(storages)))

    def cost(self, kept: Mapping[str, int]) -> Cost:
        """Cost per input at batch 1; groups that ``kept`` doesn't name are whole."""
        costs = self.costs(list(kept), np.array([list(kept.values())], dtype=np.float64))
        return Cost(**{name: round(float(values[0])) for name, values in costs.items()})

    def costs(self, names: Sequence[str], kept: Floats) -> dict[str, Floats]:
        """Costs of many plans at once: ``kept`` (plans, names) channels -> macs, parameters, activation_bytes, each (plans,)."""
        counts = np.repeat(self.full[:, None], len(kept), axis=1)
        counts[[self._index[name] for name in names]] = kept.T
        widths = self._constant[:, None] + self._coefficients @ counts

        def products(table: tuple[Floats, npt.NDArray[np.int64]]) -> Floats:
            factors, rows = table
            result = np.repeat(factors[:, None], len(kept), axis=1)
            for column in rows.T:
                result *= widths[column]
            return result

        live = self._live @ products(self._storages)
        return {
            "macs": products(self._layers).sum(axis=0),
            "parameters": products(self._parameters).sum(axis=0),
            "activation_bytes": live.max(axis=0) if len(live) else np.zeros(len(kept)),
        }
