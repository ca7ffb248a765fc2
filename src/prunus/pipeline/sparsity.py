"""The stage of a run that trains with a sparsity method, and how what the method decided is carried out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.config import Recipe
from prunus.errors import BudgetNotMet
from prunus.pipeline.trainer import Trainer
from prunus.sparsity import resolve_method
from prunus.training.optimizers import build_optimizer
from prunus.training_hooks import SparsityMethod, SparsityTask
from prunus.types import Budget, ChannelGraph, PruningPlan, Scores


def method_of(recipe: Recipe) -> SparsityMethod:
    """The recipe's method, made for one training run; `UnknownName` for a name, preset or option that there isn't."""
    assert recipe.sparsity is not None
    return resolve_method(recipe.sparsity.method, recipe.sparsity.preset, recipe.sparsity.options)


def check_method(recipe: Recipe, model: nn.Module, graph: ChannelGraph, task: SparsityTask) -> None:
    """Raise now what the method would raise behind the training in front of it: `UnsupportedNetwork`, `TrainingError`."""
    assert recipe.sparsity is not None
    method = method_of(recipe)
    prepared = method.prepare(copy.deepcopy(model), graph, task)
    build_optimizer(prepared, recipe.sparsity, method.parameter_options())


def train_sparse(
    recipe: Recipe, trainer: Trainer, model: nn.Module, graph: ChannelGraph, task: SparsityTask, number: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train, plan and finish in round ``number``: the network of the original shapes, and what the result says.

    ``plan`` in it holds the numbers of the channels that stay, by group.
    """
    assert recipe.sparsity is not None
    method = method_of(recipe)
    prepared = method.prepare(model, graph, task)
    epochs = trainer.fit(prepared, recipe.sparsity, f"round-{number}-sparsity", number - 1, method=method)
    plan = method.plan(task.budget)
    kept = {name: keep.nonzero()[:, 0].tolist() for name, keep in plan.keep.items()}
    return method.finish(), {"epochs": epochs, "plan": kept, "full_macs": graph.cost().macs}


def recalled_plan(kept: Mapping[str, list[int]], graph: ChannelGraph) -> PruningPlan:
    """The plan that `train_sparse` wrote down."""
    keep: dict[str, Tensor] = {}
    for name, channels in kept.items():
        keep[name] = torch.zeros(graph[name].num_channels, dtype=torch.bool)
        keep[name][channels] = True
    plan = PruningPlan(keep, graph.cost())
    return replace(plan, predicted=graph.cost(plan))


@dataclass(frozen=True)
class Decided:
    """A plan in the place of a criterion and an allocator: what a method decided, for `prunus.prune`."""

    plan: PruningPlan
    name: str
    needs: frozenset[str] = frozenset()
    paper: str = ""

    def score(self, view: Any, evidence: Any) -> Tensor:
        """One for channels that stay, zero for those that go."""
        keep = self.plan.keep.get(view.group.name)
        return torch.ones(view.group.num_channels) if keep is None else keep.double()

    def allocate(
        self, graph: ChannelGraph, scores: Scores, budget: Budget, *, evaluate: Any = None, measure: Any = None
    ) -> PruningPlan:
        """The plan, as far as verification has left its groups prunable; `BudgetNotMet` if what is left isn't enough."""
        prunable = {group.name for group in graph.prunable}
        plan = replace(self.plan, keep={name: keep for name, keep in self.plan.keep.items() if name in prunable})
        plan = replace(plan, predicted=graph.cost(plan))
        gone = sum(graph[name].width_factor * int((~keep).sum()) for name, keep in plan.keep.items())
        now = {**asdict(plan.predicted), "channels": graph.num_prunable_channels - gone}
        full = {**asdict(graph.cost()), "channels": graph.num_prunable_channels}
        rows: list[dict[str, Any]] = []
        for target in budget.targets:
            limit = budget.limit(target, full[target])
            row = {"target": target, "requested": limit, "full": full[target], "achieved": now[target]}
            rows.append({**row, "met": now[target] <= limit + 1e-9})
        plan = replace(plan, provenance={"allocator": self.name, "budget": rows})
        if len(plan.keep) < len(self.plan.keep) and not all(row["met"] for row in rows):
            raise BudgetNotMet(
                f"what {self.name} decided can't be carried out in full: verification froze "
                f"{', '.join(sorted(self.plan.keep.keys() - plan.keep.keys()))}, and the rest doesn't meet the budget; name "
                "these groups under prune.keep and train again, so that the method looks elsewhere",
                plan,
            )
        return plan
