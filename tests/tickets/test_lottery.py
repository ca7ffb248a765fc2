"""Rounds of the lottery: counts, nested masks, rewinding of everything, controls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import NothingPruned, RecipeError, UnknownName
from prunus.tickets import (
    CONTROLS,
    Masks,
    Snapshot,
    control_start,
    dense_masks,
    kept_after,
    next_round,
    random_masks,
    round_counts,
    sign_agreement,
)


def test_sparsity_after_rounds() -> None:
    assert [kept_after(1000, 0.2, rounds) for rounds in range(4)] == [1000, 800, 640, 512]
    assert kept_after(10, 0.9, 1) == 1 and kept_after(20, 0.9, 1) == 2  # int(10 * (1 - 0.9)) == 0
    for rounds in range(20):
        assert abs(kept_after(266_200, 0.2, rounds) - 266_200 * 0.8**rounds) <= 0.5


def test_counts_by_layer_and_globally() -> None:
    masks = dense_masks(nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 10), nn.Linear(10, 10)))
    assert round_counts(masks, 0.2, 2, "global") == 448
    assert round_counts(masks, 0.2, 1) == {"0.weight": 240, "1.weight": 240, "2.weight": 80}
    assert round_counts(masks, {"2.*": 0.1, "*": 0.2}, 1) == {"0.weight": 240, "1.weight": 240, "2.weight": 90}
    with pytest.raises(RecipeError, match=r"no rate for `1\.weight`"):
        round_counts(masks, {"0.weight": 0.1}, 1)
    with pytest.raises(RecipeError, match="give one rate"):
        round_counts(masks, {"*": 0.1}, 1, "global")
    with pytest.raises(RecipeError, match=r"can't prune a share of 1.0"):
        round_counts(masks, 1.0, 1)
    with pytest.raises(UnknownName, match="unknown scope 'layers': did you mean layer"):
        round_counts(masks, 0.2, 1, "layers")


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_are_nested_exact_and_keep_the_largest(scope: str) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    whole = masks = dense_masks(model)
    for number in range(1, 9):
        trained = {name: torch.randn(mask.shape) * mask for name, mask in masks.by_name.items()}
        before, masks = masks, next_round(masks, trained, round_counts(whole, 0.2, number, scope))
        assert masks.within(before)
        assert abs(masks.kept - 900 * 0.8**number) <= (0.5 if scope == "global" else 1.0)
        kept = {n: trained[n].abs()[mask] for n, mask in masks.by_name.items()}
        gone = {n: trained[n].abs()[before.by_name[n] & ~mask] for n, mask in masks.by_name.items()}
        if scope == "global":
            kept, gone = {"": torch.cat(list(kept.values()))}, {"": torch.cat(list(gone.values()))}
        assert all(float(kept[name].min()) > float(gone[name].max()) for name in kept)


def test_one_shot_is_the_same_count_at_once() -> None:
    masks = Masks({"w": torch.ones(1000, dtype=torch.bool)})
    values = {"w": torch.arange(1000.0)}
    at_once = next_round(masks, values, round_counts(masks, 0.2, 3))
    assert at_once.kept == 512 and bool(at_once.by_name["w"][488:].all())
    with pytest.raises(NothingPruned):
        next_round(at_once, values, {"w": 513})


def test_rewinding_restores_weights_buffers_and_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]

    def steps(chosen: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        for x, y in chosen:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return {name: value.clone() for name, value in model.state_dict().items()}

    steps(batches[:2])
    snapshot = Snapshot.of(model, optimizer, 2)
    straight = steps(batches[2:])
    assert snapshot.rewind(model, optimizer) == 2
    assert int(model[1].num_batches_tracked) == 2
    again = steps(batches[2:])
    assert all(torch.equal(value, again[name]) for name, value in straight.items())
    snapshot.rewind(model)  # weights alone: the momentum of later steps would show
    assert not all(torch.equal(value, steps(batches[2:])[name]) for name, value in straight.items())


def test_controls() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = Masks({"w": torch.rand(20, 30, generator=generator) < 0.3})
    rewound, fresh = {"w": torch.randn(20, 30, generator=generator)}, {"w": torch.randn(20, 30, generator=generator)}
    mask = masks.by_name["w"]
    found = {c: control_start(c, masks, rewound, fresh, torch.Generator().manual_seed(1)) for c in CONTROLS}
    assert all(torch.equal(found[c][0].by_name["w"], mask) for c in ("ticket", "reinit", "reshuffled"))
    assert torch.equal(found["ticket"][1]["w"][mask], rewound["w"][mask])
    assert torch.equal(found["reinit"][1]["w"][mask], fresh["w"][mask])
    reshuffled = found["reshuffled"][1]["w"][mask]
    assert torch.equal(reshuffled.sort().values, rewound["w"][mask].sort().values)
    assert not torch.equal(reshuffled, rewound["w"][mask])
    drawn, values = found["random_mask"]
    assert drawn.counts() == masks.counts() and torch.equal(values["w"], rewound["w"])
    expected = masks.density / (2 - masks.density)  # of two independent masks of this density
    assert drawn.overlap(masks) == pytest.approx(expected, abs=0.05)
    assert torch.equal(random_masks(masks, torch.Generator().manual_seed(1)).by_name["w"], drawn.by_name["w"])
    with pytest.raises(UnknownName, match="unknown control 'random'"):
        control_start("random", masks, rewound, fresh, generator)


def test_sign_agreement_is_of_the_weights_that_stay() -> None:
    masks = Masks({"w": torch.tensor([True, True, True, True, False])})
    start, end = {"w": torch.tensor([1.0, -1, 1, -1, 1])}, {"w": torch.tensor([2.0, -3, -1, -2, -1])}
    assert sign_agreement(masks, start, end) == 0.75
