"""Laws that hold for every network, checked on random sentences of a grammar of networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from nets import image, random_plan
from property.grammar import Sentence, network, sentences
from prunus.graph import trace
from prunus.graph.labels import named_tensors
from prunus.importance import score
from prunus.surgery import randomise, remove, silence, verify
from prunus.types import ChannelGraph, PruningPlan

X = image(2, 3, 4, 4)
QUICK, MANY = 40, 1500
seeds = st.integers(0, 10**6)


def quick_and_slow(law: Any) -> Any:
    """The law with few examples by default, and with many under ``-m slow``."""
    options: dict[str, Any] = {
        "derandomize": True,
        "deadline": None,
        "database": None,
        "suppress_health_check": list(HealthCheck),
    }

    @pytest.mark.parametrize("run", ["quick", pytest.param("many", marks=pytest.mark.slow)])
    def test(run: str) -> None:
        settings(max_examples=QUICK if run == "quick" else MANY, **options)(given(sentences, seeds)(law))()

    test.__doc__ = law.__doc__
    return test


def _plan(graph: ChannelGraph, seed: int) -> PruningPlan:
    plan = random_plan(graph, seed, None)
    return plan if plan.num_removed else random_plan(graph, seed)


@quick_and_slow
def test_removing_equals_silencing(sentence: Sentence, seed: int) -> None:
    """Remove == silence, in float64, with nothing frozen but the output."""
    model = randomise(network(sentence), seed)
    graph = trace(model, X)
    assert {g.frozen_because for g in graph.frozen} <= {
        "it is the network's output",
        "all its positions must stay together: it is a single channel",
    }
    plan = _plan(graph, seed)
    small, _ = remove(model, graph, plan)
    report = verify(silence(model, graph, plan), small, X)
    assert report.passed, report


@quick_and_slow
def test_a_then_b_is_their_union(sentence: Sentence, seed: int) -> None:
    """Removing A, then B of what is left, gives the network that removing both at once gives, to the bit."""
    model = network(sentence)
    graph = trace(model, X)
    first = _plan(graph, seed)
    once, a = remove(model, graph, first)
    second = _plan(graph, seed + 1)
    union = {
        n: keep & (second.keep[n] if bool((keep & second.keep[n]).any()) else torch.ones_like(keep))
        for n, keep in first.keep.items()
    }
    after = trace(once, X)
    # groups of the smaller network: where the names and members are the same, the second plan's masks, as they index what is left
    by_first_writer = {_writer(g): g for g in after}
    rest: dict[str, torch.Tensor] = {}
    for group in graph.prunable:
        left = by_first_writer.get(_writer(group))
        keep = union[group.name][first.keep[group.name]]
        if left is None or left.num_channels != len(keep) or left.frozen_because:
            union[group.name] = first.keep[group.name]
        else:
            rest[left.name] = keep
    later = PruningPlan(rest, after.cost())
    together, both = remove(model, graph, PruningPlan(union, graph.cost()))
    if later.num_removed:
        once, b = remove(once, after, later)
        assert a.compose(b).kept.keys() == both.kept.keys()
    for (name, p), (_, q) in zip(named_tensors(once), named_tensors(together), strict=True):
        assert torch.equal(p, q), name


def _writer(group: Any) -> tuple[str, int]:
    where = group.members[0].parameter_axis
    return where.parameter, where.axis


@quick_and_slow
def test_removing_nothing_changes_no_bit(sentence: Sentence, seed: int) -> None:
    """A plan that keeps everything is refused; silence under it, tracing and scoring leave every bit as it was."""
    model = network(sentence)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, X)
    everything = PruningPlan({g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in graph.groups}, graph.cost())
    with pytest.raises(prunus.NothingPruned):
        remove(model, graph, everything)
    for network_now in (model, silence(model, graph, everything)):
        assert all(torch.equal(value, before[name]) for name, value in network_now.state_dict().items())


@quick_and_slow
def test_predicted_cost_is_counted_cost(sentence: Sentence, seed: int) -> None:
    """The closed form equals torch's counter on the network after surgery, to the last multiply-add and parameter."""
    model = network(sentence)
    graph = trace(model, X)
    plan = _plan(graph, seed)
    small, _ = remove(model, graph, plan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(X)
    assert graph.cost(plan).macs * len(X) * 2 == counter.get_total_flops()
    assert graph.cost(plan).parameters == sum(p.numel() for p in small.parameters())


@quick_and_slow
def test_permuting_channels_permutes_scores(sentence: Sentence, seed: int) -> None:
    """Channels have no order: permuting a group's over all its members permutes l1 and l2 scores and leaves the output."""
    model = randomise(network(sentence), seed).double()
    graph = trace(model, X.double())
    generator = torch.Generator().manual_seed(seed)
    groups = [g for g in graph.prunable if all(m.positions.shape[1] == 1 for m in g.members)]
    if not groups:
        return
    group = groups[int(torch.randint(len(groups), (), generator=generator))]
    order = torch.randperm(group.num_channels, generator=generator)
    permuted = _permuted(model, graph, group.name, order)
    with torch.no_grad():
        assert torch.allclose(
            model(X.double()), permuted(X.double()), rtol=1e-9, atol=1e-9 * float(model(X.double()).abs().max())
        )
    for criterion in ("l1", "l2"):
        before = score(model, graph, criterion).by_group
        after = score(permuted, graph, criterion).by_group
        for name in before:
            expected = before[name][order] if name == group.name else before[name]
            assert torch.allclose(after[name], expected, rtol=1e-9, atol=0), (criterion, name)


def _permuted(model: nn.Module, graph: ChannelGraph, name: str, order: torch.Tensor) -> nn.Module:
    twin = copy.deepcopy(model)
    tensors = dict(named_tensors(twin))
    done: set[tuple[str, int]] = set()
    with torch.no_grad():
        for member in graph[name].members:
            where = member.parameter_axis
            if (where.parameter, where.axis) not in done:
                done.add((where.parameter, where.axis))
                tensor = tensors[where.parameter]
                moved = tensor.index_select(where.axis, member.positions[order].reshape(-1))
                tensor.index_copy_(where.axis, member.positions.reshape(-1), moved)
    return twin
