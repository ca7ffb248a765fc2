"""Laws that hold for every network, checked on random sentences of a grammar of networks."""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache, wraps
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from nets import image, random_plan
from property.grammar import BLOCKS, HEADS, Sentence, network, sentences
from prunus.graph import trace
from prunus.graph.build import ONE_CHANNEL
from prunus.graph.labels import named_tensors
from prunus.graph.trace import tensors_in
from prunus.importance import score
from prunus.surgery import randomise, remove, silence, verify
from prunus.surgery.verify import compare
from prunus.types import ChannelGraph, ChannelGroup, PruningPlan

X = image(2, 3, 4, 4)
OUTPUT = "it is the network's output"
QUICK, MANY = 100, 2000
seeds = st.integers(0, 10**6)


def quick_and_slow(law: Any) -> Any:
    """The law with few examples by default, and with many under ``-m slow``.

    All laws draw from the same seed, hence look at the same sentences, so that each of these is traced once.
    """
    options: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @pytest.mark.parametrize("run", ["quick", pytest.param("many", marks=pytest.mark.slow)])
    def test(run: str) -> None:
        wanted, seen = QUICK if run == "quick" else MANY, 0

        @wraps(law)
        def counted(*drawn: Any, **named: Any) -> None:
            nonlocal seen
            seen += 1
            law(*drawn, **named)

        with_seed(0)(settings(max_examples=wanted, **options)(given(sentences, seeds)(counted)))()
        assert seen >= wanted, "the law was tried on fewer sentences than it says"

    test.__doc__ = law.__doc__
    return test


def traced(sentence: Sentence) -> ChannelGraph:
    """The graph of a sentence's network; weights have no part in it."""
    blocks, head, seed = sentence
    return _traced((tuple(blocks), head, seed))


@lru_cache(maxsize=2 * QUICK)
def _traced(sentence: Sentence) -> ChannelGraph:
    return trace(network(sentence), X)


def _plan(graph: ChannelGraph, seed: int) -> PruningPlan:
    plan = random_plan(graph, seed, None)
    return plan if plan.num_removed else random_plan(graph, seed)


@quick_and_slow
def test_removing_equals_silencing(sentence: Sentence, seed: int) -> None:
    """Remove == silence, in float64, with nothing frozen but the output."""
    model = randomise(network(sentence), seed)
    graph = traced(sentence)
    assert {g.frozen_because for g in graph.frozen} <= {OUTPUT, ONE_CHANNEL}
    plan = _plan(graph, seed)
    small, _ = remove(model, graph, plan)
    report = verify(silence(model, graph, plan), small, X)
    assert report.passed, report


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("kind", range(len(BLOCKS)), ids=[block.__name__.strip("_") for block in BLOCKS])
def test_every_block_by_itself(kind: int, choice: int) -> None:
    """Nothing in a block is frozen, whatever head follows, and removal is exact: the laws above don't pass for want of groups."""
    for head in HEADS:
        sentence: Sentence = ([(0, 6, 0), (kind, 4, choice)], head, kind)
        graph = traced(sentence)
        assert {g.frozen_because for g in graph.frozen} == {OUTPUT}
        model, plan = randomise(network(sentence), choice), random_plan(graph, choice)
        small, _ = remove(model, graph, plan)
        assert verify(silence(model, graph, plan), small, X).passed
        assert plan.num_removed >= 4


