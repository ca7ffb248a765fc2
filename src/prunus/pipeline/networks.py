"""The networks of a run: built as the recipe says, and what the stages leave of them in files."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from prunus.config import Recipe
from prunus.graph.labels import named_tensors
from prunus.pipeline.stages import Stages
from prunus.sources import DataBundle, load_model, replace_head
from prunus.surgery import SurgeryRecord, load, save
from prunus.surgery.artifact import read_record


class Networks:
    """Builds the recipe's network, and reads and writes its trained and pruned versions by the name of a stage."""

    def __init__(self, recipe: Recipe, data: DataBundle, examples: Tensor) -> None:
        self.recipe, self.data, self.examples = recipe, data, examples
        self.head: str | None = None
        """Module name of the head that a recipe with ``[transfer]`` puts on; known as soon as a network was built."""

    def build(self, *, weights: bool = True) -> nn.Module:
        """The full network before any training; without ``weights`` random ones stay, where a file will replace them all."""
        settings, transfer, seed = self.recipe.model, self.recipe.transfer, self.recipe.seed
        model = load_model(
            settings.source,
            weights=settings.weights if weights else None,
            num_classes=self.data.num_classes if transfer is None else None,  # the weights are those of another task
            in_channels=self.data.input_shape[0],
            arguments=settings.arguments,
            seed=seed,
        )
        if transfer is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = replace_head(
                    model,
                    self.examples,
                    self.data.num_classes,
                    kind=transfer.head,
                    hidden=transfer.hidden,
                    dropout=transfer.dropout,
                )
        return model

    def load(self, stages: Stages, stage: str) -> tuple[nn.Module, SurgeryRecord]:
        """What ``stage`` left."""
        return load(stages.file(f"{stage}.prunus"), self.build(weights=False)), self.record(stages, stage)

    def record(self, stages: Stages, stage: str) -> SurgeryRecord:
        """The surgery that what ``stage`` left has been through, without building the network."""
        return read_record(stages.file(f"{stage}.prunus"))

    def save(self, stages: Stages, stage: str, model: nn.Module, record: SurgeryRecord) -> None:
        """Leave ``model`` for later stages; several processes must have the same. Raises `ProcessError` where they don't."""
        stages.processes.agree(f"the network that {stage} leaves", lambda: digest(model))
        stages.processes.by_main(lambda: save(model, record, stages.file(f"{stage}.prunus")))


def digest(model: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names and shapes."""
    found = hashlib.sha256()
    for name, tensor in named_tensors(model):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
