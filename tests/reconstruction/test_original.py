"""What the original network gives is computed once and kept in a file, or computed anew where that can't be trusted."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PrunusWarning, UnsupportedNetwork
from prunus.reconstruction import original, reconstruct
from refitting import EVERY, Block, Shuffled, halved


def given() -> tuple[nn.Module, prunus.SurgeryRecord, nn.Module, list[Tensor]]:
    """A residual block with a batch norm, half of the channels inside it removed."""
    return halved(Block, "middle")


def weights(data: Any, points: int = EVERY, **options: Any) -> dict[str, Tensor]:
    """The small network after it has been refitted."""
    small, record, full, _ = given()
    small = copy.deepcopy(small)
    reconstruct(small, full, record, data, points=points, ridge=0.0, **options)
    return small.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def test_every_batch_goes_through_the_original_once() -> None:
    small, record, full, batches = given()
    passes: list[int] = []
    full.register_forward_pre_hook(lambda *_: passes.append(1))
    report = reconstruct(small, full, record, batches, points=5)
    assert len(report.layers) > 3 and len(passes) == len(batches)


def test_nothing_is_stored_and_all_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, batches = given()
    expected = weights(batches, points=5)
    monkeypatch.setattr(original, "MOST_STORED", -1)
    assert_same(weights(batches, points=5), expected)


def test_part_of_the_batches_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, batches = given()
    expected = weights(batches)
    monkeypatch.setattr(original, "MOST_STORED", 1)  # the first batch exceeds it, and no second one follows
    assert_same(weights(batches), expected, 1e-9)


def test_batches_that_come_in_another_order_are_noticed() -> None:
    *_, batches = given()
    assert_same(weights(Shuffled(batches)), weights(batches), 1e-9)  # every point counts, in whatever order


@dataclass
class Wrapped:
    image: Tensor


def test_batches_that_can_not_be_compared_are_computed_anew() -> None:
    *_, batches = given()

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch.image)

    wrapped: Any = [Wrapped(batch) for batch in batches]
    passes: list[int] = []
    small, record, full, _ = given()
    full.register_forward_pre_hook(lambda *_: passes.append(1))
    report = reconstruct(small, full, record, wrapped, points=5, ridge=0.0, forward_fn=forward)
    assert len(passes) == len(report.layers) * len(batches)
    assert_same(small.state_dict(), weights(batches, points=5))


def test_a_full_disk_is_reported_and_costs_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, batches = given()
    expected = weights(batches, points=5)

    def full_disk(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    with pytest.warns(PrunusWarning, match=r"gives can't be kept in .*: No space left on device; it is computed anew for every"):
        found = weights(batches, points=5)
    assert_same(found, expected)


def test_a_layer_that_one_batch_leaves_out_is_named() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            return self.last(self.second(y) if float(x.mean()) > 0 else y)

    torch.manual_seed(0)
    full = Sometimes().double().eval()
    batches = [torch.ones(5, 1, 4, 4, dtype=torch.float64), -torch.ones(5, 1, 4, 4, dtype=torch.float64)]
    record = prunus.SurgeryRecord.nothing_removed(full)
    with pytest.raises(UnsupportedNetwork, match=r"`second.weight` isn't used as on the first: .*leave it out with `skip`"):
        reconstruct(copy.deepcopy(full), full, record, batches)
