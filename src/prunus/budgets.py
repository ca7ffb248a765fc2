"""What the small network may cost: targets in the user's units, and the limits of every group."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prunus.errors import InvalidBudget

_UNITS = {
    "macs": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "parameters": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "channels": {"": 1.0, "K": 1e3},
    "activation_bytes": {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30},
    "file_size": {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30},
    "latency": {"": 1.0, "MS": 1.0, "S": 1e3, "US": 1e-3},
}
TARGETS = tuple(_UNITS)
RUNTIMES = ("eager", "compile", "onnxruntime", "openvino")
EXPORTED = ("onnxruntime", "openvino")
"""Runtimes that run the exported network."""
Amount: TypeAlias = "float | int | str"
Limits: TypeAlias = "Mapping[str, float | int]"


DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Timing:
    """How latency is measured: CPU ``threads``, images per ``batch``, ``dtype`` (float32, bfloat16) and memory format.

    ``cache``: the folder in which measured layer times are kept; none: $PRUNUS_CACHE, else the user's cache folder.
    """

    threads: int = 1
    batch: int = 1
    dtype: str = "float32"
    channels_last: bool = False
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise InvalidBudget(f"timing needs threads >= 1 and batch >= 1, not threads={self.threads}, batch={self.batch}")
        if self.dtype not in DTYPES:
            raise InvalidBudget(f"timing with dtype={self.dtype!r}: known are {', '.join(DTYPES)}")

    def check(self, runtime: str) -> None:
        """Raise `InvalidBudget` for what the runtime doesn't have."""
        if runtime in EXPORTED and (self.dtype != "float32" or self.channels_last):
            raise InvalidBudget(
                f"{runtime} runs the exported network in float32 and chooses the memory format itself: leave out dtype and "
                "channels_last, or take runtime='eager'"
            )


