"""Lossless pruning: equal outputs to 1e-10 in float64, nothing removed that only data would suggest, and what stays, named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nets import EXACT, NETS
from prunus.errors import EvidenceError, NothingPruned, PrunusWarning, UnsupportedNetwork, VerificationFailed
from prunus.graph.trace import cloned, tensors_in
from prunus.reconstruction import prune_lossless
from prunus.reconstruction.known_values import known_values
from prunus.surgery import load, randomise, save
from prunus.types import call_model, map_tensors
from small_nets import build, images

DOUBLE = torch.float64


def random(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))


def mixed(padding=0, dtype=DOUBLE):
    """Constants, a channel that nothing reads, duplicates; through norms, ReLU, pooling, dropout, flatten."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=padding, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    body += [nn.Conv2d(8, 10, 3, padding=padding, bias=False), nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    body += [nn.Conv2d(10, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = randomise(nn.Sequential(*body, nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5))).to(dtype).eval()
    with torch.no_grad():
        net[1].weight[[1, 4]] = 0
        net[1].bias[1], net[1].bias[4] = 0.7, -0.3
        net[4].weight[[0, 2, 3]] = 0
        net[7].weight[2] = 0
        net[11].weight[5] = 0
        net[11].weight[7], net[11].bias[7] = net[11].weight[1], net[11].bias[1]
        net[13].weight[:, 9] = 0
    return net


def test_without_padding_all_of_it_goes():
    net, x = mixed(), random(4, 3, 12, 12)
    before = copy.deepcopy(net.state_dict())
    result = prune_lossless(net, x)
    assert result.constants == {"0": 2, "3": 3, "7": 1, "11": 1}
    assert result.unread == {"11": 1}
    assert result.duplicates == {"11": 1}
    assert result.not_lossless == {}
    assert [tuple(result.model[i].weight.shape) for i in (0, 3, 7, 11, 13)] == [
        (6, 3, 3, 3),
        (7, 6, 3, 3),
        (5, 7, 1, 1),
        (9, 20),
        (5, 9),
    ]
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)
        other = 5 * random(2, 3, 17, 9)
        torch.testing.assert_close(result.model(other), net(other), rtol=1e-10, atol=1e-12)
    assert result.verification.passed
    assert result.verification.tolerance == 1e-10
    assert result.algebra <= 1e-10
    assert result.after.parameters == sum(p.numel() for p in result.model.parameters()) < result.before.parameters
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert str(result).startswith("removed without loss: 7 constant, 1 unread, 1 duplicate channels\nMACs 71,868 -> 42,857")


def test_in_float32_only_the_folded_constants_are_rounded():
    result = prune_lossless(mixed(dtype=torch.float32), random(2, 3, 12, 12).float())
    assert result.constants == {"0": 2, "3": 3, "7": 1, "11": 1}
    assert result.algebra <= 1e-10 < result.verification.max_error < 1e-6
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_with_padding_only_channels_of_constant_zero_go():
    net, x = mixed(padding=1), random(2, 3, 12, 12)
    result = prune_lossless(net, x)
    assert result.constants == {"0": 1, "3": 3, "7": 1, "11": 1}
    why = "1 constant channels: `3.weight` pads with zeros (or is transposed), so that what it makes of a constant varies"
    assert result.not_lossless == {"0": why}
    assert f"`0` keeps more: {why}" in str(result)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)


def test_saved_and_loaded(tmp_path):
    x = random(2, 3, 12, 12)
    result = prune_lossless(mixed(), x)
    save(result.model, result.record, tmp_path / "small.prunus")
    assert torch.equal(load(tmp_path / "small.prunus", mixed())(x), result.model(x))


def chain(*layers):
    torch.manual_seed(0)
    return randomise(nn.Sequential(*layers)).to(DOUBLE).eval()


def test_what_reads_only_constants_is_constant_itself():
    net = chain(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Tanh(), nn.Conv2d(5, 2, 3))
    with torch.no_grad():
        net[0].weight[[0, 2]] = 0
        net[2].weight[3, [1, 3]] = 0
    result = prune_lossless(net, random(2, 1, 9, 9))
    assert result.constants == {"0": 2, "2": 1}
    known = known_values(net, random(2, 1, 9, 9))
    reads = net[2].bias[3] + net[2].weight[3, [0, 2], 0, 0] @ net[0].bias[[0, 2]].relu()
    assert known["2.weight"].isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(known["4.weight"][3], reads.tanh())


