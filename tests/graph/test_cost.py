"""The closed-form cost against torch's own counter, published figures and hand arithmetic."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nets import EXACT, NETS, image, random_plan
from prunus.graph import trace
from prunus.surgery import remove
from prunus.types import call_model, first_tensor


def counted_macs(model: nn.Module, inputs: object) -> int:
    """Multiply-adds of the whole batch, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call_model(model.eval(), inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", EXACT)
def test_predicted_cost_is_the_counted_cost_to_the_last_mac(name: str) -> None:
    net = NETS[name]
    model, inputs = net.model(), net.inputs()
    graph = trace(model, inputs)
    batch = len(first_tensor(inputs))  # type: ignore[arg-type]
    assert graph.cost().macs * batch == counted_macs(model, inputs)
    assert graph.cost().parameters == sum(p.numel() for p in model.parameters())
    for seed in range(3):
        plan = random_plan(graph, seed)
        small, _ = remove(model, graph, plan)
        assert graph.cost(plan).macs * batch == counted_macs(small, inputs)
        assert graph.cost(plan).parameters == sum(p.numel() for p in small.parameters())
        assert graph.cost(plan).parameters < graph.cost().parameters


def test_cost_by_hand() -> None:
    cost = trace(NETS["chain"].model(), image()).cost()
    pixels = 8 * 8
    assert cost.macs == pixels * 9 * (3 * 8 + 8 * 6 + 6 * 4)
    assert cost.parameters == 9 * (3 * 8 + 8 * 6 + 6 * 4) + 8 + 6 + 4
    # the most that lives at once: the first layer's sum, its rectified copy and the image are all held; later layers are narrower
    assert cost.activation_bytes >= pixels * 4 * (8 + 8)
    assert cost.activation_bytes <= pixels * 4 * (3 + 8 + 8)


def test_activation_bytes_do_not_depend_on_the_batch() -> None:
    model = NETS["residual projection"].model()
    assert trace(model, image(1, 3, 8, 8)).cost().activation_bytes == trace(model, image(4, 3, 8, 8)).cost().activation_bytes


PUBLISHED = [
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "vgg16_bn",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "squeezenet1_1",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_of_torchvision(name: str) -> None:
    """Parameters are exact; torchvision prints giga-MACs to three digits and counts a few operations besides products."""
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("cpu"):
        model = torchvision.models.get_model(name, weights=None).eval()
    cost = trace(model, torch.zeros(1, 3, 224, 224)).cost()
    assert cost.parameters == meta["num_params"]
    assert cost.macs / 1e9 == pytest.approx(meta["_ops"], rel=0.01, abs=0.0006)


def test_macs_of_resnet18() -> None:
    assert trace(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 224, 224)).cost().macs == 1_814_073_344


def test_a_plan_is_costed_in_under_a_millisecond() -> None:
    """Bound loosened to 5 ms for slow machines: it is about 0.1 ms."""
    graph = trace(torchvision.models.densenet121().eval(), torch.zeros(1, 3, 64, 64))
    plan = random_plan(graph)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        graph.cost(plan)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 5e-3
