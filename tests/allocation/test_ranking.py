"""Uniform and global ranking against counts written out by hand and a brute-force reference; and how long they take."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, BudgetNotMet
from prunus.allocation.ranking import on_one_scale
from prunus.allocation.widths import GroupWidths, Widths
from small_nets import build, images


def graph_of(name: str) -> prunus.ChannelGraph:
    return prunus.trace(build(name), images())


def uneven(graph: prunus.ChannelGraph, comparable: bool) -> prunus.Scores:
    """Distinct scores; each group on a scale of its own."""
    generator = torch.Generator().manual_seed(2)
    by_group = {g.name: torch.rand(g.num_channels, generator=generator) * 10.0 ** (i % 5) for i, g in enumerate(graph.prunable)}
    return prunus.Scores(by_group, "uneven", comparable)


# -- uniform


@pytest.mark.parametrize("name", ["Plain", "Residual", "Flattened", "Dense"])
def test_half_the_channels_of_an_even_net_is_half_of_every_group(name: str) -> None:
    graph = graph_of(name)
    plan = prunus.allocate(graph, uneven(graph, False), Budget(channels=0.5), "uniform")
    assert plan.counts() == {g.name: g.num_channels // 2 for g in graph.prunable}


@pytest.mark.parametrize("name", ["Plain", "Residual", "Dense"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
def test_uniform_ratios_differ_by_at_most_two_roundings(name: str, fraction: float) -> None:
    """Every group is within one step of the common ratio, and rounding adds half a step."""
    graph = graph_of(name)
    plan = prunus.allocate(graph, uneven(graph, False), Budget(macs=fraction, tolerance=0.03), "uniform")
    counts = plan.counts()
    lowest = max((counts[g.name] - 1.5) / g.num_channels for g in graph.prunable)
    highest = min((counts[g.name] + 1.5) / g.num_channels for g in graph.prunable)
    assert lowest <= highest


# -- global


@pytest.mark.parametrize("comparable", [True, False])
@pytest.mark.parametrize("name", ["Plain", "Residual", "Dense"])
@pytest.mark.parametrize("removed", [1, 7, 20, 33])
def test_global_removes_the_lowest_scores_of_the_network(name: str, comparable: bool, removed: int) -> None:
    """Every channel counts one here, so the reference is a sort: no k + 1 or k - 1."""
    graph = graph_of(name)
    scores = uneven(graph, comparable)
    total = sum(g.num_channels for g in graph.prunable)
    plan = prunus.allocate(graph, scores, Budget(channels=total - removed, max_pruning_ratio=1.0), "global")
    scale = {n: 1.0 if comparable else float(s.mean()) for n, s in scores.by_group.items()}
    ranked = sorted((float(v) / scale[n], n, c) for n, s in scores.by_group.items() for c, v in enumerate(s))
    # A group's last channel can't be removed, so the reference passes over it.
    left, lowest = {g.name: g.num_channels for g in graph.prunable}, set[tuple[str, int]]()
    for _, group, channel in ranked:
        if len(lowest) < removed and left[group] > 1:
            left[group] -= 1
            lowest.add((group, channel))
    assert {(n, c) for n, mask in plan.keep.items() for c in (~mask).nonzero().flatten().tolist()} == lowest


class _TwoResolutions(nn.Module):
    """A channel of `early` is read at 16 x 16 pixels, one of `late` at 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.middle(self.early(x).relu()).relu(), 4)
        return self.head(self.late(x).relu().mean((2, 3)))


def test_per_cost_takes_the_dearest_of_equals_in_the_unit_of_the_budget() -> None:
    """By hand: a channel of `early` costs 256 * (9 + 36) = 11,520 MACs and 9 + 1 + 36 = 46 parameters, one of `late`
    16 * 36 + 2 = 578 and 36 + 1 + 2 = 39: 1 / 11,520 is less than 0.5 / 578, but 1 / 46 is more than 0.5 / 39."""
    graph = prunus.trace(_TwoResolutions(), torch.randn(1, 1, 16, 16))
    cost = graph.cost()
    given = {"early": torch.full((8,), 1.0), "middle": torch.full((4,), 1e6), "late": torch.full((8,), 0.5)}
    scores = prunus.Scores(given, "given", comparable=True)
    for budget, allocator, expected in (
        (Budget(macs=cost.macs - 2 * 11_520), "global_per_cost", (6, 4, 8)),
        (Budget(parameters=cost.parameters - 2 * 39), "global_per_cost", (8, 4, 6)),
        (Budget(macs=cost.macs - 2 * 578), "global", (8, 4, 6)),
    ):
        counts = prunus.allocate(graph, scores, budget, allocator).counts()
        assert (counts["early"], counts["middle"], counts["late"]) == expected


def test_scores_that_are_not_comparable_are_divided_by_their_mean() -> None:
    """Raw, the first group is 10 and 100 times smaller than the others and would go first."""
    graph = graph_of("Plain")
    raw = prunus.allocate(graph, uneven(graph, True), Budget(channels=0.8), "global").counts()
    scaled = prunus.allocate(graph, uneven(graph, False), Budget(channels=0.8), "global").counts()
    assert raw["one.0"] < 4
    assert raw["three.0"] == 32
    assert scaled["one.0"] > 8
    assert scaled["three.0"] < 32


