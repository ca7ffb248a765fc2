"""What a network costs, as a function of the channels that are kept: the protocol that allocation works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class Cost:
    """Cost of one input at batch 1: multiply-adds, parameter count, peak bytes of live activations, measured milliseconds; and
    the bytes that the file of `prunus.save` has at most (0: not told)."""

    macs: int
    parameters: int
    activation_bytes: int
    latency_ms: float | None = None
    file_size: int = 0


Terms: TypeAlias = "dict[tuple[str, ...], float]"


@dataclass(frozen=True, eq=False)
class CostTable:
    """A part of a cost that is no product: ``at`` takes the channels of ``groups`` (plans, groups) and gives it by plan (plans,).

    ``products`` comes near to it, in the form of `CostModel.terms`.
    """

    groups: tuple[str, ...]
    at: Callable[[Any], Any]
    products: Terms


class CostModel(Protocol):
    """Closed form of the cost in the number of channels kept in every group."""

    @property
    def targets(self) -> frozenset[str]:
        """The targets of a budget, besides channels, that the model knows."""
        ...

    @property
    def multiples(self) -> Mapping[str, int]:
        """Widths that are fast where the network will run: group -> they are multiples of this; absent: any."""
        ...

    def cost(self, kept: Mapping[str, int]) -> Cost: ...

    def costs(self, names: Sequence[str], kept: Any) -> Mapping[str, Any]:
        """Costs of many plans at once: ``kept`` is an array (plans, names), each cost an array (plans,)."""
        ...

    def terms(self, target: str) -> list[Terms]:
        """``macs``, ``parameters``, ``activation_bytes`` or ``file_size`` written out as sums of products.

        The cost is the largest of the returned sums (one for every moment of the activations). A sum maps group names, sorted,
        with a group as often as its channels are multiplied, to the factor of that product; ``()`` is the constant.
        What of a target is no product stands in `tables`, whose values are added.
        """
        ...

    def tables(self, target: str) -> Sequence[CostTable]: ...
