"""Accuracy after removal: channels really removed, the lowest of the whole network first, and what recovery brings back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from prunus.allocation import allocate
from prunus.config import OptimizerConfig
from prunus.errors import EvidenceError, PrunusError, TrainingError
from prunus.reconstruction import recalibrate
from prunus.surgery import remove, silence, verify
from prunus.training import evaluate, train
from prunus.types import Budget, ChannelGraph, ExampleInputs, ForwardFn, LossFn, Scores

RECOVERIES = ("none", "recalibrated", "fine-tuned")
"""What is done to a network between the removal and its judgement; each builds on the one before."""


@dataclass(frozen=True)
class Recovery:
    """A short training after the removal: so many ``steps`` of SGD, the learning rate falling from ``lr`` to zero as a cosine."""

    steps: int = 50
    lr: float = 0.01

    def settings(self) -> OptimizerConfig:
        """What `prunus.training.train` wants."""
        return OptimizerConfig.model_validate({"steps": self.steps, "lr": self.lr, "warmup_epochs": 0.0})


@dataclass(frozen=True, eq=False)
class Judge:
    """Removes channels of one network and judges what is left.

    ``graph`` must be proven (see `prunus.surgery.prove`); every removal is verified besides. ``calibration``: batches for
    batch-norm statistics; ``training``: the loader of the fine-tuning; ``test``: batches for accuracy.
    """

    model: nn.Module
    graph: ChannelGraph
    examples: ExampleInputs
    calibration: Sequence[Any]
    training: DataLoader[Any]
    test: DataLoader[Any]
    recovery: Recovery
    seed: int = 0
    loss_fn: LossFn | None = None
    forward_fn: ForwardFn | None = None

    def accuracy(self, model: nn.Module, description: str = "evaluate") -> float:
        """On the test batches."""
        return evaluate(model, self.test, loss_fn=self.loss_fn, forward_fn=self.forward_fn, description=description).accuracy

    def after_removal(self, scores: Scores, share: float) -> dict[str, Any]:
        """Remove ``share`` of the channels that may be pruned and judge what is left, after each of `RECOVERIES`.

        Ranked over the whole network as the allocator ``global`` does it, at least one channel of every group stays. Returns the
        share that was removed, what the network costs, and accuracies by recovery (without fine-tuning where it has no steps); or
        ``refused``, the reason, where the share can't be removed or the removal can't be shown to be exact.
        """
        try:
            plan = allocate(self.graph, scores, Budget(channels=1 - share, max_pruning_ratio=1.0, tolerance=0.99), "global")
            small, _ = remove(self.model, self.graph, plan)
            report = verify(silence(self.model, self.graph, plan), small, self.examples, forward_fn=self.forward_fn)
        except PrunusError as error:
            return {"share": share, "refused": str(error)}
        if not report.passed:
            text = f"removed and silenced networks differ by {report.max_error:.1e} (relative). {report.detail}".strip()
            return {"share": share, "refused": text}
        return {
            "share": share,
            "channels_removed": plan.num_removed,
            "cost": asdict(self.graph.cost(plan)),
            **self._recovered(small),
        }

    def _recovered(self, small: nn.Module) -> dict[str, Any]:
        """Accuracy by recovery, and under ``failed`` why one of them couldn't be carried out."""
        found: dict[str, Any] = {"accuracy": {"none": self.accuracy(small)}}
        recover = {"recalibrated": self._recalibrate, "fine-tuned": self._fine_tune}
        try:
            for name in [name for name in RECOVERIES[1:] if self.recovery.steps or name != "fine-tuned"]:
                found["failed"] = name
                recover[name](small)
                found["accuracy"][name] = self.accuracy(small)
        except (EvidenceError, TrainingError) as error:  # too few channels left to compute with
            return {**found, "failed": f"{found['failed']}: {error}"}
        del found["failed"]
        return found

    def _recalibrate(self, small: nn.Module) -> None:
        recalibrate(small, self.calibration, forward_fn=self.forward_fn)

    def _fine_tune(self, small: nn.Module) -> None:
        functions: dict[str, Any] = {"loss_fn": self.loss_fn, "forward_fn": self.forward_fn}
        train(small, self.training, self.recovery.settings(), seed=self.seed, description="fine-tune", **functions)
