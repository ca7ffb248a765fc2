"""Preferred patterns: where the answer is known, what they don't depend on, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import EvidenceError, UnknownName
from prunus.importance.functionality_patterns import STARTS, Ascent, _variation_gradient, preferred_patterns
from small_nets import build, conv_norm_relu, images

DOUBLE = torch.float64
BOARD = (torch.arange(64).reshape(1, 1, 8, 8) + torch.arange(8).reshape(1, 1, 8, 1)) % 2 * 2.0 - 1
"""An image of mean 0 and standard deviation 1."""


class Reader(nn.Module):
    """A convolution, ReLU, and what reads it."""

    def __init__(self, inputs: int, channels: int, kernel: int, padding: int = 0, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, channels, kernel, padding=padding)
        self.out = nn.Linear(channels, 3)
        self.shift, self.scale = shift, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.one((x - self.shift) / self.scale)).mean((2, 3)))


def patterns_of(model: nn.Module, inputs: Tensor, **options: object) -> Tensor:
    return preferred_patterns(model.eval(), prunus.trace(model, inputs[:1]), inputs, **options)["one"]


def test_a_linear_response_prefers_its_weights() -> None:
    """1 x 1 filters (2, -1) and (0, 3) far above the ReLU's kink: everywhere w over its root mean square, for l2 = 1."""
    model = Reader(2, 2, 1)
    with torch.no_grad():
        model.one.weight.copy_(torch.tensor([[2.0, -1], [0, 3]]).reshape(2, 2, 1, 1))
        model.one.bias.fill_(50)
    data = BOARD.expand(1, 2, 8, 8)
    found = patterns_of(model, data, ascent=Ascent(total_variation=0))
    expected = torch.tensor([[2.0, -1], [0, 3]]) / torch.tensor([[2.5], [4.5]]).sqrt()
    torch.testing.assert_close(found, expected[:, :, None, None].expand(2, 2, 8, 8), rtol=0, atol=0.03)
    half = patterns_of(model, data, ascent=Ascent(total_variation=0, l2=2, steps=80))
    torch.testing.assert_close(half, found / 2, rtol=0, atol=0.03)


def test_the_network_responds_more_to_a_pattern_than_to_any_other() -> None:
    """Maxima on the diagonal: with its own pattern every channel is at least as high as with any other channel's."""
    torch.manual_seed(1)
    model = Reader(1, 6, 5, padding=2).eval()
    found = patterns_of(model, BOARD)
    found = found / found.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 8
    responses = torch.relu(model.one(found)).mean((2, 3))
    assert torch.equal(responses.argmax(0), torch.arange(6))


def test_total_variation_smooths() -> None:
    torch.manual_seed(1)
    model = Reader(1, 6, 5, padding=2)

    def variation(weight: float) -> float:
        found = patterns_of(model, BOARD, ascent=Ascent(total_variation=weight))
        return float(found.diff(dim=2).abs().sum() + found.diff(dim=3).abs().sum())

    assert variation(0) > 1.1 * variation(0.1) > 1.3 * variation(0.4)


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (3, 2, 7), (3, 2, 3, 4, 2), (3, 6)])
def test_the_gradient_of_the_total_variation(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    total = sum((z.diff(dim=axis).abs().sum() for axis in range(2, z.ndim)), 0 * z.sum())
    total.backward()
    assert torch.equal(_variation_gradient(z.detach()), z.grad)


def test_the_scale_of_the_data_does_not_matter() -> None:
    torch.manual_seed(0)
    model, data = Reader(2, 4, 3, padding=1).double(), torch.randn(5, 2, 8, 8, dtype=DOUBLE)
    plain = patterns_of(model, data)
    model.shift, model.scale = 30.0, 7.0
    torch.testing.assert_close(patterns_of(model, data * 7 + 30), plain, rtol=1e-6, atol=1e-8)


def test_how_many_go_at_once_does_not_matter() -> None:
    model = build("Dense", DOUBLE)
    graph, data = prunus.trace(model, images(dtype=DOUBLE)), images(4, dtype=DOUBLE)
    whole = preferred_patterns(model, graph, data)
    parts = preferred_patterns(model, graph, data, ascent=Ascent(at_once=5))
    assert {name: tuple(found.shape) for name, found in whole.items()} == {
        group.name: (group.num_channels, 1, 8, 8) for group in graph.prunable
    }
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-6, atol=1e-7)


def test_the_seed_is_of_the_start_and_nothing_else_is_drawn() -> None:
    model = build("Plain").train()
    graph = prunus.trace(model, images())
    state, weight = torch.get_rng_state(), model.one[0].weight.detach().clone()
    first, again, other = (preferred_patterns(model, graph, images(3), groups=["one.0"], seed=s) for s in (3, 3, 4))
    assert list(first) == ["one.0"]
    assert torch.equal(first["one.0"], again["one.0"])
    assert not torch.equal(first["one.0"], other["one.0"])
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model.one[0].weight, weight)
    assert model.training and model.one[1].num_batches_tracked == 0 and model.one[0].weight.grad is None


