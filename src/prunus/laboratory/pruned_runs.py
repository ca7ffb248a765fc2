"""What a finished `prunus run` left, as the start of a laboratory: its recipe, the trained and the pruned network, costs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.config import Recipe, parse_recipe
from prunus.errors import ArtifactError, RecipeError
from prunus.pipeline.stages import read_json


@dataclass(frozen=True, eq=False)
class PrunedRun:
    """A run's folder. ``result`` is its ``result.json``; ``base`` and ``pruned`` are files that `prunus.load` reads: the network
    as it was trained, and right after its last channels were removed, before any recovery from that."""

    folder: Path
    recipe: Recipe
    result: dict[str, Any]
    pruned: Path

    @classmethod
    def read(cls, folder: Path) -> PrunedRun:
        """Raises `ArtifactError` where the folder isn't that of a finished run, or its files are damaged."""
        names = [folder / "result.json", folder / "recipe.json", folder / "stages" / "base.prunus"]
        rounds = sorted((folder / "stages").glob("round-*-prune.prunus"), key=lambda file: (len(file.name), file.name))
        missing = [str(name.relative_to(folder)) for name in names if not name.is_file()]
        if missing or not rounds:
            told = ", ".join(missing) or "the pruned network (stages/round-1-prune.prunus)"
            raise ArtifactError(
                f"{folder} isn't the folder of a finished run: {told} isn't there. Make one with "
                f"`prunus run RECIPE --out {folder}`"
            )
        recipe = parse_recipe(read_json(names[1]), str(names[1]))
        found = cls(folder, recipe, read_json(names[0]), rounds[-1])
        try:
            whole = 0 < found.channels <= 1 and {"before", "after"} <= found.result["networks"].keys()
            whole = whole and len(found.input_shape) == 3 and len(found.classes) > 0
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
            whole = False
        if not whole:
            raise ArtifactError(
                f"{names[0]} isn't the result of a run: make it anew with `prunus run RECIPE --out {folder} --resume`"
            )
        return found

    @property
    def base(self) -> Path:
        """The network before pruning."""
        return self.folder / "stages" / "base.prunus"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        channels, height, width = self.result["data"]["input_shape"]
        return channels, height, width

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""
        return tuple(self.result["data"]["classes"])

    @property
    def digest(self) -> str:
        """Of the pruned network's file: results belong to it, not to whatever the folder holds later."""
        return hashlib.sha256(self.pruned.read_bytes()).hexdigest()[:12]

    @property
    def channels(self) -> float:
        """Share of the channels left, in all groups that could be pruned."""
        groups = [group for group in self.result["groups"] if group["frozen_because"] is None]
        return sum(group["after"] for group in groups) / sum(group["before"] for group in groups)

    @property
    def criterion(self) -> str:
        """What decided which channels went."""
        return self.recipe.prune.criterion if self.recipe.sparsity is None else self.recipe.sparsity.method

    def epochs(self, asked: int | None) -> int:
        """Epochs that the full network was trained for: ``asked``, or as many as the run itself trained it.

        Raises:
            RecipeError: nobody knows, since the run took trained weights from a file.
        """
        if asked is not None:
            return asked
        stages = [self.folder / "stages" / "train.json", *(self.folder / "stages").glob("round-*-sparsity.json")]
        trained = sum(len(read_json(stage)["epochs"]) for stage in stages)
        if self.recipe.model.weights is not None or trained == 0:
            raise RecipeError(
                f"{self.folder} took its network's weights from elsewhere ({self.recipe.model.weights or 'random ones'}), "
                "so that nothing says how long training from scratch would have to be: say it with rethinking.epochs"
            )
        return trained
