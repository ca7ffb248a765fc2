"""Small networks for the tests of importance, allocation and pipeline. All weights are random and away from zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.surgery import randomise


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Plain(nn.Module):
    """Three conv-norm-ReLU layers of even widths, pooling, a classifier."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 32), classes: int = 10) -> None:
        super().__init__()
        self.one = conv_norm_relu(1, widths[0])
        self.two = conv_norm_relu(widths[0], widths[1])
        self.three = conv_norm_relu(widths[1], widths[2])
        self.classifier = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.one(x), 2)
        x = nn.functional.max_pool2d(self.two(x), 2)
        return self.classifier(self.three(x).mean((2, 3)))


class Residual(nn.Module):
    """A stem and two residual blocks: one group of 16 channels with three writers, two inner groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(1, 16)
        self.inner = nn.ModuleList([conv_norm_relu(16, 24), conv_norm_relu(16, 24)])
        self.outer = nn.ModuleList([nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(2)])
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = torch.relu(x + outer(inner(x)))
        return self.classifier(x.mean((2, 3)))


class PreActivated(nn.Module):
    """norm -> ReLU -> two convolutions beside a shortcut, which reads the ReLU, too, where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1 + (inputs != outputs), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(torch.relu(self.bn2(self.conv1(y))))


class PreActivation(nn.Module):
    """Two streams, of 8 and 12 channels, read by the norms of three blocks and by the last norm."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivated(8, 8), PreActivated(8, 12), PreActivated(12, 12))
        self.norm = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class Flattened(nn.Module):
    """Convolution, flatten, two linear layers: channel c owns the four columns [4c, 4c + 4) of the first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.hidden = nn.Linear(12 * 4, 20)
        self.out = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        return self.out(torch.relu(self.hidden(x)))


class Dense(nn.Module):
    """Concatenation: every layer reads all earlier ones, a depthwise convolution reads the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv_norm_relu(1, 12)
        self.two = conv_norm_relu(12, 12)
        self.three = conv_norm_relu(24, 12)
        self.depthwise = conv_norm_relu(36, 36, groups=36)
        self.last = conv_norm_relu(36, 24, 1)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = torch.cat([x, self.two(x)], 1)
        x = torch.cat([x, self.three(x)], 1)
        return self.classifier(self.last(self.depthwise(x)).mean((2, 3)))


class Layouts(nn.Module):
    """A transposed convolution, a grouped one and a plain one in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.ConvTranspose2d(1, 16, 2, stride=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.plain = nn.Conv2d(16, 8, 1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.transposed(x))))
        return self.classifier(torch.relu(self.plain(x)).mean((2, 3)))


NETS = {net.__name__: net for net in (Plain, Residual, Flattened, Dense, Layouts)}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The named network with random weights, in evaluation mode."""
    return randomise(NETS[name]()).to(dtype).eval()


def images(count: int = 1, size: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batches(number: int = 2, count: int = 6, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Random images with random labels."""
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(0, 10, (count,), generator=generator) for _ in range(number)]
    return [(images(count, dtype=dtype, seed=i), y) for i, y in enumerate(labels)]


class Toy(nn.Module):
    """y = h1 + h2 + h3 with h = (1, -0.5, 0.1) at an input of one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, 3, bias=False)
        self.sum = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0], [-0.5], [0.1]]))
            self.sum.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.hidden(x))


def squared(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((output - batch[1]) ** 2).mean()
