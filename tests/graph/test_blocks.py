"""The blocks that users name first, where to find each, and what networks of computed weights need around surgery."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as masks

import prunus
from difficulties import several
from nets import EXACT, NETS, G, Net, Program, conv, conv_bn, image, random_plan
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.surgery import randomise, remove, silence, verify
from prunus.testing import check_network

# What users ask for -> the named net that holds its hand-written groups; removal equals silencing on each.
ASKED_FOR = {
    "C2f with batch norm, as in YOLOv8": ("c2f", "c2f of YOLOv8 by chunk", "c2f of YOLOv8 by split"),
    "split": ("equal split", "held width of a hierarchical split", "held list of widths", "held width named earlier"),
    "PixelShuffle": ("pixel shuffle", "pixel unshuffle"),
    "weight norm": ("weight norm", "weight norm, old style", "weight norm of every layer"),
    "spectral norm": ("spectral norm", "spectral norm, old style"),
    "channel shuffle": ("channel shuffle", "shuffle between grouped convolutions"),
    "Linear -> view -> ConvTranspose": ("linear to transposed", "generator by unflatten", "generator by held shape"),
    "cat([x, x])": ("cat with itself",),
    "broadcast multiply": ("broadcast multiply",),
    "reused module with a residual": ("reused module",),
    "Res2Net": ("res2net block", "res2net block, first of a stage"),
    "CSP": ("csp stage", "csp of three convolutions"),
    "ELAN": ("elan", "elan by chunks"),
    "SPPF": ("sppf",),
    "Split-Attention": ("split attention", "split attention of two groups"),
    "Selective Kernel": ("selective kernel", "selective kernel of halves"),
    "GhostNet": ("ghost module", "ghost module of odd width"),
    "MixConv": ("mixed convolution", "mixed convolution, depthwise"),
    "space to depth": ("focus", "space to depth"),
    "anti-alias blur": ("blur pool",),
    "depthwise with multiplier": ("depthwise multiplier",),
    "transposed grouped": ("transposed grouped", "transposed depthwise"),
    "weight standardisation": (
        "weight standardisation",
        "weight standardisation by batch norm",
        "weight standardisation by moments",
        "scaled weight standardisation",
    ),
    "re-parameterised branches": ("repvgg block before fusion", "mobileone blocks before fusion"),
    "shared weights": ("shared parameter", "decoder with the encoder's weight"),
    "frozen parameters": ("frozen parameters",),
    "quantisation stubs": ("quantisation stubs",),
    "EMA copy": ("averaged copy inside", "averaged model"),
    "InstanceNorm": ("instance norm", "instance norm without parameters"),
    "norms over channels": ("group norm", "layer norm", "rms norm", "global response norm", "unit length over channels"),
    "channel softmax, mean, max, top-k": ("softmax over channels", "spatial attention", "cbam", "largest two channels"),
}


@pytest.mark.parametrize("block", ASKED_FOR)
def test_every_block_that_is_asked_for_is_a_named_net_and_exact(block: str) -> None:
    """The nets themselves are checked group by group in `test_groups` and by verification in `test_exactness`."""
    assert set(ASKED_FOR[block]) <= set(EXACT)
    for name in ASKED_FOR[block]:
        assert any(group.frozen is None for group in NETS[name].groups.values())


def test_channels_of_a_shuffle_are_removed_where_they_lie() -> None:
    """The leading library prunes this block to outputs that are off by their own size: it forgets where the shuffle puts them."""
    net = NETS["channel shuffle"]
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    keep = torch.tensor([True, False, True, True])
    small, record = remove(model, graph, prunus.PruningPlan({"stem.0": keep}, graph.cost()))
    assert record.kept["head.weight"][1].tolist() == [0, 1, 4, 5, 6, 7]  # slot 1 of both halves: neighbours behind the shuffle
    assert record.kept["stem.0.weight"][0].tolist() == [0, 2, 3, 4, 6, 7]
    wrong = copy.deepcopy(small)
    with torch.no_grad():  # as if the halves still lay one after the other
        wrong.head.weight.copy_(model.head.weight[:, [0, 2, 3, 4, 6, 7]])  # type: ignore[union-attr, index, operator]
    silent = silence(model, graph, prunus.PruningPlan({"stem.0": keep}, graph.cost()))
    assert verify(silent, small, net.inputs()).passed
    report = verify(silent, wrong, net.inputs())
    assert not report.passed and report.max_error > 0.1


# -- weights that are computed


def test_a_norm_over_inputs_is_taken_over_the_kept_ones() -> None:
    """By hand: the small network's weight is g * v / |v| over the inputs that are left."""
    net = NETS["weight norm"]
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    keep = torch.tensor([True, False, True, True, False, True])
    small, _ = remove(model, graph, prunus.PruningPlan({"0": keep}, graph.cost()))
    own = dict(model.named_parameters())
    length, direction = (own[f"2.parametrizations.weight.original{i}"] for i in (0, 1))
    direction = direction[:, keep]
    expected = length * direction / direction.pow(2).sum((1, 2, 3), keepdim=True).sqrt()
    assert torch.allclose(small[2].weight, expected, atol=1e-6)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("kind", ["weight norm", "mask"])
