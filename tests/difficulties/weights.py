"""Weights that aren't plain parameters: standardised, normed, masked, shared, in parallel branches, frozen, copied."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from difficulties.network import OUTPUT, G, Net, Program, conv, conv_bn, image


class _ScaledStdConv2d(nn.Conv2d):
    """NFNet, as timm writes it: standardised by a batch norm of the reshaped weight, times a gain."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1))
        self.scale = (9 * i) ** -0.5

    def forward(self, input: Tensor) -> Tensor:
        gain = (self.gain * self.scale).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _StdConv2d(nn.Conv2d):
    """BiT, as timm writes it."""

    def forward(self, input: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


class _StdConv2dByMoments(nn.Conv2d):
    """BiT, as its authors write it."""

    def forward(self, input: Tensor) -> Tensor:
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(input, (self.weight - m) / torch.sqrt(v + 1e-10), self.bias, self.stride, self.padding)


class _RepVgg(nn.Module):
    """Three branches that become one convolution after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(width)
        self.dense, self.point = (nn.Sequential(conv(width, width, k, bias=False), nn.BatchNorm2d(width)) for k in (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


class _MobileOne(nn.Module):
    """Several equal branches, a point-wise one, and a norm where the width stays."""

    def __init__(self, i: int, o: int, groups: int, branches: int) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(i) if i == o else None
        self.scale = nn.Sequential(conv(i, o, 1, bias=False, groups=groups), nn.BatchNorm2d(o))
        self.convs = nn.ModuleList(
            nn.Sequential(conv(i, o, bias=False, groups=groups), nn.BatchNorm2d(o)) for _ in range(branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(x) if self.skip is None else self.scale(x) + self.skip(x)
        for branch in self.convs:
            y = y + branch(x)
        return F.relu(y)


class _WithTeacher(nn.Module):
    """A network that keeps an averaged copy of itself, which doesn't run."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(conv_bn(3, 6), conv(6, 2))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def _tied_decoder(m: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(F.relu(m.body(F.relu(m.encode(x)))), m.encode.weight, padding=1)


def _chain() -> nn.Sequential:
    return nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2))


def changed_second(change: Any) -> Any:
    """Three convolutions, the second one changed, after one run: what computes a weight before each run has computed it."""

    def build() -> nn.Module:
        network = _chain()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of old styles
            change(network[2])
            network(image())
        return network

    return build


def _normed_all() -> nn.Module:
    network = nn.Sequential(conv_bn(3, 6), conv(6, 4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2), conv(6, 2))
    for layer in (network[0][0], network[1], network[3]):
        parametrizations.weight_norm(layer)
    return network


def _backbone_frozen() -> nn.Module:
    network = nn.Sequential(conv_bn(3, 6), conv_bn(6, 4), conv(4, 2))
    network[0].requires_grad_(False)
    return network


def _quantisable() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves to a package of its own
        from torch.ao.quantization import DeQuantStub, QuantStub

        return nn.Sequential(QuantStub(), conv_bn(3, 6), conv(6, 2), DeQuantStub())


