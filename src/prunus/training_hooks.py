"""What the training loop and a sparsity method know of each other: the protocol, and the figures a method gives on its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from prunus.types import Budget, ChannelGraph, ExampleInputs, ForwardFn, PruningPlan


@dataclass(frozen=True, eq=False)
class SparsityTask:
    """What a method is to reach, and what it may call: ``budget`` is the one that `plan` will be asked for.

    ``example_inputs`` run one forward pass, ``forward_fn(model, example_inputs)`` where the call isn't ``model(*inputs)``;
    ``seed`` is of everything that the method draws.
    """

    budget: Budget
    example_inputs: ExampleInputs
    seed: int = 0
    forward_fn: ForwardFn | None = None


@dataclass(frozen=True, eq=False)
class SparsityProgress:
    """How far a method has come: the network if it were cut now.

    ``macs`` and ``widths`` (group name -> channels) of what would be left; ``strengths``: group name -> (num_channels,), what the
    method decides by, at least zero: the smallest go first.
    """

    macs: int
    widths: Mapping[str, int]
    strengths: Mapping[str, Tensor]


class SparsityMethod(Protocol):
    """A method that makes channels removable during training.

    Who calls what, and when::

        graph = trace(model, example_inputs)                     # of the network as it will be cut
        model = method.prepare(model, graph, task)               # in place: modules inserted, weights rescaled, hooks set
        # from here on it is the training loop
        optimizer = SGD(..., method.parameter_options())         # other momentum or decay for single parameters
        method.begin(steps, steps_per_epoch)
        method.load_state_dict(state)                            # a resumed run only
        for step in range(steps):
            method.before_step(step, lr)                         # step % steps_per_epoch == 0: an epoch starts
            loss = loss_fn(model(inputs)) + method.penalty()
            loss.backward()
            method.after_backward()                              # gradients: unscaled, not clipped, equal in all processes
            optimizer.step(); gradients are set to None
            method.after_step()
            if the epoch is over:
                method.end_epoch(mean_loss)
                method.progress()                                # for the log
            every n steps and at the end of an epoch: state = method.state_dict()
        # the loop is done
        plan = method.plan(budget)                               # decides; while the inserted modules are still there
        model = method.finish()                                  # what was inserted is merged: original names and shapes
        small, record = remove(model, graph, plan)               # exact surgery, the same for every method

    With mixed precision a step whose gradients overflowed isn't taken: the optimizer and ``after_step`` are left out. In several
    processes every hook is called in each, with the same parameters and gradients, and must do the same: decide by these, by the
    step and by draws from ``task.seed``, never by what one process saw (activations must be shared first).
    """

    def prepare(self, model: nn.Module, graph: ChannelGraph, task: SparsityTask) -> nn.Module:
        """Make ``model`` ready, in place, and return it. `UnsupportedNetwork` where it lacks what the method needs."""
        ...

    def parameter_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options of SGD (``momentum``, ``nesterov``, ``weight_decay``) for single parameters, by name."""
        ...

    def begin(self, steps: int, steps_per_epoch: int) -> None:
        """Training starts: so many steps in all. Called once, also where a run is resumed."""
        ...

    def before_step(self, step: int, lr: float) -> None:
        """In front of the forward pass of step ``step`` (from 0), which is taken at rate ``lr``."""
        ...

    def penalty(self) -> Tensor | float:
        """Added to the loss, outside autocast: in the parameters' own precision."""
        ...

    def after_backward(self) -> None:
        """Gradients are there and may be changed."""
        ...

    def after_step(self) -> None:
        """The weights have moved."""
        ...

    def end_epoch(self, loss: float) -> None:
        """An epoch is over; ``loss`` is its mean, the penalty included."""
        ...

    def progress(self) -> SparsityProgress:
        """The network if it were cut now."""
        ...

    def plan(self, budget: Budget) -> PruningPlan:
        """What stays, within ``budget``; `PrunusWarning` where training hasn't made the rest removable."""
        ...

    def finish(self) -> nn.Module:
        """The network of the original names and shapes, everything inserted merged into it, hooks taken away."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, None, and dicts, lists and tuples of them: all that isn't in the network's own state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
