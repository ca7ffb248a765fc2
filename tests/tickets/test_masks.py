"""Masks: exact counts, nothing revives a pruned weight, files, and what can't be masked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError, NothingPruned, UnknownName, UnsupportedNetwork
from prunus.tickets import Masks, apply_masks, dense_masks, keep_highest, load_masks, remove_masks, save_masks


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def all_true(**sizes: int) -> Masks:
    return Masks({name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()})


def test_weights_only_are_masked() -> None:
    masks = dense_masks(net())
    assert masks.counts() == {"0.weight": 30, "3.weight": 15}
    assert (masks.total, masks.kept, masks.density) == (45, 45, 1.0)
    assert list(dense_masks(net(), ["3.*"]).by_name) == ["0.weight"]


def test_what_cannot_be_masked() -> None:
    with pytest.raises(UnknownName, match=r"unknown weight to exclude '4\.weight': did you mean 3\.weight"):
        dense_masks(net(), ["4.weight"])
    with pytest.raises(NothingPruned, match="every parameter is excluded"):
        dense_masks(net(), ["*"])
    with pytest.raises(NothingPruned, match="or none has two dimensions"):
        dense_masks(nn.BatchNorm1d(3))


@pytest.mark.parametrize("count", range(11))
def test_counts_are_exact_where_thresholds_prune_one_more(count: int) -> None:
    """Ten distinct values; published thresholds (prune <= sorted[k], keep > sorted[k]) prune k + 1."""
    values = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5, 8.0, 9.7])
    masks = keep_highest({"w": values}, all_true(w=10), count)
    assert masks.kept == count
    assert set(values[masks.by_name["w"]].tolist()) == set(sorted(values.tolist())[10 - count :])


def test_ties_are_cut_to_the_weight() -> None:
    ones = {"w": torch.ones(8)}
    assert keep_highest(ones, all_true(w=8), 3).by_name["w"].tolist() == [False] * 5 + [True] * 3
    drawn = [keep_highest(ones, all_true(w=8), 3, torch.Generator().manual_seed(s)).by_name["w"] for s in range(20)]
    assert all(int(mask.sum()) == 3 for mask in drawn)
    assert len({tuple(mask.tolist()) for mask in drawn}) > 5


def test_globally_and_by_layer() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[4.0, 5.0], [6.0, 0.5]])}
    masks = Masks({name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()})
    found = keep_highest(scores, masks, 4).by_name
    assert found["a"].tolist() == [False, False, True] and found["b"].tolist() == [[True, True], [True, False]]
    found = keep_highest(scores, masks, {"a": 2, "b": 1}).by_name
    assert found["a"].tolist() == [False, True, True] and found["b"].tolist() == [[False, False], [True, False]]


def test_pruned_weights_never_come_back_by_score() -> None:
    masks = Masks({"w": torch.tensor([True, False, True, True])})
    found = keep_highest({"w": torch.tensor([1.0, 99.0, 3.0, 2.0])}, masks, 2)
    assert found.by_name["w"].tolist() == [False, False, True, True]
    assert found.within(masks) and not masks.within(found)
    with pytest.raises(NothingPruned, match="4 weights are to stay of the 3 that are left in w"):
        keep_highest({"w": torch.zeros(4)}, masks, 4)
    with pytest.raises(NothingPruned, match="aren't numbers"):
        keep_highest({"w": torch.tensor([1.0, 0.0, torch.nan, 0.0])}, masks, 1)


def test_overlap_and_densities() -> None:
    one = Masks({"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True])})
    two = Masks({"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True])})
    assert one.overlap(two) == 2 / 4
    assert one.densities() == {"a": 0.5, "b": 1.0} and one.density == 3 / 5


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
])  # fmt: skip
@pytest.mark.parametrize("hold", [False, True])
def test_no_optimizer_revives_a_pruned_weight(optimizer: object, hold: bool) -> None:
    """The optimizer has built up momentum on all weights before half of them are masked."""
    model = net()
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    stepper = optimizer(model.parameters())  # pyright: ignore[reportCallIssue]

    def step() -> None:
        stepper.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        stepper.step()

    for _ in range(3):
        step()
    torch.manual_seed(1)
    masks = Masks({name: torch.rand(mask.shape) < 0.5 for name, mask in dense_masks(model).by_name.items()})
    initial = {name: p.detach().clone() for name, p in net().named_parameters()}
    apply_masks(model, masks, initial if hold else None)
    before = {name: value(model, name).clone() for name in masks.by_name}
    for _ in range(5):
        step()
    for name, mask in masks.by_name.items():
        now = value(model, name)
        assert torch.equal(now[~mask], initial[name][~mask] if hold else torch.zeros(int((~mask).sum())))
        assert bool((now[mask] != before[name][mask]).all())
    last = model.eval()(x).detach()
    found = remove_masks(model)
    assert {name: mask.tolist() for name, mask in found.by_name.items()} == {n: m.tolist() for n, m in masks.by_name.items()}
    assert [name for name, _ in model.named_parameters()] == list(initial) and torch.equal(model(x), last)


def value(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute).detach()


def test_masks_are_saved_with_the_network_and_alone(tmp_path: Path) -> None:
    model = net()
    masks = Masks({name: torch.rand(mask.shape) < 0.3 for name, mask in dense_masks(model).by_name.items()})
    apply_masks(model, masks)
    again = net(1)
    apply_masks(again, dense_masks(again))
    again.load_state_dict(model.state_dict())
    assert torch.equal(value(again, "0.weight"), value(model, "0.weight"))
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert all(torch.equal(loaded.by_name[name], mask) for name, mask in masks.by_name.items())


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ArtifactError, match="can't be read as masks"):
        load_masks(tmp_path / "absent")
    (tmp_path / "text").write_text("no")
    with pytest.raises(ArtifactError, match="can't be read as masks"):
        load_masks(tmp_path / "text")
    save_file({"w": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ArtifactError, match="holds no masks"):
        load_masks(tmp_path / "weights")
    with pytest.raises(ArtifactError, match="can't write the masks"):
        save_masks(all_true(w=2), tmp_path / "absent" / "file")


def test_masks_that_do_not_fit() -> None:
    model = net()
    with pytest.raises(UnknownName, match="unknown masked parameter"):
        apply_masks(model, all_true(other=3))
    with pytest.raises(UnsupportedNetwork, match=r"the mask of `0.weight` is \(3,\), the parameter \(5, 6\)"):
        apply_masks(model, Masks({"0.weight": torch.ones(3, dtype=torch.bool)}))
    apply_masks(model, dense_masks(model))
    with pytest.raises(UnsupportedNetwork, match="parametrised already"):
        apply_masks(model, Masks({"0.parametrizations.weight.original": torch.ones(5, 6, dtype=torch.bool)}))
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    with pytest.raises(UnsupportedNetwork, match=r"shared \(0.weight, 1.weight\)"):
        apply_masks(shared, dense_masks(shared))
