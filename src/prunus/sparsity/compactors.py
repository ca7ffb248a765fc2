"""Compactors: where they can be, how their rows are driven to zero, and how they are merged into what stands in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from prunus.training_hooks import SparsityTask
from prunus.types import ChannelGraph, ChannelGroup, call_model

VANISHED = 1e-5
"""A compactor's row with a smaller Euclidean norm is as good as zero."""
ALMOST_NOTHING = 1e-12
"""The penalty's gradient divides by norms from here up: below, it fades out with the row, which so has one even at zero."""
CONVOLUTIONS = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
    nn.Linear: nn.functional.linear,
}
_NAME = "compactor"


def resrep_gradient(compactor: Tensor, gradient: Tensor, mask: Tensor, strength: float = 1e-4) -> Tensor:
    """Gradient of a compactor Q (D, D) with the task's gradient reset on masked rows: (D, D).

        grad[j] = mask[j] * dL/dQ[j] + strength * Q[j] / norm(Q[j])

    Ding et al., ResRep, ICCV 2021. ``mask`` (D,): 0 where the task may no longer keep the row alive. All rows are
    penalised; one that is exactly zero has no direction and is left alone (the authors' code divides by zero there), and so is
    practically one whose norm is below `ALMOST_NOTHING`.
    """
    changed = gradient.detach().clone()
    reset_gradient_(changed, compactor, mask[:, None].to(gradient), strength)
    return changed


@torch.no_grad()
def reset_gradient_(gradient: Tensor, compactor: Tensor, mask: Tensor, strength: float) -> None:
    """`resrep_gradient` in place, with a mask (D, 1) of the gradient's type: run in every step, so few operations."""
    norms = torch.linalg.vector_norm(compactor, dim=1, keepdim=True).clamp_min_(ALMOST_NOTHING)
    gradient.mul_(mask).addcdiv_(compactor, norms, value=strength)


