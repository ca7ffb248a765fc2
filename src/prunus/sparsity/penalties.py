"""Penalties that drive the scales of batch norms to zero, exactly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def ista_step(scale: Tensor, gradient: Tensor, step: float, penalty: float, strength: float = 1.0) -> Tensor:
    """One proximal step on the scales of a batch norm: (num_channels,), with exact zeros.

        gamma <- soft(gamma - step * dL/dgamma, step * strength * penalty),   soft(x, t) = sign(x) * max(abs(x) - t, 0)

    Ye et al., ICLR 2018. ``penalty`` is the layer's own (`memory_cost`), ``strength`` the same for all layers.
    """
    moved = scale - step * gradient
    return moved.sign() * (moved.abs() - step * strength * penalty).clamp_min(0)


def memory_cost(
    map_size: tuple[int, int],
    kernel_size: tuple[int, int],
    in_channels: int,
    followers: Sequence[tuple[int, int, int]],
    input_size: tuple[int, int],
) -> float:
    """What a channel of a layer costs in memory, as a share of the input's pixels: the layer's ``penalty`` in `ista_step`.

        (h * w + kh * kw * c_in + sum over followers of kh' * kw' * c_out') / (H * W)

    Ye et al., ICLR 2018. ``followers``: kernel height, kernel width and output channels of what reads the layer.
    """
    own = map_size[0] * map_size[1] + kernel_size[0] * kernel_size[1] * in_channels
    return (own + sum(h * w * channels for h, w, channels in followers)) / (input_size[0] * input_size[1])


def rescaled(scale: Tensor, shift: Tensor, reader: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift times ``factor``, the weight that reads the channels divided by it: the same function behind a ReLU.

    Ye et al., ICLR 2018 (*gamma-W rescaling*): smaller scales reach zero sooner at the same penalty. ``factor`` is above zero.
    """
    if factor <= 0:
        raise ValueError(f"factor={factor}: rescaling keeps the function for factors above zero only")
    return scale * factor, shift * factor, reader / factor
