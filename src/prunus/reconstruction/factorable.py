"""Which convolutions rows of cheaper ones can stand for, and what each way keeps of their responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError, UnknownName
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.points import draw_points, inputs_at, output_positions
from prunus.importance.readers import reading_call
from prunus.reconstruction.layer_sites import Site
from prunus.reconstruction.normal_equations import NormalEquations
from prunus.reconstruction.polyadic import cp_shares
from prunus.reconstruction.ranks import Candidate
from prunus.reconstruction.reading_layers import in_evaluation
from prunus.reconstruction.response_shares import channel_shares, spatial_shares
from prunus.surgery.replaced import Kind, LayerShape
from prunus.types import call_model

_KINDS: dict[type[nn.Module], Kind] = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}


def factorable_layers(
    model: nn.Module, sites: Mapping[str, Site], keep: tuple[str, ...]
) -> tuple[dict[str, LayerShape], dict[str, str]]:
    """Layers that can be factorised, in the order of execution, and why the other convolutions can't."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    convolutions = {path: module for path, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}  # pyright: ignore[reportPrivateUsage]
    for glob in keep:
        if not any(fnmatchcase(path, glob) for path in convolutions):
            raise UnknownName.among("layer in keep", glob, convolutions)
    shapes: dict[str, LayerShape] = {}
    refused: dict[str, str] = {}
    ordered = [name.removesuffix(".weight") for name in sites]
    for path in [*(p for p in convolutions if p not in ordered), *(p for p in ordered if p in convolutions)]:
        module = convolutions[path]
        if any(fnmatchcase(path, glob) for glob in keep):
            continue
        why = _why_not(module, sites.get(f"{path}.weight"), len(paths[id(module)]))
        if why is not None:
            refused[path] = why
            continue
        conv: Any = module
        extents = (tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation))
        shapes[path] = LayerShape(_KINDS[type(module)], conv.in_channels, conv.out_channels, *extents, bias=conv.bias is not None)
    return shapes, refused


def _why_not(module: Any, site: Site | None, names: int) -> str | None:
    """Why a convolution can't be replaced by a row, or None."""
    if type(module) not in _KINDS:
        return f"it is a {type(module).__name__}"
    if module.groups > 1:
        return f"it has {module.groups} groups"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"its padding is {module.padding!r}, mode {module.padding_mode}"
    if site is None or len(site.layer.calls) != 1 or names > 1:
        return "it is used more than once, or not at all, or its weight elsewhere, too"
    if site.bias is not None and not site.layer.outlets:
        return f"of its bias: {site.layer.why}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks, which would be lost"
    return None


def candidates_of(
    model: nn.Module,
    sites: Mapping[str, Site],
    shapes: Mapping[str, LayerShape],
    run: DataRun,
    spatial: bool,
    channels: bool,
    cp: bool,
    points: int,
    seed: int,
) -> dict[str, Candidate]:
    """What `choose_ranks` chooses from, by layer: of the ways that are on, from one pass over the data."""
    tensors = dict(named_tensors(model))
    patches = _covariances(model, [f"{layer}.weight" for layer in shapes], run, points, seed)
    found: dict[str, Candidate] = {}
    for layer, shape in shapes.items():
        name = f"{layer}.weight"
        weight, seen = tensors[name].detach().double(), patches.pop(name)
        extent = sites[name].layer.calls[0].extent
        square = spatial and shape.kind == "conv2d" and min(shape.kernel_size) > 1
        flat = weight.flatten(1)
        found[layer] = Candidate(
            shape,
            extent,
            spatial_shares(weight, seen) if square else None,
            channel_shares(flat @ seen @ flat.T) if channels else None,
            cp_shares(shape, weight, seen, extent, seed) if cp and math.prod(shape.kernel_size) > 1 else None,
        )
    return found


class _Patches(TorchFunctionMode):
    """While active, sums products of what every named layer reads at sampled points."""

    def __init__(self, names: Mapping[int, str], points: int, seed: int) -> None:
        super().__init__()
        self._names, self._points = names, points
        self._generator = torch.Generator().manual_seed(seed)
        self.sums: dict[str, NormalEquations] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        call = reading_call(func, args, kwargs or {})
        name = None if call is None else self._names.get(id(call.weight))
        if call is not None and name is not None:
            places = draw_points(*output_positions(call, out), self._points, self._generator).to(out.device)
            x = inputs_at(call, places).double().flatten(1).unsqueeze(1)
            sums = self.sums.setdefault(name, NormalEquations(1, x.shape[2], 0, x.device))
            sums.add(x, x[:, :, :0])
        return out


def _covariances(model: nn.Module, names: list[str], run: DataRun, points: int, seed: int) -> dict[str, Tensor]:
    """Centred sums of products of what these layers read (inputs * kernel positions, the same), from one pass."""
    tensors = dict(named_tensors(model))
    seen = _Patches({id(tensors[name]): name for name in names}, points, seed)
    with in_evaluation(model), seen:
        for batch in run:
            call_model(model, run.inputs(to_device(batch, model)), run.forward_fn)
    found = {name: sums.centred(True)[0][0] for name, sums in seen.sums.items()}
    for name, covariance in found.items():
        if not bool(torch.isfinite(covariance).all()):
            raise EvidenceError(
                f"what `{name.removesuffix('.weight')}` reads isn't finite on a batch: check the data and the weights"
            )
    return found
