"""Supermasks: straight-through gradients by hand, what is frozen, sampling beside the threshold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import UnknownName
from prunus.tickets import attach_supermasks, dense_masks, remove_supermasks, set_evaluation, straight_through
from prunus.tickets.supermask import Supermask, supermasks


def test_the_gradient_passes_through_the_draw() -> None:
    logits = torch.tensor([0.0, 2.0], requires_grad=True)
    probability = torch.sigmoid(logits)
    value = straight_through(probability, torch.tensor([1.0, 0.0]))
    assert value.tolist() == [1.0, 0.0]
    (value * torch.tensor([3.0, 5.0])).sum().backward()
    p = 1 / (1 + 2.718281828**-2)
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx([3 * 0.25, 5 * p * (1 - p)])


def test_rescaling_has_a_gradient_through_the_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    """w = (1, 2, 4), drawn (1, 1, 0): w_eff = w * b * 3/2; d sum(w_eff)/db_k = 3/2 w_k - 3/4 * 3, times sigmoid' = 1/4."""
    monkeypatch.setattr("torch.bernoulli", lambda p: torch.tensor([1.0, 1.0, 0.0]))
    supermask = Supermask(torch.Size([3]), True, False, "sample")
    effective = supermask(torch.tensor([1.0, 2.0, 4.0]))
    assert effective.tolist() == [1.5, 3.0, 0.0]
    effective.sum().backward()
    expected = [(1.5 * w - 2.25) / 4 for w in (1.0, 2.0, 4.0)]
    assert supermask.logits.grad is not None and supermask.logits.grad.tolist() == pytest.approx(expected)


def test_signed_constants() -> None:
    weight = torch.tensor([1.0, -3.0, 2.0, -4.0])
    supermask = Supermask(torch.Size([4]), False, True, "threshold").eval()
    size = float(weight.std(correction=0))
    assert supermask(weight).tolist() == pytest.approx([size, -size, size, -size])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_only_the_logits_are_trained() -> None:
    model = net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    logits = attach_supermasks(model)
    assert [p for p in model.parameters() if p.requires_grad] == logits and [p.shape for p in logits] == [(8, 6), (3, 8)]
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(logits, lr=100.0, momentum=0.9)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert [name for name, _ in supermasks(model)] == ["0.weight", "2.weight"]
    model.eval()
    shown = model(x)
    assert torch.equal(shown, model(x))
    set_evaluation(model, "sample")
    assert not torch.equal(model(x), model(x))
    masks = remove_supermasks(model)
    assert 0 < masks.kept < masks.total
    assert [name for name, _ in model.named_parameters()] == list(before)
    assert torch.equal(model(x), shown)
    for name, mask in masks.by_name.items():
        assert torch.equal(dict(model.named_parameters())[name], before[name] * mask)


def test_sampling_keeps_half_at_the_start() -> None:
    model = nn.Linear(100, 100)
    attach_supermasks(model, evaluation="sample")
    model.eval()
    assert float((model.weight != 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    set_evaluation(model, "threshold")
    assert float((model.weight != 0).float().mean()) == 1.0


def test_mistakes_are_told() -> None:
    with pytest.raises(UnknownName, match="unknown evaluation of a supermask 'mean'"):
        attach_supermasks(net(), evaluation="mean")
    model = net()
    attach_supermasks(model, ("2.*",))
    assert [name for name, _ in supermasks(model)] == ["0.weight"]
    assert list(dense_masks(net(), ("2.*",)).by_name) == ["0.weight"]
