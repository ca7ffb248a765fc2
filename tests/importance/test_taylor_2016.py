"""Products of activations and gradients: the published cases, and taps against gates and hooks that are really there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import prunus
from prunus.graph.gates import Gates
from prunus.importance import normalise
from small_nets import NETS, batches, build, images

DOUBLE = torch.float64
GRADIENTS = torch.tensor([[[1.0, -1], [3, 1]], [[-2, 0], [-1, -1]]])
"""Of two samples, by one activation map of two by two."""


class Maps(nn.Module):
    """Activations of one in every map, each read by the last layer with weight one."""

    def __init__(self, maps: int = 2) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, maps, 1, bias=False)
        self.sum = nn.Conv2d(maps, maps, 1, bias=False)
        with torch.no_grad():
            self.maps.weight.fill_(1)
            self.sum.weight.copy_(torch.eye(maps)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.maps(x))


def with_gradients(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss whose derivative by the output is given for every example; the mean over the batch."""
    return (output * batch[1]).flatten(1).sum(1).mean()


def score_maps(gradients: Tensor, **options: object) -> list[float]:
    model = Maps(gradients.shape[1])
    graph = prunus.trace(model, torch.ones(1, 1, 2, 2))
    data = [(torch.ones(len(gradients), 1, 2, 2), gradients)]
    return prunus.score(model, graph, "taylor_2016", data, with_gradients, **options).by_group["maps"].tolist()


@pytest.mark.parametrize(("variant", "expected"), [("paper", 1.0), ("blog", 0.0)])
def test_published_orders_of_the_absolute_value(variant: str, expected: float) -> None:
    """METHODS A2.7: the maps' means are 1 and -1, so 1 in the paper and 0 in the blog's recipe, where the samples cancel."""
    found = score_maps(torch.stack([GRADIENTS, 2 * GRADIENTS], dim=1), variant=variant, normalisation="none")
    assert found == pytest.approx([expected, 2 * expected], abs=1e-7)


def test_the_released_order_of_the_absolute_value() -> None:
    """METHODS A2.7: element by element the mean is 1.25; beside a map of threes its part in the norm is 1.25 / 3.25."""
    both = torch.stack([GRADIENTS, torch.full_like(GRADIENTS, -3)], dim=1)
    assert score_maps(both, variant="released") == pytest.approx([1.25 / 3.25, 3 / 3.25])


def test_the_released_norm_is_taken_in_every_minibatch() -> None:
    model = Maps(2)
    graph = prunus.trace(model, torch.ones(1, 1, 2, 2))
    data = [(torch.ones(1, 1, 2, 2), torch.tensor(g)[None, :, None, None].expand(1, 2, 2, 2)) for g in ([3.0, 4.0], [80.0, 60.0])]
    found = prunus.score(model, graph, "taylor_2016", data, with_gradients, variant="released").by_group["maps"]
    assert found.tolist() == pytest.approx([(0.6 + 0.8) / 2, (0.8 + 0.6) / 2])


def test_the_l2_norm_is_the_default() -> None:
    gradients = torch.tensor([3.0, 4.0])[None, :, None, None].expand(1, 2, 2, 2)
    assert score_maps(gradients) == pytest.approx([0.6, 0.8])
    assert score_maps(0.1 * gradients) == pytest.approx([0.6, 0.8])
    assert score_maps(gradients, normalisation="none") == pytest.approx([3, 4])
    assert score_maps(gradients, variant="blog") == pytest.approx([0.6, 0.8])


def test_the_cost_is_taken_off_after_the_norm() -> None:
    """Each map frees 4 multiply-adds where it is written and 8 where it is read, of two maps."""
    gradients = torch.tensor([3.0, 4.0])[None, :, None, None].expand(1, 2, 2, 2)
    assert score_maps(gradients, macs_penalty=1e4) == pytest.approx([0.6 - 0.12, 0.8 - 0.12])


def test_the_blog_adds_up_minibatches_and_the_paper_examples() -> None:
    """Minibatches of one and of three examples, gradients 4 and -1: 4 - 1 = 3 in the blog, (4 + 3) / 4 in the paper."""
    model = Maps()
    graph = prunus.trace(model, torch.ones(1, 1, 2, 2))
    data = [(torch.ones(n, 1, 2, 2), torch.full((n, 2, 2, 2), g)) for n, g in ((1, 4.0), (3, -1.0))]

    def found(variant: str) -> float:
        chosen = {"variant": variant, "normalisation": "none"}
        return float(prunus.score(model, graph, "taylor_2016", data, with_gradients, **chosen).by_group["maps"][0])

    assert found("blog") == pytest.approx(3)
    assert found("paper") == pytest.approx(7 / 4)


