"""Is it the architecture or the weights? What a pruned network is trained from, and for how long (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from prunus.errors import RecipeError, UnsupportedNetwork
from prunus.tickets.lottery import SLACK

ARMS: dict[str, str] = {
    "fine-tuned": "the weights that pruning left, a short training at a small learning rate",
    "rewound-lr": "the weights that pruning left, the whole schedule again (Renda et al. 2020)",
    "scratch-E": "drawn afresh, as many epochs as the full network had",
    "scratch-B": "drawn afresh, as much computation as the full network had",
}
"""What is compared, for the same small network."""


@dataclass(frozen=True)
class Arm:
    """How one of `ARMS` is trained: for so many epochs, from a peak rate, from fresh weights or those that pruning left."""

    epochs: int
    lr: float
    fresh: bool


def scratch_epochs(epochs: int, ratio: float, most: float | None = None) -> int:
    """Epochs of Scratch-B: int(epochs * ratio), ``ratio`` the full network's multiply-adds for each of the small one's.

    ``most``: largest factor (Liu et al. double at most on ImageNet: 90 epochs become 135 at a ratio of 1.5, never more than
    180; on CIFAR 160 become 240 without a limit).

    Raises:
        RecipeError: the ratio is below one.
    """
    if ratio < 1:
        raise RecipeError(
            f"the small network costs {1 / ratio:.2f} times as much as the full one: there is nothing to make up for"
        )
    return int(epochs * (ratio if most is None else min(ratio, most)) + SLACK)


def milestones(epochs: int) -> tuple[int, int]:
    """The epochs after which Liu et al. divide the learning rate by ten: half and three quarters of them."""
    return int(epochs * 0.5 + SLACK), int(epochs * 0.75 + SLACK)


def arms(epochs: int, lr: float, ratio: float, fine_tune_epochs: int, fine_tune_lr: float) -> dict[str, Arm]:
    """How each of `ARMS` trains the small network, where the full one had ``epochs`` from a peak rate of ``lr``.

    ``fine_tune_lr`` is a share of ``lr`` (Liu et al. fine-tune at the schedule's last rate: 0.01). ``ratio``: see
    `scratch_epochs`.
    """
    return {
        "fine-tuned": Arm(fine_tune_epochs, lr * fine_tune_lr, False),
        "rewound-lr": Arm(epochs, lr, False),
        "scratch-E": Arm(epochs, lr, True),
        "scratch-B": Arm(scratch_epochs(epochs, ratio), lr, True),
    }


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw all weights afresh, in place, as the modules' own ``reset_parameters`` does at their present widths.

    Raises:
        UnsupportedNetwork: a parameter belongs to a module without ``reset_parameters``: build the network anew instead.
    """
    for path, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not callable(getattr(module, "reset_parameters", None)):
            raise UnsupportedNetwork(
                f"`{path or 'the network'}` ({type(module).__name__}) has parameters and no reset_parameters, so that they "
                "can't be drawn afresh: build the network at these widths with another seed"
            )
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
