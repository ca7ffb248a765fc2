"""Constant folding against figures by hand and the network with constants put in, and what it names instead of guessing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import EvidenceError, NothingPruned, PrunusWarning, UnknownName, UnsupportedNetwork
from prunus.graph import trace
from prunus.importance.activations import activation_statistics
from prunus.importance.evidence import DataRun
from prunus.reconstruction import channel_means, compensate, fold_constants
from prunus.surgery import load, randomise, remove, save, silence
from prunus.types import PruningPlan
from small_nets import batches, build, images

DOUBLE = torch.float64


def double(*layers):
    torch.manual_seed(0)
    return randomise(nn.Sequential(*layers)).to(DOUBLE).eval()


def plan_of(graph, **gone):
    """Remove these channels; ``g0=[1]`` is channel 1 of group `0`."""
    keep = {}
    for name, channels in gone.items():
        group = graph[name[1:].replace("__", ".")]
        keep[group.name] = torch.ones(group.num_channels, dtype=torch.bool)
        keep[group.name][channels] = False
    return PruningPlan(keep, graph.cost())


def random(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("beta", "mean"), [(0.3, 0.4), (-0.3, 1.0)])
def test_running_mean_of_the_next_norm_absorbs_it(beta, mean):
    net = double(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False), nn.BatchNorm2d(1))
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        net[4].running_mean.fill_(1.0)
        net[1].weight[0], net[1].bias[0] = 0, beta
    x = random(2, 1, 4, 4)
    graph = trace(net, x)
    emitted = torch.tensor([max(beta, 0.0), 7.0], dtype=DOUBLE)
    folded, report = fold_constants(net, graph, plan_of(graph, g0=[0]), {"0": emitted}, x)
    assert folded[4].running_mean.item() == pytest.approx(mean)
    assert net[4].running_mean.item() == 1.0
    assert report.exact == ("3.weight",)
    assert report.changed == (("4.running_mean",) if beta > 0 else ())
    small, _ = remove(folded, graph, plan_of(graph, g0=[0]))
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-12)


def test_bias_gains_the_sum_over_the_kernel_times_the_constant():
    net = double(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    x = random(1, 1, 5, 5)
    graph = trace(net, x)
    folded, report = fold_constants(net, graph, plan_of(graph, g0=[0, 2]), {"0": torch.tensor([0.5, torch.nan, 2.0])}, x)
    expected = net[2].bias + 0.5 * net[2].weight[:, 0].sum((1, 2)) + 2 * net[2].weight[:, 2].sum((1, 2))
    torch.testing.assert_close(folded[2].bias, expected)
    assert (report.exact, report.approximate, report.not_folded, report.changed) == (("2.weight",), {}, {}, ("2.bias",))


def test_zero_padding_gets_the_mean_over_positions_and_says_so():
    net = double(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        net[2].weight.fill_(1.0)
    x = random(1, 1, 4, 4)
    graph = trace(net, x)
    folded, report = fold_constants(net, graph, plan_of(graph, g0=[1]), {"0": torch.tensor([0.0, 1.0])}, x)
    # taps within the image: 9 in the interior (4 positions), 6 on edges (8), 4 in corners (4): 100 / 16
    assert (folded[2].bias - net[2].bias).item() == pytest.approx(6.25)
    assert report.exact == ()
    assert report.approximate == {"2.weight": pytest.approx(2.75 / 9)}
    assert str(report) == "approximate in `2.weight`: off by up to 31% at a border"


def test_the_reported_error_is_that_of_the_reading_layer():
    net = double(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))
    net = nn.Sequential(*net, nn.Identity(), nn.Conv2d(4, 2, 1)).to(DOUBLE).eval()
    with torch.no_grad():
        net[1].weight[1] = 0
    x = random(2, 2, 6, 6)
    graph = trace(net, x)
    constant = torch.full((3,), net[1].bias[1].item(), dtype=DOUBLE)
    folded, report = fold_constants(net, graph, plan_of(graph, g0=[1]), {"0": constant}, x)
    silent = silence(folded, graph, plan_of(graph, g0=[1]))
    difference = (silent[:4](x) - net[:4](x)).abs().max().item()
    amounts = nn.functional.conv2d(torch.ones(1, 1, 6, 6, dtype=DOUBLE) * constant[1], net[3].weight[:, 1:2], padding=1).abs()
    assert difference > 0.01
    assert difference == pytest.approx(report.approximate["3.weight"] * amounts.max().item())


def test_zero_constants_are_exact_with_padding_too():
    net = double(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    x = random(1, 1, 4, 4)
    graph = trace(net, x)
    _, report = fold_constants(net, graph, plan_of(graph, g0=[1]), {"0": torch.zeros(2)}, x)
    assert (report.exact, report.changed) == (("2.weight",), ())


def test_flattened_channels_have_a_value_for_every_position():
    net = build("Flattened", DOUBLE)
    data = [(images(6, dtype=DOUBLE), torch.zeros(6))]
    graph = trace(net, data[0][0])
    means = channel_means(net, graph, data)
    read = nn.functional.adaptive_avg_pool2d(net.conv(data[0][0]).relu(), 2).flatten(1)
    torch.testing.assert_close(means["hidden.weight"], read.mean(0))
    by_position, _ = fold_constants(net, graph, plan_of(graph, gconv=[2]), means, data[0][0])
    columns = net.hidden.weight[:, 8:12]
    torch.testing.assert_close(by_position.hidden.bias, net.hidden.bias + columns @ read.mean(0)[8:12])
    by_channel, _ = fold_constants(net, graph, plan_of(graph, gconv=[2]), {"conv": torch.full((12,), 3.0)}, data[0][0])
    torch.testing.assert_close(by_channel.hidden.bias, net.hidden.bias + 3 * columns.sum(1))


def test_grouped_and_transposed_convolutions():
    net = build("Layouts", DOUBLE)
    x = images(3, dtype=DOUBLE)
    graph = trace(net, x)
    values = {"grouped.weight": torch.arange(16.0, dtype=DOUBLE), "plain.weight": torch.zeros(16)}
    # slot 1 of the four groups: inputs 1, 5, 9, 13, each read by the four outputs of its own group
    folded, report = fold_constants(net, graph, plan_of(graph, gtransposed=[1]), values, x)
    interior = net.grouped.weight[:, 1].sum((1, 2)) * torch.tensor([1.0, 5.0, 9.0, 13.0], dtype=DOUBLE).repeat_interleave(4)
    seen = nn.functional.conv2d(torch.ones(1, 1, 16, 16, dtype=DOUBLE), net.grouped.weight[:, 1:2], padding=1)[0]
    of_group = torch.tensor([1.0, 5.0, 9.0, 13.0], dtype=DOUBLE).repeat_interleave(4)
    torch.testing.assert_close(folded.grouped.bias - net.grouped.bias, seen.mean((1, 2)) * of_group)
    torch.testing.assert_close(seen[:, 5, 5] * of_group, interior)
    assert list(report.approximate) == ["grouped.weight"]


def test_a_transposed_reader_varies_with_the_position():
    net = double(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2, stride=2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    x = random(1, 1, 3, 3)
    graph = trace(net, x)
    folded, report = fold_constants(net, graph, plan_of(graph, g0=[1]), {"0": torch.ones(3)}, x)
    torch.testing.assert_close(folded[2].bias - net[2].bias, net[2].weight[1].mean((1, 2)))
    assert list(report.approximate) == ["2.weight"]


class Stream(nn.Module):
    """Two layers read one group at different points, behind different activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x.relu())
        return self.two(x.sigmoid()).mean((2, 3))


