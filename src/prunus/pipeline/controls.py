"""Scratch controls: is it the pruned weights, the architecture, or only the additional training? (Liu et al. 2019)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from prunus.config import OptimizerConfig, Recipe
from prunus.pipeline.trainer import Trainer
from prunus.tickets.scratch import reinitialise, scratch_epochs

CONTROLS = {
    "scratch-e": "the pruned architecture from random weights, as many epochs as training and recovery had",
    "scratch-b": "the pruned architecture from random weights, as much computation as training and recovery had",
    "longer": "the unpruned network, trained on for as many epochs as recovery had",
}
"""Rows that ``prunus run --controls`` adds."""
_PHASE = 700  # controls draw their images in orders of their own


class Controls:
    """Trains what a pruned network must be better than; ``small`` and ``full`` give new copies of both networks."""

    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        small: Callable[[], nn.Module],
        full: Callable[[], nn.Module],
        macs: tuple[int, int],
        rounds: int,
    ) -> None:
        self.recipe, self.trainer, self.small, self.full, self.macs = recipe, trainer, small, full, macs
        own = recipe.recover
        phases = rounds * sum(rung in own.rungs for rung in ("fine-tune", "distill"))
        self.recovery = trainer.epochs(own, phases) + own.final_epochs
        sparse = 0 if recipe.sparsity is None else trainer.epochs(recipe.sparsity, rounds)
        self.trained = trainer.epochs(recipe.train) + sparse

    def run(self, name: str) -> dict[str, Any]:
        """Train one of `CONTROLS` and judge it on the test images; its row of the result."""
        epochs = self.epochs(name)
        model = self.full() if name == "longer" else self.small()
        settings: OptimizerConfig = self.recipe.recover
        if name != "longer":
            reinitialise(model, self.recipe.seed)
            settings = from_scratch(self.recipe, self.trainer)
        plain = {"epochs": epochs, "steps": None, "schedule": "cosine"}
        place = list(CONTROLS).index(name)
        log = self.trainer.fit(model, settings.model_copy(update=plain), f"control-{name}", _PHASE + place)
        full, small = self.macs
        return {
            "row": name,
            "what": CONTROLS[name],
            "trained_epochs": epochs,
            "macs": full if name == "longer" else small,
            "judged": self.trainer.evaluate(model, name),
            "curve": log,
            "notes": self._notes(name),
        }

    def epochs(self, name: str) -> int:
        """How long it is trained: F3 of the literature with the recipe's own training in the place of the paper's.

        Computation is multiply-adds of training; recovery trained the small network already, so that its epochs count once.
        """
        if name == "longer":
            return self.recovery
        ratio = max(self.macs[0] / self.macs[1], 1.0)
        return self.recovery + (self.trained if name == "scratch-e" else scratch_epochs(self.trained, ratio))

    def _notes(self, name: str) -> list[str]:
        if name == "longer" or self.recipe.model.weights is None:
            return []
        return [
            f"{name}: the full network's weights were trained elsewhere, for longer than this recipe knows, so that this row "
            "has fewer epochs than the comparison asks for"
        ]


def from_scratch(recipe: Recipe, trainer: Trainer) -> OptimizerConfig:
    """What random weights are trained with: ``train``, or ``recover`` where the full network came trained."""
    chosen = recipe.train if trainer.epochs(recipe.train) and not recipe.model.weights else None
    settings = OptimizerConfig.model_validate(
        {field: getattr(chosen or recipe.recover, field) for field in OptimizerConfig.model_fields}
    )
    return settings.model_copy(update={"freeze_batch_norm": False, "first_layer_lr": 1.0})