def test_a_computed_weight_that_has_not_been_run_is_refused_with_advice(kind: str) -> None:
    """Torch makes such a weight with a gradient graph, which can't be copied, until the first run without gradients."""
    model = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0]) if kind == "weight norm" else masks.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(prunus.UnsupportedNetwork, match=r"^`0\.weight` is a tensor with a gradient graph, which can't be copied"):
        trace(model, image())
    with torch.no_grad():
        model(image())
    assert check_network(model, image()).verdict == "exact"


@pytest.mark.parametrize("net", several.NETS, ids=lambda net: net.name)
def test_weights_made_of_several_parameters_are_exact(net: Net) -> None:
    assert check_network(net.model(), net.inputs()).verdict == "exact"


@pytest.mark.parametrize("net", several.NETS, ids=lambda net: net.name)
def test_roles_of_weights_made_of_several_parameters(net: Net) -> None:
    """What reads or writes is the weight, not its mask or its gain, and every kernel of a sum."""
    graph = trace(net.model(), net.inputs())
    wrong = {g.name: difference for g in graph if (difference := net.groups[g.name].mismatch(g))}
    assert not wrong
    model, plan = randomise(net.model()), random_plan(graph)
    small, _ = remove(model, graph, plan)
    assert verify(silence(model, graph, plan), small, net.inputs()).passed


# -- numbers that are easily mistaken


def _heads(m: Any, x: Tensor) -> Tensor:
    n = x.shape[0]
    query, key, value = (f(x).view(n, m.heads, m.width, -1) for f in (m.query, m.key, m.value))
    y = (value @ (query.transpose(2, 3) @ key * 0.1).softmax(2)).reshape(n, m.heads * m.width, -1)
    return m.head(y.unflatten(2, x.shape[2:]))


def _of_four(**more: Any) -> nn.Module:
    return Program(_heads, query=conv(3, 16, 1), key=conv(3, 16, 1), value=conv(3, 16, 1), head=conv(16, 2, 1), **more)


OUTPUT_HEAD = G(2, "head.weight/0 head.bias/0", frozen="output")
AMBIGUOUS = [
    Net(  # the last statement names two numbers of the same value: the one that counts heads must stay
        "as many heads as their width",
        lambda: _of_four(heads=4, width=4),
        {
            "query": G(
                4,
                "query.weight/0 query.bias/0 key.weight/0 key.bias/0 value.weight/0 value.bias/0",
                "head.weight/1",
                mixing=True,
            ),
            "head": OUTPUT_HEAD,
        },
    ),
    Net(  # (images, tokens, channels): both indices are whole numbers, and the channels pass
        "one token of each image",
        lambda: Program(
            lambda m, x: m.head(F.relu(m.stem(x))[torch.arange(2), torch.tensor([1, 0])]),
            stem=nn.Linear(3, 6),
            head=nn.Linear(6, 2),
        ),
        {"stem": G(6, "stem.weight/0 stem.bias/0", "head.weight/1"), "head": OUTPUT_HEAD},
        lambda: image(2, 4, 3),
    ),
]