@quick_and_slow
def test_a_then_b_is_their_union(sentence: Sentence, seed: int) -> None:
    """Removing A, then B of what is left, gives the network and the record that removing both at once gives, to the bit."""
    model, graph = network(sentence), traced(sentence)
    first, second = _plan(graph, seed), _plan(graph, seed + 1)
    once, a = remove(model, graph, first)
    after = trace(once, X)
    union, rest = dict(first.keep), dict[str, torch.Tensor]()
    same = {frozenset(_channels(group, a.kept)): group for group in after.prunable}
    for group in graph.prunable:
        keep = first.keep[group.name]
        stays = dict(zip(_channels(group), second.keep[group.name].tolist(), strict=True))
        alive = {channel for channel, kept in zip(stays, keep, strict=True) if kept}
        left = same.get(frozenset(alive))
        # parts of a chunk may be paired anew in the smaller network, and a last channel is never removed
        assert left is not None or len(alive) == 1 or group.width_factor > 1, group.name
        if left is not None and any(stays[channel] for channel in alive):
            union[group.name] = keep & second.keep[group.name]
            rest[left.name] = torch.tensor([stays[channel] for channel in _channels(left, a.kept)])
    later = PruningPlan(rest, after.cost())
    together, both = remove(model, graph, PruningPlan(union, graph.cost()))
    if later.num_removed:
        once, b = remove(once, after, later)
        composed = a.compose(b)
        assert composed.kept.keys() == both.kept.keys() and composed.attributes == both.attributes
    for (name, p), (_, q) in zip(named_tensors(once), named_tensors(together), strict=True):
        assert torch.equal(p, q), name


def _channels(group: ChannelGroup, kept: Any = None) -> list[tuple[str, int, tuple[int, ...]]]:
    """Every channel by where it is written: parameter, axis, positions, as counted before ``kept`` of them were left."""
    member = group.with_role("writes")[0]
    where, positions = member.parameter_axis, member.positions
    if kept is not None and where.axis in kept.get(where.parameter, {}):
        positions = kept[where.parameter][where.axis][positions]
    return [(where.parameter, where.axis, tuple(sorted(row))) for row in positions.tolist()]


@quick_and_slow
def test_removing_nothing_changes_no_bit(sentence: Sentence, seed: int) -> None:
    """A plan that keeps everything is refused; silence under it, tracing and scoring leave every bit as it was."""
    model = network(sentence)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = traced(sentence) if seed % 2 else trace(model, X)
    everything = PruningPlan({g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in graph.groups}, graph.cost())
    with pytest.raises(prunus.NothingPruned):
        remove(model, graph, everything)
    for network_now in (model, silence(model, graph, everything)):
        assert all(torch.equal(value, before[name]) for name, value in network_now.state_dict().items())


@quick_and_slow
def test_predicted_cost_is_counted_cost(sentence: Sentence, seed: int) -> None:
    """The closed form equals torch's counter on the network after surgery, to the last multiply-add and parameter."""
    model, graph = network(sentence), traced(sentence)
    plan = _plan(graph, seed)
    small, _ = remove(model, graph, plan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(X)
    assert graph.cost(plan).macs * len(X) * 2 == counter.get_total_flops()
    assert graph.cost(plan).parameters == sum(p.numel() for p in small.parameters())


@quick_and_slow
def test_permuting_channels_permutes_scores(sentence: Sentence, seed: int) -> None:
    """Channels have no order: permuting a group's over all its members permutes l1 and l2 scores and leaves the output."""
    model, graph = randomise(network(sentence), seed).double(), traced(sentence)
    generator = torch.Generator().manual_seed(seed)
    groups = [g for g in graph.prunable if all(m.positions.shape[1] == 1 for m in g.members)]
    if not groups:
        return
    group = groups[int(torch.randint(len(groups), (), generator=generator))]
    order = torch.randperm(group.num_channels, generator=generator)
    permuted = _permuted(model, graph, group.name, order)
    with torch.no_grad():
        outputs, same = (tensors_in(m(X.double())) for m in (model, permuted))
    assert compare(outputs, same, 1e-9).passed
    for criterion in ("l1", "l2"):
        with warnings.catch_warnings():  # random filters may well be told to say little
            warnings.filterwarnings("ignore", f"criterion {criterion}: filters' norms hardly differ", prunus.PrunusWarning)
            before, after = (score(m, graph, criterion).by_group for m in (model, permuted))
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
