"""When rounds are due, what they are asked for, and what is refused; whatever framework trains."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import prunus
from prunus.errors import EvidenceError, InvalidBudget, NothingPruned, PrunusWarning, TrainingError
from prunus.integrations.pruner import TrainingPruner
from small_nets import Plain

HALF = prunus.Budget(macs=0.5, tolerance=0.05)


def loader(count: int = 64) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 10
    return DataLoader(TensorDataset(images, labels), 16, shuffle=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"say when to prune: steps=\(1000, 2000\) or epochs=\(2, 4\), not both"),
        ({"steps": [1], "epochs": [1]}, "not both"),
        ({"steps": [0, 5]}, r"can't prune at \(0, 5\): each round needs a step above 0"),
        ({"epochs": [2, 2]}, r"can't prune at \(2, 2\)"),
        ({"epochs": [2], "compensate": "mean"}, "compensate isn't for a training that goes on"),
    ],
)
def test_schedules_that_say_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainingPruner(HALF, **settings)


def test_latency_is_for_one_round() -> None:
    with pytest.raises(InvalidBudget, match="a budget on latency is met in one round"):
        TrainingPruner(prunus.Budget(latency=0.5), epochs=(1, 2))


def test_rounds_are_due_in_their_turn() -> None:
    pruner = TrainingPruner(HALF, steps=(20, 10))
    assert [pruner.due(n, steps=True) for n in (9, 10, 11)] == [False, True, True]
    assert not pruner.due(10, steps=False)
    pruner.rounds = 1
    assert [pruner.due(n, steps=True) for n in (11, 19, 20)] == [False, False, True]
    pruner.rounds = 2
    assert not pruner.due(99, steps=True)


def test_two_rounds_meet_the_budget_of_the_whole_network_by_equal_shares() -> None:
    """Half is left after two rounds, the square root of it after one; the record of both builds the network from a fresh one."""
    torch.manual_seed(0)
    network = Plain()
    full = prunus.trace(network, torch.randn(2, 1, 8, 8)).cost().macs
    pruner = TrainingPruner(HALF, steps=(10, 20))
    for at in (10, 20):
        pruner.take_round(network, [], loader(), None, at)
    first, second = pruner.history
    assert (first.at, second.at) == (10, 20) and first.before.macs == full and second.before.macs == first.after.macs
    assert 0.95 * 0.5**0.5 * full < first.after.macs <= 0.5**0.5 * full
    assert 0.95 * 0.5 * full < second.after.macs <= 0.5 * full
    assert second.verification is not None and second.verification.passed
    figures = second.figures()
    assert figures["prunus/macs"] == second.after.macs and figures["prunus/macs_before"] == first.after.macs
    assert figures["prunus/parameters"] == sum(p.numel() for p in network.parameters())
    assert pruner.record is not None
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    from prunus.surgery.remove import apply_record

    assert {name: tuple(p.shape) for name, p in apply_record(Plain(), pruner.record).named_parameters()} == shapes


def test_a_resumed_training_goes_on_with_the_rounds_that_are_left(tmp_path: Any) -> None:
    """State goes through JSON; the second round is the same as without the interruption."""

    def network() -> Plain:
        torch.manual_seed(0)
        return Plain()

    through, stopped = network(), network()
    whole, first = (TrainingPruner(HALF, epochs=(1, 2), criterion="l2") for _ in range(2))
    for at in (1, 2):
        whole.take_round(through, [], loader(), None, at)
    first.take_round(stopped, [], loader(), None, 1)
    first.save_beside(stopped, tmp_path / "new", "small.prunus")
    state = json.loads(json.dumps(first.pruning_state()))
    again = TrainingPruner(HALF, epochs=(1, 2), criterion="l2")
    again.restore(state)
    assert again.rounds == 1 and again.due(2, steps=False) and not again.due(1, steps=False)
    loaded = prunus.load(tmp_path / "new" / "small.prunus", network())
    again.take_round(loaded, [], loader(), None, 2)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), loaded.parameters(), strict=True))
    assert again.record is not None and whole.record is not None and again.record.to_json() == whole.record.to_json()
    with pytest.raises(TrainingError, match="is of a training with 2 rounds of pruning, 1 of them taken, and 3 are asked for"):
        TrainingPruner(HALF, epochs=(1, 2, 3)).restore(state)


def test_nothing_is_written_before_the_first_round(tmp_path: Any) -> None:
    TrainingPruner(HALF, epochs=(1,)).save_beside(Plain(), tmp_path / "new", "small.prunus")
    assert not (tmp_path / "new").exists()


def test_criteria_see_the_same_batches_of_the_data_that_is_trained_on() -> None:
    """And the training's own order of images isn't disturbed."""
    seen: list[torch.Tensor] = []

    def loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(batch[0])
        return nn.functional.cross_entropy(output, batch[1])

    data, images = loader(), 0
    torch.manual_seed(5)
    expected = [batch[0] for batch in data]
    for _ in range(2):
        torch.manual_seed(5)
        order = iter(data)
        first = next(order)[0]
        TrainingPruner(HALF, steps=(1,), criterion="taylor", batches=3, loss_fn=loss).take_round(Plain(), [], data, None, 1)
        rest = [batch[0] for batch in order]
        assert all(torch.equal(a, b) for a, b in zip(expected, [first, *rest], strict=True))
    half = len(seen) // 2
    assert half == 3 and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    for batch in seen[:half]:
        for image in batch:
            images += any(torch.equal(image, x) for x, _ in data.dataset)
    assert images == 3 * 16


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (((torch.randn(1, 8, 8)), 0) for _ in itertools.count())


def test_streams_need_batches_from_the_user() -> None:
    with pytest.raises(
        EvidenceError, match=r"can't be drawn from the training loader \(DataLoader\).*data=\.\.\..*example_inputs"
    ):
        TrainingPruner(HALF, steps=(1,)).take_round(Plain(), [], DataLoader(Stream(), 4), None, 1)
    given = TrainingPruner(HALF, steps=(1,), example_inputs=torch.randn(2, 1, 8, 8))
    assert given.take_round(Plain(), [], DataLoader(Stream(), 4), None, 1) is not None
    once = iter([(torch.randn(8, 1, 8, 8), torch.arange(8))])  # goes through once, and is looked at twice
    pruner = TrainingPruner(HALF, steps=(1,), criterion="taylor", data=once)
    assert pruner.take_round(Plain(), [], DataLoader(Stream(), 4), None, 1) is not None
    pruner = TrainingPruner(HALF, steps=(1,), criterion="taylor", data=[(torch.randn(8, 1, 8, 8), torch.arange(8))])
    assert pruner.take_round(Plain(), [], DataLoader(Stream(), 4), None, 1) is not None


def test_a_round_without_anything_to_do_is_told() -> None:
    """The first one is an error as everywhere; a later one must not end a training of days."""
    with pytest.raises(NothingPruned):
        TrainingPruner(prunus.Budget(macs=1.0), steps=(1,)).take_round(Plain(), [], loader(), None, 1)
    network = Plain()
    pruner = TrainingPruner(prunus.Budget(macs=0.9, tolerance=0.5), steps=tuple(range(1, 60)))
    pruner.take_round(network, [], loader(), None, 1)
    with pytest.warns(PrunusWarning, match="round 2 of pruning removes nothing"):
        assert pruner.take_round(network, [], loader(), None, 2) is None
    assert pruner.rounds == 2 and len(pruner.history) == 1
