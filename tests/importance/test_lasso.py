"""The Lasso path against hand figures, and scikit-learn's own Lasso as referee."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prunus
from prunus.errors import EvidenceError
from prunus.importance.lasso import contributions, entries
from prunus.importance.readers import reading_call
from small_nets import batches, build, images

DOUBLE = torch.float64


def test_by_hand() -> None:
    """METHODS D.7: z1 = (1, 0), z2 = (0, 1), y = (3, 1), two rows: b = (3 - 2a, 1 - 2a), so they enter at 1.5 and at 0.5."""
    z, y = torch.eye(2, dtype=DOUBLE), torch.tensor([3.0, 1.0], dtype=DOUBLE)
    assert entries(z.T @ z, z.T @ y, 2).tolist() == pytest.approx([1.5, 0.5])


def test_of_duplicates_one_stays() -> None:
    z = torch.tensor([[1.0, 1, 0], [0, 0, 1]], dtype=DOUBLE)
    found = entries(z.T @ z, z.T @ torch.tensor([3.0, 1.0], dtype=DOUBLE), 2)
    assert sorted(found.tolist()) == pytest.approx([0, 0.5, 1.5])
    assert float(found[2]) == pytest.approx(0.5)


def test_nothing_to_explain_is_no_importance() -> None:
    assert entries(torch.zeros(3, 3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE), 5).tolist() == [0, 0, 0]


def test_channels_enter_as_in_scikit_learn() -> None:
    from sklearn.linear_model import Lasso

    z = torch.randn(60, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.2, 3, 0.5, 2])
    y = z.sum(1)
    centred = z - z.mean(0)
    found = entries(centred.T @ centred, centred.T @ (y - y.mean()), 60)
    for channel, penalty in enumerate(found.tolist()):
        for factor, inside in ((0.98, True), (1.02, False)):
            coefficients = Lasso(alpha=factor * penalty, tol=1e-10, max_iter=100_000).fit(z.numpy(), y.numpy()).coef_
            assert bool(abs(coefficients[channel]) > 1e-7) == inside


CALLS = [
    (F.conv2d, (2, 6, 9, 8), (4, 6, 3, 2), {"stride": 2, "padding": (1, 0), "dilation": (1, 2)}),
    (F.conv2d, (2, 6, 9, 8), (4, 3, 3, 3), {"groups": 2, "padding": "same"}),
    (F.conv1d, (2, 6, 9), (4, 6, 3), {"padding": 1}),
    (F.linear, (2, 5, 6), (4, 6), {}),
]


@pytest.mark.parametrize(("func", "x_shape", "w_shape", "settings"), CALLS)
def test_contributions_add_up_to_the_output(
    func: object, x_shape: tuple[int, ...], w_shape: tuple[int, ...], settings: dict
) -> None:
    x, w = torch.randn(x_shape, dtype=DOUBLE), torch.randn(w_shape, dtype=DOUBLE)
    call = reading_call(func, (x, w), settings)
    assert call is not None
    output: Tensor = call.run(x).movedim(call.axis, -1).flatten(0, -2)  # places, output channels
    rows = contributions(call, torch.arange(len(output)))
    torch.testing.assert_close(rows.sum(1), output.flatten())


def test_a_channel_that_does_nothing_scores_least() -> None:
    model, data = build("Plain", DOUBLE), batches(2, dtype=DOUBLE)
    with torch.no_grad():
        model.two[0].weight[:, 3] = 0
    found = prunus.score(model, prunus.trace(model, images(dtype=DOUBLE)), "lasso", data).by_group["one.0"]
    assert float(found[3]) == 0
    assert int((found > 0).sum()) >= 14


def test_bad_data() -> None:
    model = build("Plain")
    graph = prunus.trace(model, images())
    with pytest.raises(EvidenceError, match="the data loader yields nothing"):
        prunus.score(model, graph, "lasso", [])
    with pytest.raises(EvidenceError, match="aren't finite on a scoring batch"):
        prunus.score(model, graph, "lasso", [images(2) * float("inf")])