def test_a_channel_that_sleeps_through_the_first_noise_is_woken() -> None:
    """A filter that knows the fourth noise image alone, one that nothing wakes, one that sees anything."""
    noise = torch.randn(STARTS, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    model = Reader(1, 3, 8)
    with torch.no_grad():
        model.one.weight[0] = noise[3] / noise[3].norm()
        model.one.weight[1] = 0
        model.one.weight[2] = noise[5]
        model.one.bias.copy_(torch.tensor([-0.6 * noise[3].norm(), -1, 100]))
    asleep = torch.relu(model.one(noise)).flatten(1)[:, 0] == 0
    assert asleep.tolist() == [True] * 3 + [False] + [True] * 4
    found = patterns_of(model, BOARD, seed=7, ascent=Ascent(total_variation=0))
    assert float(F.cosine_similarity(found[0].flatten(), noise[3].flatten(), dim=0)) > 0.999
    assert not found[1].any()
    assert float(F.cosine_similarity(found[2].flatten(), noise[5].flatten(), dim=0)) > 0.99


def test_to_go_on_from_patterns() -> None:
    """A channel that didn't change keeps its pattern, one whose weights turned round loses it; from noise come others."""
    torch.manual_seed(3)
    model = Reader(1, 4, 5, padding=2).double().eval()
    graph, data, long = prunus.trace(model, BOARD.double()), BOARD.double(), Ascent(steps=300, total_variation=0)
    before = preferred_patterns(model, graph, data, ascent=long)
    with torch.no_grad():
        model.one.weight[2] *= -1
        model.one.bias[2] += 0.5
    after = preferred_patterns(model, graph, data, starts=before, seed=9)["one"]
    similar = F.cosine_similarity(before["one"].flatten(1), after.flatten(1))
    assert float(similar[[0, 1, 3]].min()) > 0.95 and float(similar[2]) < 0.5
    anew = preferred_patterns(model, graph, data, seed=9)["one"]
    assert float(F.cosine_similarity(before["one"].flatten(1), anew.flatten(1))[[0, 1, 3]].min()) < 0.5
    with pytest.raises(EvidenceError, match=r"start from for group `one` have the shape \(3, 1, 8, 8\): give \(4, 1, 8, 8\)"):
        preferred_patterns(model, graph, data, starts={"one": before["one"][:3]})


class TwoInputs(nn.Module):
    """Its image comes with a number for each example, and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = conv_norm_relu(1, 8), nn.Linear(8, 3)

    def forward(self, image: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
        assert len(image) == len(weight)
        return self.out(self.one(image).mean((2, 3)) * weight) * factor


def test_other_inputs_are_repeated() -> None:
    model = TwoInputs().eval()
    inputs = {"image": images(4), "weight": torch.full((4, 1), 2.0), "factor": torch.ones(())}
    graph = prunus.trace(model, inputs)
    found = preferred_patterns(model, graph, inputs)
    plain = preferred_patterns(model, graph, (images(4), torch.ones(4, 1), torch.ones(())))
    assert found["one.0"].shape == (8, 1, 8, 8)
    torch.testing.assert_close(found["one.0"], plain["one.0"], rtol=1e-4, atol=1e-4)  # a factor of two changes no direction
    packed = {"batch": inputs}
    same = preferred_patterns(model, graph, packed, forward_fn=lambda network, batch: network(**batch["batch"]))
    assert torch.equal(same["one.0"], found["one.0"])


class Scaled(nn.Module):
    """Its second layer's weight is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = conv_norm_relu(1, 8), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(F.conv2d(self.one(x), self.two.weight / 2, self.two.bias)).mean((2, 3)))


def test_groups_read_by_computed_weights_are_left_out() -> None:
    model = Scaled().eval()
    assert list(preferred_patterns(model, prunus.trace(model, images()), images(2))) == ["two"]


# -- what is refused


def test_unknown_groups() -> None:
    model = build("Plain")
    with pytest.raises(UnknownName, match=r"unknown prunable group 'one': did you mean one\.0"):
        preferred_patterns(model, prunus.trace(model, images()), images(2), groups=["one"])


class Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = conv_norm_relu(1, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.one(x).detach().mean((2, 3)))


def test_a_network_that_cuts_the_gradient() -> None:
    model = Deaf().eval()
    graph = prunus.trace(model, images())
    with pytest.raises(
        EvidenceError, match=r"no gradient flows from group `one\.0` back to the network's input.* such as taylor"
    ):
        preferred_patterns(model, graph, images(2))


class Folded(nn.Module):
    """Puts halves of the image along the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = conv_norm_relu(1, 8), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(self.one(x).split(4, dim=2))
        return self.out(torch.relu(self.two(x)).mean((2, 3)))


def test_images_that_are_not_along_the_first_axis() -> None:
    model = Folded().eval()
    graph = prunus.trace(model, images())
    with pytest.raises(
        EvidenceError, match=r"reads an input of shape \(16, 8, 4, 8\) in a batch of 8 images: preferred patterns"
    ):
        preferred_patterns(model, graph, images(2))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), r"the first tensor of the batch is \(2, 1, 8, 8\) of torch\.int64"),
        (torch.zeros(3), r"the first tensor of the batch is \(3,\) of torch\.float32"),
        ("cat", "the first tensor of the batch is none: give a batch whose first tensor is the image"),
        (images(2) * float("nan"), "the batch that preferred patterns take their scale from isn't finite: check the data"),
    ],
)
def test_bad_inputs(inputs: object, text: str) -> None:
    model = build("Plain")
    with pytest.raises(EvidenceError, match=text):
        preferred_patterns(model, prunus.trace(model, images()), inputs)


def test_weights_that_are_not_finite() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    with torch.no_grad():
        model.one[0].weight[2] = float("nan")
    with pytest.raises(EvidenceError, match=r"activations of group `one\.0` aren't finite on the way to its preferred patterns"):
        preferred_patterns(model, graph, images(2))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"at_once": 0}, {"l2": -1.0}, {"total_variation": -0.1}])
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(EvidenceError, match="steps and at_once must be 1 or more, the weights of the penalties 0 or more"):
        Ascent(**wrong)
