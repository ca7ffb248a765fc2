"""A row of the table of criteria: what it needs, which options it takes, and how its scores are put on a scale."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from prunus.errors import UnknownName
from prunus.graph.group_view import GroupView
from prunus.importance.combine import NORMALISATIONS, layer_adaptive, normalise, sum_of
from prunus.importance.evidence import Evidence

ScoreFunction: TypeAlias = Callable[..., "Tensor | None"]
Doubt: TypeAlias = Callable[[Mapping[str, Tensor]], "str | None"]


@dataclass(frozen=True)
class Number:
    """The values of an option that is a number: at least ``low``, below ``high``; also the ``words`` that stand for one."""

    low: float = 0.0
    high: float = float("inf")
    words: tuple[Any, ...] = ()

    def __contains__(self, value: object) -> bool:
        if any(value is word for word in self.words):
            return True
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value < self.high

    def __str__(self) -> str:
        words = "".join(f"{word}, or " for word in self.words)
        return f"{words}a number from {self.low:g} up" + (f" and below {self.high:g}" if self.high != float("inf") else "")


Values: TypeAlias = "tuple[Any, ...] | Number"
COMMON: Mapping[str, Values] = {"normalisation": NORMALISATIONS, "macs_penalty": Number()}
MAGNITUDE: Mapping[str, Values] = {"layer_adaptive": (False, True)}
GREEDY: Mapping[str, Values] = {"greedy": Number(high=1.0, words=(False, True))}


@dataclass(frozen=True)
class CriterionRow:
    """A row of `CRITERIA`. ``needs``: kinds of evidence; ``comparable``: scores of different groups are on one scale.

    ``variants``: option -> value -> the row that replaces this one, where an option changes what is needed; ``settings``: the
    keyword options of ``function`` and their values. Every row takes ``normalisation`` and ``macs_penalty``; a row with
    ``magnitude`` takes ``layer_adaptive``, one with ``counts_inputs`` takes ``greedy``. ``doubt`` looks at all
    groups' scores and says what makes the criterion doubtful on this network, or None.
    """

    name: str
    function: ScoreFunction
    paper: str
    needs: frozenset[str] = frozenset()
    comparable: bool = False
    variants: Mapping[str, Mapping[Any, CriterionRow]] = field(default_factory=lambda: dict[str, Mapping[Any, "CriterionRow"]]())
    settings: Mapping[str, Values] = field(default_factory=lambda: dict[str, Values]())
    magnitude: bool = False
    counts_inputs: bool = False
    doubt: Doubt | None = None
    normalisation: str = "none"
    layer_adaptive: bool = False
    macs_penalty: float = 0.0
    greedy: float | bool = False
    bound: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @property
    def options(self) -> Mapping[str, str]:
        """Every option and, in words, its values."""
        chosen = {name: ", ".join(map(str, values)) for name, values in self.variants.items()}
        own = {name: v if isinstance(v, Number) else ", ".join(map(str, v)) for name, v in self._settings.items()}
        return chosen | {name: str(words) for name, words in own.items()}

    @property
    def own_options(self) -> frozenset[str]:
        """Names of the options that can be given to this row as a term of a sum."""
        return frozenset({*self.variants, *self._settings} - {*COMMON, *GREEDY})

    @property
    def _settings(self) -> dict[str, Values]:
        magnitude, greedy = MAGNITUDE if self.magnitude else {}, GREEDY if self.counts_inputs else {}
        return {**self.settings, **magnitude, **greedy, **COMMON}

    def score(self, view: GroupView, evidence: Evidence) -> Tensor | None:
        """Importance (num_channels,), higher = keep, or None where the criterion says nothing about this group."""
        values = self.plain_score(view, evidence)
        # Ranks would hide what isn't finite.
        return values if values is None or not bool(torch.isfinite(values).all()) else self.on_scale(values)

    def plain_score(self, view: GroupView, evidence: Evidence) -> Tensor | None:
        """What `score` gives, before any normalisation."""
        return self.function(view, evidence, **self.bound)

    def on_scale(self, values: Tensor) -> Tensor:
        """Plain scores (num_channels,) of one group, normalised as the options say."""
        return normalise(layer_adaptive(values) if self.layer_adaptive else values, self.normalisation)

    def with_options(self, options: Mapping[str, Any]) -> CriterionRow:
        """The row for these options.

        Raises:
            UnknownName: an option or a value that this criterion doesn't have, or two that exclude each other.
        """
        row = self._variant({name: value for name, value in options.items() if name in self.variants})
        own = {name: value for name, value in options.items() if name not in self.variants}
        for name, value in own.items():
            row._check(name, value, self.name)
        bound = {name: value for name, value in own.items() if name in row.settings}
        common = {name: value for name, value in own.items() if name not in row.settings}
        if common.get("layer_adaptive") or common.get("normalisation", "none") != "none":
            common["comparable"] = True
        return replace(row, bound={**row.bound, **bound}, **common)

    def _variant(self, chosen: Mapping[str, Any]) -> CriterionRow:
        """The row that the options in ``variants`` choose: one of them, the others being at this row's own value."""
        row, by = self, ""
        for option, value in chosen.items():
            values = self.variants[option]
            if not isinstance(value, Hashable) or value not in values:
                raise UnknownName.among(f"value of {self.name}.{option}", value, map(str, values))
            other = values[value]
            if other.function is self.function and other.needs == self.needs:
                continue
            if by:
                raise UnknownName(f"criterion {self.name} can't have {option}={value!r} together with {by}: choose one of them")
            row, by = other, f"{option}={value!r}"
        return row

    def _check(self, option: str, value: Any, name: str) -> None:
        settings = self._settings
        if option not in settings:
            raise UnknownName.among(f"option of criterion {name}", option, {**self.variants, **settings})
        allowed = settings[option]
        if value in allowed if isinstance(allowed, Number) else any(value == a and type(value) is type(a) for a in allowed):
            return
        if isinstance(allowed, Number):
            raise UnknownName(f"{name}.{option}={value!r} is not {allowed}")
        raise UnknownName.among(f"value of {name}.{option}", value, map(str, allowed))


