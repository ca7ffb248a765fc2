"""The residual networks for small images of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

DEPTHS = (8, 14, 20, 32, 44, 56, 110)
NAMES = tuple(f"resnet{depth}{suffix}" for depth in DEPTHS for suffix in ("", "-projection"))


class PaddedShortcut(nn.Module):
    """The paper's option A: every second pixel, and zero channels added, half in front and half behind."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and projection:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
        elif stride != 1:
            self.shortcut = PaddedShortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, ``(depth - 2) / 6`` blocks each: images (n, in_channels, h, w) -> (n, num_classes).

    ``projection`` chooses 1x1 convolutions with batch norm (option B) where the width changes, so that residual widths can be
    pruned. Without it the shortcut pads zero channels (option A, the networks of the paper's CIFAR tables): there only the widths
    inside the blocks can change.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, projection: bool = False) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, projection)
        self.layer2 = _stage(16, 32, blocks, 2, projection)
        self.layer3 = _stage(32, 64, blocks, 2, projection)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, projection: bool) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, projection)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, projection) for _ in range(blocks - 1)))


def cifar_resnet(name: str, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build one of `NAMES`, e.g. ``resnet20`` or ``resnet20-projection``."""
    depth, _, suffix = name.removeprefix("resnet").partition("-")
    return CifarResNet(int(depth), num_classes, in_channels, projection=suffix == "projection")
