"""What became of the literature's claims on these networks: paired differences over the seeds, as they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from prunus.laboratory.summary import figure

Cell = Mapping[str, Any]
FEW = 0.2
"""Tickets are compared where less than this share of the weights is left."""


def claims(sections: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """Every claim that the laboratory bears on: ``claim``, ``paper``, ``where``, the paired ``difference`` and a ``verdict``.

    ``difference`` has one value a seed (each the mean over the levels that bear on it), their mean and standard deviation. The
    ``verdict`` is *yes* or *no* where the mean's 95 % confidence interval (Student's t) is above or below zero, else *undecided*.
    """
    return [
        *(_tickets(cell) for cell in sections["lottery"] if _sparse(cell) and "reinit" in _sparse(cell)[0]["arms"]),
        *(row for cell in sections["deconstruction"] for row in (_signs(cell), _untrained(cell)) if row is not None),
        *_trained_masks(sections),
        *_scratch(sections["rethinking"]),
    ]


def _row(claim: str, paper: str, where: str, differences: Sequence[float], note: str = "") -> dict[str, Any]:
    return {
        "claim": claim,
        "paper": paper,
        "where": where,
        "difference": figure(differences),
        "verdict": verdict(differences),
        "note": note,
    }


def verdict(differences: Sequence[float]) -> str:
    """Whether one-per-seed differences say that something is larger: yes, no, or undecided."""
    number = len(differences)
    if number < 2:
        return "undecided"
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(number)
    width = error * float(stats.t.ppf(0.975, number - 1))
    return "yes" if mean > width else "no" if mean < -width else "undecided"


def _paired(one: Mapping[str, Any], other: Mapping[str, Any], kind: str = "accuracy") -> list[float]:
    return [a - b for a, b in zip(one[kind]["values"], other[kind]["values"], strict=True)]


def _mean_of(levels: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(seed) for seed in zip(*levels, strict=True)]


def _sparse(cell: Cell) -> list[Mapping[str, Any]]:
    return [one for one in cell["rounds"] if one["round"] > 0 and one["density"] < FEW]


def _tickets(cell: Cell) -> dict[str, Any]:
    levels = [_paired(one["arms"]["ticket"], one["arms"]["reinit"]) for one in _sparse(cell)]
    early = figure(_mean_of([_paired(one["arms"]["ticket"], one["arms"]["reinit"], "early") for one in _sparse(cell)]))
    where = f"{cell['network']}, {cell['schedule']}, ranked {'globally' if cell['scope'] == 'global' else 'by layer'}"
    where += f", rewound to step {cell['rewind_step']}"
    note = f"early in training {100 * early['mean']:+.1f} points" if early["mean"] is not None else ""
    claim = f"winning tickets beat the same masks with fresh weights, below {FEW:.0%} of the weights"
    return _row(claim, "Frankle and Carbin 2019", where, _mean_of(levels), note)


def made(cell: Cell) -> str:
    """How a deconstruction's masks were made, in words."""
    return "made at once" if cell["schedule"] == "one-shot" else "made in rounds"


def _signs(cell: Cell) -> dict[str, Any] | None:
    pairs = [("reshuffle_keep_sign", "reshuffle"), ("constant_keep_sign", "constant"), ("reinit_keep_sign", "reinit")]
    known = cell["kept_actions"]
    levels = [_paired(known[a], known[b]) for a, b in pairs if a in known and b in known]
    if not levels:
        return None
    where = f"{cell['network']}, {cell['kept']:.0%} of the weights, masks {made(cell)}"
    names = ", ".join(b for a, b in pairs if a in known and b in known)
    claim = f"kept weights that start with their own signs beat those without (mean over {names})"
    return _row(claim, "Zhou et al. 2019", where, _mean_of(levels))


def _untrained(cell: Cell) -> dict[str, Any] | None:
    found = cell["criteria"].get("large_final_same_sign")
    if found is None:
        return None
    chance = 1 / cell["classes"]
    where = f"{cell['network']}, {cell['kept']:.0%} of the weights, masks {made(cell)}"
    note = f"chance is {chance:.0%}, the whole untrained network {100 * cell['whole']['untrained']['mean']:.1f} %"
    differences = [value - chance for value in found["untrained"]["values"]]
    return _row(
        "an untrained network under the same-sign mask is better than chance", "Zhou et al. 2019", where, differences, note
    )


def _trained_masks(sections: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """Against the best level of the untrained same-sign masks on the same network."""
    rows: list[dict[str, Any]] = []
    for cell in sections["supermasks"]:
        known = [
            c["criteria"].get("large_final_same_sign") for c in sections["deconstruction"] if c["network"] == cell["network"]
        ]
        best = max((c for c in known if c is not None), key=lambda c: c["untrained"]["mean"], default=None)
        if best is None:
            continue
        differences = [a - b for a, b in zip(cell["accuracy"]["values"], best["untrained"]["values"], strict=True)]
        claim = "a trained supermask is better than the best same-sign mask, both on untrained weights"
        rows.append(_row(claim, "Zhou et al. 2019", f"{cell['network']}, {variant(cell)}", differences))
    return rows


def variant(cell: Cell) -> str:
    """What is special about a supermask, in words."""
    told = [words for words, on in (("rescaled", cell["rescale"]), ("signed constants", cell["signed_constant"])) if on]
    return " and ".join(told) or "plain"


def _scratch(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [
        _row(
            "training the pruned network from scratch for the same computation beats fine-tuning",
            "Liu et al. 2019",
            f"{cell['network']}, {cell['channels']:.0%} of the channels, learning rate {cell['lr']:g}",
            _paired(cell["arms"]["scratch-B"], cell["arms"]["fine-tuned"]),
            f"over fine-tuning: Scratch-E {100 * _gap(cell, 'scratch-E'):+.1f} points, "
            f"rewound lr {100 * _gap(cell, 'rewound-lr'):+.1f} points",
        )
        for cell in cells
    ]


def _gap(cell: Cell, arm: str) -> float:
    return statistics.fmean(_paired(cell["arms"][arm], cell["arms"]["fine-tuned"]))
