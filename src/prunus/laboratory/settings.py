"""How a comparison is made, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from prunus.graph.trace import Keep
from prunus.laboratory.removal import Recovery
from prunus.sources import DataBundle
from prunus.types import ForwardFn, LossFn

SHARES = tuple(n / 10 for n in range(1, 10))


@dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    ``images``: training images that criteria and oracle see, ``batch_size`` at a time; ``channels``: how many the oracle is
    evaluated on, drawn from every layer (None: all); ``test_images``: those that accuracies are measured on (None: all);
    ``shares``: of the channels, removed one after the other from the full network (none: no removal); ``recovery``: the short
    fine-tuning; ``keep``, ``mixing`` and ``whole_groups``: see `prunus.trace`.
    """

    images: int = 512
    batch_size: int = 64
    channels: int | None = None
    test_images: int | None = 1000
    shares: tuple[float, ...] = SHARES
    recovery: Recovery = field(default_factory=Recovery)
    keep: Keep = ()
    mixing: str = "allow"
    whole_groups: bool = False

    def of_parts(self) -> dict[str, Any]:
        """What the result of a part depends on: all but the shares, each of which is a part of its own."""
        parts = {name: value for name, value in asdict(self).items() if name != "shares"}
        return {**parts, "keep": list(self.keep) if isinstance(self.keep, tuple) else self.keep}


@dataclass(frozen=True, eq=False)
class Subject:
    """What criteria are compared on. ``network(seed)`` gives a trained network: the same for all seeds, or trained by the seed;
    ``about`` says in words what both are, for the result."""

    network: Callable[[int], nn.Module]
    data: DataBundle
    about: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    loss_fn: LossFn | None = None
    forward_fn: ForwardFn | None = None
