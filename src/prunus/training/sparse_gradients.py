"""Sparse activation gradients: small ones are set to zero at random, so that their mean stays right.

A switch of the training loop, for any network with convolutions; no channel is removed by it. Both products of a convolution's
backward pass, the one for its weight and the one for its input, have the gradient of its output as a factor: where that is zero,
a multiply-add could be left out. PyTorch's dense kernels don't leave it out, so that nothing gets faster here, and drawing the
random numbers costs time: what is reported are operations that sparse kernels or hardware could save.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import TrainingError
from prunus.training.placement import BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FORECAST_LENGTH = 5
"""So many thresholds are averaged (unverified)."""


def threshold_of_normal(gradient: Tensor, share: float) -> Tensor:
    """The threshold below which a ``share`` in (0, 1) of the gradient's magnitudes lies, if they are those of a normal law: ().

        sigma = sqrt(pi / 2) * mean abs(g),   tau = Phi^-1((1 + share) / 2) * sigma

    Ye et al., ECCV 2020 (from memory: the algorithm is unverified, its constants are checked). ``share`` is what lies below tau,
    not what becomes zero: of 90 % below it 54 % do. In float32 at least, on the gradient's device.
    """
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return NormalDist().inv_cdf((1 + share) / 2) * (torch.pi / 2) ** 0.5 * gradient.abs().mean(dtype=dtype)


def prune_gradient(gradient: Tensor, threshold: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    """Gradients below the threshold become ``threshold * sign(g)`` with probability abs(g) / threshold, else zero: a new tensor.

    The expectation of every entry is the entry itself; those at or above the threshold stay as they are.
    """
    height = torch.as_tensor(threshold, device=gradient.device).to(gradient.dtype)
    dtype = torch.promote_types(gradient.dtype, torch.float32)  # half precision has too few random numbers
    drawn = torch.rand(gradient.shape, generator=generator, device=gradient.device, dtype=dtype)
    magnitude = gradient.abs()
    kept = torch.where(drawn * height < magnitude, height * gradient.sign(), torch.zeros_like(gradient))
    return torch.where(magnitude < height, kept, gradient)


class ThresholdForecast:
    """The threshold of a step, forecast as the mean of the last ones, so that a gradient is looked at once only.

    Args:
        length: how many thresholds are remembered.
    """

    def __init__(self, length: int = FORECAST_LENGTH) -> None:
        self._last: deque[Tensor] = deque(maxlen=length)

    @property
    def threshold(self) -> Tensor | None:
        """The forecast, or None until there are enough thresholds: nothing is pruned before."""
        return torch.stack(list(self._last)).mean() if len(self._last) == self._last.maxlen else None

    def push(self, threshold: Tensor) -> None:
        """The threshold that the step's own gradient had; where it isn't finite (half precision), the last one again."""
        if self._last:
            threshold = torch.where(threshold.isfinite(), threshold, self._last[-1])
        self._last.append(threshold.nan_to_num(0.0, 0.0, 0.0))

    def state(self) -> list[Tensor]:
        """The thresholds, the oldest first."""
        return list(self._last)

    def load(self, thresholds: list[Tensor]) -> None:
        """Take up where `state` was read."""
        self._last.clear()
        self._last.extend(thresholds)


class _Layer:
    """A convolution: what is pruned of its gradients, and how many entries were zero."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.forecast = ThresholdForecast()
        self.normed = False
        self.latest: weakref.ref[Tensor] | None = None
        self.macs = 0
        self.generators: dict[torch.device, torch.Generator] = {}
        self.seed = 0
        self.forget()

    def forget(self) -> None:
        self.steps, self.pruned = 0, False
        self.zeros: Tensor | None = None
        self.zeros_before: Tensor | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def sparse(self, gradient: Tensor, share: float) -> Tensor:
        """The gradient, pruned at the forecast threshold; its own threshold is remembered."""
        threshold = self.forecast.threshold
        self.forecast.push(threshold_of_normal(gradient, share))
        if threshold is None:
            return gradient
        self.pruned = True
        return prune_gradient(gradient, threshold.to(gradient.device), self.generator(gradient.device))

    def count(self, before: Tensor, after: Tensor) -> None:
        """Note the share of zeros in the gradient that arrived and in the one that the convolution goes on with."""
        found, had = ((t == 0).mean(dtype=torch.float32) for t in (after, before))
        self.zeros = found if self.zeros is None else self.zeros + found
        self.zeros_before = had if self.zeros_before is None else self.zeros_before + had
        self.steps += 1


