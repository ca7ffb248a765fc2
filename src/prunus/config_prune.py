"""The section of a recipe that says what to remove, and how latency is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prunus.budgets import TARGETS, Budget, Timing
from prunus.errors import InvalidBudget


class Section(BaseModel):
    """What all sections share: unknown fields are refused, values are checked and fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TimingConfig(Section):
    """How latency is measured where the budget asks for it."""

    threads: int = Field(1, ge=1, description="CPU threads")
    batch: int = Field(1, ge=1, description="images per pass")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of eager and compile")
    channels_last: bool = Field(False, description="memory format of eager and compile")


class PruneConfig(Section):
    """What to remove."""

    budget: dict[str, float | int | str] = Field(
        default_factory=lambda: {"macs": 0.5},
        description="macs, parameters, channels, activation_bytes, file_size, latency (measured, one round): a float in (0, 1] "
        'is the kept fraction, else absolute ("8ms")',
    )
    criterion: str = Field("taylor", description="a name that `prunus criteria` lists")
    criterion_options: dict[str, Any] = Field(default_factory=dict, description="options of the criterion")
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = Field("eager", description="what latency is measured on")
    timing: TimingConfig = Field(default=TimingConfig(), description="how it is measured")  # pyright: ignore[reportCallIssue]
    allocator: str = Field(
        "auto",
        description="uniform, global, global_per_cost, knapsack, per_layer, thresholds, mean_minus_deviations, sensitivity, "
        "netadapt or search; auto: what measured best for such scores",
    )
    allocator_options: dict[str, Any] = Field(
        default_factory=dict, description='options of the allocator, e.g. { ratios = { "layer1.*" = 1.0, "layer4.*" = 2.0 } }'
    )
    rounds: int = Field(1, ge=1, description="iterative pruning: so many rounds of prune + fine-tune")
    pace: Literal["geometric", "linear", "cubic"] = Field(
        "geometric",
        description="iterative pruning: every round removes the same share of what is left (geometric), the same amount "
        "(linear), or most in the first rounds (cubic)",
    )
    channels_per_round: int | None = Field(
        None, ge=1, description="iterative pruning: remove so many channels a round, for as many rounds as the budget needs"
    )
    momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="iterative pruning: share of the earlier rounds' scores in a channel's score (Molchanov 2019: 0.9); 0: none",
    )
    keep: tuple[str, ...] = Field((), description="module or parameter names, or globs, that are never pruned")
    mixing: Literal["allow", "freeze"] = Field("allow", description="groups whose statistics change with the width")
    whole_groups: bool = Field(False, description="grouped layers lose whole groups instead of the same slots of every group")
    select_inputs: bool = Field(
        False,
        description="pre-activation networks and DenseNets: each batch norm that reads a stream with other readers chooses its "
        "channels, and loses those of least importance; the stream keeps its width",
    )
    min_channels: int = Field(1, ge=0, description="channels that every group keeps at least; 0: a whole branch may go")
    multiple_of: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1,
        description="layer widths are multiples of this; auto: of what is measured to be fast on the runtime (the default "
        "for a budget on latency)",
    )
    max_pruning_ratio: float = Field(0.95, gt=0, le=1, description="largest share that any group loses")
    limits: dict[str, float | int] = Field(
        default_factory=dict,
        description="of single groups, by glob: a float is the largest share removed there, an integer the fewest channels that "
        'stay, e.g. { "layer1.*" = 0.3, conv1 = 16 }',
    )
    tolerance: float = Field(0.01, ge=0, lt=1, description="how far below the budget the plan may stay, as a share of it")
    batches: int = Field(8, ge=1, description="training batches that a data-driven criterion sees")
    trial_images: int | None = Field(
        1000,
        ge=1,
        description="images that allocators which try plans out (sensitivity, netadapt, search) judge them on, after BN "
        "recalibration as `recover` says: of the validation images, or of the training images where those are the test images; "
        "none: all",
    )
    augment: bool = Field(
        True,
        description="those batches are augmented like training's; off: plain images, which a trained network may know by heart",
    )

    @model_validator(mode="after")
    def _check_rounds(self) -> PruneConfig:
        if self.rounds > 1 and self.channels_per_round is not None:
            raise ValueError("rounds and channels_per_round exclude each other: the budget decides how many rounds there are")
        earlier = {"points", "result"} & self.allocator_options.keys()
        if earlier and (self.rounds > 1 or self.channels_per_round is not None):
            raise ValueError(
                f"allocator_options.{min(earlier)} is what was found on the unpruned network: it serves one round; leave it out, "
                "and plans are tried out in every round"
            )
        if self.momentum and self.rounds == 1 and self.channels_per_round is None:
            raise ValueError(
                "momentum carries scores from round to round, and there is one only: set rounds or channels_per_round"
            )
        return self

    def to_budget(self) -> Budget:
        """The `prunus.Budget` of this section."""
        limits = self.model_dump(include={"runtime", "min_channels", "multiple_of", "max_pruning_ratio", "tolerance", "limits"})
        return Budget(**cast("dict[str, Any]", self.budget), **limits)

    def to_timing(self) -> Timing:
        """The `prunus.Timing` of this section."""
        return Timing(**self.timing.model_dump())

    @model_validator(mode="before")
    @classmethod
    def _defaults_for_latency(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        tree = cast("dict[str, Any]", value)
        asked: Any = tree.get("budget")
        on_latency = isinstance(asked, dict | str) and "latency" in asked
        return {"allocator": "knapsack", "multiple_of": "auto", **tree} if on_latency else tree

    @field_validator("budget", mode="before")
    @classmethod
    def _read_budget(cls, value: Any) -> Any:
        """Accept the command line's ``macs=0.5,parameters=1M`` beside a table."""
        try:
            if not isinstance(value, str):
                return value
            budget = Budget.parse(value)
            on = {"latency": f"{budget.latency}@{budget.runtime}"} if "@" in value else {}
            return {**budget.targets, **on}
        except InvalidBudget as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_budget(self) -> PruneConfig:
        unknown = [name for name in self.budget if name not in TARGETS]
        if unknown:
            raise ValueError(f"unknown budget target {unknown[0]!r}: known are {', '.join(TARGETS)}")
        try:
            budget = self.to_budget()
            self.to_timing().check(budget.runtime)
        except InvalidBudget as error:
            raise ValueError(str(error)) from None
        if budget.measured and (self.rounds > 1 or self.channels_per_round is not None):
            raise ValueError("a budget on latency is met in one round, in which plans are measured: leave out rounds")
        return self