def test_means_are_taken_for_each_reader():
    net = randomise(Stream()).to(DOUBLE)
    data = [(random(5, 1, 4, 4), 0), (random(3, 1, 4, 4) + 1, 0)]
    graph = trace(net, data[0][0])
    means = channel_means(net, graph, data)
    x = net.stem(torch.cat([images for images, _ in data]))
    torch.testing.assert_close(means["one.weight"], x.relu().mean((0, 2, 3)))
    torch.testing.assert_close(means["two.weight"], (x + net.one(x.relu())).sigmoid().mean((0, 2, 3)))
    assert net.training


def test_means_agree_with_the_criterion_where_there_is_one_reader():
    net, data = build("Plain", DOUBLE), batches(dtype=DOUBLE)
    graph = trace(net, images(2, dtype=DOUBLE))
    expected = activation_statistics(["activation_mean"], net, graph, DataRun(data))["activation_mean"]["one.0"]
    torch.testing.assert_close(channel_means(net, graph, data)["two.0.weight"], expected)


def test_compensation_equals_the_network_with_means_put_in():
    """The removed inputs of every reader replaced by their means, layer by layer, on a network without padding."""
    net = randomise(Stream()).to(DOUBLE).eval()
    data = [(random(5, 1, 4, 4), torch.zeros(5))]
    x = data[0][0]
    graph = trace(net, x)
    plan = plan_of(graph, gstem=[1, 3])
    means = channel_means(net, graph, data)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = compensate(net, graph, plan, data)

    reference = copy.deepcopy(net)
    for name in ("one", "two"):

        def put_in(_, args, mean=means[f"{name}.weight"]):
            x = args[0].clone()
            x[:, [1, 3]] = mean[[1, 3]].view(1, 2, 1, 1)
            return (x,)

        getattr(reference, name).register_forward_pre_hook(put_in)
    torch.testing.assert_close(result.model(x), reference(x), rtol=0, atol=1e-12)
    assert sorted(result.report.exact) == ["one.weight", "two.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not torch.allclose(remove(net, graph, plan)[0](x), result.model(x))


def test_compensation_is_nearer_than_removal_with_padding():
    net, data = build("Residual", DOUBLE), batches(dtype=DOUBLE)
    x = data[0][0]
    graph = trace(net, x)
    plan = PruningPlan({g.name: torch.arange(g.num_channels) % 4 != 0 for g in graph.prunable}, graph.cost())
    result = compensate(net, graph, plan, data)
    plain, _ = remove(net, graph, plan)
    with torch.no_grad():
        errors = [((small(x) - net(x)).norm() / net(x).norm()).item() for small in (plain, result.model)]
    assert errors[1] < 0.5 * errors[0]
    assert result.report.exact == ("classifier.weight",)
    assert set(result.report.approximate) == {f"{part}.{i}.0.weight" for part in ("inner", "outer") for i in (0, 1)}


def test_saved_and_loaded(tmp_path):
    net, data = build("Plain"), batches()
    graph = trace(net, data[0][0])
    result = compensate(net, graph, plan_of(graph, gone__0=[1, 2]), data)
    save(result.model, result.record, tmp_path / "small.prunus")
    again = load(tmp_path / "small.prunus", build("Plain"))
    assert torch.equal(again(data[0][0]), result.model(data[0][0]))
    assert again.two[0].weight.shape[1] == 14


class Parts(nn.Module):
    """A stem, a reader, and what the given function makes of them."""

    def __init__(self, reader, run, **parts) -> None:
        super().__init__()
        self.stem, self.reader, self.last = nn.Conv2d(1, 3, 1), reader, nn.Conv2d(2, 1, 1)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.last(self.run(self, self.stem(x).relu())).mean((2, 3))


NO_OUTLET = "no bias, and no batch norm"
UNFOLDABLE = {
    "no norm": (Parts(nn.Conv2d(3, 2, 1, bias=False), lambda s, x: s.reader(x).relu()), NO_OUTLET),
    "norm not at once": (
        Parts(nn.Conv2d(3, 2, 1, bias=False), lambda s, x: s.norm(s.reader(x).relu()), norm=nn.BatchNorm2d(2)),
        NO_OUTLET,
    ),
    "output used twice": (
        Parts(nn.Conv2d(3, 2, 1, bias=False), lambda s, x: (lambda y: s.norm(y) + y)(s.reader(x)), norm=nn.BatchNorm2d(2)),
        NO_OUTLET,
    ),
    "norm used twice": (
        Parts(nn.Conv2d(3, 2, 1, bias=False), lambda s, x: s.norm(s.norm(s.reader(x)).relu()), norm=nn.BatchNorm2d(2)),
        NO_OUTLET,
    ),
    "batch statistics": (
        Parts(
            nn.Conv2d(3, 2, 1, bias=False),
            lambda s, x: s.norm(s.reader(x)),
            norm=nn.BatchNorm2d(2, track_running_stats=False),
        ),
        NO_OUTLET,
    ),
    "computed weight": (
        Parts(nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)), lambda s, x: s.reader(x.movedim(1, -1)).movedim(-1, 1)),
        "isn't the plain weight",
    ),
    "matrix product": (
        Parts(nn.Linear(3, 2), lambda s, x: torch.einsum("bihw,oi->bohw", x, s.reader.weight)),
        "isn't the plain weight",
    ),
}