def test_nearly_zero_is_not_zero_and_silent_on_data_is_not_constant():
    net = chain(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[1].weight[0], net[1].bias[0] = 1e-12, 0.0
        net[1].bias[1] = -1e6
    x = random(2, 1, 9, 9)
    assert net[:3](x)[:, 1].abs().max() == 0
    with pytest.raises(NothingPruned, match=r"^nothing can be pruned without loss: no channel is redundant\. Prune to a budget"):
        prune_lossless(net, x)


def test_duplicates_are_merged_even_with_padding():
    net = build("Plain", DOUBLE)
    with torch.no_grad():
        for i in (3, 9):
            for tensor in (*net.one.parameters(), *net.one.buffers()):
                if tensor.ndim:
                    tensor[i] = tensor[0]
        net.two[0].weight[5] = net.two[0].weight[4]  # its norm differs
    x = images(3, dtype=DOUBLE)
    result = prune_lossless(net, x)
    assert result.duplicates == {"one.0": 2}
    torch.testing.assert_close(result.model.two[0].weight[:, 0], net.two[0].weight[:, [0, 3, 9]].sum(1))
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)


def test_duplicates_through_flatten_concatenation_and_groups():
    for name, part in (("Flattened", "conv"), ("Dense", "two"), ("Layouts", "transposed")):
        net = build(name, DOUBLE)
        with torch.no_grad():
            if name == "Dense":
                for tensor in (*net.two.parameters(), *net.two.buffers()):
                    if tensor.ndim:
                        tensor[4] = tensor[1]
                for tensor in (*net.depthwise.parameters(), *net.depthwise.buffers()):
                    if tensor.ndim:
                        tensor[16] = tensor[13]
            elif name == "Layouts":
                for g in range(4):  # the same slots of each group of the layer that reads
                    net.transposed.weight[:, 4 * g + 3] = net.transposed.weight[:, 4 * g + 1]
                    net.transposed.bias[4 * g + 3] = net.transposed.bias[4 * g + 1]
            else:
                net.conv.weight[4], net.conv.bias[4] = net.conv.weight[1], net.conv.bias[1]
        x = images(3, dtype=DOUBLE)
        result = prune_lossless(net, x)
        assert sum(result.duplicates.values()) == 1, name
        assert next(iter(result.duplicates)).startswith(part)
        torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)


def test_a_residual_stream_needs_all_its_writers():
    net = build("Residual", DOUBLE)
    with torch.no_grad():
        net.stem[1].weight[[2, 5]] = 0
        net.stem[1].bias[[2, 5]] = 0
        for outer in net.outer:
            outer[1].weight[[2, 3]] = 0
            outer[1].bias[[2, 3]] = -1  # behind the ReLU of the sum it is zero
    result = prune_lossless(net, images(2, dtype=DOUBLE))
    assert result.constants == {"stem.0": 1}
    assert result.model.classifier.weight.shape == (10, 15)


