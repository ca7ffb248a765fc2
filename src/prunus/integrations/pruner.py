"""What the callbacks share: rounds of pruning at given steps or epochs of a training, and what a checkpoint needs of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prunus.allocation import DEFAULT
from prunus.budgets import Budget
from prunus.errors import EvidenceError, InvalidBudget, NothingPruned, PrunusWarning, TrainingError
from prunus.graph import trace
from prunus.graph.trace import Keep
from prunus.importance.criteria import resolve_criterion
from prunus.integrations.in_place import remove_in_place
from prunus.pipeline.pace import absolute, carried
from prunus.pipeline.prune import prune
from prunus.surgery import SurgeryRecord, save
from prunus.types import Allocator, Cost, Criterion, ExampleInputs, ForwardFn, LossFn, VerificationReport, map_tensors


@dataclass(frozen=True)
class PrunedAt:
    """One round: the position in training, the network's costs before and after, and the proof (None: verify=False)."""

    at: int
    before: Cost
    after: Cost
    verification: VerificationReport | None

    def figures(self) -> dict[str, float]:
        """For the framework's logger."""
        figures: dict[str, float] = {
            "prunus/macs_before": self.before.macs,
            "prunus/macs": self.after.macs,
            "prunus/parameters_before": self.before.parameters,
            "prunus/parameters": self.after.parameters,
        }
        return figures if self.verification is None else {**figures, "prunus/proof_error": self.verification.max_error}


