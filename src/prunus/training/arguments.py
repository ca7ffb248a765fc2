"""What of `train`'s arguments can't go together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training_hooks import SparsityMethod


def check_arguments(
    settings: OptimizerConfig,
    checkpoint: Path | None,
    checkpoint_steps: int | None,
    resume: bool,
    evaluation_loader: Iterable[Any] | None,
    method: SparsityMethod | None,
    accumulation_steps: int,
) -> None:
    """Raise `TrainingError` before anything is trained."""
    if resume and checkpoint is None:
        raise TrainingError("resume needs the path of a checkpoint: give checkpoint=PATH")
    if checkpoint_steps is not None and (checkpoint is None or checkpoint_steps < 1):
        raise TrainingError(f"checkpoint_steps = {checkpoint_steps} needs checkpoint=PATH and a number of steps above zero")
    if evaluation_loader is None and (settings.patience is not None or settings.keep == "best"):
        raise TrainingError('patience and keep = "best" judge epochs by validation images: give an evaluation_loader')
    if accumulation_steps < 1:
        raise TrainingError(f"accumulation_steps = {accumulation_steps} is a number of parts of a batch, at least 1")
    if settings.ema and method is not None:
        raise TrainingError(
            "a moving average of the weights (ema) has none of the zeros that a sparsity method makes: set ema = 0"
        )
    if settings.keep == "best" and method is not None:
        raise TrainingError(
            'keep = "best" would put weights of an earlier epoch beside what the sparsity method has decided since: '
            'set keep = "last"'
        )
