"""The preferred pattern of a channel: the input that activates it most, found by gradient ascent from noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import EvidenceError, UnknownName
from prunus.graph.as_found import as_found
from prunus.importance.evidence import to_device
from prunus.importance.readers import Reading, ReadingCall, reading_call, reading_members, readings
from prunus.types import ChannelGraph, ForwardFn, call_model, first_tensor, map_tensors

STARTS = 8
"""So many noise images are tried until the channel has a gradient (a ReLU may be silent on the first); then the mean input."""
RATE = 0.25
"""Length of the first step; it falls to zero in even steps."""


@dataclass(frozen=True)
class Ascent:
    """How patterns are sought: steps of gradient ascent, weights of the two penalties, images in one batch.

    ``l2`` = 1 leads to patterns about as strong as the data (root mean square near one standard deviation); with
    ``total_variation`` = 0.1 an edge of any height costs a tenth of what the channel's response drives a pixel with.
    """

    steps: int = 40
    l2: float = 1.0
    total_variation: float = 0.1
    at_once: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1 or self.at_once < 1 or self.l2 < 0 or self.total_variation < 0:
            raise EvidenceError(f"{self}: steps and at_once must be 1 or more, the weights of the penalties 0 or more")


def preferred_patterns(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: Any,
    *,
    groups: Iterable[str] | None = None,
    starts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    ascent: Ascent | None = None,
    forward_fn: ForwardFn | None = None,
) -> dict[str, Tensor]:
    """The input that each channel responds to most: group name -> float (num_channels, C, H, W). The model is left as found.

    Activation maximisation. A pattern z counts from the mean of ``inputs`` in their standard deviations, both per input channel
    (the network gets mean + std * z), so that penalties and noise don't depend on how the data were scaled. From seeded noise,
    the same for every channel so that copies of a filter end alike, each step adds

        rate * (g / rms(g) - l2 * z - total_variation * dTV(z)/dz),      g = d(mean response)/dz

    with TV the sum of absolute differences of neighbours. The response is the channel's activation averaged over positions,
    taken where the channel is read. One image for each channel, many in one batch: the objective is the sum of the diagonal.
    It takes ``steps`` forward and backward passes of an image for each channel. A channel that nothing wakes has a pattern of
    zeros. Groups that no convolution or linear layer reads through a plain parameter are left out. What the authors of
    functionality-oriented pruning did in detail isn't known: this is a reconstruction.

    There are many maxima: where a channel doesn't care for the place, noise decides where its stripes lie, so that patterns of
    different seeds, pixel by pixel, tell little of each other. To see what a training made of a channel, go on from its pattern
    before (``starts``).

    Args:
        inputs: a batch as the network (or ``forward_fn``) takes it. Its first tensor is the input that is changed and gives the
            shape, mean and standard deviation; of other tensors as long as it the first example is repeated.
        groups: names of prunable groups; all of them where none is given.
        starts: group name -> patterns to begin with, as this function gives them, in place of noise; a channel without a gradient
            there gets noise after all.
        seed: of the start noise.

    Raises:
        EvidenceError: the first tensor is no floating-point input, ``starts`` have another shape, an activation isn't finite, a
            layer doesn't have the images along its input's first axis, or no gradient flows from a group to the input.
        UnknownName: a group that isn't prunable or doesn't exist.
    """
    known = [group.name for group in graph.prunable]
    chosen = known if groups is None else list(groups)
    for name in chosen:
        if name not in known:
            raise UnknownName.among("prunable group", name, known)
    with as_found(model):
        search = PatternSearch(model, graph, inputs, seed, ascent or Ascent(), forward_fn)
        found = {name: search.patterns(name, (starts or {}).get(name)) for name in chosen}
    return {name: patterns for name, patterns in found.items() if patterns is not None}


class PatternSearch:
    """Patterns of one group after the other. Make and use it under `as_found`: it sets evaluation mode."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Any, seed: int, ascent: Ascent, forward_fn: ForwardFn | None
    ) -> None:
        self._model, self._ascent, self._forward_fn = model.eval(), ascent, forward_fn
        self._members = reading_members(model, graph)
        self._inputs = _Standardised(to_device(inputs, model))
        noise = torch.randn(STARTS, *self._inputs.shape, generator=torch.Generator().manual_seed(seed % 2**63))
        self._noise = noise.to(self._inputs.mean)

    def patterns(self, name: str, start: Tensor | None = None) -> Tensor | None:
        """Patterns of a group on the CPU: float (num_channels, C, H, W), or None where no layer reads it directly."""
        if name not in self._members:
            return None
        group = readings(self._model, self._members[name])
        width = len(next(iter(group.values())).positions)
        if start is not None and start.shape != (width, *self._inputs.shape):
            shape, expected = tuple(start.shape), (width, *self._inputs.shape)
            raise EvidenceError(f"patterns to start from for group `{name}` have the shape {shape}: give {expected}")
        found: list[Tensor] = []
        for channels in torch.arange(width).split(self._ascent.at_once):

            def gradient(z: Tensor, channels: Tensor) -> Tensor | None:
                return self._gradient(name, group, z, channels)

            patterns = self._ascended(channels, None if start is None else start[channels], gradient)
            if patterns is None:
                return None
            found.append(patterns.cpu())
        return torch.cat(found)

    def responses(self, name: str, patterns: Tensor) -> Tensor:
        """Mean response of every channel of a group to each of its patterns: (num_channels of patterns, num_channels)."""
        group = readings(self._model, self._members[name])
        found = [self._responses(group, z.to(self._noise)) for z in patterns.split(self._ascent.at_once)]
        return torch.cat([values.cpu() for values in found if values is not None])

    def _ascended(
        self, channels: Tensor, start: Tensor | None, gradient: Callable[[Tensor, Tensor], Tensor | None]
    ) -> Tensor | None:
        z = self._started(channels, start, gradient)
        if z is None:
            return None
        for step in range(self._ascent.steps):
            found = gradient(z, channels)
            assert found is not None
            rms = found.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (z.ndim - 1))
            uphill = found / torch.where(rms > 0, rms, torch.ones_like(rms))
            move = uphill - self._ascent.l2 * z - self._ascent.total_variation * _variation_gradient(z)
            # Without a gradient the image stays: penalties alone would only fade it out.
            z = torch.where(rms > 0, z + RATE * (1 - step / self._ascent.steps) * move, z)
        return z

    def _started(
        self, channels: Tensor, start: Tensor | None, gradient: Callable[[Tensor, Tensor], Tensor | None]
    ) -> Tensor | None:
        """For every channel the first image at which it has a gradient: its start, noise, or else zeros, the mean input."""
        z = torch.zeros(len(channels), *self._inputs.shape).to(self._noise)
        waiting = torch.arange(len(channels))
        for image in (*([] if start is None else [start.to(z)]), *self._noise.unsqueeze(1)):
            images = image.expand_as(z)[waiting]
            found = gradient(images, channels[waiting])
            if found is None:
                return None
            awake = found.flatten(1).any(1).cpu()
            z[waiting[awake]] = images[awake]
            waiting = waiting[~awake]
            if not len(waiting):
                break
        return z

    def _gradient(self, name: str, group: dict[int, Reading], z: Tensor, channels: Tensor) -> Tensor | None:
        """Gradient of the response of ``channels[i]`` to image i by that image, or None where no call reads the group."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            responses = self._responses(group, z)
            if responses is None:
                return None
            if not responses.requires_grad:
                raise EvidenceError(
                    f"no gradient flows from group `{name}` back to the network's input, so there is no ascent to the pattern it "
                    "prefers: the network's forward detaches it or runs under no_grad; use another criterion, such as taylor"
                )
            (found,) = torch.autograd.grad(responses[torch.arange(len(z)), channels.to(z.device)].sum(), z)
        if not bool(torch.isfinite(found).all()):
            raise EvidenceError(
                f"activations of group `{name}` aren't finite on the way to its preferred patterns: check the weights"
            )
        return found

    def _responses(self, group: dict[int, Reading], z: Tensor) -> Tensor | None:
        """Mean response of every channel to each image: (images, num_channels), or None where no call reads the group."""
        inputs, watch = self._inputs.of(z), _Responses(group, len(z))
        with watch:
            call_model(self._model, inputs, self._forward_fn)
        return None if watch.total is None else watch.total / watch.places


class _Responses(TorchFunctionMode):
    """While active, sums what every call that reads the group gets: (images, num_channels), over places and calls."""

    def __init__(self, group: dict[int, Reading], images: int) -> None:
        super().__init__()
        self.total: Tensor | None = None
        self.places = 0
        self._group, self._images = group, images

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = reading_call(func, args, kwargs or {})
        if call is not None and id(call.weight) in self._group:
            self._add(call, self._group[id(call.weight)])
        return func(*args, **(kwargs or {}))

    def _add(self, call: ReadingCall, reading: Reading) -> None:
        if call.axis <= 0 or len(call.x) != self._images:
            raise EvidenceError(
                f"a layer reads an input of shape {tuple(call.x.shape)} in a batch of {self._images} images: preferred patterns "
                "need the images along the first axis of every layer's input; use another criterion, such as taylor"
            )
        first = call.x.movedim(call.axis, 1)
        values = first.reshape(
            len(first), -1, reading.length, first[0, 0].numel()
        )  # image, group of the convolution, index, place
        dtype = torch.promote_types(values.dtype, torch.float32)
        found = values.sum((1, 3), dtype=dtype)[:, reading.positions.to(values.device)].sum(2)
        self.total = found if self.total is None else self.total + found
        self.places += values.shape[1] * values.shape[3] * reading.positions.shape[1]


class _Standardised:
    """A batch's form, and the mean and standard deviation of each input channel, (C, 1, ...), in float32 at least."""

    def __init__(self, inputs: Any) -> None:
        example = first_tensor(inputs)
        if example is None or example.ndim < 2 or not example.is_floating_point() or not example.numel():
            found = "none" if example is None else f"{tuple(example.shape)} of {example.dtype}"
            raise EvidenceError(
                "preferred patterns need a floating-point input (images, channels, ...), and the first tensor of the batch is "
                f"{found}: give a batch whose first tensor is the image"
            )
        values = example.detach().to(torch.promote_types(example.dtype, torch.float32))
        if not bool(torch.isfinite(values).all()):
            raise EvidenceError("the batch that preferred patterns take their scale from isn't finite: check the data")
        self._inputs, self._example = inputs, example
        self.shape = values.shape[1:]
        others = [axis for axis in range(values.ndim) if axis != 1]
        std, mean = torch.std_mean(values, others, correction=0, keepdim=True)
        self.mean, self._std = mean[0], torch.where(std > 0, std, torch.ones_like(std))[0]

    def of(self, z: Tensor) -> Any:
        """The inputs with ``z`` (images, C, H, W), put back to their scale, in place of the first tensor."""
        images = (self.mean + self._std * z).to(self._example.dtype)

        def at(tensor: Tensor) -> Tensor:
            if tensor is self._example:
                return images
            same = tensor.ndim > 0 and len(tensor) == len(self._example)
            return tensor[:1].expand(len(z), *tensor.shape[1:]) if same else tensor

        return map_tensors(at, self._inputs)


def _variation_gradient(z: Tensor) -> Tensor:
    """Derivative of the sum of absolute differences of neighbours along all axes behind the channels'."""
    found = torch.zeros_like(z)
    for axis in range(2, z.ndim):
        signs = z.diff(dim=axis).sign()
        edge = torch.zeros_like(z.narrow(axis, 0, 1))
        found += torch.cat([edge, signs], axis) - torch.cat([signs, edge], axis)
    return found
