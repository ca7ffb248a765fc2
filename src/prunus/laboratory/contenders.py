"""The criteria of a comparison: how they are written, and what scoring by one of them gives."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PrunusError, PrunusWarning, RecipeError
from prunus.importance import CRITERIA, CriterionRow, normalise, score
from prunus.importance.criteria import resolve_criterion
from prunus.types import ChannelGraph, ForwardFn, LossFn, Scores

REFERENCE = "oracle"
_OWN_SCALE = {"normalisation", "macs_penalty"}
_TERM = re.compile(r"(?:[^,()]|\([^()]*\))+")
_WITH_OPTIONS = re.compile(r"^(?P<name>[^()]+?)\s*\((?P<options>[^()]*)\)$")
_FAMILIES = {"weights": "weight", "gradients": "gradient", "activations": "activation", "row": "sum"}


@dataclass(frozen=True)
class Contender:
    """A criterion with its options; ``label`` writes both: ``taylor(per_example=True)``."""

    criterion: str
    options: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        settings = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.criterion}({settings})" if settings else self.criterion

    @property
    def row(self) -> CriterionRow:
        """What the name and options mean. Raises `UnknownName` where they mean nothing."""
        row = resolve_criterion(self.criterion, self.options)
        assert isinstance(row, CriterionRow)
        return row

    @property
    def family(self) -> str:
        """weight, gradient, activation, measured, functional, control or sum: what the criterion looks at."""
        if self.criterion in ("random", "first_k"):
            return "control"
        module = self.row.function.__module__.rpartition(".")[2]
        return "functional" if module.startswith("function") else _FAMILIES.get(module, "measured")


def read_criteria(text: str) -> list[Contender]:
    """``all``, or names by comma, each with options in brackets: ``l1, taylor(per_example=true, division=mean)``.

    A minus leaves one out: ``all,-obd``. The oracle is what all are compared with, so it isn't one of ``all``.

    Raises:
        UnknownName: no such criterion, option or value.
        RecipeError: brackets or options that can't be read, or no name.
    """
    if text.count("(") != text.count(")"):
        raise RecipeError(f"can't read the criteria {text!r}: a bracket is missing")
    found: list[Contender] = []
    out: list[Contender] = []
    for term in (part.strip() for part in _TERM.findall(text)):
        if term == "all":
            found += [Contender(name) for name in CRITERIA if name != REFERENCE]
        elif term.startswith("-"):
            out.append(_contender(term[1:].strip()))
        elif term:
            found.append(_contender(term))
    for contender in (*found, *out):
        contender.row  # noqa: B018  unknown names and options are refused before anything is computed
    left_out = {REFERENCE, *(contender.label for contender in out)}
    chosen = {contender.label: contender for contender in found if contender.label not in left_out}
    if not found:
        raise RecipeError("no criterion is named: write all, or names by comma, e.g. taylor,l1")
    return list(chosen.values())


def _contender(term: str) -> Contender:
    match = _WITH_OPTIONS.match(term)
    return Contender(match["name"].strip(), read_options(match["options"].split(","))) if match else Contender(term)


def read_options(items: Iterable[str]) -> dict[str, Any]:
    """``["per_example=true", "on=weights"]`` as values: JSON where it is JSON, True and False in any case, else text.

    Raises:
        RecipeError: an item isn't NAME=VALUE.
    """
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in items)):
        name, sep, raw = (part.strip() for part in item.partition("="))
        if not sep or not name or not raw:
            raise RecipeError(f"can't read the option {item!r}: write NAME=VALUE")
        try:
            found[name] = json.loads(raw.lower() if raw.lower() in ("true", "false") else raw)
        except json.JSONDecodeError:
            found[name] = raw
    return found


@dataclass(frozen=True, eq=False)
class Scored:
    """What scoring by one contender gave. ``plain``: scores as the criterion computes them, before any normalisation of its own
    (empty where it isn't applicable); ``seconds``: of the call, data at hand; ``notes``: what it warned of."""

    plain: Mapping[str, Tensor]
    seconds: float
    comparable: bool
    normalisation: str
    notes: Sequence[str] = ()
    not_applicable: str | None = None

    def ranking(self, name: str) -> Scores:
        """The scores by which `prunus.prune` would remove channels."""
        return Scores({g: normalise(v, self.normalisation) for g, v in self.plain.items()}, name, self.comparable)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {**vars(self), "plain": {name: values.tolist() for name, values in self.plain.items()}, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Scored:
        """What `to_json` wrote."""
        known = {name: tree[name] for name in ("seconds", "comparable", "normalisation", "notes", "not_applicable")}
        return cls({name: torch.tensor(values, dtype=torch.float64) for name, values in tree["plain"].items()}, **known)


def score_by(
    contender: Contender,
    model: nn.Module,
    graph: ChannelGraph,
    data: Sequence[Any],
    *,
    seed: int,
    loss_fn: LossFn | None = None,
    forward_fn: ForwardFn | None = None,
) -> Scored:
    """Score every prunable group; a criterion that this network doesn't allow is reported, not raised.

    Normalisations that a criterion does by itself (taylor_2016's) are left off, so that its plain scores can be told; options
    that ask for one, and sums, which need one, are carried out.
    """
    row = contender.row
    own = contender.criterion in CRITERIA and not _OWN_SCALE & contender.options.keys()
    options: dict[str, Any] = {**contender.options, **({"normalisation": "none"} if own else {})}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PrunusWarning)
        begin = time.perf_counter()
        try:
            scores = score(
                model,
                graph,
                contender.criterion,
                data if row.needs else None,
                loss_fn,
                forward_fn=forward_fn,
                seed=seed,
                **options,
            )
        except PrunusError as error:
            return Scored({}, time.perf_counter() - begin, False, "none", not_applicable=str(error))
        seconds = time.perf_counter() - begin
    for other in (w for w in caught if not issubclass(w.category, PrunusWarning)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PrunusWarning)))
    return Scored(scores.by_group, seconds, row.comparable, row.normalisation if own else "none", notes)
