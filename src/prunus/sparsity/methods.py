"""The table of methods that make channels removable during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from prunus.errors import UnknownName
from prunus.importance.row import Number
from prunus.sparsity.slimming import NetworkSlimming
from prunus.training_hooks import SparsityMethod

Values: TypeAlias = "tuple[Any, ...] | Number"
SWITCH = (False, True)


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
    )
}


def resolve_method(name: str, preset: str = "paper", options: Mapping[str, Any] | None = None) -> SparsityMethod:
    """The method of this name and preset, made for one training run; `UnknownName` as `SparsityRow.build` raises it."""
    if name not in SPARSITY_METHODS:
        raise UnknownName.among("sparsity method", name, SPARSITY_METHODS)
    return SPARSITY_METHODS[name].build(preset, **(options or {}))
