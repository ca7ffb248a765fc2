"""The sampler of He et al.: the first layer of a residual branch reads some channels of the stream, the others all of them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import InvalidBudget, NothingPruned, UnknownName, UnsupportedNetwork
from prunus.reconstruction import prune_channels, reconstruct
from prunus.reconstruction.branch_inputs import beginning_branches
from prunus.types import PruningPlan
from refitting import Block, data, error, settled
from small_nets import NETS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)]),
        ("resnet50", [f"layer{s}.{b}.conv1" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(n)]),
        ("mobilenet_v2", [f"features.{n}.conv.0.0" for n in range(3, 17)]),  # 17 leads to the classifier alone
        ("vgg11", []),
    ],
)
def test_where_branches_begin(name: str, expected: list[str]) -> None:
    model = getattr(torchvision.models, name)(weights=None).eval()
    assert beginning_branches(prunus.trace(model, torch.randn(1, 3, 64, 64))) == expected


def whole(graph: prunus.ChannelGraph) -> PruningPlan:
    return PruningPlan({g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in graph.prunable}, graph.cost())


def half(graph: prunus.ChannelGraph) -> PruningPlan:
    keep = {g.name: torch.arange(g.num_channels) % 2 == 0 for g in graph.prunable}
    return PruningPlan(keep, graph.cost_model.cost({name: int(mask.sum()) for name, mask in keep.items()}))


class Repeats(nn.Module):
    """A stream whose channel 3 repeats channel 0; a branch and the head read it all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(x + self.two(torch.relu(self.one(x))))


def test_a_repeated_channel_is_left_out_without_loss() -> None:
    torch.manual_seed(0)
    full = Repeats().double().eval()
    with torch.no_grad():
        full.stem.weight[3], full.stem.bias[3] = full.stem.weight[0], full.stem.bias[0]
    batches = data(2, 20, channels=2)
    graph = prunus.trace(full, batches[0][:1])
    found = prune_channels(full, graph, whole(graph), batches, branch_inputs=0.75, ridge=0.0)
    inputs = found.branch_inputs["one"].tolist()
    assert inputs in ([0, 1, 2], [1, 2, 3]) and list(found.branch_inputs) == ["one"]
    assert found.model.one.selected.tolist() == inputs
    assert error(found.model, full, data(1, 9, channels=2)[0].flip(3)) < 1e-20
    assert found.model.stem.weight.shape[0] == found.model.head.weight.shape[1] == 4  # the stream is whole
    assert found.macs == graph.cost().macs - 5 * 7 * 7


@pytest.mark.parametrize("selection", ["lasso", "lasso_alternating", "max_response"])
@pytest.mark.parametrize("share", [0.5, {"inner.1.0": 0.25}])
def test_with_a_plan_it_is_exact_counted_and_loads(selection: str, share: float | dict[str, float], tmp_path: object) -> None:
    torch.manual_seed(0)
    batches = data(2, 40, channels=1, size=8)
    full = settled(NETS["Residual"](), batches)
    graph = prunus.trace(full, batches[0][:1])
    plan = half(graph)
    found = prune_channels(full, graph, plan, batches, selection, branch_inputs=share, refit=False)
    expected = {"inner.0.0": 4, "inner.1.0": 4} if share == 0.5 else {"inner.1.0": 2}  # of eight that the plan leaves
    assert {name: len(inputs) for name, inputs in found.branch_inputs.items()} == expected
    assert found.plan.counts() == plan.counts()
    reference, _ = prunus.remove(full, graph, found.plan)
    stream = next(keep for keep in found.plan.keep.values() if len(keep) == 16)
    with torch.no_grad():
        for name, inputs in found.branch_inputs.items():
            left = stream.nonzero().squeeze(1)
            reference.get_submodule(name).weight[:, ~torch.isin(left, inputs)] = 0
        torch.testing.assert_close(found.model(batches[0]), reference(batches[0]), rtol=1e-10, atol=1e-10)
    with FlopCounterMode(display=False) as counter:
        found.model(batches[0][:1])
    assert found.macs == counter.get_total_flops() // 2 < found.plan.predicted.macs
    file = f"{tmp_path}/small.prunus"
    prunus.save(found.model, found.record, file)
    with torch.no_grad():
        assert torch.equal(prunus.load(file, NETS["Residual"]().double()).eval()(batches[0]), found.model(batches[0]))
    refitted = prune_channels(full, graph, plan, batches, selection, branch_inputs=share)
    held = data(1, 64, 1, 8)[0].flip(3)
    assert error(refitted.model, full, held) < 0.5 * error(found.model, full, held)


def test_the_lasso_is_for_that_layer_alone() -> None:
    """Two branches that use different halves of the stream each keep their own half, and lose nothing."""
    torch.manual_seed(0)
    batches = data(2, 40, channels=1, size=8)
    full = settled(NETS["Residual"](), batches)
    with torch.no_grad():
        full.inner[0][0].weight[:, 8:] = 0
        full.inner[1][0].weight[:, :8] = 0
    graph = prunus.trace(full, batches[0][:1])
    found = prune_channels(full, graph, whole(graph), batches, branch_inputs=0.5, refit=False)
    assert {name: inputs.tolist() for name, inputs in found.branch_inputs.items()} == {
        "inner.0.0": list(range(8)),
        "inner.1.0": list(range(8, 16)),
    }
    assert error(found.model, full, batches[0]) < 1e-20


def test_reconstruction_follows_it() -> None:
    torch.manual_seed(0)
    batches = data(2, 40, channels=1, size=8)
    full = settled(NETS["Residual"](), batches)
    graph = prunus.trace(full, batches[0][:1])
    bare = prune_channels(full, graph, half(graph), batches, branch_inputs=0.5, refit=False)
    before = error(bare.model, full, batches[1])
    report = reconstruct(bare.model, full, bare.record, batches, points=20)
    assert error(bare.model, full, batches[1]) < 0.5 * before
    assert "inner.1.0.weight" in [fit.weight for fit in report.layers]


def test_refusals() -> None:
    full = Block().double().eval()
    batches = data()
    graph = prunus.trace(full, batches[0][:1])
    with pytest.raises(NothingPruned, match="the plan removes no channel"):
        prune_channels(full, graph, whole(graph), batches, branch_inputs=1.0)
    with pytest.raises(InvalidBudget, match=r"branch_inputs = 1.5: give shares of the inputs that stay, above 0 and up to 1"):
        prune_channels(full, graph, half(graph), batches, branch_inputs=1.5)
    with pytest.raises(UnknownName, match=r"unknown layer in branch_inputs 'midle': did you mean middle"):
        prune_channels(full, graph, half(graph), batches, branch_inputs={"midle": 0.5})
    chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)).double().eval()
    graph = prunus.trace(chain, batches[0][:1])
    with pytest.raises(UnsupportedNetwork, match=r"no residual branch of this network begins with a plain convolution"):
        prune_channels(chain, graph, half(graph), batches, branch_inputs=0.5)
    with pytest.raises(UnsupportedNetwork, match=r"`1` can't select its inputs: it has 2 groups"):
        prune_channels(chain, graph, half(graph), batches, branch_inputs={"1": 0.5})