def sum_of_rows(terms: Sequence[tuple[CriterionRow, float]], options: Mapping[str, Any]) -> CriterionRow:
    """The row that is the weighted sum of others, each normalised within its group first (``normalisation``, by default mean).

    ``macs_penalty`` is for the sum; any other option is for the terms that have it. What a term says nothing about, the sum
    says nothing about.

    Raises:
        UnknownName: an option that no term has.
    """
    how = options.get("normalisation", "mean")
    own = {name: value for name, value in options.items() if name not in COMMON}
    for name in own:
        if not any(name in row.own_options for row, _ in terms):
            raise UnknownName.among(
                "option of a sum of criteria", name, {n for row, _ in terms for n in (*row.own_options, *COMMON)}
            )
    rows = [
        (row.with_options({**{n: v for n, v in own.items() if n in row.own_options}, "normalisation": how}), weight)
        for row, weight in terms
    ]

    def weighted(view: GroupView, evidence: Evidence) -> Tensor | None:
        found = [(row.score(view, evidence), weight) for row, weight in rows]
        known = [(values.cpu().double(), weight) for values, weight in found if values is not None]
        return sum_of(known) if len(known) == len(found) else None

    weighted.__doc__ = f"Weighted sum of scores ({how}-normalised within each group): " + "; ".join(
        row.summary for row, _ in rows
    )
    name = " + ".join(row.name if weight == 1 else f"{weight:g}*{row.name}" for row, weight in rows)
    needs = frozenset[str]().union(*(row.needs for row, _ in rows))
    papers = "; ".join(dict.fromkeys(row.paper for row, _ in rows))
    comparable = how != "none" or all(row.comparable for row, _ in rows)
    summed = CriterionRow(name, weighted, papers, needs, comparable)
    return summed.with_options({"macs_penalty": options["macs_penalty"]} if "macs_penalty" in options else {})
