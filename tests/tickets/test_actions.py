"""Mask-1 and mask-0 actions: what kept weights start from and pruned ones are held at, by hand."""

from __future__ import annotations

import pytest
import torch

from prunus.errors import EvidenceError, UnknownName
from prunus.tickets import KEPT_ACTIONS, PRUNED_ACTIONS, WeightHistory, start, start_kept, start_pruned
from prunus.tickets.actions import KeptWeights

INITIAL = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0, -4.0])
FINAL = torch.tensor([0.9, -2.5, -1.5, 0.05, 3.5, -1.0])
MASK = torch.tensor([True, True, True, False, False, False])
FRESH = torch.tensor([-7.0, -8.0, 9.0, 1.0, 1.0, 1.0])


def kept(action: str, seed: int = 0) -> torch.Tensor:
    return start_kept(action, KeptWeights(MASK, INITIAL, FRESH), torch.Generator().manual_seed(seed))[MASK]


def test_rewind_and_reinit() -> None:
    assert kept("rewind").tolist() == [1.0, -2.0, 0.5]
    assert kept("reinit").tolist() == [-7.0, -8.0, 9.0]
    assert kept("reinit_keep_sign").tolist() == [7.0, -8.0, 9.0]


def test_reshuffle_takes_kept_values_only_and_permute_all() -> None:
    drawn = [kept("reshuffle", seed) for seed in range(20)]
    assert all(sorted(values.tolist()) == [-2.0, 0.5, 1.0] for values in drawn)
    assert len({tuple(values.tolist()) for values in drawn}) == 6
    signed = [kept("reshuffle_keep_sign", seed) for seed in range(20)]
    assert all(values.sign().tolist() == [1.0, -1.0, 1.0] for values in signed)
    assert all(sorted(values.abs().tolist()) == [0.5, 1.0, 2.0] for values in signed)
    whole = [kept("permute", seed).tolist() for seed in range(20)]
    assert {value for values in whole for value in values} == {float(v) for v in INITIAL}


def test_constants_have_the_layers_standard_deviation() -> None:
    size = float((INITIAL - INITIAL.mean()).square().mean().sqrt())
    drawn = torch.stack([kept("constant", seed) for seed in range(20)])
    assert drawn.abs().flatten().tolist() == pytest.approx([size] * 60)
    assert bool((drawn > 0).any()) and bool((drawn < 0).any())
    assert kept("constant_keep_sign").tolist() == pytest.approx([size, -size, size])


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("zero", [0.0, 0.0, 0.0]),
        ("freeze", [-0.1, 3.0, -4.0]),
        ("freeze_grown", [0.0, 3.0, 0.0]),
        ("freeze_shrunk", [-0.1, 0.0, -4.0]),
        ("freeze_grown_all", [0.0, 3.0, 0.0]),
    ],
)
def test_pruned_weights_by_hand(action: str, expected: list[float]) -> None:
    held = start_pruned(action, MASK, WeightHistory(INITIAL, FINAL), torch.Generator())
    assert held.tolist() == pytest.approx([0.0] * 3 + expected)


def test_the_random_control_freezes_as_many() -> None:
    history = WeightHistory(INITIAL, FINAL)
    drawn = [start_pruned("freeze_random", MASK, history, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(int((held != 0).sum()) == 1 and not bool(held[MASK].any()) for held in drawn)
    assert {int(held.nonzero()) for held in drawn} == {3, 4, 5}


def test_whole_networks() -> None:
    history = {"w": WeightHistory(INITIAL, FINAL)}
    values, held = start({"w": MASK}, history, "rewind", "freeze_grown_all", torch.Generator())
    assert values["w"].tolist() == pytest.approx([0.0, -2.0, 0.5, 0.0, 3.0, 0.0])
    assert held["w"].tolist() == pytest.approx([0.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    values, held = start({"w": MASK}, history, "reinit", "zero", torch.Generator(), {"w": FRESH})
    assert values["w"].tolist() == [-7.0, -8.0, 9.0, 0.0, 0.0, 0.0] and not bool(held["w"].any())


def test_mistakes_are_told() -> None:
    with pytest.raises(UnknownName, match="unknown mask-1 action 'rewind_keep_sign'"):
        kept("rewind_keep_sign")
    with pytest.raises(UnknownName, match="unknown mask-0 action 'frozen': did you mean freeze"):
        start_pruned("frozen", MASK, WeightHistory(INITIAL, FINAL), torch.Generator())
    with pytest.raises(EvidenceError, match="reinit takes fresh weights"):
        start_kept("reinit", KeptWeights(MASK, INITIAL), torch.Generator())
    assert len(KEPT_ACTIONS) == 5 and len(PRUNED_ACTIONS) == 6