class SparseGradients:
    """While active, the activation gradients of every convolution of ``model`` are pruned at random on the way back.

    Ye et al., ECCV 2020 (from memory, unverified but for the constants). In front of a batch norm the gradient that enters the
    convolution is pruned (that of its output). Without one it is sparse already, thanks to the activation, and the one that
    leaves is pruned (that of its input; the first layer has none). A batch norm is seen if it is a module that is called with
    the convolution's output. Every layer's threshold is the mean of its last five; nothing is pruned in the first five steps.

    Each process prunes what it sees at thresholds of its own: the mean over processes is unbiased like each. A scale of the loss
    (half precision) is in the thresholds, too; when it changes, they follow within five steps.

    Args:
        share: share of each gradient that is below its threshold, in [0, 1); 0: nothing is done at all.

    Raises:
        TrainingError: the network has no convolution.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        found = model.named_modules() if share > 0 else ()
        self._layers = [_Layer(name, module) for name, module in found if isinstance(module, CONVOLUTIONS)]
        self._norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        self._hooks: list[Any] = []
        if share > 0 and not self._layers:
            raise TrainingError(
                f"sparse_gradients = {share} prunes the activation gradients of convolution modules, and this network has none: "
                "set it to 0"
            )

    def __enter__(self) -> SparseGradients:
        for layer in self._layers:
            self._hooks.append(layer.module.register_forward_pre_hook(self._before(layer)))
            self._hooks.append(layer.module.register_forward_hook(self._behind(layer)))
        for norm in self._norms if self._layers else []:
            self._hooks.append(norm.register_forward_pre_hook(self._at_norm))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def start_epoch(self, seed: int, epoch: int, process: int) -> None:
        """Draw from (seed, epoch, process, layer) from now on, whatever was drawn before, and count anew."""
        for number, layer in enumerate(self._layers):
            sequence = np.random.SeedSequence((seed, epoch, process, number, 0x6AD))
            layer.seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
            layer.generators.clear()
            layer.forget()

    def _before(self, layer: _Layer) -> Callable[..., Any]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = inputs[0] if inputs else None
            if layer.normed or not isinstance(x, Tensor) or not x.requires_grad or not torch.is_grad_enabled():
                return None
            own = x.view_as(x)  # its gradient is this layer's alone, whoever else reads x
            own.register_hook(leaving)
            return (own, *inputs[1:])

        def leaving(gradient: Tensor) -> Tensor:
            return gradient if layer.normed else layer.sparse(gradient, self.share)

        return hook

    def _behind(self, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            layer.latest = weakref.ref(output)
            layer.macs = _backward_macs(module, inputs, output)
            output.register_hook(arriving)

        def arriving(gradient: Tensor) -> Tensor:
            after = layer.sparse(gradient, self.share) if layer.normed else gradient
            layer.count(gradient, after)
            return after

        return hook

    def _at_norm(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        for layer in self._layers:
            if not layer.normed and layer.latest is not None and inputs and layer.latest() is inputs[0]:
                layer.normed = True

    def report(self) -> dict[str, Any] | None:
        """What this process counted since the epoch's start, or None where nothing is pruned.

        ``layers``: name -> ``pruned`` (gradient of the layer's "output" or "input", or "nothing"), ``zeros`` (share of zeros in
        the gradient that both backward products read, mean over the steps), ``zeros_before`` (as it arrived), ``macs`` (of both
        products, per image). ``macs``: their sum. ``saved``: the share of it that has a zero as a factor.
        """
        seen = {layer.name: _summary(layer) for layer in self._layers if layer.steps}
        if not seen:
            return None
        macs = sum(found["macs"] for found in seen.values())
        return {"layers": seen, "macs": macs, "saved": sum(found["macs"] * found["zeros"] for found in seen.values()) / macs}

    def state_dict(self) -> dict[str, Any]:
        """The remembered thresholds of every layer, and whether a batch norm was seen behind it."""
        return {layer.name: {"thresholds": layer.forecast.state(), "normed": layer.normed} for layer in self._layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was read, to the same bits."""
        for layer in self._layers:
            found = state[layer.name]
            device = next(layer.module.parameters()).device
            layer.forecast.load([t.to(device) for t in found["thresholds"]])
            layer.normed = bool(found["normed"])

    def position(self) -> dict[str, Any]:
        """Where in an epoch this process is: what every layer has counted, and its generators."""
        return {
            layer.name: {
                "steps": layer.steps,
                "pruned": layer.pruned,
                "zeros": layer.zeros,
                "zeros_before": layer.zeros_before,
                "macs": layer.macs,
                "generators": {str(device): generator.get_state() for device, generator in layer.generators.items()},
            }
            for layer in self._layers
        }

    def move_to(self, position: Mapping[str, Any]) -> None:
        """Go on where `position` was read; `start_epoch` and `load_state_dict` come first."""
        for layer in self._layers:
            found = position[layer.name]
            device = next(layer.module.parameters()).device
            layer.steps, layer.pruned, layer.macs = found["steps"], found["pruned"], found["macs"]
            layer.zeros, layer.zeros_before = (
                None if found[n] is None else found[n].to(device) for n in ("zeros", "zeros_before")
            )
            for name, state in found["generators"].items():
                layer.generator(torch.device(name)).set_state(state)


def _summary(layer: _Layer) -> dict[str, Any]:
    assert layer.zeros is not None and layer.zeros_before is not None
    return {
        "pruned": "nothing" if not layer.pruned else "output" if layer.normed else "input",
        "zeros": float(layer.zeros) / layer.steps,
        "zeros_before": float(layer.zeros_before) / layer.steps,
        "macs": layer.macs,
    }


def _backward_macs(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    """Multiply-adds of the products for the weight's gradient and, unless the input needs none, for the input's: per image."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    x: Tensor = inputs[0]
    images = x.shape[0] if x.ndim == weight.ndim else 1
    positions = x if isinstance(module, TRANSPOSED) else output
    macs = positions.numel() // images * (weight.numel() // weight.shape[0])
    return macs * (2 if x.requires_grad else 1)
