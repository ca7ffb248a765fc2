"""Batch-norm statistics of a network whose channels or weights have changed, estimated anew from data."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from prunus.errors import EvidenceError
from prunus.types import ForwardFn, call_model, first_tensor, map_tensors


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Any], *, forward_fn: ForwardFn | None = None, max_batches: int | None = None
) -> int:
    """Estimate the running mean and variance of every batch norm anew, in place; returns the number of images seen.

    The estimate is the plain average over the batches of each batch's mean and unbiased variance (all batches weigh the same).
    Only the batch norms that track statistics run in train mode: dropout and everything else stay in eval mode. Weights, modes
    and momentum stay as found; ``num_batches_tracked`` becomes the number of batches behind the estimate. A batch norm that no
    batch reaches (an auxiliary head) keeps its statistics. A batch is ``(inputs, targets)`` or the inputs alone, on any device;
    ``forward_fn(model, inputs)`` replaces ``model(inputs)``. Without batch norms, or with ``max_batches=0``, nothing is read: 0.

    Raises:
        EvidenceError: the batches are empty, a batch gives one value per channel only, or the statistics aren't finite. The
            statistics are then as they were.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not layers or max_batches == 0:
        return 0
    if max_batches is not None and max_batches < 0:
        raise EvidenceError(f"max_batches = {max_batches}: give a number of batches, 0 for none, or None for all")
    device = next(chain(model.parameters(), model.buffers())).device
    images = 0
    with _restored_on_failure(layers), _averaging(model, layers.values()):
        for index, batch in enumerate(islice(batches, max_batches)):
            inputs = _on(device, _inputs(batch, forward_fn))
            images += _count(batch)
            try:
                call_model(model, inputs, forward_fn)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise EvidenceError(f"batch {index} is too small to have a variance: {error}; use larger batches") from error
        if images == 0:
            raise EvidenceError("the batches for batch-norm statistics yield nothing: is the split empty?")
        _check_finite(layers)
    return images


def _inputs(batch: Any, forward_fn: ForwardFn | None) -> Any:
    if isinstance(batch, (tuple, list)) and len(cast("tuple[Any, ...]", batch)) >= 2:
        return cast("tuple[Any, ...]", batch)[0]
    if forward_fn is None and not isinstance(batch, (Tensor, Mapping)):
        raise EvidenceError(f"a batch is a {type(batch).__name__}: yield (inputs, targets) or tensors, or give a forward_fn")
    return batch


def _on(device: torch.device, value: Any) -> Any:
    """Every tensor of a nest of tuples, lists and dicts, on ``device``."""
    return map_tensors(lambda tensor: tensor.to(device), value)


def _count(batch: Any) -> int:
    """Number of images in a batch, read off the targets where there are any, else off the inputs."""
    parts = cast("tuple[Any, ...]", batch) if isinstance(batch, (tuple, list)) else (batch,)
    for part in reversed(parts[:2]):
        if isinstance(part, list):
            return len(cast("list[Any]", part))
        tensor = first_tensor(part)
        if tensor is not None and tensor.ndim:
            return tensor.shape[0]
    raise EvidenceError(f"can't tell how many images a batch of type {type(batch).__name__} holds: yield (inputs, targets)")


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _snapshot(layer: _BatchNorm) -> dict[str, Tensor]:
    return {name: getattr(layer, name).clone() for name in _STATISTICS if getattr(layer, name) is not None}


def _put_back(layer: _BatchNorm, statistics: Mapping[str, Tensor]) -> None:
    for name, value in statistics.items():
        getattr(layer, name).copy_(value)


@contextmanager
def _restored_on_failure(layers: Mapping[str, _BatchNorm]) -> Generator[None, None, None]:
    """Start from empty statistics; put the old ones back where no batch came by, and everywhere if anything fails."""
    before = {name: _snapshot(layer) for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.reset_running_stats()
        yield
    except BaseException:
        for name, layer in layers.items():
            _put_back(layer, before[name])
        raise
    for name, layer in layers.items():
        if layer.num_batches_tracked is not None and int(layer.num_batches_tracked) == 0:
            _put_back(layer, before[name])


@contextmanager
def _averaging(model: nn.Module, layers: Iterable[_BatchNorm]) -> Generator[None, None, None]:
    """Eval mode, but for ``layers``, which average cumulatively (``momentum=None``); modes and momenta are put back."""
    layers = list(layers)
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.training, layer.momentum = True, None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _check_finite(layers: Mapping[str, _BatchNorm]) -> None:
    for name, layer in layers.items():
        for statistic in ("running_mean", "running_var"):
            if not bool(torch.isfinite(getattr(layer, statistic)).all()):
                raise EvidenceError(
                    f"the {statistic} of {name or 'the network'} isn't finite: an image or a weight holds nan or inf; "
                    "the old statistics were put back"
                )