# -- against gates and hooks


@pytest.mark.parametrize("name", NETS)
def test_taps_give_what_gates_of_every_example_give(name: str) -> None:
    """Per example, the product summed over a channel's map is the derivative by its gate; the norm takes the map's size."""
    model, (batch, *_) = build(name, DOUBLE), batches(1, 5, DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    gates = {g.name: torch.ones(5, g.num_channels, dtype=DOUBLE, requires_grad=True) for g in graph.prunable}
    with Gates(model, graph, gates):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    derivatives = dict(zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True))
    paper = prunus.score(model, graph, "taylor_2016", [batch]).by_group
    blog = prunus.score(model, graph, "taylor_2016", [batch], variant="blog").by_group
    assert set(paper) == set(blog) == set(gates)
    for group, values in derivatives.items():
        torch.testing.assert_close(paper[group], normalise(values.abs().mean(0)), rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(blog[group], normalise(values.mean(0).abs()), rtol=1e-9, atol=1e-15)


def test_raw_scores_are_means_over_the_map() -> None:
    """Of three layers that see maps of 4, 2 and one position (pooling first), by hooks at their inputs."""
    model, (batch, *_) = build("Plain", DOUBLE), batches(1, 5, DOUBLE)
    graph = prunus.trace(model, images(dtype=DOUBLE))
    read: dict[str, Tensor] = {}
    hooks: list[RemovableHandle] = []
    readers = {"one.0": model.two[0], "two.0": model.three[0], "three.0": model.classifier}
    for name, layer in readers.items():

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            inputs[0].retain_grad()
            read[name] = inputs[0]

        hooks.append(layer.register_forward_pre_hook(note))
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for hook in hooks:
        hook.remove()
    for criterion, options in (("gradient_mean", {}), ("taylor_2016", {"normalisation": "none"})):
        found = prunus.score(model, graph, criterion, [batch], **options).by_group
        for name, x in read.items():
            gradient = 5 * x.grad
            maps = (gradient.abs() if criterion == "gradient_mean" else gradient * x).flatten(2 if x.ndim > 2 else 1)
            means = maps.mean(2) if x.ndim > 2 else maps
            torch.testing.assert_close(found[name], means.detach().abs().mean(0), rtol=1e-9, atol=0)


def test_gradient_mean_by_hand() -> None:
    model = Maps()
    graph = prunus.trace(model, torch.ones(1, 1, 2, 2))
    data = [
        (torch.full((2, 1, 2, 2), 7.0), torch.stack([GRADIENTS, 2 * GRADIENTS], dim=1))
    ]  # the activation's size doesn't matter
    found = prunus.score(model, graph, "gradient_mean", data, with_gradients)
    assert found.by_group["maps"].tolist() == pytest.approx([1.25, 2.5])
    assert not found.comparable


def test_gradient_mean_goes_over_all_readers() -> None:
    """Two layers read the same map, at 4 and at 1 positions, with gradients 1 and -11: (4 * 1 + 11) / 5."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(1, 2, 1, bias=False)
            self.near, self.far = nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
            with torch.no_grad():
                for layer in (self.maps, self.near, self.far):
                    layer.weight.fill_(1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.maps(x)
            return self.near(maps).sum() - 11 * self.far(F.max_pool2d(maps, 2)).sum()

    model = Two()
    graph = prunus.trace(model, torch.ones(1, 1, 2, 2))
    data = [(torch.ones(1, 1, 2, 2), torch.zeros(1))]
    found = prunus.score(model, graph, "gradient_mean", data, lambda output, _: output).by_group["maps"]
    assert found.tolist() == pytest.approx([3, 3])


class Tokens(nn.Module):
    """A linear layer that reads its examples along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)).transpose(0, 1)).mean(0)


def test_examples_elsewhere_than_first_are_refused() -> None:
    model = Tokens()
    x = torch.randn(5, 2, 4)
    graph = prunus.trace(model, x)
    with pytest.raises(
        prunus.EvidenceError, match=r"an input of shape \(2, 5, 6\) in a batch of 5 examples.*along the first axis"
    ):
        prunus.score(model, graph, "taylor_2016", [(x, torch.zeros(5, dtype=torch.int64))])
