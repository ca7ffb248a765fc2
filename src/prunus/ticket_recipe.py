"""The recipe of a laboratory of lottery tickets: networks, and what is asked of them. Lists are grids: all combinations run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunus.errors import RecipeError
from prunus.recipe_text import override, read_toml


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TicketNetwork(_Section):
    """A network, its images and how it is trained."""

    model: str = Field(
        description="mlp:300-100 (hidden widths), conv:16-32-32 (3x3 convolutions with batch norm, pooled after the first two), "
        "or what a recipe's model.source may be: cifar:resnet20, timm:NAME, path/to/file.py:function"
    )
    data: str = Field("digits", description="what a recipe's data.source may be; all images are held in memory")
    image_size: int | None = Field(None, ge=1, description="pixels; none: as stored")
    train_limit: int | None = Field(None, ge=1, description="use only so many training images, classes as equal as can be")
    epochs: int = Field(20, ge=1, description="passes over the training images")
    batch_size: int = Field(60, ge=1, description="images per step")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam (decay apart from its gradients), or sgd with momentum")
    lr: float = Field(1.2e-3, gt=0, description="learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="on weights of two or more dimensions")
    schedule: Literal["constant", "steps"] = Field("constant", description="steps: a tenth after 50 %, a hundredth after 75 %")
    exclude: tuple[str, ...] = Field((), description="weights, or globs, that are never masked")


class LotteryConfig(_Section):
    """Train, prune, rewind: tickets and their controls at every sparsity (Frankle and Carbin 2019)."""

    networks: tuple[str, ...] = Field(description="names of networks")
    rounds: int = Field(8, ge=1, description="levels of sparsity; more can be added to a finished laboratory")
    rates: float | dict[str, float] = Field(0.2, description="share of the weights left that a round prunes, or by glob")
    scopes: tuple[Literal["layer", "global"], ...] = Field(("layer",), description="magnitudes are ranked by layer or globally")
    schedules: tuple[Literal["iterative", "one-shot"], ...] = Field(
        ("iterative",), description="iterative: train anew for every round; one-shot: all levels from one training"
    )
    rewind_steps: tuple[int, ...] = Field((0,), description="training steps whose weights tickets are rewound to; 0: the start")
    controls: tuple[Literal["reinit", "reshuffled", "random_mask"], ...] = Field(
        ("reinit", "reshuffled", "random_mask"), description="what is trained beside the ticket"
    )
    early: float = Field(0.1, gt=0, le=1, description="share of the training steps after which early accuracy is taken")


class DeconstructionConfig(_Section):
    """Which weights stay, what they start from, and what becomes of the others (Zhou et al. 2019)."""

    networks: tuple[str, ...] = Field(description="names of networks")
    kept: tuple[float, ...] = Field((0.2,), description="shares of every layer's weights that stay")
    schedules: tuple[Literal["one-shot", "iterative"], ...] = Field(
        ("one-shot",),
        description="masks made at once from one training, or in rounds, each from a training of what is left, rewound",
    )
    rate: float = Field(0.2, gt=0, lt=1, description="iterative: share of the weights left that a round prunes, about")
    criteria: tuple[str, ...] | Literal["all"] = Field("all", description="mask criteria; the kept weights rewind, others are 0")
    kept_actions: tuple[str, ...] | Literal["all"] = Field("all", description="starts of the kept weights, masks of large_final")
    pruned_actions: tuple[str, ...] | Literal["all"] = Field("all", description="what pruned weights are, masks of large_final")


class SupermaskConfig(_Section):
    """Masks trained on weights that stay as drawn (Zhou et al. 2019)."""

    networks: tuple[str, ...] = Field(description="names of networks")
    rescale: tuple[bool, ...] = Field((False, True), description="weights divided by the share that is there")
    signed_constant: tuple[bool, ...] = Field((False, True), description="weights are plus or minus one constant per layer")
    epochs: int = Field(200, ge=1, description="passes over the training images")
    batch_size: int = Field(250, ge=1, description="images per step")
    lr: float = Field(100.0, gt=0, description="of the logits; sgd with momentum 0.9")
    samples: int = Field(10, ge=1, description="networks drawn for the accuracy of sampled masks")


class RethinkingConfig(_Section):
    """A network without half its channels: fine-tuned or trained from scratch (Liu et al. 2019)."""

    networks: tuple[str, ...] = Field((), description="names of networks, which are trained and pruned here")
    runs: tuple[str, ...] = Field(
        (), description="folders of finished runs (`prunus run`), whose pruned networks are trained as their recipes say"
    )
    epochs: int | None = Field(
        None, ge=1, description="runs: epochs that the full network was trained for, where its weights came from elsewhere"
    )
    channels: float = Field(0.5, gt=0, lt=1, description="share of every group's channels that stays")
    criterion: str = Field("l1", description="what ranks the channels: a name from `prunus criteria` that needs no data")
    lrs: tuple[float, ...] = Field(
        (0.01, 0.05, 0.1),
        description="learning rates of the whole experiment, in place of the network's; of runs: of what follows pruning",
    )
    fine_tune_epochs: int = Field(10, ge=1, description="epochs of fine-tuning")
    fine_tune_lr: float = Field(0.01, gt=0, description="its learning rate, as a share of training's")

    @model_validator(mode="after")
    def _check(self) -> RethinkingConfig:
        if not self.networks and not self.runs:
            raise ValueError("nothing to rethink: name networks, or runs (folders of finished runs)")
        return self


class TicketRecipe(_Section):
    """A whole laboratory."""

    name: str = Field("tickets", pattern=r"^[\w.-]+$", description="name, in the page's header")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="everything is repeated for each")
    networks: dict[str, TicketNetwork] = Field(default_factory=dict[str, TicketNetwork], description="networks by name")
    lottery: LotteryConfig | None = None
    deconstruction: DeconstructionConfig | None = None
    supermasks: SupermaskConfig | None = None
    rethinking: RethinkingConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> TicketRecipe:
        sections = (self.lottery, self.deconstruction, self.supermasks, self.rethinking)
        if not any(sections):
            raise ValueError("nothing to do: add a section lottery, deconstruction, supermasks or rethinking")
        for section in sections:
            for name in section.networks if section is not None else ():
                if name not in self.networks:
                    known = ", ".join(self.networks) or "none"
                    raise ValueError(f"unknown network {name!r}: known are {known}")
        return self


def load_ticket_recipe(path: Path | str, overrides: Sequence[str] = ()) -> TicketRecipe:
    """Read a recipe of a laboratory of tickets; ``overrides``: ``section.field=value`` strings, e.g. ``lottery.rounds=4``.

    Raises:
        RecipeError: the file is missing or isn't TOML, a field is unknown or has a wrong value. The message names the field.
    """
    tree = read_toml(Path(path))
    for item in overrides:
        override(tree, item)
    return parse_ticket_recipe(tree, str(path))


def parse_ticket_recipe(tree: dict[str, Any], where: str = "recipe") -> TicketRecipe:
    """Check a nested dict against the schema; see `load_ticket_recipe`."""
    try:
        return TicketRecipe.model_validate(tree)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise RecipeError(f"{where}: {'; '.join(told)}") from None