@pytest.mark.parametrize("case", UNFOLDABLE)
def test_what_cannot_be_compensated_is_named(case):
    net, why = UNFOLDABLE[case]
    net = copy.deepcopy(net).eval()
    nn.init.constant_(net.stem.bias, 5.0)  # so that no channel is dead on these data
    x = torch.randn(2, 1, 4, 4)
    graph = trace(net, x)
    plan = plan_of(graph, gstem=[0])
    assert graph["stem"].frozen_because is None
    folded, report = fold_constants(net, graph, plan, {"stem": torch.ones(3)}, x)
    ((name, reason),) = report.not_folded.items()
    assert name.startswith("reader.")
    assert why in reason
    assert report.changed == ()
    for tensor, other in zip(net.state_dict().values(), folded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other)
    if why is not NO_OUTLET:  # else it gets a bias: the next test
        with pytest.warns(PrunusWarning, match=r"removed channels aren't compensated in 1 layers: `reader\."):
            compensate(net, graph, plan, [x])


@pytest.mark.parametrize("case", [case for case in UNFOLDABLE if UNFOLDABLE[case][1] is NO_OUTLET])
def test_a_layer_without_a_place_for_constants_gets_a_bias(case, tmp_path):
    fresh = UNFOLDABLE[case][0]
    net = copy.deepcopy(fresh).to(DOUBLE).eval()
    nn.init.constant_(net.stem.bias, 5.0)
    x = random(4, 1, 4, 4)
    graph = trace(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    average = copy.deepcopy(net)
    found = compensate(net, graph, plan_of(graph, gstem=[0, 2]), [x], optimizer=optimizer, ema=average)
    assert (found.report.exact, found.report.new_biases, found.record.biases) == (("reader.weight",), ("reader",), ("reader",))
    mean = net.stem(x).relu()[:, [0, 2]].mean((0, 2, 3))
    torch.testing.assert_close(found.model.reader.bias.detach(), (net.reader.weight[:, [0, 2], 0, 0] @ mean).detach())

    def put_in(_, args):
        x = args[0].clone()
        x[:, [0, 2]] = mean.view(1, 2, 1, 1)
        return (x,)

    net.reader.register_forward_pre_hook(put_in)
    torch.testing.assert_close(found.model(x), net(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(average(x), net(x), rtol=0, atol=1e-12)
    group = optimizer.param_groups[-1]
    assert group["params"][0] is found.model.reader.bias and group["weight_decay"] == 0 and len(group["params"]) == 1
    save(found.model, found.record, tmp_path / "small.prunus")
    again = load(tmp_path / "small.prunus", copy.deepcopy(fresh).to(DOUBLE)).eval()
    assert torch.equal(again(x), found.model(x))


def test_an_added_bias_loses_the_outputs_that_are_removed_as_well():
    net = double(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 1, 1))
    x = random(3, 1, 4, 4)
    graph = trace(net, x)
    found = compensate(net, graph, plan_of(graph, g0=[1], g2=[0, 2]), [x])
    mean = net[:2](x)[:, 1].mean()
    torch.testing.assert_close(found.model[2].bias, mean * net[2].weight[[1, 3], 1, 0, 0])


def test_remove_and_prune_compensate_on_request():
    net, data = build("Plain", DOUBLE), batches(dtype=DOUBLE)
    x = data[0][0]
    graph = trace(net, x)
    plan = plan_of(graph, gone__0=[1, 2])
    expected = compensate(net, graph, plan, data)
    small, record = prunus.remove(net, graph, plan, compensate="mean", data=data)
    assert record.to_json() == expected.record.to_json()
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), expected.model.state_dict().values(), strict=True))
    plain = prunus.prune(net, x, prunus.Budget(macs=0.5, tolerance=0.2), data=data)
    result = prunus.prune(net, x, prunus.Budget(macs=0.5, tolerance=0.2), data=data, compensate="mean")
    assert plain.compensation is None and result.compensation is not None
    assert str(result).endswith(str(result.compensation)) and "approximate in `" in str(result)
    with torch.no_grad():
        errors = [((r.model(x) - net(x)).norm() / net(x).norm()).item() for r in (plain, result)]
    assert errors[1] < 0.8 * errors[0]


