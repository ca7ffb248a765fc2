"""Training and evaluation on Hugging Face Accelerate: seeded, resumable to the same bits, quiet off a terminal."""

from prunus.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from prunus.training.evaluation import evaluate
from prunus.training.log import EpochLog, Evaluation, TrainingLog
from prunus.training.loop import train
from prunus.training.lr_range import LrRange, lr_range
from prunus.training.objective import MetricFn, Objective
from prunus.training.placement import memory_format
from prunus.training.speed import TrainingSpeed, fastest, measure_training_speed

__all__ = [
    "Checkpoint",
    "EpochLog",
    "Evaluation",
    "LrRange",
    "MetricFn",
    "Objective",
    "TrainingLog",
    "TrainingSpeed",
    "evaluate",
    "fastest",
    "load_checkpoint",
    "lr_range",
    "measure_training_speed",
    "memory_format",
    "save_checkpoint",
    "train",
]
