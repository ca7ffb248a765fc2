"""Weights made of several parameters, any of which may come first: which of them writes, reads, or only scales?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from difficulties.network import G, Net, conv
from difficulties.weights import changed_second, three_layers


class _MergedConv2d(nn.Module):
    """Kernels of several shapes that are added before they run (ACNet and its followers, while training)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.square, self.row, self.point = (nn.Parameter(torch.randn(o, i, *k)) for k in ((3, 3), (1, 3), (1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.square + F.pad(self.row, (0, 0, 1, 1)) + F.pad(self.point, (1, 1, 1, 1)), padding=1)


class _GainFirst(nn.Conv2d):
    """A filter's length is a parameter of its own, and the first factor."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.gain * self.weight, self.bias, padding=1)


MASKED = three_layers(
    G(6, "0.weight/0 0.bias/0", "2.weight_orig/1", scales="2.weight_mask/1"),
    G(4, "2.weight_orig/0 2.bias/0", "4.weight/1", scales="2.weight_mask/0"),
)
NETS = [
    Net("weights masked one by one", changed_second(lambda layer: prune.random_unstructured(layer, "weight", 0.3)), MASKED),
    Net("weights masked by filters", changed_second(lambda layer: prune.ln_structured(layer, "weight", 0.25, 2, 0)), MASKED),
    Net(
        "kernels added before they run",
        lambda: nn.Sequential(conv(3, 6), nn.ReLU(), _MergedConv2d(6, 4), nn.ReLU(), conv(4, 2)),
        three_layers(
            G(6, "0.weight/0 0.bias/0", "2.square/1 2.row/1 2.point/1"),
            G(4, "2.square/0 2.row/0 2.point/0", "4.weight/1"),
        ),
    ),
    Net(
        "gain before the weight",
        lambda: nn.Sequential(conv(3, 6), nn.ReLU(), _GainFirst(6, 4), nn.ReLU(), conv(4, 2)),
        three_layers(G(6, "0.weight/0 0.bias/0", "2.weight/1"), G(4, "2.weight/0 2.bias/0", "4.weight/1", scales="2.gain/0")),
    ),
]