def test_compensation_without_data_or_of_another_kind():
    net = build("Plain")
    graph = trace(net, images(2))
    plan = plan_of(graph, gone__0=[1])
    with pytest.raises(EvidenceError, match=r'compensate="mean" measures mean activations: give batches of images'):
        prunus.remove(net, graph, plan, compensate="mean")
    with pytest.raises(EvidenceError, match=r'compensate="mean" measures mean activations: give batches of images'):
        prunus.prune(net, images(2), prunus.Budget(macs=0.5), compensate="mean")
    with pytest.raises(UnknownName, match=r"unknown way to compensate 'median'.*mean"):
        prunus.remove(net, graph, plan, compensate="median", data=[images(2)])
    with pytest.raises(EvidenceError, match="mean activations are measured on data"):
        compensate(net, graph, plan, None)


def test_a_bias_that_two_layers_share_is_left_alone():
    first, second = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
    second.bias = first.bias
    net = Parts(first, lambda s, x: s.reader(x) + s.second(x), second=second).eval()
    x = torch.randn(2, 1, 4, 4)
    graph = trace(net, x)
    _, report = fold_constants(net, graph, plan_of(graph, gstem=[0]), {"stem": torch.ones(3)}, x)
    assert set(report.not_folded) == {"reader.weight", "second.weight"}
    assert "shared with another operation" in report.not_folded["second.weight"]


