"""The sample of channels and the oracle on it."""

from __future__ import annotations

import pytest
import torch

import prunus
from laboratory.subjects import bundle, network
from prunus import ChannelGroup, RecipeError
from prunus.importance.evidence import DataRun
from prunus.laboratory.images import scoring_batches
from prunus.laboratory.reference import sampled_oracle, stratified_sample


def groups(**sizes: int) -> list[ChannelGroup]:
    return [ChannelGroup(name, size, ()) for name, size in sizes.items()]


def counts(number: int | None, **sizes: int) -> dict[str, int]:
    return {name: len(channels) for name, channels in stratified_sample(groups(**sizes), number, 0).items()}


def test_a_sample_is_proportional_and_exact() -> None:
    # Four of each first; the other 12 in proportion to what is left, 96 : 196 : 0.
    assert counts(24, a=100, b=200, c=4) == {"a": 8, "b": 12, "c": 4}
    assert sum(counts(101, a=64, b=63, c=7, d=500).values()) == 101
    assert counts(None, a=3, b=5) == {"a": 3, "b": 5} == counts(8, a=3, b=5) == counts(900, a=3, b=5)
    assert counts(2, a=100, b=3) == {"a": 1, "b": 1}
    assert counts(9, a=2, b=100) == {"a": 2, "b": 7}


def test_a_sample_draws_by_the_seed_without_repetition() -> None:
    first, again, other = (stratified_sample(groups(a=50), 20, seed)["a"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) == 20 and torch.equal(first, first.sort().values) and int(first.max()) < 50


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(RecipeError, match="a sample of 1 channels can't hold one of each of the 2 groups: ask for more"):
        stratified_sample(groups(a=5, b=5), 1, 0)


def test_the_sampled_oracle_is_the_oracle_on_the_sample() -> None:
    model, batches = network(), scoring_batches(bundle(), 20, 8, 0)  # 8 + 8 + 4: the mean over images, not over batches
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    sample = {"0": torch.tensor([1, 4]), "3": torch.tensor([0, 2, 7])}
    found, evaluations = sampled_oracle(model, graph, DataRun(batches), sample)
    whole = prunus.score(model, graph, "oracle", batches).by_group
    assert evaluations == 3 * 5 and found.keys() == sample.keys()
    for name, channels in sample.items():
        assert torch.allclose(found[name], whole[name][channels], rtol=1e-5, atol=1e-9)
    assert float(torch.cat(list(found.values())).max()) > 1e-3