def _generator(shape: Any, **held: int) -> Any:
    """A GAN's generator: noise, a linear layer, an image of ``shape`` (m, y), twice upsampled."""

    def run(m: Any, noise: Tensor) -> Tensor:
        return m.up(shape(m, m.project(noise)))

    def build() -> nn.Module:
        up = (nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        return Program(run, project=nn.Linear(5, 96), up=nn.Sequential(*up, nn.ConvTranspose2d(5, 3, 4, 2, 1), nn.Tanh()), **held)

    return build


def three_layers(first: G, second: G) -> dict[str, G]:
    """The groups of three layers in a row, of which the last one is the output."""
    return {"0": first, "2": second, "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT)}


def _standardised(scales: tuple[str, str]) -> dict[str, G]:
    """The first weight is standardised over the image's colours, the second over the channels that it reads."""
    return three_layers(
        G(8, "0.weight/0 0.bias/0", "2.weight/1", mixing=True, scales=scales[0]),
        G(6, "2.weight/0 2.bias/0", "4.weight/1", scales=scales[1]),
    )


def _standard(layer: Any) -> Any:
    return lambda: nn.Sequential(layer(3, 8), nn.ReLU(), layer(8, 6), nn.ReLU(), conv(6, 2))


def _normed(direction: str, length: str, over: str) -> dict[str, G]:
    """The norm is taken ``over`` the inputs of a filter, its outputs or all."""
    first = G(6, "0.weight/0 0.bias/0", f"2.{direction}/1", mixing=over != "outputs")
    second = G(4, f"2.{direction}/0 2.bias/0", "4.weight/1", mixing=over != "inputs")
    scales = f"2.{length}/{0 if over == 'inputs' else 1}" if over != "all" else ""
    if over == "inputs":
        return three_layers(first, G(4, second.writes, second.reads, scales=scales))
    return three_layers(G(6, first.writes, first.reads, mixing=first.mixing, scales=scales), second)


DIRECTION, LENGTH = "parametrizations.weight.original1", "parametrizations.weight.original0"
GENERATOR = {
    "project": G(6, "project.weight/0 project.bias/0", "up.2.weight/0", scales="up.0.weight/0 up.0.bias/0"),
    "up.2": G(5, "up.2.weight/1", "up.5.weight/0", scales="up.3.weight/0 up.3.bias/0"),
    "up.5": G(3, "up.5.weight/1 up.5.bias/0", frozen=OUTPUT),
}


def _noise() -> Tensor:
    return image(2, 5)


NETS = [
    Net("scaled weight standardisation", _standard(_ScaledStdConv2d), _standardised(("0.gain/0", "2.gain/0"))),
    Net("weight standardisation by batch norm", _standard(lambda i, o: _StdConv2d(i, o, 3)), _standardised(("", ""))),
    Net("weight standardisation by moments", _standard(lambda i, o: _StdConv2dByMoments(i, o, 3)), _standardised(("", ""))),
    Net("weight norm, old style", changed_second(nn.utils.weight_norm), _normed("weight_v", "weight_g", "inputs")),
    Net(
        "weight norm over outputs",
        changed_second(lambda layer: parametrizations.weight_norm(layer, dim=1)),
        _normed(DIRECTION, LENGTH, "outputs"),
    ),
    Net(
        "weight norm over everything",
        changed_second(lambda layer: parametrizations.weight_norm(layer, dim=None)),
        _normed(DIRECTION, LENGTH, "all"),
    ),
    Net(  # the first axis of a transposed convolution's weight is the one that reads: that norm is over what it writes
        "weight norm of every layer",
        _normed_all,
        {
            "0.0": G(6, f"0.0.{DIRECTION}/0", f"1.{DIRECTION}/1", mixing=True),
            "1": G(4, f"1.{DIRECTION}/0 1.bias/0", f"3.{DIRECTION}/0", scales=f"1.{LENGTH}/0 3.{LENGTH}/0"),
            "3": G(6, f"3.{DIRECTION}/1 3.bias/0", "4.weight/1", mixing=True),
            "4": G(2, "4.weight/0 4.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "repvgg block before fusion",
        lambda: nn.Sequential(conv_bn(3, 6), _RepVgg(6), conv(6, 2)),
        {
            "0.0": G(
                6,
                "0.0.weight/0 1.dense.0.weight/0 1.point.0.weight/0",
                "1.dense.0.weight/1 1.point.0.weight/1 2.weight/1",
                scales="0.1.weight/0 0.1.bias/0 1.identity.weight/0 1.identity.bias/0 1.dense.1.weight/0 1.dense.1.bias/0 "
                "1.point.1.weight/0 1.point.1.bias/0",
            ),
            "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "mobileone blocks before fusion",
        lambda: nn.Sequential(conv_bn(3, 6), _MobileOne(6, 6, 6, 3), _MobileOne(6, 5, 1, 2), conv(5, 2)),
        {
            "0.0": G(6, "0.0.weight/0", "2.convs.0.0.weight/1 2.convs.1.0.weight/1 2.scale.0.weight/1"),
            "2.scale.0": G(5, "2.convs.0.0.weight/0 2.convs.1.0.weight/0 2.scale.0.weight/0", "3.weight/1"),
            "3": G(2, "3.weight/0 3.bias/0", frozen=OUTPUT),
        },
    ),
    Net(  # the encoder writes and the decoder reads by one axis; the other holds the image's colours on both sides
        "decoder with the encoder's weight",
        lambda: Program(_tied_decoder, encode=conv(3, 6, bias=False), body=conv(6, 6)),
        {
            "encode": G(6, "encode.weight/0 body.weight/0 body.bias/0", "encode.weight/0 body.weight/1"),
            "encode#2": G(3, "encode.weight/1", "encode.weight/1", frozen="also reads an input whose width is fixed"),
        },
    ),
    Net(
        "frozen parameters",
        _backbone_frozen,
        {
            "0.0": G(6, "0.0.weight/0", "1.0.weight/1"),
            "1.0": G(4, "1.0.weight/0", "2.weight/1"),
            "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "quantisation stubs",
        _quantisable,
        {"1.0": G(6, "1.0.weight/0", "2.weight/1"), "2": G(2, "2.weight/0 2.bias/0", frozen=OUTPUT)},
    ),
    Net(
        "averaged copy inside",
        _WithTeacher,
        {
            "student.0.0": G(6, "student.0.0.weight/0", "student.1.weight/1"),
            "student.1": G(2, "student.1.weight/0 student.1.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "averaged model",
        lambda: AveragedModel(nn.Sequential(conv_bn(3, 6), conv(6, 2))),
        {
            "module.0.0": G(6, "module.0.0.weight/0", "module.1.weight/1"),
            "module.1": G(2, "module.1.weight/0 module.1.bias/0", frozen=OUTPUT),
        },
    ),
    Net("generator by unflatten", _generator(lambda m, y: y.unflatten(1, (-1, 4, 4))), GENERATOR, _noise),
    Net("generator by held shape", _generator(lambda m, y: y.view(-1, m.c, m.side, m.side), c=6, side=4), GENERATOR, _noise),
]
