"""Random small networks, as sentences of a grammar: a sequence of blocks, then a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nets import Program, conv, conv_bn

# A block maps (input width, free even width, free choice) to a module and its output width; images keep their size. Widths start
# at 4: a part of one channel can't be told from a channel of one part, and only verification would refuse it.
Built = tuple[nn.Module, int]


def _plain(i: int, o: int, choice: int) -> Built:
    return conv_bn(i, o, 1 + 2 * (choice % 2)), o


def _residual(i: int, o: int, choice: int) -> Built:
    run = lambda m, x: F.relu(m.second(m.first(x)) + (m.shortcut(x) if m.projects else x))  # noqa: E731
    out = o if choice % 2 else i
    parts: dict[str, Any] = {"first": conv_bn(i, o), "second": conv(o, out), "projects": choice % 2}
    return Program(run, **parts, **({"shortcut": conv(i, out, 1)} if choice % 2 else {})), out


def _concatenation(i: int, o: int, choice: int) -> Built:
    return Program(lambda m, x: torch.cat([x, m.branch(x)][:: -1 if choice % 2 else 1], 1), branch=conv_bn(i, o)), i + o


def _chunk_cat(i: int, o: int, choice: int) -> Built:
    def run(m: Any, x: Tensor) -> Tensor:
        left, right = m.stem(x).chunk(2, 1)
        return torch.cat([left, right, right + m.branch(right)], 1)

    return Program(run, stem=conv_bn(i, o), branch=conv_bn(o // 2, o // 2)), o // 2 * 3


def _grouped(i: int, o: int, choice: int) -> Built:
    return nn.Sequential(conv_bn(i, 2 * o, 1), conv_bn(2 * o, o, groups=2)), o


def _depthwise(i: int, o: int, choice: int) -> Built:
    multiplier = 1 + choice % 2
    return nn.Sequential(conv_bn(i, o, 1), conv(o, o * multiplier, groups=o), nn.SiLU()), o * multiplier


def _squeeze_excite(i: int, o: int, choice: int) -> Built:
    run = lambda m, x: x * torch.sigmoid(m.expand(F.relu(m.squeeze(x.mean((2, 3), keepdim=True)))))  # noqa: E731
    return Program(run, squeeze=conv(i, o, 1), expand=conv(o, i, 1)), i


def _shuffle(i: int, o: int, choice: int) -> Built:
    def run(m: Any, x: Tensor) -> Tensor:
        n, c, h, w = (x := m.stem(x)).shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    return Program(run, stem=conv_bn(i, o)), o


def _transposed(i: int, o: int, choice: int) -> Built:
    return nn.Sequential(nn.ConvTranspose2d(i, o, 2, stride=2), nn.BatchNorm2d(o), nn.ReLU(), nn.AvgPool2d(2)), o


def _pool(i: int, o: int, choice: int) -> Built:
    return nn.MaxPool2d(3, 1, 1) if choice % 2 else nn.AvgPool2d(3, 1, 1), i


def _gated(i: int, o: int, choice: int) -> Built:
    return nn.Sequential(conv(i, 2 * o), nn.GLU(1)), o


BLOCKS: tuple[Callable[[int, int, int], Built], ...] = (
    _plain,
    _residual,
    _concatenation,
    _chunk_cat,
    _grouped,
    _depthwise,
    _squeeze_excite,
    _shuffle,
    _transposed,
    _pool,
    _gated,
)

sentences = st.tuples(
    st.lists(
        st.tuples(st.sampled_from(range(len(BLOCKS))), st.sampled_from([4, 6, 8]), st.integers(0, 1)), min_size=1, max_size=5
    ),
    st.booleans(),
    st.integers(0, 10**6),
)
Sentence = tuple[Sequence[tuple[int, int, int]], bool, int]


def network(sentence: Sentence) -> nn.Module:
    """The network that a sentence describes: images of 3 x 4 x 4 in, three logits out."""
    blocks, flat, seed = sentence
    torch.manual_seed(seed)
    parts: list[nn.Module] = [conv_bn(3, 4)]
    width = 4
    for kind, free, choice in blocks:
        block, width = BLOCKS[kind](width, free, choice)
        parts.append(block)
    head: list[nn.Module] = (
        [nn.Flatten(), nn.Linear(16 * width, 3)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    )
    return nn.Sequential(*parts, *head).eval()