def test_a_layer_called_twice_gets_the_mean_of_both():
    net = Parts(nn.Conv2d(3, 2, 1), lambda s, x: s.reader(x) + s.reader(2 * x)).to(DOUBLE).eval()
    x = random(2, 1, 4, 4)
    graph = trace(net, x)
    result = compensate(net, graph, plan_of(graph, gstem=[0]), [x])
    mean = net.stem(x).relu()[:, 0].mean() * 1.5
    torch.testing.assert_close(result.model.reader.bias, net.reader.bias + mean * net.reader.weight[:, 0, 0, 0])


def test_bad_values():
    net = build("Plain")
    x = images(2)
    graph = trace(net, x)
    plan = plan_of(graph, gone__0=[1])
    for values, text in (
        ({}, "has nothing for group `one.0`"),
        ({"one.0": torch.ones(15)}, r"the values of group `one.0` have shape \(15,\), not \(16,\)"),
        ({"two.0.weight": torch.ones(3)}, r"the values of weight `two.0.weight` have shape \(3,\), not \(16,\)"),
        ({"one.0": torch.full((16,), torch.inf)}, "of group `one.0` isn't finite"),
    ):
        with pytest.raises(EvidenceError, match=text):
            fold_constants(net, graph, plan, values, x)
    with pytest.raises(UnknownName, match=r"unknown group or weight in values 'one.1': did you mean"):
        fold_constants(net, graph, plan, {"one.1": torch.ones(16)}, x)


def test_bad_plans_models_and_data():
    net = build("Plain")
    x = images(2)
    graph = trace(net, x)
    plan = plan_of(graph, gone__0=[1])
    with pytest.raises(NothingPruned, match="nothing to compensate"):
        compensate(net, graph, PruningPlan({}, graph.cost()), [x])
    with pytest.raises(UnsupportedNetwork, match="trace it again"):
        compensate(build("Residual"), graph, plan, [x])
    with pytest.raises(EvidenceError, match="yields nothing"):
        compensate(net, graph, plan, [])
    with pytest.raises(EvidenceError, match=r"activations that `.*` reads aren't finite on a batch"):
        channel_means(net, graph, [x * torch.nan])
    with pytest.raises(UnknownName, match="group in the plan"):
        fold_constants(net, graph, PruningPlan({"nowhere": torch.tensor([False, True])}, graph.cost()), {}, x)
