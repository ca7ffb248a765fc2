"""Movement along the channel axis: exact where the move, replayed on the surviving channels, is the same move; else frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difficulties.network import OUTPUT, G, Net, Program, conv, conv_bn


def _shuffle_block(m: Any, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, dim=1)
    x = torch.cat([left, m.branch(right)], 1)
    n, c, h, w = x.shape
    return m.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def _c2f(m: Any, x: Tensor) -> Tensor:
    parts = list(m.stem(x).chunk(2, 1))
    parts.append(parts[-1] + m.second(m.first(parts[-1])))
    return m.head(m.join(torch.cat(parts, 1)).mean((2, 3)))


def _split(widths: Any) -> Any:
    def run(m: Any, x: Tensor) -> Tensor:
        left, right = torch.split(m.stem(x), widths(m.stem.out_channels), 1)
        return m.head_left(left) + m.head_right(right)

    return run


def _padded_shortcut(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    return m.head(m.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))


def _single_channel(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head(x * x[:, 0:1].sigmoid() + x[:, 1].unsqueeze(1))


def _index_by_buffer() -> nn.Module:
    net = Program(lambda m, x: m.head(m.stem(x)[:, m.order]), stem=conv(3, 4), head=conv(4, 2))
    net.register_buffer("order", torch.tensor([2, 0, 3, 1]))
    return net


def _write_through_view(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    out = x.new_empty(x.shape[0], 6, *x.shape[2:])
    out[:, :4] = m.body(x)
    out[:, 4:] = 1
    return m.head(out)


def _unpool(m: Any, x: Tensor) -> Tensor:
    pooled, indices = F.max_pool2d(m.stem(x), 2, return_indices=True)
    return m.head(F.max_unpool2d(m.body(pooled), indices, 2))


def _chain_with(move: Any, width: int = 8, read: int = 8) -> Any:
    return lambda: Program(lambda m, x: m.head(move(m.stem(x))), stem=conv(3, width), head=conv(read, 2))


def _frozen_stem(width: int, why: str) -> dict[str, G]:
    return {"stem": G(width, "stem.weight/0 stem.bias/0", "", frozen=why), "head": HEAD}


MIXED_PARTS = "divided into equal parts, one of which holds entries of fixed width, in `aten.split"
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)

NETS = [
    Net(  # ShuffleNetV2: the shuffle ties slot i of both halves; the untouched half ties stem and branch
        "channel shuffle",
        lambda: Program(
            _shuffle_block, stem=conv_bn(3, 8), branch=nn.Sequential(conv_bn(4, 6), conv(6, 4, bias=False)), head=conv(8, 2)
        ),
        {
            "stem.0": G(4, "stem.0.weight/0 branch.1.weight/0", "branch.0.0.weight/1 head.weight/1"),
            "branch.0.0": G(6, "branch.0.0.weight/0", "branch.1.weight/1"),
            "head": HEAD,
        },
    ),
    Net(  # YOLOv8's C2f: halves lose equally many, whichever
        "c2f",
        lambda: Program(
            _c2f, stem=conv_bn(3, 8), first=conv_bn(4, 5), second=conv_bn(5, 4), join=conv_bn(12, 6), head=nn.Linear(6, 2)
        ),
        {
            "stem.0": G(4, "stem.0.weight/0 second.0.weight/0", "first.0.weight/1 join.0.weight/1"),
            "first.0": G(5, "first.0.weight/0", "second.0.weight/1"),
            "join.0": G(6, "join.0.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net(
        "equal split",
        lambda: Program(_split(lambda c: c // 2), stem=conv(3, 8), head_left=conv(4, 2), head_right=conv(4, 2)),
        {
            "stem": G(4, "stem.weight/0 stem.bias/0", "head_left.weight/1 head_right.weight/1"),
            "head_left": G(2, "head_left.weight/0 head_left.bias/0 head_right.weight/0 head_right.bias/0", frozen=OUTPUT),
        },
    ),
    Net(
        "unequal split",
        lambda: Program(_split(lambda c: [c - 3, 3]), stem=conv(3, 8), head_left=conv(5, 2), head_right=conv(3, 2)),
        {
            "stem": G(
                8,
                "stem.weight/0 stem.bias/0",
                "",
                frozen="split into unequal parts, and no attribute of a module holds their widths",
            ),
            "head_left": G(2, "head_left.weight/0 head_left.bias/0 head_right.weight/0 head_right.bias/0", frozen=OUTPUT),
        },
        outcome="frozen",
    ),
    Net(  # the part's width is a number in the program: labels can't tell it from c // 2, verification can
        "slice by constant",
        lambda: Program(lambda m, x: m.head(m.stem(x)[:, :4]), stem=conv(3, 8), head=conv(4, 2)),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
        outcome="refused",
    ),
    Net(
        "slice by share",
        lambda: Program(lambda m, x: m.head((y := m.stem(x))[:, : y.shape[1] // 4]), stem=conv(3, 8), head=conv(2, 2)),
        {"stem": G(2, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "every second channel",
        lambda: Program(lambda m, x: m.head((y := m.stem(x))[:, ::2] * y[:, 1::2]), stem=conv(3, 8), head=conv(4, 2)),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "glu",
        _chain_with(lambda y: F.glu(y, 1), read=4),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "pixel shuffle",
        _chain_with(lambda y: F.pixel_shuffle(y, 2), read=2),
        {"stem": G(2, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "pixel unshuffle",
        _chain_with(lambda y: F.pixel_unshuffle(y, 2), width=4, read=16),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net("flip", _chain_with(lambda y: y.flip(1)), {"stem": G(8, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD}),
    Net(
        "roll",
        _chain_with(lambda y: y.roll(1, 1)),
        _frozen_stem(8, "channels are picked by absolute index in `aten.roll"),
        outcome="frozen",
    ),
    Net(
        "roll pixels",
        _chain_with(lambda y: y.roll((1, 2), (2, 3))),
        {"stem": G(8, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "padded shortcut",  # option A of CIFAR ResNets: the zeros on both sides hold the width
        lambda: Program(_padded_shortcut, stem=conv(3, 4), body=nn.Conv2d(4, 6, 3, stride=2, padding=1), head=conv(6, 2)),
        {
            "stem": G(
                4, "stem.weight/0 stem.bias/0", "body.weight/1", frozen="padded with constant channels (a width held in Python)"
            ),
            "body": G(6, "body.weight/0 body.bias/0", frozen="padded with constant channels (a width held in Python)"),
            "head": HEAD,
        },
        outcome="frozen",
    ),
    Net(
        "single channel",
        lambda: Program(_single_channel, stem=conv(3, 6), head=conv(6, 2)),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1", frozen="a single channel is selected"), "head": HEAD},
        outcome="frozen",
    ),
    Net(
        "embedding of positions with channels last",
        lambda: Program(
            lambda m, x: m.head((m.stem(x).permute(0, 2, 3, 1) + m.place).permute(0, 3, 1, 2)),
            stem=conv(3, 6),
            place=nn.Parameter(torch.rand(1, 8, 8, 6)),
            head=conv(6, 2),
        ),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1", scales="place/3"), "head": HEAD},
    ),
    Net(  # the rows of the table are picked by number, its columns are channels
        "a row of a table of scales",
        lambda: Program(
            lambda m, x: m.head(m.stem(x) * torch.sigmoid(m.alpha).view(2, -1, 1, 1)[0]),
            stem=conv(3, 6),
            alpha=nn.Parameter(torch.rand(2, 6)),
            head=conv(6, 2),
        ),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1", scales="alpha/1"), "head": HEAD},
    ),
    Net(  # the buffer's numbers are rewritten
        "index by buffer",
        _index_by_buffer,
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "write through view",
        lambda: Program(_write_through_view, stem=conv(3, 5), body=conv(5, 4), head=conv(6, 2)),
        {
            "stem": G(5, "stem.weight/0 stem.bias/0", "body.weight/1"),
            "body": G(4, "body.weight/0 body.bias/0", frozen="meets a tensor whose width is fixed in `aten.copy_"),
            "head": HEAD,
        },
    ),
    Net(  # a chunk of an image and a feature: the first half can lose nothing, so neither can the second
        "chunk with image",
        lambda: Program(lambda m, x: m.head(torch.cat([x, m.stem(x)], 1).chunk(3, 1)[1]), stem=conv(3, 9), head=conv(4, 2)),
        {
            "stem": G(5, "stem.weight/0 stem.bias/0", frozen=MIXED_PARTS),
            "stem#2": G(4, "stem.weight/0 stem.bias/0", "head.weight/1", frozen=MIXED_PARTS),
            "head": HEAD,
        },
        outcome="frozen",
    ),
    Net(
        "stack and interleave",
        lambda: Program(
            lambda m, x: m.head(torch.stack([m.left(x), m.right(x)], 2).flatten(1, 2)),
            left=conv(3, 4),
            right=conv(3, 4),
            head=conv(8, 2),
        ),
        {"left": G(4, "left.weight/0 left.bias/0 right.weight/0 right.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(  # every channel is an image of its own to one filter
        "channels on the batch axis",
        lambda: Program(
            lambda m, x: m.head(m.blur((y := m.stem(x)).reshape(-1, 1, *y.shape[2:])).view(y.shape)),
            stem=conv(3, 4),
            blur=conv(1, 1),
            head=conv(4, 2),
        ),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "repeat channels",
        _chain_with(lambda y: y.repeat(1, 2, 1, 1), width=4),
        {"stem": G(4, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
    Net(
        "unpooling",  # SegNet: indices of one layer place another layer's channels
        lambda: Program(
            _unpool,
            stem=conv(3, 6),
            body=conv(6, 6),
            head=conv(6, 2),
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0 body.weight/0 body.bias/0", "body.weight/1 head.weight/1"),
            "head": HEAD,
        },
    ),
    Net("image only", lambda: Program(lambda m, x: m.head(x), head=conv(3, 2)), {"head": HEAD}, outcome="frozen"),
    Net(
        "global residual",
        lambda: Program(lambda m, x: x + m.tail(F.relu(m.stem(x))), stem=conv(3, 6), tail=conv(6, 3)),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "tail.weight/1"),
            "tail": G(3, "tail.weight/0 tail.bias/0", frozen="meets a tensor whose width is fixed"),
        },
    ),
    Net(
        "concatenation with the image",
        lambda: Program(lambda m, x: m.head(torch.cat([x, m.stem(x)], 1)), stem=conv(3, 6), head=conv(9, 2)),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": HEAD},
    ),
]
