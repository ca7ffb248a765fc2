"""The table of methods that make channels removable during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from prunus.errors import UnknownName
from prunus.importance.row import Number
from prunus.sparsity.aofp import AOFP
from prunus.sparsity.gradual_taylor import GradualTaylor
from prunus.sparsity.ista import Ista
from prunus.sparsity.resrep import ResRep
from prunus.sparsity.slimming import NetworkSlimming
from prunus.sparsity.soft_pruning import GeometricMedianPruning, SoftFilterPruning
from prunus.sparsity.two_temperature import TwoTemperatureSelection
from prunus.training_hooks import SparsityMethod

SWITCH = (False, True)


@dataclass(frozen=True)
class Whole:
    """The values of an option that is a whole number: at least ``low``."""

    low: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= self.low

    def __str__(self) -> str:
        return f"a whole number from {self.low} up"


Values: TypeAlias = "tuple[Any, ...] | Number | Whole"
_ZEROING: Mapping[str, Values] = {"every": Whole(1), "mask_gradients": SWITCH, "zero": ("filters", "channels")}


@dataclass(frozen=True)
class SparsityRow:
    """A row of `SPARSITY_METHODS`: how a method is called, where it comes from, and how it is made.

    ``needs``: what the network must have, in words; ``options``: name -> allowed values, ``presets``: name -> the options that
    it sets. Every row has ``paper`` (the values of the paper or the original code, for its schedule of many epochs) and
    ``short`` (for schedules of some hundred to some thousand steps).
    """

    name: str
    method: Callable[..., SparsityMethod]
    paper: str
    needs: str
    options: Mapping[str, Values]
    presets: Mapping[str, Mapping[str, Any]]

    @property
    def summary(self) -> str:
        """First line of the method's docstring."""
        return (self.method.__doc__ or "").strip().splitlines()[0]

    def build(self, preset: str = "paper", **options: Any) -> SparsityMethod:
        """A method for one training run: the preset's options, and over them those given.

        Raises:
            UnknownName: a preset, an option or a value that this method doesn't have.
        """
        if preset not in self.presets:
            raise UnknownName.among(f"preset of {self.name}", preset, self.presets)
        for name, value in options.items():
            if name not in self.options:
                raise UnknownName.among(f"option of {self.name}", name, self.options)
            self._check(name, value)
        return self.method(**{**self.presets[preset], **options})

    def _check(self, option: str, value: Any) -> None:
        allowed = self.options[option]
        if not isinstance(allowed, tuple):
            if value not in allowed:
                raise UnknownName(f"{self.name}.{option}={value!r} is not {allowed}")
        elif not any(value == known and type(value) is type(known) for known in allowed):
            raise UnknownName.among(f"value of {self.name}.{option}", value, map(str, allowed))


SPARSITY_METHODS: dict[str, SparsityRow] = {
    row.name: row
    for row in (
        SparsityRow(
            "slimming",
            NetworkSlimming,
            "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017",
            "batch norms",
            {
                "strength": Number(),
                "initial_scale": Number(),
                "weight_decay": Number(),
                "percentile": Number(high=1.0),
                "released": SWITCH,
            },
            {"paper": {}, "short": {"strength": 5e-3, "initial_scale": 0.0}},
        ),
        SparsityRow(
            "ista",
            Ista,
            "Ye et al., Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution Layers, ICLR "
            "2018",
            "batch norms, one to a group",
            {"strength": Number(), "rescale": Number(low=1e-9)},
            {"paper": {}, "short": {"strength": 0.05}},
        ),
        SparsityRow(
            "resrep",
            ResRep,
            "Ding et al., ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting, ICCV 2021",
            "batch norms directly behind convolutions",
            {
                "strength": Number(),
                "warmup_epochs": Number(),
                "interval": Whole(1),
                "per_selection": Whole(1),
                "momentum": Number(high=1.0),
                "residual": SWITCH,
            },
            {"paper": {}, "short": {"strength": 1e-3, "warmup_epochs": 1.0, "interval": 10}},
        ),
        SparsityRow(
            "taylor",
            GradualTaylor,
            "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019; preset paper_2016: Molchanov et al., "
            "Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017",
            "",
            {
                "interval": Whole(1),
                "per_removal": Whole(0),
                "until": Number(high=1.0),
                "warmup_epochs": Number(),
                "group_lasso": Number(),
                "momentum": Number(high=1.0),
                "normalisation": ("none", "l2"),
            },
            {
                "paper": {},
                "paper_2016": {"per_removal": 1, "group_lasso": 0.0, "momentum": 0.0, "normalisation": "l2"},
                "short": {"interval": 4, "per_removal": 0},
            },
        ),
        SparsityRow(
            "sfp",
            SoftFilterPruning,
            "He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018",
            "",
            _ZEROING,
            {"paper": {}, "short": {"mask_gradients": True, "zero": "channels"}},
        ),
        SparsityRow(
            "fpgm",
            GeometricMedianPruning,
            "He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019",
            "",
            {"norm_share": Number(high=1.0), **_ZEROING},
            {"paper": {}, "short": {"zero": "channels"}, "mix": {"norm_share": 0.1}},
        ),
        SparsityRow(
            "aofp",
            AOFP,
            "Ding et al., Approximated Oracle Filter Pruning for Destructive CNN Width Optimization, ICML 2019",
            "",
            {
                "threshold": Number(),
                "steps_per_half": Whole(1),
                "start": Whole(0),
                "patience": Whole(1),
                "stop_at_budget": SWITCH,
                "inclusive": SWITCH,
                "never_drawn": ("kept", "first"),
                "first_half": ("half", "power_of_two"),
                "next_outputs": ("alive", "all"),
            },
            {
                "paper": {},
                "tensorflow": {
                    "steps_per_half": 20_000,
                    "inclusive": True,
                    "never_drawn": "first",
                    "first_half": "power_of_two",
                    "next_outputs": "all",
                },
                "short": {"threshold": 0.05, "steps_per_half": 10, "start": 0},
            },
        ),
        SparsityRow(
            "two_temperature",
            TwoTemperatureSelection,
            "after Colombo and Gao, Differentiable Architecture Pruning for Transfer Learning, 2021 (reconstruction)",
            "",
            {
                "strength": Number(),
                "stop_at_budget": SWITCH,
                "sharp": Number(),
                "smooth": Number(),
                "initial": Number(float("-inf")),
                "rate": Number(),
                "normalise": SWITCH,
                "weights": ("kept", "resampled"),
                "settle": Number(high=1.0),
            },
            {
                "paper": {},
                "short": {"rate": 0.02, "normalise": True, "weights": "kept", "settle": 0.3},
                "transfer": {"rate": 0.02, "normalise": True},
            },
        ),
    )
}


def resolve_method(name: str, preset: str = "paper", options: Mapping[str, Any] | None = None) -> SparsityMethod:
    """The method of this name and preset, made for one training run; `UnknownName` as `SparsityRow.build` raises it."""
    if name not in SPARSITY_METHODS:
        raise UnknownName.among("sparsity method", name, SPARSITY_METHODS)
    return SPARSITY_METHODS[name].build(preset, **(options or {}))
