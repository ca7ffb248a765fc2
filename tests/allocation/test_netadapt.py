"""NetAdapt's schedule and choice by hand, and on a network whose best group is known."""

from __future__ import annotations

from itertools import accumulate, islice
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, EvidenceError, InvalidBudget, UnknownName
from prunus.allocation.netadapt import _best, _targets
from prunus.types import PruningPlan


def network() -> tuple[prunus.ChannelGraph, prunus.Scores]:
    """1 x 1 convolutions 3 -> 10 -> 10 -> 3 on one pixel: 30 + 100 + 30 MACs."""
    net = nn.Sequential(nn.Conv2d(3, 10, 1), nn.ReLU(), nn.Conv2d(10, 10, 1), nn.ReLU(), nn.Conv2d(10, 3, 1))
    graph = prunus.trace(net, torch.randn(1, 3, 1, 1))
    return graph, prunus.Scores({name: torch.arange(10.0) for name in ("0", "2")}, "by hand")


def judge(rates: dict[str, float]) -> Any:
    def evaluate(plan: PruningPlan) -> float:
        return 0.9 - sum(rates[name] * int((~mask).sum()) for name, mask in plan.keep.items())

    return evaluate


def test_targets_of_the_released_schedule() -> None:
    """A cost of 100 is to become 97.5, 95.1, 92.796; thirty rounds take 44 % away."""
    saved = list(accumulate(islice(_targets(0.5, 10, 0.96, 0.025), 30)))
    assert [100 - 100 * s for s in saved[:3]] == pytest.approx([97.5, 95.1, 92.796])
    assert saved[-1] == pytest.approx(0.441, abs=5e-4)


def test_targets_end_at_the_budget() -> None:
    """Two rounds at a decay of one half: two thirds of what must go, then one third."""
    assert list(_targets(0.4, 2, 0.5, None)) == pytest.approx([0.4, 0.2])
    assert list(_targets(0.4, 3, 1.0, None)) == pytest.approx([0.2, 0.2, 0.2])


def test_the_quotient_and_the_accuracy_choose_differently() -> None:
    """Drops of 1.0 and 0.6 for savings of 10 and 5: 0.1 and 0.12 a unit."""
    assert _best([(1.0, 10.0), (0.6, 5.0)], "ratio") == 0
    assert _best([(1.0, 10.0), (0.6, 5.0)], "accuracy") == 1
    assert _best([(-0.02, 5.0), (-0.01, 10.0)], "ratio") == 1  # both gain: the larger saving, not the smaller


def test_a_round_by_hand() -> None:
    """From 160 MACs to 128 in one round: 2.46 channels of one group, 13 MACs each, so three: 121. The first costs more accuracy.
    One channel then fits in again: 134 is too much, 128 - 121 < 13. So 10 and 7 stay, far below: 5.5 %."""
    graph, scores = network()
    plan = prunus.allocate(
        graph, scores, Budget(macs=0.8, tolerance=0.06), "netadapt", evaluate=judge({"0": 0.02, "2": 0.01}), rounds=1
    )
    assert plan.counts() == {"0": 10, "2": 7} and plan.predicted.macs == 121
    assert plan.keep["2"].tolist() == [False] * 3 + [True] * 7
    (step,) = plan.provenance["rounds"]
    assert step == {"group": "2", "cost": pytest.approx(121 / 160), "accuracy": pytest.approx(0.87)}
    assert plan.provenance["evaluations"] == 1 + 2


def test_the_group_that_costs_nothing_goes_first() -> None:
    graph, scores = network()
    for free in ("0", "2"):
        rates = {"0": 0.05, "2": 0.05, free: 0.0}
        plan = prunus.allocate(graph, scores, Budget(macs=0.5, tolerance=0.1), "netadapt", evaluate=judge(rates), rounds=4)
        assert min(plan.counts(), key=lambda name: plan.counts()[name]) == free
        assert plan.counts()[{"0": "2", "2": "0"}[free]] >= 9


def test_budgets_that_no_group_meets_alone() -> None:
    """Each group may lose half: 130 - 15 ... alone leaves 95 of 160 MACs; together 55."""
    graph, scores = network()
    budget = Budget(macs=0.36, max_pruning_ratio=0.5, tolerance=0.1)
    plan = prunus.allocate(graph, scores, budget, "netadapt", evaluate=judge({"0": 0.02, "2": 0.01}), rounds=1)
    assert plan.counts() == {"0": 5, "2": 5} and plan.predicted.macs == 55
    assert [step["group"] for step in plan.provenance["rounds"]] == ["2", "0"]


def test_what_is_refused() -> None:
    graph, scores = network()

    def asked(error: type[Exception], text: str, **options: Any) -> None:
        with pytest.raises(error, match=text):
            prunus.allocate(graph, scores, Budget(macs=0.3), "netadapt", **{"evaluate": judge({"0": 0.1, "2": 0.1}), **options})

    asked(EvidenceError, r"netadapt tries plans out: hand in evaluate \(plan -> accuracy\)", evaluate=None)
    asked(EvidenceError, "evaluate gave nan for a plan that removes 0 channels", evaluate=lambda _: float("nan"))
    asked(InvalidBudget, "steps of 0.025 that shrink by 0.96 save 62% of the cost at most, the budget asks for 70%", step=0.025)
    asked(InvalidBudget, "rounds=0", rounds=0)
    asked(InvalidBudget, "decay=1.5", decay=1.5)
    asked(UnknownName, "unknown rule of netadapt 'best'", rule="best")
    asked(UnknownName, "unknown option of allocator netadapt 'steps': did you mean step", steps=3)
