"""Gates with two temperatures: nearly binary on the way forward, smooth on the way back, and paid for by multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import UnsupportedNetwork
from prunus.sparsity.found_widths import plan_within
from prunus.sparsity.gated import GatedMethod
from prunus.types import Budget, ChannelGraph, PruningPlan

LOGITS = "selection_logits_"
"""The logits are parameters of the network while it trains, under this name and the number of their group."""


def two_temperature_gate(logits: Tensor, sharp: float = 50.0, smooth: float = 1.0) -> Tensor:
    """sigmoid(sharp * u) in value, with the derivative of sigmoid(smooth * u): a gate in (0, 1) for each logit u, any shape.

        t = sg(s_sharp(u)) + s_smooth(u) - sg(s_smooth(u)),   s_b(u) = sigmoid(b * u), sg: no derivative

    After Colombo and Gao 2021, of which only the abstract was at hand: formula and defaults are a reconstruction. With one sharp
    temperature the derivative vanishes away from zero: at u = 0.5 it is 7e-10, here 0.235.
    """
    way_back = torch.sigmoid(smooth * logits)
    return torch.sigmoid(sharp * logits).detach() + way_back - way_back.detach()


class ExpectedMacs:
    """The multiply-adds of a network with gates, as a share of the full one's: the closed form with sums of gates as widths."""

    def __init__(self, graph: ChannelGraph) -> None:
        (terms,) = graph.cost_model.terms("macs")
        self._sizes = {group.name: float(group.num_channels) for group in graph.groups}
        self._names = list(self._sizes)
        row = {name: i + 1 for i, name in enumerate(self._names)}
        most = max(len(names) for names in terms)
        self._rows = torch.tensor([[row[n] for n in names] + [0] * (most - len(names)) for names in terms], dtype=torch.int64)
        self._factors = torch.tensor(list(terms.values()), dtype=torch.float64) / graph.cost().macs

    def share(self, gates: Mapping[str, Tensor]) -> Tensor:
        """() from gates (group name -> (num_channels,)); groups that aren't named are whole."""
        like = next(iter(gates.values()))
        widths = [gates[name].sum() if name in gates else like.new_tensor(self._sizes[name]) for name in self._names]
        table = torch.stack([like.new_ones(()), *widths])
        return (table[self._rows.to(like.device)].prod(1) * self._factors.to(like)).sum()