def merge_compactor(
    kernel: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, compactor: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Convolution, norm and compactor as one convolution: its kernel (D, C, ...) and bias (D,).

        K^[d] = K[d] * scale[d] / sqrt(variance[d] + eps),   b^ = shift - mean * scale / sqrt(variance + eps)
        K'[j] = sum over d of Q[j, d] K^[d],   b' = Q b^

    Ding et al., ResRep, ICCV 2021.
    """
    factor = scale / (variance + eps).sqrt()
    merged = compactor @ (kernel.flatten(1) * factor[:, None])
    return merged.reshape(kernel.shape), compactor @ (shift - mean * factor)


class Compactor(nn.Module):
    """A 1 x 1 convolution without bias over the channels of (batch, D, ...), at first the identity."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(len(like), dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """A matrix product, which costs a CPU up to four times less than the convolution, forward and backward."""
        if x.ndim == 2:
            return nn.functional.linear(x, self.weight)
        by_channel = x.flatten(2)
        if x.is_contiguous() and by_channel.shape[2] >= by_channel.shape[1]:  # each product's gradient is then no larger than x
            return torch.bmm(self.weight.expand(len(x), -1, -1), by_channel).reshape(x.shape)
        return nn.functional.linear(by_channel.transpose(1, 2), self.weight).transpose(1, 2).reshape(x.shape)


def _compact(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return cast("Compactor", getattr(module, _NAME))(output)


@dataclass(eq=False)
class Compacted:
    """A group with a compactor behind each of its convolutions' norms, one and the same; paths of modules in ``model``."""

    group: str
    width: int
    pairs: tuple[tuple[str, str], ...]
    model: nn.Module | None = None

    def on(self, model: nn.Module) -> Compacted:
        """Put the compactor into ``model``, in place."""
        norms = [model.get_submodule(norm) for _, norm in self.pairs]
        shared = Compactor(cast("Tensor", norms[0].weight).detach())
        for norm in norms:
            norm.add_module(_NAME, shared)
            norm.register_forward_hook(_compact)
        return self.found_in(model)

    def found_in(self, model: nn.Module) -> Compacted:
        """The same in a copy of the network that has the compactor already."""
        return Compacted(self.group, self.width, self.pairs, model)

    @cached_property
    def weight(self) -> nn.Parameter:
        """Q (D, D)."""
        assert self.model is not None
        return cast("Compactor", self.model.get_submodule(f"{self.pairs[0][1]}.{_NAME}")).weight


@torch.no_grad()
def merge(compacted: Compacted) -> None:
    """Merge the compactor into the convolutions and take it out; their batch norms become maps that only add a constant.

    The norm keeps statistics: mean and variance of what the merged convolution gives if its inputs' channels are uncorrelated.
    Scale and shift are set so that in evaluation the function is the same for whatever they are.
    """
    assert compacted.model is not None
    q = compacted.weight.detach().double()
    for conv_path, norm_path in compacted.pairs:
        conv, norm = compacted.model.get_submodule(conv_path), compacted.model.get_submodule(norm_path)
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        kernel, bias = cast("Tensor", conv.weight), cast("Tensor | None", conv.bias)
        scale, shift, mean, variance = (
            t.detach().double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        if bias is not None:
            mean = mean - bias.detach().double()
            bias.zero_()
        merged, constant = merge_compactor(kernel.double(), scale, shift, mean, variance, q, norm.eps)
        factor = scale / (variance + norm.eps).sqrt()
        new_mean, new_variance = q @ (factor * mean), q.square() @ (factor.square() * variance)
        kernel.copy_(merged)
        norm.running_mean.copy_(new_mean)
        norm.running_var.copy_(new_variance)
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(constant + norm.running_mean.double())
    for norm in (compacted.model.get_submodule(path) for _, path in compacted.pairs):
        hooks = norm._forward_hooks  # pyright: ignore[reportPrivateUsage] # by function: handles of a copied network point elsewhere
        for key in [key for key, hook in hooks.items() if hook is _compact]:
            del hooks[key]
        delattr(norm, _NAME)


def find_compactable(
    model: nn.Module, graph: ChannelGraph, task: SparsityTask, *, residual: bool
) -> tuple[list[Compacted], dict[str, str]]:
    """Groups that can have a compactor, and why the others can't: group name -> reason."""
    behind = _norms_behind(model, task)
    found: list[Compacted] = []
    left_out: dict[str, str] = {}
    for group in graph.prunable:
        pairs = _pairs(model, group, behind, residual=residual)
        if isinstance(pairs, str):
            left_out[group.name] = pairs
        else:
            found.append(Compacted(group.name, group.num_channels, pairs))
    return found, left_out


def _pairs(model: nn.Module, group: ChannelGroup, behind: dict[str, str], *, residual: bool) -> tuple[tuple[str, str], ...] | str:
    """The convolutions that write a group, each with its norm; or why there can be no compactor."""
    if group.mixing:
        return "an operation computes statistics over its channels"
    identity = torch.arange(group.num_channels).unsqueeze(1)
    pairs: list[tuple[str, str]] = []
    for member in group.with_role("writes"):
        path, _, kind = member.parameter_axis.parameter.rpartition(".")
        module = model.get_submodule(path)
        if kind == "bias":
            continue
        if type(module) not in CONVOLUTIONS or getattr(module, "groups", 1) != 1:
            return f"`{path}` isn't a plain convolution"
        if path not in behind:
            return f"no batch norm is directly behind `{path}`"
        if not torch.equal(member.positions, identity):
            return f"its channels aren't those of `{path}` one by one"
        pairs.append((path, behind[path]))
    if len(pairs) > 1 and not residual:
        return f"{len(pairs)} convolutions write it (residual = true gives them a common compactor)"
    return tuple(pairs)


@torch.no_grad()
def _norms_behind(model: nn.Module, task: SparsityTask) -> dict[str, str]:
    """Path of a convolution -> path of the batch norm, with scales and statistics, that is called with its output, and once."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, list[str]] = {}
    handles: list[Any] = []

    def note_output(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            made[id(output)] = path, output

        return hook

    def note_norm(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            source = made.get(id(inputs[0]))
            found.setdefault(path, []).append(source[0] if source is not None else "")

        return hook

    for path, module in model.named_modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(note_output(path)))
        elif isinstance(module, _BatchNorm) and _plain(module):
            handles.append(module.register_forward_pre_hook(note_norm(path)))
    modes = [(module, module.training) for module in model.modules()]
    try:
        call_model(model.eval(), task.example_inputs, task.forward_fn)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return {sources[0]: path for path, sources in found.items() if len(sources) == 1 and sources[0]}


def _plain(norm: _BatchNorm) -> bool:
    """Whether it does what PyTorch's does (timm's put the activation inside) and has scales and statistics."""
    same = type(norm).forward is _BatchNorm.forward
    return same and norm.affine and norm.running_mean is not None and norm.running_var is not None
