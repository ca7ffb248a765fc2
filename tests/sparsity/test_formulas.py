"""The formulas of METHODS B.7, C.7 and E7.7, with the numbers that were worked out there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.sparsity import (
    ista_step,
    memory_cost,
    merge_compactor,
    rescaled,
    resrep_gradient,
    two_temperature_gate,
)

DOUBLE = torch.float64

# -- B: ResRep


def test_gradient_resetting_by_hand() -> None:
    found = resrep_gradient(torch.eye(2), torch.tensor([[0.5, -0.2], [0.1, 0.3]]), torch.tensor([1, 0]), 1e-4)
    torch.testing.assert_close(found, torch.tensor([[0.5001, -0.2], [0.0, 1e-4]]))


def test_a_row_of_zeros_has_a_gradient() -> None:
    found = resrep_gradient(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([1.0, 0.0]))
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_convolution_norm_and_compactor_are_one_convolution() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False).double(), nn.BatchNorm2d(5).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    compactor = torch.randn(5, 5, dtype=DOUBLE)
    compactor[2] = 0
    statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    kernel, bias = merge_compactor(conv.weight, *statistics, compactor)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    expected = torch.einsum("jd,ndhw->njhw", compactor, norm(conv(x)))
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias), expected, rtol=0, atol=1e-12)
    assert not expected[:, 2].detach().any() and not kernel[2].detach().any() and bias[2].item() == 0


def test_selection_skips_a_layer_of_one_channel() -> None:
    """Norms .1 and .15, .8 and .9: at half of the channels the second of the first layer stays, for it is the last."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
    graph = prunus.trace(net, torch.randn(1, 3, 2, 2))
    norms = {"0": torch.tensor([0.1, 0.15]), "2": torch.tensor([0.8, 0.9])}
    plan = prunus.allocate(graph, prunus.Scores(norms, "row norms", comparable=True), prunus.Budget(channels=0.5), "global")
    assert {name: mask.tolist() for name, mask in plan.keep.items()} == {"0": [False, True], "2": [False, True]}


# -- C: ISTA on the scales of batch norms


def test_proximal_step_by_hand() -> None:
    """.05 - .1 * .2 = .03 less .1 * .1 * .6 = .006; .021 - .02 = .001 is below that."""
    scale, gradient = torch.tensor([0.05, 0.021, -0.05], dtype=DOUBLE), torch.tensor([0.2, 0.2, -0.2], dtype=DOUBLE)
    found = ista_step(scale, gradient, step=0.1, penalty=0.6, strength=0.1)
    torch.testing.assert_close(found, torch.tensor([0.024, 0.0, -0.024], dtype=DOUBLE))
    assert float(found[1]) == 0.0


def test_cost_of_a_channel_by_hand() -> None:
    """(16 * 16 + 9 * 16 + 9 * 32) / (32 * 32)."""
    assert memory_cost((16, 16), (3, 3), 16, [(3, 3, 32)], (32, 32)) == 0.671875
    assert memory_cost((16, 16), (3, 3), 16, [(3, 3, 32), (1, 1, 64)], (32, 32)) == 0.671875 + 64 / 1024


@pytest.mark.parametrize("factor", [0.01, 2.0])
def test_rescaling_keeps_the_function(factor: float) -> None:
    torch.manual_seed(0)
    scale, shift, x = (torch.randn(4, dtype=DOUBLE) for _ in range(3))
    reader = torch.randn(3, 4, dtype=DOUBLE)

    def function(scale: Tensor, shift: Tensor, reader: Tensor) -> Tensor:
        return reader @ torch.relu(scale * x + shift)

    torch.testing.assert_close(function(*rescaled(scale, shift, reader, factor)), function(scale, shift, reader))
    with pytest.raises(ValueError, match="for factors above zero only"):
        rescaled(scale, shift, reader, 0.0)


# -- E7: two temperatures


@pytest.mark.parametrize(("logit", "value", "slope", "single"), [(0.1, 0.9933, 0.2494, 0.332), (0.5, 1.0, 0.2350, 6.9e-10)])
def test_sharp_forward_smooth_backward(logit: float, value: float, slope: float, single: float) -> None:
    u = torch.tensor(logit, dtype=DOUBLE, requires_grad=True)
    gate = two_temperature_gate(u)
    assert float(gate.detach()) == pytest.approx(value, abs=5e-5)
    (found,) = torch.autograd.grad(gate, u)
    assert float(found) == pytest.approx(slope, abs=5e-5)
    (alone,) = torch.autograd.grad(torch.sigmoid(50 * u), u)
    assert float(alone) == pytest.approx(single, rel=0.01)
    assert math.isfinite(float(two_temperature_gate(torch.tensor(-1e6))))