class TwoTemperatureSelection(GatedMethod):
    """Learn which channels to use by gates that are nearly binary forward and smooth backward, at a price for multiply-adds.

        minimise  E over w of L(f(x; w * t)) + strength * MACs(t) / MACs,   t = the gate of a logit u for each channel

    After Colombo and Gao, Differentiable Architecture Pruning for Transfer Learning, 2021, of which only the abstract was at
    hand: formula and defaults are a reconstruction (unverified). What comes out is an architecture and a mask: channels with
    u > 0. With ``weights="resampled"`` the weights are drawn anew behind every step, so that no gate can adapt to them; the
    network in the end has fresh weights, to be trained on the task that it is for. With ``"kept"`` they are trained beside
    the gates.

    In the last ``settle`` share of the steps the gates are the plan's, exactly zero or one, so that the weights get used to
    it; what is cut then is the network that trained.

    Args:
        strength: price of all multiply-adds, in units of the loss.
        stop_at_budget: multiply-adds within the budget cost nothing (where it has a limit on them).
        sharp: temperature forward.
        smooth: temperature backward.
        initial: every channel's logit at the start.
        rate: factor of the logits' gradients, so of their learning rate with SGD.
        normalise: divide these gradients by their root mean square over all logits first, so that a logit moves by about rate
            times the learning rate whatever the size of the network (the share of one channel in all multiply-adds shrinks).
        weights: kept, or resampled behind every step.
        settle: share of the steps at the end in which the gates are fixed (not with resampled weights).
    """

    name = "two_temperature"

    def __init__(
        self,
        *,
        strength: float = 1.0,
        stop_at_budget: bool = True,
        sharp: float = 50.0,
        smooth: float = 1.0,
        initial: float = 0.1,
        rate: float = 1.0,
        normalise: bool = False,
        weights: Literal["kept", "resampled"] = "resampled",
        settle: float = 0.0,
    ) -> None:
        self.strength, self.stop_at_budget, self.sharp, self.smooth = strength, stop_at_budget, sharp, smooth
        self.initial, self.rate, self.normalise, self.weights, self.settle = initial, rate, normalise, weights, settle

    def attach(self) -> None:
        """Put the logits into the network, as parameters of their own.

        Raises:
            UnsupportedNetwork: weights are to be resampled, and a module with parameters can't draw them anew.
        """
        super().attach()
        if self.weights == "resampled":
            _check_resets(self.model)
        like = next(self.model.parameters())
        self.logits = {g.name: nn.Parameter(like.new_full((g.num_channels,), self.initial)) for g in self.groups}
        for number, logit in enumerate(self.logits.values()):
            self.model.register_parameter(f"{LOGITS}{number}", logit)
        self.macs = ExpectedMacs(self.graph)
        self.settled = False
        limit = self.task.budget.limit("macs", self.graph.cost().macs) if "macs" in self.task.budget.targets else 0.0
        self.free = limit / self.graph.cost().macs if self.stop_at_budget else 0.0
        """Share of the multiply-adds that costs nothing."""

    def gates(self) -> dict[str, Tensor]:
        """The gates by the logits; zeros and ones once they are settled."""
        if self.settled:
            left = self.left()  # the logits take part, because processes wait for the gradient of every parameter
            return {name: left[name].to(logit) + 0.0 * logit for name, logit in self.logits.items()}
        return {name: two_temperature_gate(logit, self.sharp, self.smooth) for name, logit in self.logits.items()}

    def before_step(self, step: int, lr: float) -> None:
        """Settle, where it is time to."""
        super().before_step(step, lr)
        if self.weights == "kept" and self.settle and not self.settled and step >= (1 - self.settle) * self.steps:
            plan = self._plan(self.task.budget)
            with torch.no_grad():
                for group in self.groups:
                    kept, logit = plan.keep[group.name], self.logits[group.name]
                    size = logit.abs().clamp_min(1e-6)
                    logit.copy_(torch.where(kept.to(logit.device), size, -size))
            self.settled = True

    def penalty(self) -> Tensor | float:
        """The price of the multiply-adds that the gates leave."""
        if self.settled:
            return 0.0
        return self.strength * (self.macs.share(self.gates()) - self.free).clamp_min(0)

    def after_backward(self) -> None:
        """Logits at their own rate, or at rest; resampled weights learn nothing."""
        gradients = [logit.grad for logit in self.logits.values() if logit.grad is not None]
        factor: Tensor | float = 0.0 if self.settled else self.rate
        if self.normalise and gradients:
            size = torch.cat([gradient.float() for gradient in gradients]).square().mean().sqrt()
            factor = factor / size.clamp_min(torch.finfo(size.dtype).tiny)
        for gradient in gradients:
            gradient.mul_(factor)
        if self.weights == "resampled":
            own = {id(logit) for logit in self.logits.values()}
            for parameter in self.model.parameters():
                if id(parameter) not in own:
                    parameter.grad = None

    def after_step(self) -> None:
        """Fresh weights, the same in all processes."""
        if self.weights == "resampled":
            seeds = np.random.SeedSequence((self.task.seed, self.step, 0xE7)).generate_state(1, np.uint64)
            resample(self.model, int(seeds[0] >> np.uint64(1)))

    def strengths(self) -> dict[str, Tensor]:
        """sigmoid(u), between zero and one."""
        whole = {g.name: torch.ones(g.num_channels, dtype=torch.float64) for g in self.graph.prunable}
        return {**whole, **{name: torch.sigmoid(logit.detach().double().cpu()) for name, logit in self.logits.items()}}

    def left(self) -> dict[str, Tensor]:
        """Channels with u > 0; in a group without any, the largest."""
        whole = {g.name: torch.ones(g.num_channels, dtype=torch.bool) for g in self.graph.prunable}
        for name, logit in self.logits.items():
            values = logit.detach().cpu()
            whole[name] = values > 0
            whole[name][values.argmax()] = True
        return whole

    def _plan(self, budget: Budget) -> PruningPlan:
        return plan_within(self.graph, self.left(), self.strengths(), budget, self.name)

    def finish(self) -> nn.Module:
        """The network without logits, its gates multiplied into the weights that read them."""
        model = super().finish()
        for number in range(len(self.logits)):
            delattr(model, f"{LOGITS}{number}")
        return model

    def state_dict(self) -> dict[str, Any]:
        """Whether the gates are settled; the logits are the network's."""
        return {"settled": self.settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self.settled = bool(state["settled"])


def resample(model: nn.Module, seed: int) -> None:
    """Draw all weights anew as their modules do it at the start; the random state is left as found."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def _check_resets(model: nn.Module) -> None:
    """Raise `UnsupportedNetwork` if a module has parameters of its own and no ``reset_parameters``."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not callable(getattr(module, "reset_parameters", None)):
            raise UnsupportedNetwork(
                f'weights="resampled" draws all weights anew by reset_parameters(), which module `{name}` '
                f'({type(module).__name__}) doesn\'t have: give it one, or take weights="kept"'
            )
