"""Claims of the literature as files: what is claimed, how it is tried, and how the answer is read from the figures."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunus.errors import RecipeError, UnknownName
from prunus.recipe_text import read_toml

Step = str | int | dict[str, str | int | float | bool]
"""A step into a result: a key, or a pattern of keys (``*``); a place in a list; or the fields that rows of a list must have."""
SCRIPT = "python benchmarks/"
"""What a command that `prunus benchmark` can run begins with."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Comparison(_Section):
    """A figure of the result, or the difference of two, and the limits that it must keep in mean over the seeds."""

    says: str = Field(description="what is compared, in words")
    value: tuple[Step, ...] = Field(min_length=1, description="the way to the figure: keys, patterns, places, or fields of rows")
    minus: tuple[Step, ...] | None = Field(None, min_length=1, description="the way to a figure that is taken off, seed by seed")
    at_least: float | None = Field(None, description="the mean must be this or more")
    at_most: float | None = Field(None, description="the mean must be this or less")
    above: float | None = Field(None, description="the mean must be more than this")
    below: float | None = Field(None, description="the mean must be less than this")
    unit: Literal["", "%", "points"] = Field("", description="% and points: shown a hundred times as large")

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        if not self.limits:
            raise ValueError("nothing to hold: give at_least, at_most, above or below")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Those that are given, by their names."""
        given = {"at least": self.at_least, "at most": self.at_most, "above": self.above, "below": self.below}
        return {word: limit for word, limit in given.items() if limit is not None}


class Claim(_Section):
    """One claim. ``result`` and ``comparisons`` say how its verdict is read; without them nothing was ever run here."""

    name: str = Field(description="of its file, without .toml")
    claim: str = Field(description="in one sentence")
    family: str = Field(description="heading under which it stands")
    paper: str = Field(description="authors and year")
    where: str = Field(description="where in the paper, or how its experiment differs from ours")
    network: str
    data: str
    budget: str = Field(description="what is removed, and how much training there is")
    command: str | None = Field(
        None, description="{seeds} and {device} stand for options of the script, other names in braces for data"
    )
    seeds: int = Field(3, ge=1, description="runs that the claim needs; 1: a figure without chance")
    result: str | None = Field(None, pattern=r"^[\w.-]+\.json$", description="file under benchmarks/results")
    plot: str | None = Field(None, pattern=r"^[\w.-]+\.(svg|png)$", description="file under benchmarks/results")
    expected: str = Field(description="direction that the paper leads one to expect")
    time: str = Field(description="how long it takes, on what")
    runs: tuple[Step, ...] | None = Field(None, description="the way to the number of runs, where figures are of all together")
    seconds: tuple[Step, ...] | None = Field(None, description="the way to the seconds that it took, where the result has them")
    out_of_reach: str | None = Field(None, description="why it can't be tried here")
    comparisons: tuple[Comparison, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.result is None) == bool(self.comparisons):
            raise ValueError("a result and comparisons go together: give both or neither")
        if (self.command is None) != (self.out_of_reach is not None):
            raise ValueError("a command, or the reason why there is none (out_of_reach): give one of them")
        if self.result is not None and not self.runnable:
            raise ValueError(f"the command of a claim with a result begins with {SCRIPT!r}")
        return self

    @property
    def runnable(self) -> bool:
        """Whether `prunus benchmark` runs it: a script of the checkout, not a recipe for other machines."""
        return self.command is not None and self.command.startswith(SCRIPT)

    @property
    def places(self) -> tuple[str, ...]:
        """Names in braces of the command, in their order."""
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(self.command or "") if name))

    @property
    def needs(self) -> tuple[str, ...]:
        """Data that must be given."""
        return tuple(name for name in self.places if name not in ("seeds", "device"))


def load_claims(folder: Path) -> dict[str, Claim]:
    """Every claim of a folder by name, in alphabetical order.

    Raises:
        RecipeError: a file isn't TOML, lacks a field or has one too many; the message names file and field.
    """
    return {path.stem: load_claim(path) for path in sorted(folder.glob("*.toml"))}


def load_claim(path: Path) -> Claim:
    """One claim; see `load_claims`."""
    try:
        return Claim.model_validate({**read_toml(path), "name": path.stem})
    except ValidationError as error:
        told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise RecipeError(f"{path}: {'; '.join(told)}") from None


def chosen_claims(claims: Mapping[str, Claim], name: str) -> list[Claim]:
    """The claim of this name, or ``all``; `UnknownName` says which is meant."""
    if name == "all":
        return list(claims.values())
    if name not in claims:
        raise UnknownName.among("claim", name, [*claims, "all", "list"])
    return [claims[name]]
