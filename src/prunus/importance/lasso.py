"""Channels ranked by L1 regression of the next layer's output on what each of them contributes to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError
from prunus.graph.as_found import as_found
from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence, to_device
from prunus.importance.points import inputs_at
from prunus.importance.readers import TRANSPOSED, Reading, ReadingCall, reading_call, reading_members, readings
from prunus.types import ChannelGraph, call_model

POINTS_PER_IMAGE = 10
MOST_POINTS = 400
"""So many points of a layer's output are regressed on, the first images' (times its output channels; He et al. draw as many)."""
_AT_ONCE = 32


def lasso(view: GroupView, evidence: Evidence) -> Tensor | None:
    """The largest L1 penalty at which the channel still has a coefficient in the regression of the next layer's output.

        b(penalty) = argmin over b of ||y - Z b||^2 / (2 rows) + penalty * ||b||_1
        score[c]   = the largest penalty with b(penalty)[c] != 0

    He et al., ICCV 2017, with intercept: a column of Z is one channel's contribution to the reading layer's output at sampled
    points, y is their sum. The order in which channels enter as the penalty falls is He's selection at every width at once. Where
    several layers read the group, one regression explains them all. A channel that repeats others scores zero. None where only
    transposed convolutions read.

    When to use: without labels, where the next layer is to be refitted: of channels that repeat each other it keeps one. Scores
    are in units of the layer's output, so rank within layers or normalise.
    """
    return evidence.of("lasso_entries", view.group)


class _Regression:
    """Sums for one reader's regression, float64: rows, sums and products of the columns."""

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.sums = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, z: Tensor) -> None:
        self.rows += len(z)
        self.sums += z.sum(0).cpu()
        self.products += (z.T @ z).cpu()

    def centred(self) -> Tensor:
        """Products of the columns without their means: what an intercept leaves."""
        return self.products - torch.outer(self.sums, self.sums) / self.rows


class _Sampler(TorchFunctionMode):
    """While active, takes rows of every reader's regression until it has `MOST_POINTS` points."""

    def __init__(self, readers: dict[int, list[tuple[str, Reading]]], seed: int) -> None:
        super().__init__()
        self.found: dict[tuple[str, int], _Regression] = {}
        self._readers = readers
        self._points: dict[int, int] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        call = reading_call(func, args, kwargs or {})
        if call is not None and id(call.weight) in self._readers and func not in TRANSPOSED:
            self._sample(call, result)
        return result

    def _sample(self, call: ReadingCall, result: Tensor) -> None:
        weight = id(call.weight)
        room = MOST_POINTS - self._points.get(weight, 0)
        images = len(call.x) if call.axis > 0 else 1
        count = min(room, POINTS_PER_IMAGE * images)
        if count <= 0:
            return
        self._points[weight] = self._points.get(weight, 0) + count
        places = result.numel() // (result.shape[call.axis] if call.axis < result.ndim else 1)
        for chosen in torch.randint(places, (count,), generator=self._generator).split(_AT_ONCE):
            rows = contributions(call, chosen.to(call.x.device))
            for name, reading in self._readers[weight]:
                found = self.found.setdefault((name, weight), _Regression(len(reading.positions)))
                found.add(rows[:, reading.positions.to(rows.device)].sum(2))


def contributions(call: ReadingCall, places: Tensor) -> Tensor:
    """What each index of the reading axis adds to the output at these places: float64 (places * output channels, length).

    ``places`` (int64) count the output's positions, image by image.
    """
    weight = call.weight.double()
    x = inputs_at(call, places).double()
    groups = call.settings.get("groups", 1)
    x = x.reshape(len(x), groups, weight.shape[1], -1)
    w = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return torch.einsum("mglq,golq->mgol", x, w).flatten(0, 2)


def entries(gram: Tensor, products: Tensor, rows: int) -> Tensor:
    """The penalty at which each column enters the Lasso path: float64 (columns,), zero for those that never do.

    ``gram`` is Z'Z, ``products`` Z'y; the penalty is that of 1/(2 rows) ||y - Zb||^2 + penalty ||b||_1.

    Raises:
        EvidenceError: scikit-learn isn't installed.
    """
    try:
        from sklearn.linear_model import lars_path_gram
    except ImportError as error:
        raise EvidenceError("the lasso criterion needs scikit-learn: pip install 'prunus[all]'") from error
    scale = float(gram.diagonal().max())
    if scale <= 0:
        return torch.zeros(len(gram), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of columns that repeat others, which are meant to be left out
        penalties, _, path = lars_path_gram(
            (products / scale).numpy(), (gram / scale).numpy(), n_samples=rows, method="lasso", copy_X=True
        )
    inside = torch.from_numpy(path) != 0
    first = inside.int().argmax(1)
    found = torch.from_numpy(penalties).double()[(first - 1).clamp_min(0)] * scale
    return torch.where(inside.any(1), found, torch.zeros_like(found))


def lasso_entries(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """The penalty at which each channel enters: group name -> float64 (num_channels,). Batches may come without targets.

    Raises:
        EvidenceError: the data are empty, an activation isn't finite, or scikit-learn isn't installed.
    """
    readers: dict[int, list[tuple[str, Reading]]] = {}
    for name, members in reading_members(model, graph).items():
        for weight, reading in readings(model, members).items():
            readers.setdefault(weight, []).append((name, reading))
    sampler = _Sampler(readers, run.seed)
    with as_found(model), sampler:
        model.eval()
        for batch in run:
            call_model(model, run.inputs(to_device(batch, model)), run.forward_fn)
    by_group: dict[str, list[_Regression]] = {}
    for (name, _), regression in sampler.found.items():
        if not bool(torch.isfinite(regression.sums).all()):
            raise EvidenceError(f"activations of group `{name}` aren't finite on a scoring batch: check the data and weights")
        by_group.setdefault(name, []).append(regression)
    grams = {name: torch.stack([r.centred() for r in found]).sum(0) for name, found in by_group.items()}
    return {name: entries(gram, gram.sum(1), sum(r.rows for r in by_group[name])) for name, gram in grams.items()}
