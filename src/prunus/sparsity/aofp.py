"""AOFP: a binary search in all layers at once for filters that can go together, while the network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunus.allocation.widths import floor_of
from prunus.graph.gates import Gates
from prunus.sparsity.filter_search import FilterSearch, FirstHalf
from prunus.sparsity.found_widths import meets
from prunus.sparsity.gated import GatedMethod
from prunus.sparsity.scoring_paths import NextOutputs, ScoringPaths

UNKNOWN = 1.0
"""The harm of a filter that was never tried: all of the next layer's output."""


class AOFP(GatedMethod):
    """Silence random halves of each layer beside the forward pass, and for good what proves harmless to the next layer.

        t(M) = sum of (out - out without M)^2 / sum of out^2,   T[f] = mean of t over the drawn M that hold f

    Ding et al., Approximated Oracle Filter Pruning, ICML 2019, after the released PyTorch code. In every layer a subset S of
    the filters is tried by random halves for ``steps_per_half`` steps; if the lower half has T below the threshold, it goes
    (a *move*) and S is all filters again; otherwise S becomes the lower half, down to one filter. The widths come out by
    themselves; where the budget is reached first, the search stops there (``stop_at_budget``), and of its last move only as
    many filters go as the budget asks for. The threshold bounds the mean harm of each filter's random halves, not the joint
    harm of those that go.

    Departures: a layer's search ends after ``patience`` failures in a row (the released one goes on for ever), or at the
    floors of the budget; scoring never moves a batch norm's statistics; the path ends in front of residual additions
    (`ScoringPaths`). All gated groups are searched, residual stages included. One more run of every reading layer for each
    group it reads.

    *Re-design*: search in a wider network (a constructor's width multiplier) towards the MACs of the original one, as an absolute
    budget.

    Args:
        threshold: largest mean harm (share of the next layer's energy) at which filters go.
        steps_per_half: training steps between two decisions of a layer.
        start: step from which the first layer is tried; the others follow evenly, within ``steps_per_half``.
        patience: failures in a row that end a layer's search.
        stop_at_budget: end at the budget; otherwise go on as long as anything is harmless.
        inclusive: harm equal to the threshold is harmless, too (the original TensorFlow code).
        never_drawn: what filters count as that no half held: kept (released PyTorch code) or first to go (TensorFlow).
        first_half: half of a whole layer is half of its filters, rounded down, or the nearest power of two (TensorFlow).
        next_outputs: outputs of the next layer that count: those alive, or all (TensorFlow).
    """

    name = "aofp"

    def __init__(
        self,
        *,
        threshold: float = 0.01,
        steps_per_half: int = 1000,
        start: int = 500,
        patience: int = 3,
        stop_at_budget: bool = True,
        inclusive: bool = False,
        never_drawn: Literal["kept", "first"] = "kept",
        first_half: FirstHalf = "half",
        next_outputs: NextOutputs = "alive",
    ) -> None:
        self.threshold, self.steps_per_half, self.start, self.patience = threshold, int(steps_per_half), int(start), int(patience)
        self.stop_at_budget, self.inclusive, self.never_drawn = stop_at_budget, inclusive, never_drawn
        self.first_half: FirstHalf = first_half
        self.next_outputs: NextOutputs = next_outputs

    def attach(self) -> None:
        """A search for each gated group."""
        super().attach()
        self.searches = {
            g.name: FilterSearch.over(g.num_channels, floor_of(g, self.task.budget), self.first_half) for g in self.groups
        }
        sizes = {g.name: g.num_channels for g in self.groups}
        self._harm = {name: torch.zeros(n, dtype=torch.float64) for name, n in sizes.items()}
        self._draws = {name: torch.zeros(n, dtype=torch.float64) for name, n in sizes.items()}
        self._last = {name: torch.full((n,), UNKNOWN, dtype=torch.float64) for name, n in sizes.items()}
        self._drawn: dict[str, Tensor] = {}

    # -- the passes

    def gates(self) -> dict[str, Tensor]:
        """Zero for what has gone."""
        return {name: search.alive.double() for name, search in self.searches.items()}

    def new_mode(self, module: nn.Module, gates: Mapping[str, Tensor]) -> Gates:
        """Gates with a scoring path for each group that is drawn from, in the training network itself."""
        return ScoringPaths(module, self.graph, gates, self.next_outputs)

    def _mode(self, module: nn.Module, gates: Mapping[str, Tensor]) -> Gates:
        mode = super()._mode(module, gates)
        assert isinstance(mode, ScoringPaths)
        training = module is self.model and module.training and torch.is_grad_enabled()
        device = next(module.parameters()).device
        mode.drawn = {name: mask.to(device) for name, mask in self._drawn.items()} if training else {}
        return mode

    def before_step(self, step: int, lr: float) -> None:
        """Draw the halves of this step, the same in all processes."""
        super().before_step(step, lr)
        seeds = np.random.SeedSequence((self.task.seed, step, 0xA0F)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))
        self._drawn = {
            name: search.draw(generator)
            for i, (name, search) in enumerate(self.searches.items())
            if step >= self._starts_at(i) and not self._finished(search)
        }

    def _starts_at(self, number: int) -> int:
        return self.start + number * (self.steps_per_half // len(self.searches))

    def _finished(self, search: FilterSearch) -> bool:
        return search.over_after(self.patience) or (self.stop_at_budget and self._within())

    def _within(self) -> bool:
        return meets(self.graph, {name: int(search.alive.sum()) for name, search in self.searches.items()}, self.task.budget)

    # -- the decisions

    def after_backward(self) -> None:
        """Take up the harm of this step's halves; layers that have seen enough decide."""
        self._record()
        for i, (name, search) in enumerate(self.searches.items()):
            tried = self.step - self._starts_at(i) + 1
            if name in self._drawn and tried % self.steps_per_half == 0:
                self._decide(name, search)
        self._drawn = {}

    def _record(self) -> None:
        mode = self._modes.get(self.model)
        if not isinstance(mode, ScoringPaths) or not mode.changed:
            return
        names = list(mode.changed)
        sums = torch.stack(
            [torch.stack([mode.changed[name] for name in names]), torch.stack([mode.energy[name] for name in names])]
        )
        mode.clear()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        harm = (sums[0] / sums[1].clamp_min(torch.finfo(sums.dtype).tiny)).cpu()
        for name, value in zip(names, harm.unbind(), strict=True):
            drawn = self._drawn[name].double()
            self._harm[name] += drawn * value
            self._draws[name] += drawn

    def _decide(self, name: str, search: FilterSearch) -> None:
        tried = self._draws[name] > 0
        mean = self._harm[name] / self._draws[name].clamp_min(1)
        self._last[name] = torch.where(tried, mean, self._last[name])
        never = 0.0 if self.never_drawn == "first" else math.inf
        gone = search.decide(torch.where(tried, mean, never), self._harmless)
        self._harm[name].zero_()
        self._draws[name].zero_()
        if bool(gone.any()):
            self._move(name, search, gone, mean)

    def _harmless(self, harm: float) -> bool:
        return harm <= self.threshold if self.inclusive else harm < self.threshold

    def _move(self, name: str, search: FilterSearch, gone: Tensor, harm: Tensor) -> None:
        """These filters go, the least harmful first; where the budget ends the search, only as many as it asks for."""
        ordered = [channel for channel in harm.argsort(stable=True).tolist() if gone[channel]]
        if self.stop_at_budget:
            counts = {other: int(s.alive.sum()) for other, s in self.searches.items()}
            whole = counts[name]
            for number in range(1, len(ordered)):
                if meets(self.graph, {**counts, name: whole - number}, self.task.budget):
                    ordered = ordered[:number]
                    break
        mask = torch.zeros_like(gone)
        mask[ordered] = True
        search.remove(mask)

    # -- what came out

    def strengths(self) -> dict[str, Tensor]:
        """Mean harm by the halves that held the filter, of its last trials; zero for what has gone. Other groups: unknown."""
        found = {g.name: torch.full((g.num_channels,), UNKNOWN, dtype=torch.float64) for g in self.graph.prunable}
        for name, search in self.searches.items():
            mean = self._harm[name] / self._draws[name].clamp_min(1)
            found[name] = torch.where(self._draws[name] > 0, mean, self._last[name]) * search.alive
        return found

    def left(self) -> dict[str, Tensor]:
        """What hasn't gone."""
        whole = {g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in self.graph.prunable}
        return {**whole, **{name: search.alive for name, search in self.searches.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Every search, its sums, and the harm found last."""
        return {
            name: {
                "alive": search.alive,
                "candidates": search.candidates,
                "failures": search.failures,
                "harm": self._harm[name],
                "draws": self._draws[name],
                "last": self._last[name],
            }
            for name, search in self.searches.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these searches."""
        for name, search in self.searches.items():
            found = state[name]
            search.alive, search.candidates = found["alive"].bool(), found["candidates"].bool()
            search.failures = int(found["failures"])
            self._harm[name], self._draws[name], self._last[name] = found["harm"], found["draws"], found["last"]
