"""The training loop: every step, every epoch, on whatever device and processes Accelerate finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from prunus.config import OptimizerConfig
from prunus.errors import ArtifactError, TrainingError
from prunus.stopping import Terminated, held_back, stop_asked
from prunus.training.arguments import check_arguments
from prunus.training.averaging import Average
from prunus.training.best import Best
from prunus.training.checkpoint import Checkpoint, load_newest, save_checkpoint, usable_path
from prunus.training.evaluation import run_evaluation
from prunus.training.log import EpochLog, TrainingLog
from prunus.training.losses import EpochLosses
from prunus.training.objective import MetricFn, Objective, batch_size
from prunus.training.optimizers import build_optimizer, learning_rate, total_steps, warmup_steps
from prunus.training.placement import (
    MixedPrecision,
    common_order,
    count_batches,
    frozen_batch_norm,
    is_sharded,
    placed,
    share_batches,
    share_buffers,
    start_accelerator,
    train_mode,
)
from prunus.training.progress import Report, progress_bar
from prunus.training.randomness import (
    SeededBatches,
    network_stream,
    order_of_one,
    restore_network_stream,
    restored_generators,
    seed_epoch,
)
from prunus.training.sparse_gradients import SparseGradients
from prunus.training.sparsity_log import describe
from prunus.training.step import Forward, add_gradients
from prunus.training.workers import worker_failures
from prunus.training_hooks import SparsityMethod
from prunus.types import ForwardFn, LossFn
from prunus.wrapping import refuse_wrapped


def train(
    model: nn.Module,
    loader: Iterable[Any],
    settings: OptimizerConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    evaluation_loader: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    metric: MetricFn | None = None,
    forward_fn: ForwardFn | None = None,
    method: SparsityMethod | None = None,
    description: str = "train",
    on_epoch: Callable[[EpochLog], None] | None = None,
    mixed_precision: MixedPrecision = "auto",
    channels_last: bool = False,
    accumulation_steps: int = 1,
) -> TrainingLog:
    """Train ``model`` in place and say how every epoch went; mode, device and random state are left as found, gradients cleared.

    The same seed gives the same weights, bit for bit, on a CPU with the same number of threads (a GPU needs
    `torch.use_deterministic_algorithms` besides): all generators are seeded anew from (seed, epoch). Therefore ``checkpoint``,
    written after every epoch and every ``checkpoint_steps`` steps of it, suffices for ``resume`` to continue a killed run to the
    very same weights (within an epoch its batches up to there are fetched again, but not trained on, unless the loader tells its
    place and can take it up, as torchdata's StatefulDataLoader does: then it is part of the checkpoint); where the file doesn't
    exist yet, the run starts from the beginning. Callables are the caller's to keep the same.

    A batch is ``(inputs, targets)``; ``loss_fn(output, batch)`` is a mean over it (default: cross entropy, auxiliary outputs
    at 0.3 each), ``metric(output, batch)`` has one value per example. ``method``, which has prepared ``model`` already, adds its
    penalty and hooks as `SparsityMethod` says. ``on_epoch`` is called in the main process after every epoch, when its
    checkpoint is on the disk. A part of the network whose parameters are all frozen (``requires_grad`` is False) runs as in
    evaluation: its batch norm keeps its statistics and its dropout is off. ``channels_last`` is the memory format of the weights,
    and so of what convolutions compute, while it trains. Mixed precision is used on GPUs; evaluation is always in the network's
    own precision. With ``accumulation_steps`` a step's batch goes through the network in so many parts, whose gradients are
    summed up: the same step in less memory (see `add_gradients`).

    With ``settings.ema`` the network is evaluated with, and in the end has, the moving average of its weights. With
    ``settings.patience`` training stops early, and with ``settings.keep = "best"`` the network gets the weights of its best
    epoch; both judge by the accuracy on ``evaluation_loader``, which should be validation images: never those of the final test.

    Raises:
        TrainingError: non-finite loss, a loader that yields nothing or has no length, a checkpoint of another run.
        UnsupportedNetwork: the model is wrapped or divided (DDP, FSDP): training wraps it itself.
        ArtifactError: a checkpoint that can't be read or written.
        Terminated: SIGTERM came (see `prunus.stopping`); the state behind the last step is in the checkpoint.
    """
    refuse_wrapped(model)
    check_arguments(settings, checkpoint, checkpoint_steps, resume, evaluation_loader, method, accumulation_steps)
    objective = Objective(loss_fn, metric, forward_fn, settings.label_smoothing)
    if settings.epochs == 0 and settings.steps is None:
        return TrainingLog((), seed, note=f"{description}: epochs = 0, nothing was trained")
    if checkpoint is not None:
        checkpoint = usable_path(checkpoint)
    with worker_failures(description), restored_generators():
        run = _Run(model, loader, settings, seed, objective, method, mixed_precision, checkpoint_steps, accumulation_steps)
        frozen = frozen_batch_norm(model, settings.freeze_batch_norm)
        with placed(model, run.accelerator.device, channels_last), frozen, run.gradients:
            try:
                return run.execute(checkpoint, resume, evaluation_loader, on_epoch, description)
            finally:
                model.zero_grad(set_to_none=True)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        settings: OptimizerConfig,
        seed: int,
        objective: Objective,
        method: SparsityMethod | None,
        mixed_precision: MixedPrecision,
        checkpoint_steps: int | None,
        parts: int,
    ) -> None:
        self.model, self.loader, self.settings, self.seed = model, loader, settings, seed
        self.objective, self.method, self.checkpoint_steps, self.parts = objective, method, checkpoint_steps, parts
        self.gradients = SparseGradients(model, settings.sparse_gradients)
        self.accelerator = start_accelerator(mixed_precision)
        if self.accelerator.num_processes > 1 and not is_sharded(self.accelerator, loader):
            raise TrainingError("training in several processes needs a DataLoader with a sized data set, to divide it among them")
        steps = count_batches(share_batches(self.accelerator, loader, even=True))
        if steps is None:
            raise TrainingError("the training loader has no len(): the cosine needs to know how many batches an epoch has")
        if steps == 0:
            raise TrainingError("the training loader yields nothing: is the data set empty, or smaller than one batch?")
        self.steps_per_epoch = steps
        self.steps = total_steps(settings, steps)
        self.num_epochs = -(-self.steps // steps)  # the last may be a part of one
        self.epochs: tuple[EpochLog, ...] = ()
        self.checkpoint: Path | None = None
        self.average: Average | None = None
        self.best = Best()
        self.within: dict[str, Any] | None = None  # where in an unfinished epoch a checkpoint was made
        self.saved = ""  # what the checkpoint holds

    def execute(
        self,
        checkpoint: Path | None,
        resume: bool,
        evaluation_loader: Iterable[Any] | None,
        on_epoch: Callable[[EpochLog], None] | None,
        description: str,
    ) -> TrainingLog:
        """All epochs that are left."""
        self.model.zero_grad(set_to_none=True)  # somebody else's gradients must not enter the first step
        options = None if self.method is None else self.method.parameter_options()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.accelerator.prepare_optimizer(build_optimizer(self.model, self.settings, options))
        self.forward: nn.Module = self.accelerator.prepare_model(Forward(self.model, self.objective))
        self.checkpoint = checkpoint
        self.average = Average(self.model, self.settings.ema) if self.settings.ema else None
        if self.method is not None:
            self.method.begin(self.steps, self.steps_per_epoch)
        finished, note = self._restore(checkpoint) if resume and checkpoint is not None else (None, "")
        main = self.accelerator.is_main_process
        with progress_bar(description, self.steps, enabled=main) as report:
            for epoch in range(len(self.epochs), self.num_epochs):
                if self.settings.patience is not None and self.best.epochs_since(epoch) >= self.settings.patience:
                    note = f"{note}; " * bool(note) + f"stopped early after epoch {epoch} of {self.num_epochs}"
                    break
                what = f"{description} {epoch + 1}/{self.num_epochs}"
                log = self._epoch(epoch, what, report)
                share_buffers(self.accelerator, self.model)
                if evaluation_loader is not None:
                    log = replace(log, accuracy=self._evaluate(evaluation_loader, f"{what}, evaluation", epoch + 1))
                if self.method is not None:
                    self.method.end_epoch(log.loss)
                    log = replace(log, sparsity=describe(self.method.progress()))
                self.epochs = (*self.epochs, log)
                self._save(f"epoch {len(self.epochs)}")
                if on_epoch is not None and main:
                    on_epoch(log)
                if stop_asked():
                    raise Terminated
        if self.average is not None:
            self.average.into_model()
        if self.settings.keep == "best":
            self.best.into_model(self.model)
        return TrainingLog(self.epochs, self.seed, finished, note, best_kept=self.settings.keep == "best")

    def _evaluate(self, loader: Iterable[Any], what: str, epoch: int) -> float:
        """The accuracy of the weights that would be kept now, which are remembered if they are the best."""
        if self.average is not None:
            self.average.share(self.accelerator)
        with self.average.swapped_in() if self.average is not None else nullcontext():
            found = run_evaluation(self.accelerator, self.model, loader, self.objective, what, show=False).accuracy
            self.best.offer(found, epoch, self.model if self.settings.keep == "best" else None)
        return found

    def _epoch(self, epoch: int, what: str, report: Report) -> EpochLog:
        train_mode(self.model, self.settings.freeze_batch_norm)
        # Batches first: with several processes a sampler gets its generator here, and that must be seeded, too. Made anew
        # for every epoch, so that worker processes carry no random state over from the last one.
        batches = share_batches(self.accelerator, self.loader, even=True)
        seed_epoch(self.seed, epoch, self.loader, self.accelerator.process_index)
        if (common := common_order(self.loader)) is not None:
            common.manual_seed(order_of_one(self.seed, epoch))
        self.gradients.start_epoch(self.seed, epoch, self.accelerator.process_index)
        set_epoch = getattr(batches if is_sharded(self.accelerator, self.loader) else self.loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        losses, lr, before = EpochLosses(self.accelerator), 0.0, 0.0
        first, within = epoch * self.steps_per_epoch, self.within
        if within is not None:
            losses.resume(within["losses"])
            lr, before = within["lr"], within["seconds"]
        own = None if within is None else within["processes"][self.accelerator.process_index]
        place = None if own is None else own.get("data")
        drawn = SeededBatches(batches, self.seed, epoch, self.accelerator.process_index, skip=losses.steps, state=place)
        if own is not None:
            restore_network_stream(own["stream"])
            self.gradients.move_to(own["gradients"])
            self.within = None
        start = time.perf_counter() - before
        # A request to stop waits for the end of a step, except where other processes are in the middle of theirs.
        with held_back(self.accelerator.num_processes == 1):
            for batch in islice(drawn, self.steps - first - losses.steps):
                lr = self._set_learning_rate(first + losses.steps)
                if self.method is not None:
                    self.method.before_step(first + losses.steps, lr)
                if losses.add(self._step(batch), batch_size(batch)):
                    self._check(losses, epoch)
                    report(what, first + losses.steps, losses.mean)
                stop = stop_asked()
                self._save_within(epoch, losses, lr, start, stop, drawn)
                if stop and losses.steps < self.steps_per_epoch:
                    raise Terminated
        losses.read()
        self._check(losses, epoch)
        if losses.count == 0:
            raise TrainingError(f"{what}: the training loader yields nothing, though its length is {self.steps_per_epoch}")
        seconds = time.perf_counter() - start
        sparse = self.gradients.report()
        return EpochLog(epoch + 1, losses.mean, lr, seconds, losses.count / seconds, sparse_gradients=sparse)

    def _set_learning_rate(self, step: int) -> float:
        warmup = warmup_steps(self.settings, self.steps_per_epoch)
        lr = learning_rate(step, self.steps, warmup, self.settings.lr, self.settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def _step(self, batch: Any) -> Tensor:
        """Forward, backward, update; returns the loss without waiting for it."""
        loss = add_gradients(
            self.accelerator,
            self.forward,
            self.objective,
            batch,
            mixup=self.settings.mixup,
            parts=self.parts,
            penalty=None if self.method is None else self.method.penalty,
        )
        clip = self.settings.clip_norm
        if self.accelerator.scaler is not None and (self.method is not None or clip is not None):
            self.accelerator.unscale_gradients(self.optimizer)
        if self.method is not None:
            self.method.after_backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if self.method is not None and not cast("Any", self.optimizer).step_was_skipped:
            self.method.after_step()
        if self.average is not None:
            self.average.update()
        return loss

    def _check(self, losses: EpochLosses, epoch: int) -> None:
        """Stop at a loss that isn't finite."""
        if losses.non_finite is None:
            return
        step, loss = losses.non_finite
        kept = "no checkpoint was written"
        if self.saved:
            kept = f"the last good checkpoint is {self.checkpoint} ({self.saved})"
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch + 1} of {self.num_epochs}, step {step + 1} of {self.steps_per_epoch}; "
            f"{kept}. Lower lr (now {self.settings.lr}), lengthen warmup_epochs, set clip_norm, or look for nan in the data"
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        state: dict[str, Any] = self.model.state_dict()
        return {
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": getattr(self.loader, "batch_size", None),
            "processes": self.accelerator.num_processes,
            **({} if self.parts == 1 else {"accumulation_steps": self.parts}),
            "mixed_precision": str(self.accelerator.mixed_precision),
            "sparsity_method": None if self.method is None else type(self.method).__name__,
            "parameter": {name: f"{list(t.shape)} {t.dtype}" for name, t in state.items() if isinstance(t, Tensor)},
        }

    def _save_within(self, epoch: int, losses: EpochLosses, lr: float, start: float, stop: bool, drawn: SeededBatches) -> None:
        """A checkpoint in the middle of an epoch, where one is due or the run is to ``stop``."""
        done = losses.steps
        due = stop or (self.checkpoint_steps is not None and done % self.checkpoint_steps == 0)
        if self.checkpoint is None or not due or done == self.steps_per_epoch:
            return
        losses.read()
        self._check(losses, epoch)
        share_buffers(self.accelerator, self.model)
        own = {"stream": network_stream(), "gradients": self.gradients.position(), "data": drawn.state()}
        processes = gather_object([own])
        within = {"losses": losses.state(), "lr": lr, "seconds": time.perf_counter() - start, "processes": processes}
        self._save(f"epoch {epoch + 1}, step {done}", within)

    def _save(self, what: str, within: dict[str, Any] | None = None) -> None:
        if self.checkpoint is not None:
            self.saved = what
            gradients = gather_object([self.gradients.state_dict()])  # every process has thresholds of its own
            if self.accelerator.is_main_process:
                state = {**self._state(), "gradients": gradients, "within": within}
                save_checkpoint(self.checkpoint, Checkpoint(self.epochs, self._identity(), state))
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsity": None if self.method is None else self.method.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best.state_dict(),
        }

    def _restore(self, path: Path) -> tuple[int | None, str]:
        stored = load_newest(path, self._identity())
        if stored is None:
            return None, f"there was no checkpoint at {path} yet: started from the beginning"
        try:
            return self._take_up(stored, path)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArtifactError(f"the checkpoint {path} holds a state that is none of this run's: {error}") from error

    def _take_up(self, stored: Checkpoint, path: Path) -> tuple[int, str]:
        self.model.load_state_dict(stored.state["model"])
        self.optimizer.load_state_dict(stored.state["optimizer"])
        self.gradients.load_state_dict(stored.state["gradients"][self.accelerator.process_index])
        if self.method is not None:
            self.method.load_state_dict(stored.state["sparsity"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(stored.state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(stored.state["average"])
        self.best.load_state_dict(stored.state["best"])
        self.epochs, self.within = stored.epochs, stored.state["within"]
        done = len(self.epochs)
        self.saved = f"epoch {done}" if self.within is None else f"epoch {done + 1}, step {self.within['losses']['steps']}"
        left = "all epochs were done" if done == self.num_epochs else f"continued with epoch {done + 1}"
        if self.within is not None:
            left += f" behind its step {self.within['losses']['steps']}"
        return done, f"resumed after epoch {done} of {self.num_epochs} from {path}: {left}"