class TrainingPruner:
    """Prunes a network in rounds while somebody else trains it. The network and its optimizers stay the objects that they are.

    Args:
        budget: what the network may cost after the last round, as for `prunus.prune`; rounds before it go there geometrically.
        steps, epochs: when to prune, a round each: behind so many optimizer steps, or so many epochs (0: before the first step).
        criterion, allocator, keep, mixing, whole_groups, loss_fn, forward_fn, train_inputs, verify, seed, options: as for
            `prunus.prune`.
        data: batches for a criterion that needs them; none: ``batches`` batches, drawn anew from the data set that is trained on.
        example_inputs: as for `prunus.prune`; none: the inputs of the first two examples of such a batch.
        ema: an averaged copy of the network, moved along in place.

    Raises:
        TrainingError: neither ``steps`` nor ``epochs``, both, or one that comes twice or is negative.
        InvalidBudget: latency as a budget of several rounds.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        steps: Sequence[int] = (),
        epochs: Sequence[int] = (),
        criterion: str | Criterion = "l1",
        allocator: str | Allocator = DEFAULT,
        keep: Keep = (),
        mixing: Any = "allow",
        whole_groups: bool = False,
        data: Iterable[Any] | None = None,
        batches: int = 8,
        loss_fn: LossFn | None = None,
        forward_fn: ForwardFn | None = None,
        example_inputs: ExampleInputs | None = None,
        train_inputs: ExampleInputs | None = None,
        ema: nn.Module | None = None,
        verify: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if bool(steps) == bool(epochs):
            raise TrainingError("say when to prune: steps=(1000, 2000) or epochs=(2, 4), not both")
        self.by_steps = bool(steps)
        self.at = tuple(sorted(steps or epochs))
        if len(set(self.at)) < len(self.at) or self.at[0] < 0 or (self.by_steps and self.at[0] == 0):
            raise TrainingError(f"can't prune at {self.at}: each round needs a step above 0, or an epoch from 0, of its own")
        if budget.measured and len(self.at) > 1:
            raise InvalidBudget("a budget on latency is met in one round, in which networks are timed: give one step or epoch")
        if misplaced := sorted({"compensate", "recalibrate", "optimizer"} & options.keys()):
            raise TrainingError(
                f"{misplaced[0]} isn't for a training that goes on: the optimizers are moved by themselves, and the steps behind "
                "the cut train biases and batch norms anyway"
            )
        self.budget, self.criterion, self.batches, self.seed = budget, criterion, batches, seed
        self.data = list(islice(data, batches)) if isinstance(data, Iterator) else data  # it is gone through more than once
        self.loss_fn, self.forward_fn, self.example_inputs, self.ema = loss_fn, forward_fn, example_inputs, ema
        self._trace: dict[str, Any] = {
            "keep": keep,
            "mixing": mixing,
            "whole_groups": whole_groups,
            "train_inputs": train_inputs,
        }
        self._prune: dict[str, Any] = {"allocator": allocator, "verify": verify, **options}
        self.rounds = 0
        self.record: SurgeryRecord | None = None
        """What all rounds so far have removed, for `prunus.save`; none: nothing yet."""
        self.history: list[PrunedAt] = []
        """The rounds of this process, oldest first."""
        self._budgets: list[Budget] = []

    def due(self, position: int, *, steps: bool) -> bool:
        """Whether the next round comes now, ``position`` optimizer steps or epochs being done."""
        return steps == self.by_steps and self.rounds < len(self.at) and position >= self.at[self.rounds]

    def take_round(
        self, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loader: Any, batch_size: int | None, at: int
    ) -> PrunedAt | None:
        """Prune ``network`` in place, move the optimizers (and ``ema``) along; None where the round's budget is met already.

        ``loader`` is what is trained on. Raises what `prunus.prune` raises, and `EvidenceError` where its data can't be had.
        """
        needs_data = bool(resolve_criterion(self.criterion, {}).needs)
        example, data = self.example_inputs, self.data
        if data is None and (needs_data or example is None):
            data = self._drawn(network, loader, batch_size)
        if example is None and data is not None:
            first = next(iter(data), None)
            if first is None:
                raise EvidenceError(
                    "the data yield nothing, so there is nothing to run the network on: give data or example_inputs"
                )
            example = self.first_inputs(first)
        if not self._budgets:
            self._budgets = self._plan_rounds(network, example)
        data = list(islice(data, self.batches)) if needs_data and data is not None else None
        asked = self._budgets[self.rounds]
        if asked.file_size is not None and self.record is not None:  # the file holds the record of the earlier rounds, too
            asked = replace(asked, file_size=int(asked.file_size) - carried(self.record, self.rounds + 1))
        self.rounds += 1
        try:
            result = prune(
                network,
                cast("ExampleInputs", example),
                asked,
                self.criterion,
                data=data,
                loss_fn=self.loss_fn,
                forward_fn=self.forward_fn,
                batches=self.batches if needs_data else None,
                seed=self.seed,
                **self._trace,
                **self._prune,
            )
        except NothingPruned as error:
            if self.record is None:
                raise
            warnings.warn(f"round {self.rounds} of pruning removes nothing: {error}", PrunusWarning, stacklevel=2)
            return None
        record = remove_in_place(network, result.graph, result.plan, optimizers, self.ema, example, self.forward_fn)
        self.record = record if self.record is None else self.record.compose(record)
        self.history.append(PrunedAt(at, result.before, result.after, result.verification))
        return self.history[-1]

    def first_inputs(self, batch: Any) -> Any:
        """Example inputs from a batch: those of its first two examples."""
        inputs = cast("Sequence[Any]", batch)[0] if isinstance(batch, (tuple, list)) else batch
        return map_tensors(lambda tensor: tensor[:2].detach().clone(), inputs)

    def _plan_rounds(self, network: nn.Module, example: Any) -> list[Budget]:
        if len(self.at) == 1:
            return [self.budget]
        full = trace(network, example, forward_fn=self.forward_fn, **self._trace)
        return [absolute(self.budget, full, (number + 1) / len(self.at)) for number in range(len(self.at))]

    def _drawn(self, network: nn.Module, loader: Any, batch_size: int | None) -> Iterable[Any]:
        """Batches of the data set behind ``loader``, through a loader of their own: the training's own one isn't disturbed."""
        dataset, size = getattr(loader, "dataset", None), batch_size or getattr(loader, "batch_size", None)
        if dataset is None or isinstance(dataset, IterableDataset) or not isinstance(size, int):
            raise EvidenceError(
                f"batches can't be drawn from the training loader ({type(loader).__name__}), which isn't a DataLoader with a "
                "batch size over a data set with a length: give the callback batches (data=...), or, for a criterion that needs "
                "none, inputs (example_inputs=...)"
            )
        device = next(network.parameters()).device
        return _Drawn(dataset, size, getattr(loader, "collate_fn", None), self.batches, self.seed, device)

    # -- what goes into the framework's checkpoints

    def pruning_state(self) -> dict[str, Any]:
        """What a resumed training must know, as JSON."""
        record = None if self.record is None else json.loads(self.record.to_json())
        return {"rounds": self.rounds, "budgets": [asdict(budget) for budget in self._budgets], "record": record}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `pruning_state` gave. Raises `TrainingError` for the state of another schedule."""
        rounds, budgets, record = state["rounds"], state["budgets"], state["record"]
        if rounds > len(self.at) or (budgets and len(budgets) != len(self.at)):
            raise TrainingError(
                f"the checkpoint is of a training with {len(budgets) or rounds} rounds of pruning, {rounds} of them taken, and "
                f"{len(self.at)} are asked for now: resume with the callback as it was"
            )
        self.rounds, self._budgets = rounds, [Budget(**budget) for budget in budgets]
        self.record = None if record is None else SurgeryRecord.from_tree(record)

    def save_beside(self, network: nn.Module, folder: Path, name: str) -> None:
        """Write the pruned network into ``folder``, for `prunus.load`; nothing before the first round."""
        if self.record is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save(network, self.record, folder / name)


@dataclass(frozen=True)
class _Drawn:
    """``count`` random batches of a data set, on a device: the same ones each time, and torch's random state stays."""

    dataset: Dataset[Any]
    size: int
    collate_fn: Callable[[list[Any]], Any] | None
    count: int
    seed: int
    device: torch.device

    def __iter__(self) -> Iterator[Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            loader = DataLoader(self.dataset, self.size, shuffle=True, collate_fn=self.collate_fn)
            for batch in islice(loader, self.count):
                yield map_tensors(lambda tensor: tensor.to(self.device), batch)