@pytest.mark.parametrize("net", AMBIGUOUS, ids=lambda net: net.name)
def test_numbers_that_could_mean_two_things(net: Net) -> None:
    model = randomise(net.model())
    graph = trace(model, net.inputs())
    assert not {g.name: difference for g in graph if (difference := net.groups[g.name].mismatch(g))}
    small, _ = remove(model, graph, plan := random_plan(graph))
    assert verify(silence(model, graph, plan), small, net.inputs()).passed


# -- lazy modules, frozen parameters, averaged copies


def test_a_lazy_network_is_refused_before_its_first_run_and_exact_after_it() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)
        )

    with pytest.raises(
        prunus.UnsupportedNetwork,
        match=r"^`0\.weight` is lazy and has no shape yet: run the model once on real input before tracing$",
    ):
        trace(build(), image())
    model = build().eval()
    model(image())
    graph = trace(model, image())
    assert {g.name: g.num_channels for g in graph.prunable} == {"0": 6, "4": 4}
    report = check_network(model, image())
    assert report.verdict == "exact" and report.prunable_share == 1.0


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    """The leading library finds nothing to prune in them, and says nothing; here only the flag survives, as it was."""
    net = NETS["frozen parameters"]
    model = net.model()
    result = prunus.prune(model, net.inputs(), prunus.Budget(macs=0.5, tolerance=0.3), "l1", allocator="uniform")
    assert result.model[0][0].out_channels < 6  # type: ignore[index, union-attr, operator]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in result.model.named_parameters()} == flags
    assert not flags["0.0.weight"] and flags["1.0.weight"]
    everything = copy.deepcopy(model).requires_grad_(False)
    small, _ = remove(everything, graph := trace(everything, net.inputs()), random_plan(graph))
    assert not any(p.requires_grad for p in small.parameters())
    assert small[0][0].out_channels == 3  # type: ignore[index, union-attr]


def test_a_frozen_backbone_still_trains_its_head_after_surgery() -> None:
    net = NETS["frozen parameters"]
    model = net.model()
    small, _ = remove(model, graph := trace(model, net.inputs()), random_plan(graph))
    before = {name: tensor.clone() for name, tensor in small.named_parameters()}
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    small.train()(image()).pow(2).mean().backward()
    optimizer.step()
    moved = {name for name, p in small.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.0.weight", "1.1.weight", "1.1.bias", "2.weight", "2.bias"}


def test_a_copy_inside_the_network_that_never_runs_stays_whole() -> None:
    net = NETS["averaged copy inside"]
    model = net.model()
    small, record = remove(model, graph := trace(model, net.inputs()), random_plan(graph))
    assert not any(name.startswith("teacher") for name in record.kept)
    for (name, p), (_, q) in zip(named_tensors(model.teacher), named_tensors(small.teacher), strict=True):  # type: ignore[arg-type]
        assert torch.equal(p, q), name


def test_an_averaged_model_goes_on_averaging_after_surgery() -> None:
    """The copy is cut along with the network, and its next update meets the right channels."""
    model = nn.Sequential(conv_bn(3, 6), conv(6, 2))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    graph = trace(model, image())
    keep = torch.tensor([False, True, True, False, True, True])
    small, _ = remove(model, graph, prunus.PruningPlan({"0.0": keep}, graph.cost()), ema=average)
    with torch.no_grad():
        small[0][0].weight.zero_()  # type: ignore[index, union-attr, operator]
    average.update_parameters(small)
    assert torch.allclose(average.module[0][0].weight, 0.5 * model[0][0].weight[keep])  # type: ignore[index, union-attr]
