"""Branches that go as a whole: which may, what is left of them, and that the network still computes what silencing leaves."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from nets import conv, conv_bn
from prunus.errors import BudgetNotMet, InvalidBudget, UnsupportedNetwork
from prunus.graph import trace
from prunus.surgery import randomise, remove, silence, verify
from prunus.surgery.emptied import EmptiedConvolution
from prunus.surgery.remove import apply_record
from prunus.surgery.verify import verify_training
from prunus.types import PruningPlan


class Residual(nn.Module):
    """Two residual blocks, the second with a squeeze-and-excitation gate, a stride and a projection around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.a1, self.a2 = conv_bn(8, 6), conv(6, 8)
        self.b1 = nn.Sequential(conv(8, 10, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.b2 = nn.Sequential(conv(10, 10, stride=2, groups=10), nn.BatchNorm2d(10), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(10, 3, 1), nn.Conv2d(3, 10, 1)
        self.b3 = nn.Sequential(conv(10, 12, bias=False), nn.BatchNorm2d(12))
        self.around = conv(8, 12, 1, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        y = self.b2(self.b1(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.b3(y) + self.around(x)).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Residual()).eval()


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def _without(graph: prunus.ChannelGraph, *names: str) -> PruningPlan:
    return PruningPlan({name: torch.zeros(graph[name].num_channels, dtype=torch.bool) for name in names}, graph.cost())


def test_only_branches_with_a_way_around_may_go(net: nn.Module) -> None:
    graph = trace(net, X)
    # the gate's inner width may go, too (a constant gate); the stem, the projection's output and the head may not
    assert graph.emptiable == {"a1.0", "b1.0", "squeeze"}
    with pytest.raises(UnsupportedNetwork, match=r"`stem\.0` must keep at least one of its 8 channels: no other way"):
        remove(net, graph, _without(graph, "stem.0"))


def test_a_plain_chain_has_no_such_group() -> None:
    chain = nn.Sequential(conv_bn(3, 6), conv_bn(6, 6), conv(6, 2))
    assert trace(chain, X).emptiable == frozenset()


def test_attention_is_no_way_around_what_it_reads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            b, n, _ = x.shape
            q, k, v = (f(x).view(b, n, 2, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).reshape(b, n, 16)
            return self.head(F.relu(self.out(y)))

    assert trace(Attention(), torch.randn(2, 5, 8)).emptiable == frozenset()


def test_of_parallel_branches_the_last_one_stays() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = conv(3, 4), conv(3, 5), conv(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.left(x), self.right(x)], 1))

    assert trace(Parallel(), X).emptiable == {"left"}


@pytest.mark.parametrize("names", [("a1.0",), ("b1.0",), ("squeeze",), ("a1.0", "b1.0", "squeeze")])
def test_an_emptied_network_is_the_silenced_one_and_trains(net: nn.Module, names: tuple[str, ...], tmp_path: Path) -> None:
    graph = trace(net, X)
    plan = _without(graph, *names)
    small, record = remove(net, graph, plan)
    silent = silence(net, graph, plan)
    report = verify(silent, small, X)
    assert report.passed and report.max_error < 1e-12, report
    assert verify_training(silent, small, X).passed
    assert graph.cost(plan).parameters == sum(p.numel() for p in small.parameters())
    prunus.save(small, record, tmp_path / "small.prunus")
    again = prunus.load(tmp_path / "small.prunus", Residual()).eval()
    assert torch.equal(again(X), small(X))
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(X).square().mean().backward()
    optimizer.step()
    assert torch.isfinite(small(X)).all()


def test_macs_of_an_emptied_branch_are_gone(net: nn.Module) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    graph = trace(net, X)
    plan = _without(graph, "a1.0", "b1.0")
    small, _ = remove(net, graph, plan)
    with FlopCounterMode(display=False) as counter:
        small.requires_grad_(False)(X[:1])
    assert counter.get_total_flops() / 2 == graph.cost(plan).macs < graph.cost().macs / 2


def test_a_second_round_prunes_what_is_left(net: nn.Module) -> None:
    graph = trace(net, X)
    first, record = remove(net, graph, _without(graph, "a1.0"))
    assert isinstance(first.a2, EmptiedConvolution)
    second_graph = trace(first, X)
    assert "a1.0" not in {g.name for g in second_graph}
    keep = torch.tensor([True, False, True, True, False, True, True, True])
    plan = PruningPlan({"stem.0": keep}, second_graph.cost())
    second, later = remove(first, second_graph, plan)
    assert verify(silence(first, second_graph, plan), second, X).passed
    assert torch.equal(apply_record(net, record.compose(later))(X), second(X))


def test_averages_and_optimizers_follow(net: nn.Module) -> None:
    graph = trace(net, X)
    ema = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters())
    net.train()(X).sum().backward()
    optimizer.step()
    small, _ = remove(net.eval(), graph, _without(graph, "b1.0"), optimizer=optimizer, ema=ema)
    assert ema.eval()(X).shape == (2, 4)
    small.train()(X).sum().backward()
    optimizer.step()
    assert {id(p) for p in small.parameters()} <= {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_budget_zero_allows_it_and_one_does_not(net: nn.Module) -> None:
    tight = {"macs": 0.025, "tolerance": 0.9, "max_pruning_ratio": 1.0}
    result = prunus.prune(net, X, prunus.Budget(min_channels=0, **tight), "l1")
    emptied = {name for name, mask in result.plan.keep.items() if not bool(mask.any())}
    assert emptied and emptied <= {"a1.0", "b1.0", "squeeze"}
    assert result.verification is not None and result.verification.passed
    with pytest.raises(BudgetNotMet):
        prunus.prune(net, X, prunus.Budget(min_channels=1, **tight), "l1")


def test_negative_minimum() -> None:
    with pytest.raises(InvalidBudget, match="min_channels must be at least 0"):
        prunus.Budget(macs=0.5, min_channels=-1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 3, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(4, 3, (3, 5), padding="same"),
        nn.Conv2d(4, 3, 2, padding="valid", bias=False),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
        nn.Conv1d(4, 3, 3, stride=3),
        nn.Conv3d(4, 3, 2, stride=2),
        nn.ConvTranspose1d(4, 3, 4, stride=2, dilation=2),
    ],
    ids=str,
)
def test_the_stand_in_gives_what_a_layer_over_zeros_gives(layer: nn.Module) -> None:
    sizes = {nn.Conv1d: (11,), nn.ConvTranspose1d: (11,), nn.Conv3d: (7, 6, 5)}.get(type(layer), (11, 8))
    x = torch.zeros(2, 4, *sizes)
    expected = layer(x)
    layer.weight = nn.Parameter(layer.weight.narrow(0 if layer.transposed else 1, 0, 0))
    assert torch.equal(EmptiedConvolution(layer)(x[:, :0]), expected)
