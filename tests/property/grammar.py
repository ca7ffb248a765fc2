"""Random small networks, as sentences of a grammar: a sequence of blocks, then one head or several."""

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


def _equal_split(i: int, o: int, choice: int) -> Built:
    """Hierarchical parts of one width, which the module holds (Res2Net)."""

    def run(m: Any, x: Tensor) -> Tensor:
        first, *rest = torch.split(m.stem(x), m.width, 1)
        parts = [first]
        for branch, part in zip((m.second, m.third), rest, strict=False):
            parts.append(branch(part + parts[-1] if choice % 2 else part))
        return torch.cat(parts, 1)

    parts = 2 + choice % 2
    return Program(run, stem=conv_bn(i, parts * o), second=conv_bn(o, o), third=conv_bn(o, o), width=o), parts * o


def _unequal_split(i: int, o: int, choice: int) -> Built:
    """Two parts, whose widths lie in a list or in an attribute each."""

    def run(m: Any, x: Tensor) -> Tensor:
        left, right = torch.split(m.stem(x), m.widths, 1) if choice % 2 else torch.split(m.stem(x), [m.left, m.right], 1)
        return torch.cat([m.branch(left), right], 1)

    program: Any = Program(run, stem=conv_bn(i, 2 * o), branch=conv_bn(o - 1, o))
    if choice % 2:
        program.widths = [o - 1, o + 1]
    else:
        program.left, program.right = o - 1, o + 1
    return program, 2 * o + 1


def _norm(i: int, o: int, choice: int) -> Built:
    """Statistics over channels: of two groups of them, or of all at each pixel."""
    if choice % 2:
        return nn.Sequential(conv(i, o), nn.GroupNorm(2, o), nn.ReLU()), o
    run = lambda m, x: m.norm(m.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
    return Program(run, stem=conv(i, o), norm=nn.LayerNorm(o)), o


def _space_and_depth(i: int, o: int, choice: int) -> Built:
    if choice % 2:
        return nn.Sequential(conv(i, 4 * o), nn.PixelShuffle(2), nn.AvgPool2d(2)), o
    return nn.Sequential(nn.PixelUnshuffle(2), conv_bn(4 * i, o, 1), nn.Upsample(scale_factor=2)), o


def _attention(i: int, o: int, choice: int) -> Built:
    """Residual self-attention over pixels: two heads whose width may go, or heads that go as a whole."""

    def run(m: Any, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (m.query, m.key, m.value))
        if choice % 2:
            parts = [t.unflatten(1, (-1, 4)).transpose(2, 3) for t in (query, key, value)]
            y = F.scaled_dot_product_attention(*parts).transpose(2, 3).flatten(1, 2)
        else:
            n = x.shape[0]
            query, key, value = (t.view(n, m.heads, m.width, -1) for t in (query, key, value))
            y = (value @ (query.transpose(2, 3) @ key * 0.1).softmax(2)).reshape(n, m.heads * m.width, -1)
        return x + m.project(y.unflatten(2, x.shape[2:]))

    width = 4 if choice % 2 else o
    parts: dict[str, Any] = {name: conv(i, 2 * width, 1) for name in ("query", "key", "value")}
    return Program(run, **parts, project=conv(2 * width, i, 1), heads=2, width=width), i


def _residual_concatenation(i: int, o: int, choice: int) -> Built:
    """A sum over a concatenation: the writer of the one side meets two on the other."""
    run = lambda m, x: F.relu(torch.cat([m.left(x), m.right(x)], 1) + m.shortcut(x))  # noqa: E731
    left = conv(i, o) if choice % 2 else nn.MaxPool2d(3, 1, 1)
    width = o + (o if choice % 2 else i)
    return Program(run, left=left, right=conv_bn(i, o), shortcut=conv(i, width, 1)), width


def _reused(i: int, o: int, choice: int) -> Built:
    """One module that runs twice, with a residual sum or without."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for _ in range(2):
            x = m.block(x) + (x if choice % 2 else 0)
        return x

    return Program(run, stem=conv(i, o), block=conv_bn(o, o)), o


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
    _equal_split,
    _unequal_split,
    _norm,
    _space_and_depth,
    _attention,
    _residual_concatenation,
    _reused,
)
HEADS = ("flat", "pooled", "several")

sentences = st.tuples(
    st.lists(
        st.tuples(st.sampled_from(range(len(BLOCKS))), st.sampled_from([4, 6, 8]), st.integers(0, 1)), min_size=1, max_size=5
    ),
    st.sampled_from(HEADS),
    st.integers(0, 10**6),
)
Sentence = tuple[Sequence[tuple[int, int, int]], str, int]


def _several_heads(m: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of the image, and two maps, one of which is made of the other's features."""
    x = m.body(x)
    features = m.neck(x)
    return m.logits(x.mean((2, 3))), {"boxes": m.boxes(features), "mask": m.mask(features * features.mean((2, 3), keepdim=True))}


def network(sentence: Sentence) -> nn.Module:
    """The network that a sentence describes: images of 3 x 4 x 4 in; three logits out, and two maps if it has several heads."""
    blocks, head, seed = sentence
    torch.manual_seed(seed)
    parts: list[nn.Module] = [conv_bn(3, 4)]
    width = 4
    for kind, free, choice in blocks:
        block, width = BLOCKS[kind](width, free, choice)
        parts.append(block)
    body = nn.Sequential(*parts)
    if head == "several":
        more = {"neck": conv_bn(width, 6), "boxes": conv(6, 4), "mask": conv(6, 1, 1)}
        return Program(_several_heads, body=body, logits=nn.Linear(width, 3), **more).eval()
    if head == "flat":
        return body.extend([nn.Flatten(), nn.Linear(16 * width, 3)]).eval()
    return body.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]).eval()
