"""One operation at a time: it passes channels exactly, mixes them, or freezes them with a reason in words. None has no rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.linalg import cross, eigvalsh, inv, matrix_norm, vector_norm
from torch.nn import functional as F

from nets import Program, conv, image, random_plan
from prunus.graph import trace
from prunus.graph.dry_run import shape_only
from prunus.graph.op_rules import rule_for
from prunus.surgery import randomise, remove, silence, verify

ROWS = torch.tensor([1, 0])


def _numbers(y: Tensor) -> Tensor:
    return torch.zeros_like(y, dtype=torch.long)


def _expanded(y: Tensor) -> Tensor:
    return torch.zeros(2, 1, 8, 8, dtype=torch.long).expand_as(y)


def _assigned(y: Tensor) -> Tensor:
    z = y.clone()
    z[:, :, ROWS] = y[:, :, 2:4]
    return z


def _masked(y: Tensor) -> Tensor:
    z = y.permute(0, 2, 3, 1).clone()
    z[torch.arange(128).view(2, 8, 8) % 3 == 0] = 0.5
    return z.permute(0, 3, 1, 2)


def _inferred(y: Tensor) -> Tensor:
    """In inference mode, composite operations arrive whole."""
    with torch.inference_mode():
        z = F.scaled_dot_product_attention(y, y, y)
    return z.clone()


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "median of pixels": lambda y: y.median(2, keepdim=True)[0],
    "order of pixels": lambda y: y.argsort(2).to(y.dtype),
    "norm of each channel": lambda y: y / matrix_norm(y, keepdim=True),
    "random draw by element": lambda y: y + 0 * torch.poisson(y.abs()),
    "places in a sequence": lambda y: torch.searchsorted(torch.linspace(-1, 1, 9), y.contiguous()).to(y.dtype),
    "places between boundaries": lambda y: torch.bucketize(y, torch.linspace(-1, 1, 9)).to(y.dtype),
    "scattered and added": lambda y: torch.zeros_like(y).scatter_add(3, _expanded(y), y),
    "scattered in place": lambda y: y.clone().scatter_(2, _numbers(y), y),
    "scattered and reduced": lambda y: y.scatter_reduce(2, _numbers(y), y, "amax"),
    "columns copied by index": lambda y: y.index_copy(3, ROWS, y[..., :2]),
    "rows filled by index": lambda y: y.index_fill(2, ROWS, 0.0),
    "rows assigned by index": _assigned,
    "pixels picked by two indices": lambda y: y[:, :, ROWS[:, None], torch.tensor([1, 2, 3])],
    "pixels picked by indices apart": lambda y: y[ROWS, :, torch.tensor([1, 2])][..., None],
    "pixels picked by mask": lambda y: y.permute(0, 2, 3, 1)[torch.arange(128).view(2, 8, 8) % 2 == 0].mT[None, :, :, None],
    "images assigned by index": lambda y: y.index_put((ROWS,), y),
    "pixels assigned by mask": _masked,
    "slice replaced": lambda y: y.slice_scatter(y[:, :, :4].relu(), 2, 4, 8),
    "row replaced": lambda y: y.select_scatter(y[:, :, 0], 2, 3),
    "turned by a right angle": lambda y: y.rot90(1, (2, 3)),
    "turned over, channels reversed": lambda y: y.rot90(2, (1, 2)),
    "lower triangle": lambda y: y.tril(),
    "transform and back": lambda y: torch.fft.irfft2(torch.fft.rfft2(y)),
    "conjugate spectrum": lambda y: torch.fft.fft2(y).conj().angle(),
    "complex number by element": lambda y: torch.polar(y.abs(), y).imag + torch.complex(y, y).abs(),
    "windows and back": lambda y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1),
    "sampled in three dimensions": lambda y: F.grid_sample(y[:, :, None], y.new_zeros(2, 1, 8, 8, 3), align_corners=False)[
        :, :, 0
    ],
    "split by a part's size": lambda y: torch.cat(torch.unsafe_chunk(y, 2, 1), 1),
    "transposed in place": lambda y: y * y.mean((2, 3)).clone().t_().t_()[:, :, None, None],
    "attention in inference mode": _inferred,
    "log of a sigmoid": F.logsigmoid,
    "copied into zeros": lambda y: torch.ops.aten.copy(torch.zeros_like(y), y),
}
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "sum without NaN": lambda y: y * y.nansum(1, keepdim=True),
    "number of positive channels": lambda y: y * y.relu().count_nonzero(1).unsqueeze(1),
    "median without NaN": lambda y: y * y.nanmedian(1, keepdim=True)[0],
    "most frequent channel": lambda y: y * y.mode(1, keepdim=True)[0],
    "range of everything": lambda y: y * y.aminmax()[1],
    "distances between pixels": lambda y: y * torch.cdist(y.flatten(2).mT, y.flatten(2).mT).mean(),
    "length over channels": lambda y: y / vector_norm(y, dim=1, keepdim=True),
    "softmax of the processor's attention": lambda y: torch.ops.aten._safe_softmax(y, 1),
    "log of running sums": lambda y: y.logcumsumexp(1),
    "rows renormalised": lambda y: y.renorm(2, 2, 1.0),
}
_DECOMPOSED = "a matrix is decomposed or inverted, which makes all its entries depend on one another,"
_VALUES = "the size of the result depends on values, not on channels,"
_WRITTEN = "channels are written at absolute indices in"
_COMPARED = "all entries are compared or added up with one another in"
FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "inverse": (lambda y: inv(y + 9 * torch.eye(8)), _DECOMPOSED),
    "eigenvalues": (lambda y: y * eigvalsh(y @ y.mT)[..., :1, None], _DECOMPOSED),
    "positions of what isn't zero": (lambda y: y * len(y.nonzero()), _VALUES),
    "unique channels": (lambda y: y * y.unique(dim=1).sum(), _VALUES),
    "histogram": (lambda y: y * y.histc(4, -1, 1).sum(), _VALUES),
    "counts": (lambda y: y * (y > 0).long().flatten().bincount()[0], _VALUES),
    "masked scatter": (lambda y: y.masked_scatter(y > 0, y), _VALUES),
    "gamma draw": (lambda y: y + 0 * torch._standard_gamma(y.abs() + 1), "random numbers are drawn by channel in"),
    "number of the largest": (lambda y: y * y.topk(2, 1)[1].float().sum(), "the number of a channel is used in"),
    "number of the running largest": (lambda y: y * y.cummax(1)[1].float(), "the number of a channel is used in"),
    "number of the third": (lambda y: y * y.kthvalue(3, 1)[1].float().sum(), "the number of a channel is used in"),
    "sorted sequence of pixels": (
        lambda y: y * torch.searchsorted(y.sort(-1)[0], y.contiguous()),
        "channels are searched in an order",
    ),
    "scattered over channels": (lambda y: y.scatter(1, _expanded(y)[:, :1], 2.0), _WRITTEN),
    "channels added by index": (lambda y: y.index_add(1, ROWS, y[:, :2]), _WRITTEN),
    "channels assigned by index": (
        lambda y: y.index_put((torch.tensor([0, 1])[:, None], ROWS), torch.ones(2, 2, 8, 8)),
        _WRITTEN,
    ),
    "channels replaced": (lambda y: y.slice_scatter(y[:, :3].relu(), 1, 3, 6), _WRITTEN),
    "channel replaced": (lambda y: y.select_scatter(y.mean(1), 1, 3), _WRITTEN),
    "channels picked by index": (lambda y: y[:, torch.tensor([3, 1, 4])], "channels are picked by absolute index in"),
    "channels picked by mask": (lambda y: y * y[torch.arange(12).view(2, 6) % 2 == 0].mean(), "channels are picked by a mask in"),
    "values of fixed width": (
        lambda y: y.index_put((ROWS,), torch.ones(2, 6, 8, 8)),
        "written into a tensor whose width is fixed",
    ),
    "distances to fixed points": (
        lambda y: y * torch.cdist(y.flatten(2).mT, torch.ones(3, 6)).mean(),
        "compared with points of fixed width",
    ),
    "distances between images": (lambda y: y * F.pdist(y.mean((2, 3))).sum(), _COMPARED),
    "distance of two tensors": (lambda y: y * torch.dist(y, y.relu()), _COMPARED),
    "entries among others": (lambda y: y * torch.isin(y, torch.zeros(3)), _COMPARED),
    "triangle over channels": (
        lambda y: y.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2),
        "entries are masked by where they lie",
    ),
    "diagonal matrices": (lambda y: y.mean(3).diag_embed(), "entries are picked or masked by where they lie in a matrix"),
    "entries by flat index": (lambda y: y * y.take(ROWS).sum(), "entries are picked or masked by where they lie in a matrix"),
    "cross product": (
        lambda y: cross(y.unflatten(1, (2, 3)), y.unflatten(1, (2, 3)), dim=2).flatten(1, 2),
        "entries are picked or masked by where they lie in a matrix",
    ),
    "real transform over channels": (lambda y: torch.fft.rfft(y, dim=1).abs(), "a Fourier transform runs over the channels in"),
    "pairs of channels as complex numbers": (
        lambda y: (
            torch.view_as_real(torch.view_as_complex(y.permute(0, 2, 3, 1).unflatten(3, (3, 2)).contiguous()))
            .sum(3)
            .permute(0, 3, 1, 2)
        ),
        "real and imaginary parts aren't channels in",
    ),
    "squeezed where sizes are equal": (
        lambda y: y.mean(3)[:, :, None, :6].clone().squeeze_(2)[..., None],
        "squeezed in place, where several axes have one size,",
    ),
    "other strides": (lambda y: y.clone().as_strided_((2, 6, 8, 8), (384, 64, 1, 8)), "given other strides in place in"),
    "squared error": (lambda y: y * F.mse_loss(y, y.relu()), "a loss compares the channels with targets in"),
    "channels at two places of attention": (
        lambda y: F.scaled_dot_product_attention(
            *[y.mean((2, 3))[:, None, :, None] * y.amax((2, 3))[:, None, None]] * 3, scale=1.0
        ),
        "channels lie on the positions and on the width of attention at once",
    ),
    "keys of other heads": (
        lambda y: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(y, y[:, ::2].clone(), y[:, ::2].clone())[0],
        "queries and keys or values have different numbers of heads in",
    ),
    "attention with a fixed mask for each head": (
        lambda y: F.scaled_dot_product_attention(y, y, y, attn_mask=torch.zeros(1, 6, 8, 8)),
        "meets an attention mask whose width is fixed in",
    ),
}


def _network(move: Callable[[Tensor], Tensor]) -> torch.nn.Module:
    width = move(torch.rand(2, 6, 8, 8)).shape[1]
    return Program(lambda m, x: m.head(move(m.stem(x).relu() + 0.01)), stem=conv(3, 6), head=conv(width, 2, 1)).eval()


@pytest.mark.parametrize("name", [*EXACT, *MIXING])
def test_an_operation_that_passes_or_mixes_channels_is_exact(name: str) -> None:
    model = randomise(_network({**EXACT, **MIXING}[name]))
    graph = trace(model, image())
    assert not graph.unsupported_ops and graph["stem"].frozen_because is None
    assert graph["stem"].mixing is (name in MIXING)
    for seed in range(2):
        plan = random_plan(graph, seed)
        small, _ = remove(model, graph, plan)
        report = verify(silence(model, graph, plan), small, image())
        assert report.passed and report.tolerance == 1e-9, report


@pytest.mark.parametrize("name", FROZEN)
def test_an_operation_that_ends_channels_freezes_them_with_its_reason(name: str) -> None:
    move, reason = FROZEN[name]
    torch.manual_seed(0)
    graph = trace(_network(move), image())
    assert not graph.unsupported_ops
    assert (graph["stem"].frozen_because or "").startswith(reason), graph["stem"].frozen_because
    assert "test_operations.py:" in (graph["stem"].frozen_because or "")


def test_every_core_operation_has_a_rule() -> None:
    """All but the backward passes, which a forward pass never runs, and sizes, which aren't tensors."""
    missing = {
        str(operation)
        for packet in (getattr(torch.ops.aten, name) for name in dir(torch.ops.aten))
        for operation in (getattr(packet, overload) for overload in getattr(packet, "overloads", list)())
        if torch.Tag.core in operation.tags and rule_for(operation) is None
    }
    assert {name for name in missing if "backward" not in name and not name.startswith("aten.sym_")} == set()
    assert "aten.convolution_backward.default" in missing, "the list of operations is empty: this test proved nothing"


@pytest.mark.parametrize("channels_last", [True, False])
def test_attention_without_arithmetic_has_the_kernels_shape_and_layout(channels_last: bool) -> None:
    query = torch.rand(2, 5, 3, 4).transpose(1, 2) if channels_last else torch.rand(2, 3, 5, 4)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    real, dry = kernel(query, query, query), shape_only(kernel, (query, query, query))
    assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in dry]
    assert real[0].stride() == dry[0].stride() and not dry[0].any() and real[0].any()


def test_a_recurrent_layer_in_inference_mode_is_frozen_as_one_operation() -> None:
    """There it arrives whole."""

    def run(m: Program, x: Tensor) -> Tensor:
        y = m.stem(x).mean(2).transpose(1, 2)
        with torch.inference_mode():
            z = m.recurrent(y)[0]
        return m.head(z.clone())

    model = Program(run, stem=conv(3, 6), recurrent=torch.nn.LSTM(6, 5, batch_first=True), head=torch.nn.Linear(5, 2)).eval()
    reason = trace(model, image())["stem"].frozen_because or ""
    assert reason.startswith(
        "a recurrent layer's gates and hidden state have one width, which Python holds, in `aten.lstm.input`"
    )
