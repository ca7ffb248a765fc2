"""A Lightning callback that prunes while `Trainer.fit` goes on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from prunus.budgets import Budget
from prunus.errors import PrunusWarning, UnknownName, UnsupportedNetwork
from prunus.integrations.pruner import TrainingPruner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch import callbacks as others
    from lightning.pytorch.strategies import SingleDeviceStrategy
except ImportError as error:
    raise ImportError(
        "prunus.integrations.lightning needs the package lightning, which isn't installed: install prunus[lightning]"
    ) from error

_HOLD_PARAMETERS = ("StochasticWeightAveraging", "WeightAveraging", "BaseFinetuning", "ModelPruning")
"""Lightning's callbacks that keep parameters, or copies of them, of the old widths."""


class PruningCallback(TrainingPruner, Callback):
    """Prunes ``network`` of the module that is trained, towards a budget, in one or several rounds.

    ``network`` is the dotted name of the part to prune, e.g. ``"backbone"``; none: the whole module as its ``forward`` runs. The
    other arguments are those of `TrainingPruner`. Modules stay the objects that they are; optimizers go along with their state,
    and learning-rate schedules go on. Costs before and after go to the trainer's loggers (``prunus/macs``, ...). Beside the
    checkpoints lies ``small-N.prunus``, N being the rounds taken: the network as it was in the newest checkpoint since. To
    resume, give the module the small network first, and the checkpoint to Lightning:

        module.network = prunus.load("checkpoints/small-1.prunus", module.network)
        trainer.fit(module, ckpt_path="checkpoints/epoch=3-step=40.ckpt")

    Raises, when fitting starts:
        UnsupportedNetwork: a strategy of several devices or processes, or another callback that keeps parameters of the old
            widths (weight averaging, Lightning's own mask pruning, finetuning schedules).
        UnknownName: the module has no such part.
    """

    def __init__(self, budget: Budget, *, network: str = "", **settings: Any) -> None:
        TrainingPruner.__init__(self, budget, **settings)
        self.network = network
        self._step_before = -1

    # -- when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't be pruned while it trains."""
        if stage != "fit":
            return
        self._part(pl_module)
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise UnsupportedNetwork(
                f"PruningCallback can't prune under {type(trainer.strategy).__name__}: several devices or processes hold copies "
                "or parts of the network's parameters. Train with devices=1, or prune before training (prunus.prune) and fit the "
                "result"
            )
        kinds = tuple(getattr(others, name) for name in _HOLD_PARAMETERS if hasattr(others, name))
        other = next((type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, kinds)), None)  # pyright: ignore[reportAttributeAccessIssue]
        if other is not None:
            raise UnsupportedNetwork(
                f"PruningCallback and {other} can't be in one training: {other} keeps parameters, or copies of them, which have "
                "the old widths after pruning. Leave one out; an averaged copy of your own can be given as ema=..."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rounds by epochs."""
        if self.due(trainer.current_epoch, steps=False):
            self._round(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step, to see whether this batch makes one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Rounds by steps, never while gradients of several batches are being summed up."""
        if trainer.global_step > self._step_before and self.due(trainer.global_step, steps=True):
            self._round(trainer, pl_module, trainer.global_step)

    # -- what

    def _part(self, pl_module: LightningModule) -> nn.Module:
        try:
            return pl_module.get_submodule(self.network)
        except AttributeError:
            names = [name for name, _ in pl_module.named_modules() if name]
            raise UnknownName.among(f"part of {type(pl_module).__name__}", self.network, names) from None

    def _round(self, trainer: Trainer, pl_module: LightningModule, at: int) -> None:
        if self.example_inputs is None and not self.network:
            self.example_inputs = pl_module.example_input_array
        found = self.take_round(self._part(pl_module), trainer.optimizers, trainer.train_dataloader, None, at)
        if found is not None:
            for logger in trainer.loggers:
                logger.log_metrics(found.figures(), step=trainer.global_step)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The rounds taken, and what they removed."""
        return self.pruning_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the rounds of the checkpoint."""
        self.restore(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the small network beside the checkpoint."""
        callback = trainer.checkpoint_callback
        folder = getattr(callback, "dirpath", None) or trainer.default_root_dir
        if "://" in str(folder):
            warnings.warn(
                f"checkpoints go to {folder}, which isn't a folder of this machine, so that small-{self.rounds}.prunus isn't "
                "written beside them: save the network with prunus.save(network, callback.record, PATH)",
                PrunusWarning,
                stacklevel=2,
            )
            return
        self.save_beside(self._part(pl_module), Path(folder), f"small-{self.rounds}.prunus")
