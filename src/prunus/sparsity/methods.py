"""The table of methods that make channels removable during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from prunus.errors import UnknownName
from prunus.importance.row import Number
from prunus.sparsity.aofp import AOFP
from prunus.sparsity.slimming import NetworkSlimming
from prunus.sparsity.soft_pruning import GeometricMedianPruning, SoftFilterPruning
from prunus.sparsity.two_temperature import TwoTemperatureSelection
from prunus.training_hooks import SparsityMethod

Values: TypeAlias = "tuple[Any, ...] | Number"
SWITCH = (False, True)
_ZEROING: Mapping[str, Values] = {"every": Number(1), "mask_gradients": SWITCH, "zero": ("filters", "channels")}


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
        if isinstance(allowed, Number):
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
            "sfp",
            SoftFilterPruning,
            "He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018",
            "",
            _ZEROING,
            {"paper": {}, "short": {"zero": "channels"}},
        ),
        SparsityRow(
            "fpgm",
            GeometricMedianPruning,
            "He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019",
            "",
            {"norm_share": Number(high=1.0), **_ZEROING},
            {"paper": {}, "short": {"mask_gradients": False, "zero": "channels"}, "mix": {"norm_share": 0.1}},
        ),
        SparsityRow(
            "aofp",
            AOFP,
            "Ding et al., Approximated Oracle Filter Pruning for Destructive CNN Width Optimization, ICML 2019",
            "",
            {
                "threshold": Number(),
                "steps_per_half": Number(1),
                "start": Number(),
                "patience": Number(1),
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
                "weights": ("kept", "resampled"),
                "settle": Number(high=1.0),
            },
            {
                "paper": {},
                "short": {"weights": "kept", "stop_at_budget": True, "rate": 10.0, "settle": 0.3},
                "transfer": {"rate": 10.0},
            },
        ),
    )
}


def resolve_method(name: str, preset: str = "paper", options: Mapping[str, Any] | None = None) -> SparsityMethod:
    """The method of this name and preset, made for one training run; `UnknownName` as `SparsityRow.build` raises it."""
    if name not in SPARSITY_METHODS:
        raise UnknownName.among("sparsity method", name, SPARSITY_METHODS)
    return SPARSITY_METHODS[name].build(preset, **(options or {}))