def widths_of(levels: list[int], scores: list[float]) -> GroupWidths:
    graph = graph_of("Plain")
    values = torch.tensor(scores, dtype=torch.float64)
    return GroupWidths(graph["one.0"], levels, torch.arange(len(scores)), values)


def test_a_step_costs_the_mean_score_of_what_it_removes() -> None:
    """From 6 to 4 removes scores 1 and 3, from 4 to 2 removes 5 and 5."""
    group = widths_of([6, 4, 2], [9.0, 8.0, 5.0, 5.0, 3.0, 1.0])
    assert group.step_scores().tolist() == [2.0, 5.0]
    assert on_one_scale(group, True).tolist() == [2.0, 5.0]
    assert on_one_scale(group, False).tolist() == pytest.approx([2 * 6 / 31, 5 * 6 / 31])


def test_steps_are_taken_in_order() -> None:
    """An odd width removes one channel first; a later step that is cheaper by its mean waits for it."""
    group = widths_of([5, 4, 2], [9.0, 8.0, 4.0, 4.0, 4.0])
    assert group.step_scores().tolist() == [4.0, 4.0]
    assert widths_of([3, 2, 1], [1.0, 1.0, 2.0]).step_scores().tolist() == [2.0, 2.0]


def test_all_zero_and_negative_scores_stay_finite_and_ordered() -> None:
    assert on_one_scale(widths_of([2, 1], [0.0, 0.0]), False).tolist() == [0.0]
    assert on_one_scale(widths_of([3, 2, 1], [1.0, -1.0, -4.0]), False).tolist() == [-2.0, -0.5]


# -- the room they move in


@pytest.mark.parametrize(
    ("budget", "levels"),
    [
        (Budget(macs=0.5), list(range(16, 0, -1))),
        (Budget(macs=0.5, min_channels=14), [16, 15, 14]),
        (Budget(macs=0.5, multiple_of=4), [16, 12, 8, 4]),
        (Budget(macs=0.5, multiple_of=5), [16, 15, 10, 5]),
        (Budget(macs=0.5, max_pruning_ratio=0.25), [16, 15, 14, 13, 12]),
        (Budget(macs=0.5, max_pruning_ratio=0.3), [16, 15, 14, 13, 12]),
        (Budget(macs=0.5, multiple_of=4, min_channels=9), [16, 12]),
    ],
)
def test_allowed_widths(budget: Budget, levels: list[int]) -> None:
    graph = graph_of("Plain")
    group = Widths(graph, uneven(graph, True), budget).groups[0]
    assert (group.group.name, group.levels) == ("one.0", levels)


def test_many_positions_are_priced_as_one_is() -> None:
    graph = graph_of("Dense")
    widths = Widths(graph, uneven(graph, True), Budget(macs=0.5, parameters=0.9, channels=0.7, activation_bytes=0.8))
    positions = torch.randint(0, 11, (50, 4), generator=torch.Generator().manual_seed(0)).numpy()
    rooms = widths.rooms(positions)
    assert rooms.shape == (50, 4)
    assert list(widths.limits) == ["macs", "parameters", "activation_bytes", "channels"]
    limits = list(widths.limits.values())
    for row, position in zip(rooms, positions.tolist(), strict=True):
        cost = graph.cost_model.cost(widths.kept(position))
        amounts = (cost.macs, cost.parameters, cost.activation_bytes, sum(widths.kept(position).values()))
        assert row.tolist() == pytest.approx([1 - a / limit for a, limit in zip(amounts, limits, strict=True)])
        assert widths.gap(position) == pytest.approx(row.min())


class Deep(nn.Module):
    """Sixty layers of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 64, 1), *(nn.Conv2d(64, 64, 1) for _ in range(59)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("allocator", ["uniform", "global"])
@pytest.mark.parametrize("limits", [{}, {"multiple_of": 8}, {"multiple_of": 16}])
def test_sixty_layers_take_a_blink(allocator: str, limits: dict[str, int]) -> None:
    """About 30 ms here; before costs were priced together it took seconds. Two groups' moves mend what coarse widths leave."""
    graph = prunus.trace(Deep(), images())
    scores = uneven(graph, False)
    taken: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        plan = prunus.allocate(graph, scores, Budget(macs=0.41, **limits), allocator)
        taken.append(time.perf_counter() - start)
    assert 0.99 <= plan.predicted.macs / (0.41 * graph.cost().macs) <= 1
    assert min(taken) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet50", "densenet121"])
def test_every_budget_is_met_on_real_networks(network: str) -> None:
    import torchvision

    graph = prunus.trace(torchvision.models.get_model(network, weights=None), torch.randn(1, 3, 64, 64))
    scores = uneven(graph, False)
    for allocator in ("uniform", "global"):
        for fraction in (0.3, 0.5, 0.8):
            for multiple in (1, 8):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    try:
                        plan = prunus.allocate(graph, scores, Budget(macs=fraction, multiple_of=multiple), allocator)
                    except BudgetNotMet as error:
                        raise AssertionError(f"{network} {allocator} {fraction} {multiple}") from error
                assert 0.99 <= plan.predicted.macs / (fraction * graph.cost().macs) <= 1
