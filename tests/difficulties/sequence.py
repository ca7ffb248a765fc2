"""Recurrent layers, packed sequences, embeddings and products of several tensors, transforms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.utils.flop_counter import register_flop_formula

from difficulties.network import OUTPUT, G, Net, Program, conv


def _macs_of_lstm(x: Any, read: Any, recurrent: Any, *_: Any, **__: Any) -> int:
    """Twice the multiply-adds of one layer: torch's counter has no formula for the processor's kernel."""
    return 2 * math.prod(x[:-1]) * (math.prod(read) + math.prod(recurrent))


def _macs_of_bilinear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * x[0] * math.prod(weight)


register_flop_formula(torch.ops.aten.mkldnn_rnn_layer)(_macs_of_lstm)  # type: ignore[no-untyped-call]
register_flop_formula(torch.ops.aten._trilinear)(_macs_of_bilinear)  # type: ignore[no-untyped-call]


def _columns(m: Any, x: Tensor) -> Tensor:
    """Columns of pixels become a sequence of features, as in text recognition."""
    y = F.relu(m.stem(x)).mean(2).transpose(1, 2)
    return m.head(m.recurrent(y)[0])


def _packed(m: Any, x: Tensor) -> Tensor:
    """Sequences of different lengths, without their padding."""
    y = F.relu(m.stem(x)).mean(2).transpose(1, 2)
    packed = rnn.pack_padded_sequence(y, torch.tensor([8, 5]), batch_first=True)
    return m.head(rnn.pad_packed_sequence(m.recurrent(packed)[0], batch_first=True)[0])


def _recurrent(layer: Any) -> Any:
    return lambda: Program(
        _columns, stem=conv(3, 6), recurrent=(r := layer()), head=nn.Linear(r.hidden_size * (1 + r.bidirectional), 2)
    )


def _cell(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x)).mean(2)
    state = y.new_zeros(y.shape[0], 5)
    for step in range(3):
        state = m.cell(y[..., step], state)
    return m.head(state)


def _pair(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.pair(m.left(x.mean((2, 3))), m.right(x.amax((2, 3))))))


def _gated(y: Tensor) -> Tensor:
    return torch.einsum("nchw,nc->nchw", y, y.mean((2, 3)).sigmoid())


def _bag(mode: str) -> Any:
    return lambda: Program(lambda m, x: m.head(F.relu(m.stem(x))), stem=nn.EmbeddingBag(10, 6, mode=mode), head=nn.Linear(6, 2))


def _words() -> Tensor:
    return torch.tensor([[1, 2, 3], [4, 5, 6]])


def _chain(move: Any, width: int = 6, read: int = 6, head: Any = None) -> Any:
    return lambda: Program(lambda m, x: m.head(move(m.stem(x))), stem=conv(3, width), head=head or conv(read, 2))


def _global_filter(m: Any, x: Tensor) -> Tensor:
    """The spectrum of every channel is weighted by frequency."""
    y = torch.fft.rfft2(m.stem(x))
    y = torch.view_as_complex(torch.view_as_real(y) * m.weight)
    return m.head(torch.fft.irfft2(y, s=x.shape[2:]))


STEM = G(6, "stem.weight/0 stem.bias/0", "head.weight/1")
HEAD = G(2, "head.weight/0 head.bias/0", frozen=OUTPUT)
LINEAR_HEAD = G(2, "head.weight/0", frozen=OUTPUT, scales="head.bias/0")
PLAIN = {"stem": STEM, "head": HEAD}
BAG = {"stem": G(6, "stem.weight/1", "head.weight/1"), "head": HEAD}
HIDDEN = "a recurrent layer's gates and hidden state have one width, which Python holds, in `aten.mkldnn_rnn_layer.default`"
MEETS_STATE = "meets a tensor whose width is fixed in `aten.{}.Tensor` (called in `{}`)"


def _gates(*names: str) -> dict[str, G]:
    return {f"recurrent#{i}" if i > 1 else "recurrent": G(20, f"recurrent.{n}/0", frozen=HIDDEN) for i, n in enumerate(names, 1)}


def _read_by(*names: str) -> G:
    return G(6, "stem.weight/0 stem.bias/0", " ".join(f"{name}/1" for name in names))


NETS = [
    # what comes into a recurrent layer is read by its first weight; its own width stays
    Net(
        "lstm",
        _recurrent(lambda: nn.LSTM(6, 5, batch_first=True)),
        {"stem": _read_by("recurrent.weight_ih_l0"), **_gates("weight_ih_l0"), "head": LINEAR_HEAD},
    ),
    Net(
        "two-way lstm of two layers",
        _recurrent(lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)),
        {
            "stem": _read_by("recurrent.weight_ih_l0", "recurrent.weight_ih_l0_reverse"),
            **_gates("weight_ih_l0", "weight_ih_l0_reverse", "weight_ih_l1", "weight_ih_l1_reverse"),
            "head": LINEAR_HEAD,
        },
    ),
    Net(
        "gru",
        _recurrent(lambda: nn.GRU(6, 5, batch_first=True)),
        {
            "stem": _read_by("recurrent.weight_ih_l0"),
            "recurrent": G(
                5,
                "recurrent.weight_ih_l0/0 recurrent.weight_hh_l0/0 recurrent.bias_hh_l0/0",
                frozen=MEETS_STATE.format("sub", "recurrent"),
            ),
            "head": LINEAR_HEAD,
        },
    ),
    Net(
        "gru cell",
        lambda: Program(_cell, stem=conv(3, 6), cell=nn.GRUCell(6, 5), head=nn.Linear(5, 2)),
        {
            "stem": _read_by("cell.weight_ih"),
            "cell": G(
                5,
                "cell.weight_ih/0 cell.weight_hh/0 cell.bias_ih/0 cell.bias_hh/0",
                frozen=MEETS_STATE.format("sub", "cell"),
            ),
            "head": HEAD,
        },
    ),
    Net(
        "packed sequence",
        lambda: Program(_packed, stem=conv(3, 6), recurrent=nn.LSTM(6, 5, batch_first=True), head=nn.Linear(5, 2)),
        {
            "stem": _read_by("recurrent.weight_ih_l0"),
            "recurrent": G(
                5,
                " ".join(f"recurrent.{kind}_{side}_l0/0" for kind in ("weight", "bias") for side in ("ih", "hh")),
                frozen=MEETS_STATE.format("mul", "recurrent"),
            ),
            "head": LINEAR_HEAD,
        },
    ),
    Net("bag of embeddings summed", _bag("sum"), BAG, _words),
    Net("bag of embeddings maximised", _bag("max"), BAG, _words),
    Net(  # the second operand's width lies on the weight's third axis, which holds no labels
        "bilinear",
        lambda: Program(_pair, left=nn.Linear(3, 6), right=nn.Linear(3, 5), pair=nn.Bilinear(6, 5, 4), head=nn.Linear(4, 2)),
        {
            "left": G(6, "left.weight/0 left.bias/0", "pair.weight/1"),
            "right": G(5, "right.weight/0 right.bias/0", frozen="read by a weight whose width is fixed in `aten._trilinear"),
            "pair": G(4, "pair.weight/0", "head.weight/1", scales="pair.bias/0"),
            "head": HEAD,
        },
    ),
    Net(
        "einsum with a weight",
        lambda: Program(
            lambda m, x: m.head(torch.einsum("nchw,oc->nohw", m.stem(x), m.mix.weight)),
            stem=conv(3, 6),
            mix=nn.Linear(6, 4, bias=False),
            head=conv(4, 2),
        ),
        {
            "stem": G(6, "stem.weight/0 stem.bias/0", "mix.weight/1"),
            "mix": G(4, "mix.weight/0", "head.weight/1"),
            "head": HEAD,
        },
    ),
    Net("einsum of channels with a gate", _chain(_gated), PLAIN),
    Net("spectrum of every channel", _chain(lambda y: torch.fft.rfft2(y).abs()), PLAIN),
    Net(
        "global filter",
        lambda: Program(_global_filter, stem=conv(3, 6), weight=nn.Parameter(torch.randn(8, 5, 2)), head=conv(6, 2)),
        PLAIN,
    ),
    Net(
        "Fourier transform over channels",
        _chain(lambda y: torch.fft.fft(y, dim=1).real),
        {"stem": G(6, "stem.weight/0 stem.bias/0", frozen="a Fourier transform runs over the channels in"), "head": HEAD},
        outcome="frozen",
    ),
]