@dataclass(frozen=True)
class Budget:
    """What the small network may cost; every given target must hold.

    A float in (0, 1] is the fraction that is kept; an int, or a string with a unit (``"120M"``, ``"1.5MB"``, ``"8ms"``), is
    absolute. ``min_channels`` and ``max_pruning_ratio`` (share removed) keep every group alive, but that with ``min_channels=0``
    a residual or parallel branch may go as a whole (`ChannelGraph.emptiable`); ``multiple_of`` asks for layer
    widths the runtime likes: a number, or "auto" for what is measured on it (the default where latency is a target; else any
    width). ``latency`` is measured on ``runtime``, which may stand behind the amount as well: ``"0.5@onnxruntime"``.
    ``limits`` are for single groups: a glob of group or layer names (or ``group:NAME``) and the largest
    share that is removed there (a float in [0, 1); 0.0: nothing), or the fewest channels that stay there (an int); all that fit a
    group hold, beside those for every group. ``tolerance``: how far below a target the plan may stay before it is `BudgetNotMet`.

    Raises:
        InvalidBudget: no target, zero, negative, a float above one, an unknown unit, a limit that is neither share nor number.
    """

    macs: Amount | None = None
    parameters: Amount | None = None
    latency: Amount | None = None
    activation_bytes: Amount | None = None
    file_size: Amount | None = None
    channels: Amount | None = None
    runtime: Literal["eager", "compile", "onnxruntime", "openvino"] = "eager"
    min_channels: int = 1
    multiple_of: int | Literal["auto"] | None = None
    max_pruning_ratio: float = 0.95
    tolerance: float = 0.01
    limits: Limits = field(default_factory=dict[str, float | int], hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.latency, str) and "@" in self.latency:
            self._split_latency(self.latency)
        if not self.targets:
            raise InvalidBudget(f"a budget needs at least one of {', '.join(TARGETS)}, e.g. Budget(macs=0.5)")
        for name, amount in self.targets.items():
            self.limit(name, 1.0) if isinstance(amount, float) else self.limit(name, math.inf)
        if self.runtime not in RUNTIMES:
            raise InvalidBudget(f"runtime={self.runtime!r} is none of {', '.join(RUNTIMES)}")
        if self.min_channels < 0 or (self.multiple_of is not None and self.multiple_of != "auto" and self.multiple_of < 1):
            raise InvalidBudget('min_channels must be at least 0 and multiple_of at least 1, or "auto"')
        if not 0 < self.max_pruning_ratio <= 1 or not 0 <= self.tolerance < 1:
            raise InvalidBudget("max_pruning_ratio must be in (0, 1] and tolerance in [0, 1)")
        for glob, limit in self.limits.items():
            _check_limit(glob, limit)

    def _split_latency(self, text: str) -> None:
        """``"0.5@onnxruntime"`` names the runtime, too. Frozen objects are set up this way."""
        raw, _, runtime = (part.strip() for part in text.partition("@"))
        object.__setattr__(self, "latency", _amount(raw))
        object.__setattr__(self, "runtime", runtime)

    @property
    def measured(self) -> bool:
        """Whether it takes measurements: latency is a target, or widths are to be what the runtime likes."""
        return self.latency is not None or self.multiple_of == "auto"

    @property
    def liked_widths(self) -> bool:
        """Whether widths are to be those that the runtime likes."""
        return self.multiple_of == "auto" or (self.multiple_of is None and self.latency is not None)

    @property
    def targets(self) -> dict[str, Amount]:
        """The targets that were given, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in TARGETS and getattr(self, f.name) is not None}

    def limit(self, target: str, full: float) -> float:
        """The absolute limit of ``target`` for a network that costs ``full`` now."""
        amount = getattr(self, target)
        if isinstance(amount, bool) or not isinstance(amount, (float, int, str)):
            raise InvalidBudget(f"budget {target}={amount!r} is not a number")
        if isinstance(amount, str):
            value = _absolute(target, amount)
        elif isinstance(amount, int):
            value = float(amount)
        else:
            if not 0 < amount <= 1:
                raise InvalidBudget(
                    f"budget {target}={amount!r}: a float is the fraction to keep, in (0, 1]; "
                    f"for an absolute amount give an int or a string with a unit, e.g. {target}='{_example(target)}'"
                )
            return amount * full
        if not (value > 0 and math.isfinite(value)):
            raise InvalidBudget(f"budget {target}={amount!r} must be above zero")
        return value

    @classmethod
    def parse(cls, text: str, **limits: Any) -> Budget:
        """Read ``"macs=0.5,parameters=1.2M"`` or ``"latency=0.5@onnxruntime"`` (the command line's form)."""
        amounts: dict[str, Amount] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, raw = (s.strip() for s in part.partition("="))
            if name not in TARGETS or not raw:
                raise InvalidBudget(f"can't read budget {part!r}: write TARGET=AMOUNT with TARGET one of {', '.join(TARGETS)}")
            if name in amounts:
                raise InvalidBudget(f"can't read budget {text!r}: {name} is given twice")
            amounts[name] = _amount(raw)
        return cls(**amounts, **limits)  # pyright: ignore[reportArgumentType]


def parse_limits(texts: Iterable[str]) -> dict[str, float | int]:
    """Read ``layer1.*=0.3`` (at most 30 % go) and ``conv1=16`` (at least 16 channels stay), the command line's form."""
    limits: dict[str, float | int] = {}
    for text in texts:
        glob, _, raw = (part.strip() for part in text.rpartition("="))
        try:
            limit = int(raw) if re.fullmatch(r"\d+", raw) else float(raw)
        except ValueError:
            limit = None
        if not glob or limit is None:
            raise InvalidBudget(
                f"can't read limit {text!r}: write GLOB=SHARE for the largest share removed there, e.g. 'layer1.*=0.3', or "
                "GLOB=CHANNELS for the fewest that stay, e.g. 'conv1=16'"
            )
        if glob in limits:
            raise InvalidBudget(f"can't read limits: {glob!r} is given twice")
        limits[glob] = limit
    return limits


def _check_limit(glob: str, limit: Any) -> None:
    share = isinstance(limit, float) and 0 <= limit < 1
    number = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    if not share and not number:
        raise InvalidBudget(
            f"limit {glob!r}: {limit!r} is neither the largest share removed there (a float in [0, 1): 0.3) nor the fewest "
            "channels that stay there (an int from 1 up)"
        )


def shown_amount(target: str, value: float) -> str:
    """An amount of a target as text, with its unit: ``1,234 macs``, ``8.20 ms``."""
    return f"{value:,.0f} {target}" if target != "latency" else f"{value:,.3g} ms" if value < 100 else f"{value:,.0f} ms"


def _amount(raw: str) -> Amount:
    try:
        return int(raw) if re.fullmatch(r"[+-]?\d+", raw) else float(raw)
    except ValueError:
        return raw


def _example(target: str) -> str:
    return {"latency": "8ms", "activation_bytes": "2MB", "file_size": "1.5MB", "channels": "500"}.get(target, "120M")


def _absolute(target: str, text: str) -> float:
    match = re.fullmatch(r"\s*([+-]?[0-9.]+(?:e[+-]?\d+)?)\s*([A-Za-z]*)\s*", text)
    units = _UNITS[target]
    try:
        if match is None or match[2].upper() not in units:
            raise ValueError
        return float(match[1]) * units[match[2].upper()]
    except ValueError:
        known = ", ".join(u for u in units if u)
        raise InvalidBudget(
            f"can't read budget {target}={text!r}: a number and a unit of {known}, e.g. '{_example(target)}'"
        ) from None