def test_a_constant_behind_a_padded_depthwise_convolution_varies():
    def net(beta):
        made = chain(
            nn.Conv2d(1, 6, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        )
        with torch.no_grad():
            made[1].weight[4], made[1].bias[4] = 0, beta
        return made

    x = random(2, 1, 6, 6)
    result = prune_lossless(net(-1.0), x)
    assert result.constants == {"0": 1}
    assert result.model[3].groups == 5
    with pytest.raises(NothingPruned, match="no channel is redundant"):
        prune_lossless(net(1.0), x)


class Branch(nn.Module):
    """A residual branch all of whose channels are constants, next to a layer that reads the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.branch(x))


def test_a_branch_of_constants_may_go_as_a_whole():
    net = randomise(Branch()).to(DOUBLE).eval()
    nn.init.zeros_(net.branch[1].weight)
    x = random(2, 1, 6, 6)
    result = prune_lossless(net, x)
    assert result.constants == {"branch.0": 3}
    assert result.model.branch[3].weight.shape == (4, 0, 1, 1)
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)


def test_where_no_way_leads_around_one_channel_stays():
    net = chain(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    nn.init.zeros_(net[1].weight)
    x = random(2, 1, 6, 6)
    result = prune_lossless(net, x)
    assert result.constants == {"0": 2}
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-10, atol=1e-12)


def test_mixing_groups_and_keep_are_respected():
    net = chain(nn.Conv2d(1, 6, 1), nn.Flatten(2), nn.LayerNorm(16), nn.Unflatten(2, (4, 4)), nn.Softmax(1), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[1], net[0].bias[1]
    with pytest.raises(NothingPruned, match="`0`: 1 duplicates: statistics are computed over the channels"):
        prune_lossless(net, random(2, 1, 4, 4))
    result = prune_lossless(mixed(), random(2, 3, 12, 12), keep=["11"])
    assert result.constants == {"0": 2, "3": 3}
    assert result.duplicates == result.unread == {}


def test_data_are_compared_too():
    x = random(2, 3, 12, 12)
    result = prune_lossless(mixed(), x, [(10 * random(3, 3, 14, 14), torch.zeros(3))])
    assert result.verification.passed
    with pytest.raises(EvidenceError, match="yields nothing"):
        prune_lossless(mixed(), x, [])


class Program(nn.Module):
    def __init__(self, run) -> None:
        super().__init__()
        self.run, self.stem, self.head = run, nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)
        self.table = nn.Parameter(torch.tensor([1.0, 2.0, 5.0]))

    def forward(self, x):
        return self.head(self.run(self, self.stem(x)))


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: (x > 0).to(x.dtype),
        lambda s, x: torch.where(x > 0, 1.0, 0.5),
        lambda s, x: torch.nan_to_num(x),
        lambda s, x: torch.fmax(x, torch.zeros_like(x)),
        lambda s, x: s.table[x.clamp(0, 2).long()],
        lambda s, x: x.sign().mul_(2),
        lambda s, x: nn.functional.hardswish(nn.functional.hardsigmoid(x.clone())),
    ],
)
def test_what_is_unknown_stays_unknown(run):
    """Where NaN alone would get lost, and a value that depends on the input would look like a constant."""
    net = randomise(Program(run)).to(DOUBLE).eval()
    assert known_values(net, random(1, 2, 3, 3))["head.weight"].isnan().all()


def test_programs_that_look_at_values_are_searched_for_duplicates_only():
    net = randomise(Program(lambda s, x: x * 2 if s.table.sum() + x.mean() > 0 else x)).to(DOUBLE).eval()
    with torch.no_grad():
        net.stem.weight[0] = 0
        net.stem.weight[3], net.stem.bias[3] = net.stem.weight[1], net.stem.bias[1]
    with pytest.raises(NothingPruned, match=r"only unread and duplicate channels were looked for.*looks at values that depend"):
        prune_lossless(net, random(1, 2, 3, 3))


def test_integers_as_inputs():
    torch.manual_seed(0)
    net = randomise(nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))).to(DOUBLE).eval()
    with torch.no_grad():
        net[1].weight[2], net[1].bias[2] = net[1].weight[1], net[1].bias[1]
        net[1].weight[3] = 0
    result = prune_lossless(net, torch.arange(6).view(2, 3))
    assert (result.duplicates, result.constants) == ({"1": 1}, {})
    assert "needs inputs of floating-point numbers only" in result.notes[0]


def test_a_network_that_cannot_be_proven_is_never_returned(monkeypatch):
    """Were a channel taken for a constant by mistake, the outputs would give it away."""
    import prunus.reconstruction.lossless as lossless

    def mistaken(*args, **kwargs):
        found = known_values(*args, **kwargs)
        found["7.weight"] = torch.where(torch.arange(10) == 1, 0.5, found["7.weight"])
        return found

    monkeypatch.setattr(lossless, "known_values", mistaken)
    x = random(2, 3, 12, 12)
    with pytest.warns(PrunusWarning, match="frozen after verification failed on them: 3"):
        result = prune_lossless(mixed(), x)
    assert result.constants == {"0": 2, "7": 1, "11": 1}
    assert "largest in output 0" in result.not_lossless["3"]
    with (
        pytest.warns(PrunusWarning, match="frozen after verification failed"),
        pytest.raises(VerificationFailed, match="in every group: largest in output 0"),
    ):
        prune_lossless(mixed(), x, keep=["0", "11"])
    net = mixed()
    nn.init.ones_(net[7].weight)  # group `7` has nothing to remove, but could be pruned
    with (
        pytest.warns(PrunusWarning, match="frozen after verification failed"),
        pytest.raises(VerificationFailed, match="none of the redundant channels could be removed with proof: `3`: "),
    ):
        prune_lossless(net, x, keep=["0", "13"])


def plant_redundancy(net):
    """Norms with a scale of zero; layers with a filter of zeros and one that repeats another."""
    with torch.no_grad():
        for module in net.modules():
            weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
            if not isinstance(weight, nn.Parameter) or len(weight) < 4:
                continue
            weight[0] = 0
            if weight.ndim > 1:
                weight[3] = weight[2]
                if isinstance(bias, nn.Parameter) and len(bias) == len(weight):
                    bias[3] = bias[2]


def outputs(net, inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors_in(call_model(net, cloned(inputs)))


@pytest.mark.parametrize("name", EXACT)
def test_no_difficulty_loses_anything(name):
    net = randomise(NETS[name].model()).eval()
    plant_redundancy(net)
    inputs = NETS[name].inputs()
    try:
        result = prune_lossless(net, inputs)
    except (NothingPruned, UnsupportedNetwork) as refused:
        assert len(str(refused)) > 60
        return
    assert sum(len(found) for found in (result.constants, result.unread, result.duplicates)) > 0
    other = map_tensors(lambda t: t + 0.3 * torch.rand_like(t) if t.ndim == 4 and t.is_floating_point() else t, inputs)
    for own, expected in zip(outputs(result.model, other), outputs(net, other), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5 * max(float(expected.abs().max()), 1.0))


def test_regions_of_interest_are_never_computed_from_unknown_boxes():
    net = randomise(NETS["regions of predicted boxes"].model()).eval()
    plant_redundancy(net)
    assert prune_lossless(net, NETS["regions of predicted boxes"].inputs()).verification.passed
