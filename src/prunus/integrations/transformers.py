"""A callback for the Trainer of Hugging Face transformers that prunes while `Trainer.train` goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from prunus.budgets import Budget
from prunus.errors import UnsupportedNetwork
from prunus.integrations.pruner import TrainingPruner
from prunus.types import call_model

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.utils.generic import find_labels
except ImportError as error:
    raise ImportError(
        "prunus.integrations.transformers needs the package transformers, which isn't installed: install prunus[transformers]"
    ) from error

ARTIFACT = "small.prunus"
_KEY = "prunus"


class PruningCallback(TrainingPruner, TrainerCallback):
    """Prunes the network that ``trainer`` trains, towards a budget, in one or several rounds: ``trainer.add_callback(...)``.

    The other arguments are those of `TrainingPruner`; without ``loss_fn``, criteria see the loss that the network returns. The
    model stays the object that it is; the optimizer goes along with its state, and the learning-rate schedule goes on. Costs
    before and after go to whatever the trainer reports to. In every checkpoint's folder lies ``small.prunus``. To resume, build
    the trainer around the small network:

        model = prunus.load("out/checkpoint-40/small.prunus", full_size_model)
        trainer = Trainer(model, ...)
        trainer.add_callback(PruningCallback(trainer, ...))  # as it was
        trainer.train(resume_from_checkpoint="out/checkpoint-40")

    Raises, when training starts:
        UnsupportedNetwork: several processes or devices, a compiled model, or ``load_best_model_at_end``, which may be a
            checkpoint from before a round.
    """

    def __init__(self, trainer: Trainer, budget: Budget, **settings: Any) -> None:
        settings = {"forward_fn": call_model, "loss_fn": _own_loss, **settings}
        TrainingPruner.__init__(self, budget, **settings)
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what can't be pruned while it trains; go on behind the rounds of a checkpoint."""
        problem = _problem(args)
        if problem is not None:
            raise UnsupportedNetwork(f"PruningCallback can't prune {problem}")
        saved = _kept_by(state).get(_KEY)
        if saved is not None:
            self.restore(saved)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Rounds by epochs."""
        epoch = int((state.epoch or 0) + 1e-6)
        if self.due(epoch, steps=False):
            self._round(args, state, epoch, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Rounds by optimizer steps."""
        if self.due(state.global_step, steps=True):
            self._round(args, state, state.global_step, kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the small network into the checkpoint's folder."""
        folder = Path(cast("str", args.output_dir)) / f"checkpoint-{state.global_step}"
        self.save_beside(cast("nn.Module", self.trainer.model), folder, ARTIFACT)

    def first_inputs(self, batch: Any) -> Any:
        """Example inputs from a batch, a dict: its first two examples, without labels."""
        labels = self.trainer.args.label_names or find_labels(type(self.trainer.model))
        tensors = {name: value for name, value in batch.items() if name not in labels and isinstance(value, Tensor)}
        return super().first_inputs(tensors)

    def _round(self, args: TrainingArguments, state: TrainerState, at: int, held: Mapping[str, Any]) -> None:
        model = cast("nn.Module", self.trainer.model)
        found = self.take_round(model, [held["optimizer"]], held["train_dataloader"], args.train_batch_size, at)
        _kept_by(state)[_KEY] = self.pruning_state()  # goes into trainer_state.json of every checkpoint from now on
        if found is not None:
            self.trainer.log(found.figures())


def _kept_by(state: TrainerState) -> dict[str, Any]:
    """What callbacks keep in a trainer's state, by name; once it exists, a dict, whatever its annotation says."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _own_loss(output: Any, batch: Any) -> Tensor:
    """The loss that the network computes itself from the labels in its inputs."""
    return output["loss"] if isinstance(output, Mapping) else output[0]


def _problem(args: TrainingArguments) -> str | None:
    """Why this training can't be pruned, and what to do instead."""
    instead = "prune before training (prunus.prune) and train the result"
    if args.deepspeed or args.fsdp:
        name = "DeepSpeed" if args.deepspeed else "FSDP"
        return f"under {name}: the network's parameters are divided among processes. Train without it, or {instead}"
    if args.world_size > 1 or args.n_gpu > 1:
        name = "DistributedDataParallel" if args.world_size > 1 else "DataParallel"
        count = max(args.world_size, args.n_gpu)
        return f"under {name} on {count} devices, which hold copies of the network's parameters. Train on one, or {instead}"
    if args.torch_compile:
        return f"a compiled network, which was made for the old widths: set torch_compile=False, or {instead}"
    if args.load_best_model_at_end:
        return (
            "with load_best_model_at_end: the best checkpoint may be of a wider network than the one that is there at the end. "
            "Switch it off, and load the checkpoint that you want with prunus.load"
        )
    return None
