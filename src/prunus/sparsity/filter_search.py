"""The binary filter search of AOFP: which filters of one layer can go together, by trying halves of halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FirstHalf = Literal["half", "power_of_two"]


@dataclass(eq=False)
class FilterSearch:
    """The state of the search in one layer.

    ``alive``: filters that haven't gone; ``candidates``: the subset S that the search has narrowed down to; ``failures``: how
    often in a row it ended at a single filter that does harm. ``floor``: so many filters stay whatever happens.
    """

    alive: Tensor
    candidates: Tensor
    failures: int = 0
    floor: int = 1
    first_half: FirstHalf = "half"

    @classmethod
    def over(cls, num_channels: int, floor: int = 1, first_half: FirstHalf = "half") -> FilterSearch:
        """A search that starts with all filters of a layer."""
        alive = torch.ones(num_channels, dtype=torch.bool)
        return cls(alive, alive.clone(), 0, floor, first_half)

    @property
    def half(self) -> int:
        """How many filters are tried at once: half of S, rounded down; for a whole layer as ``first_half`` says."""
        count = int(self.candidates.sum())
        if self.first_half == "power_of_two" and torch.equal(self.candidates, self.alive) and count > 1:
            powers = [2**k for k in range(count.bit_length()) if 2**k < count]
            return min(powers, key=lambda power: (abs(power - count / 2), power))
        return count // 2

    def over_after(self, patience: int) -> bool:
        """Whether the search has ended: nothing more may go, or it failed ``patience`` times in a row."""
        return self.failures >= patience or int(self.alive.sum()) <= self.floor or self.half < 1

    def draw(self, generator: torch.Generator) -> Tensor:
        """A random half of S: bool (num_channels,)."""
        among = self.candidates.nonzero()[:, 0]
        chosen = among[torch.randperm(len(among), generator=generator)[: self.half]]
        mask = torch.zeros_like(self.alive)
        mask[chosen] = True
        return mask

    def decide(self, harm: Tensor, harmless: Callable[[float], bool]) -> Tensor:
        """Act on the mean harm (num_channels,) of every filter of S: bool (num_channels,), the filters that may go (mostly none).

        The lower half of S goes if its largest mean harm is ``harmless``; otherwise S becomes that half, or all filters again
        where it was one filter. Who goes must be told by `remove`.
        """
        among = self.candidates.nonzero()[:, 0]
        lowest = among[harm[among].argsort(stable=True)[: self.half]]
        found = torch.zeros_like(self.alive)
        if harmless(float(harm[lowest].max())):
            room = int(self.alive.sum()) - self.floor
            found[lowest[:room]] = True
        elif self.half > 1:
            self.candidates = torch.zeros_like(self.alive)
            self.candidates[lowest] = True
        else:
            self.candidates = self.alive.clone()
            self.failures += 1
        return found

    def remove(self, filters: Tensor) -> None:
        """These filters are gone; the search starts anew among the others."""
        self.alive = self.alive & ~filters
        self.candidates = self.alive.clone()
        self.failures = 0
