"""What figures say of a claim: read from a result, never typed.

A comparison holds if the mean over the seeds keeps its limits, and so surely that the one-sided 95 % bound of the mean (Student's
t over the seeds; differences are taken seed by seed) keeps them as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

from scipy import stats

from prunus.claims import Claim, Comparison, Step
from prunus.errors import RecipeError
from prunus.files import DamagedFile, read_json_file

Word = Literal["reproduced", "not reproduced", "out of reach here", "not run here"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Finding:
    """A comparison with its figures. ``bounds``: the mean is above the first and below the second, each with 95 % confidence."""

    comparison: Comparison
    n: int
    mean: float
    std: float | None
    bounds: tuple[float, float]

    @property
    def in_mean(self) -> bool:
        """Whether the mean keeps the limits."""
        return _within(self.mean, self.mean, self.comparison)

    @property
    def holds(self) -> bool:
        """Whether it keeps them beyond the noise of the seeds."""
        return _within(*self.bounds, self.comparison)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: ``why`` is empty or a sentence; figures, hardware and seconds are the result's."""

    word: Word
    why: str = ""
    findings: tuple[Finding, ...] = ()
    environment: Mapping[str, Any] | None = None
    seconds: float | None = None

    @property
    def n(self) -> int | None:
        """Runs of the comparison that has fewest."""
        return min((finding.n for finding in self.findings), default=None)


def judge(claim: Claim, results: Path) -> Verdict:
    """The verdict on a claim from its result in the folder ``results``.

    Raises:
        RecipeError: the result can't be read, or doesn't have what the claim points at.
    """
    if claim.out_of_reach is not None:
        return Verdict("out of reach here", claim.out_of_reach)
    if claim.result is None or not (results / claim.result).exists():
        return Verdict("not run here")
    try:
        tree = read_json_file(results / claim.result)
    except (OSError, DamagedFile) as error:
        raise RecipeError(f"the result of {claim.name}, {results / claim.result}, can't be read: {error}; run it again") from None
    runs = None if claim.runs is None else int(_figures(tree, claim.runs, claim)[0])
    found = [_finding(tree, comparison, claim, runs) for comparison in claim.comparisons]
    findings = tuple(finding for finding in found if finding is not None)
    record = record_of(claim, results)
    took = record["seconds"] if record.get("finished") else None
    took = took if claim.seconds is None else sum(_figures(tree, claim.seconds, claim))
    about: dict[str, Any] = {"findings": findings, "environment": environment_of(tree), "seconds": took}
    if len(findings) < len(found):
        return Verdict("not run here", "the result doesn't have all of its rows yet", **about)
    fewest = min(finding.n for finding in findings)
    if fewest < claim.seeds:
        return Verdict("not run here", f"{fewest} of the {claim.seeds} runs that it needs", **about)
    if all(finding.holds for finding in findings):
        return Verdict("reproduced", **about)
    noise = "it holds in the mean, but not beyond the noise of the runs" if all(f.in_mean for f in findings) else ""
    return Verdict("not reproduced", noise, **about)


def spread(finding: Finding) -> str:
    """Mean and standard deviation as one reads them, in the comparison's unit."""
    unit, scale = finding.comparison.unit, 100 if finding.comparison.unit else 1
    sign = "+" if finding.comparison.minus is not None else ""
    digits = ".2f" if unit else ".3g"
    deviation = "" if finding.std is None else f" ± {scale * finding.std:{digits}}"
    return f"{scale * finding.mean:{sign}{digits}}{deviation}{unit and ' ' + unit}"


def limits(comparison: Comparison) -> str:
    """What the mean must keep, in words: ``at least 0.93``."""
    scale = 100 if comparison.unit else 1
    return ", ".join(f"{word} {scale * limit:g}" for word, limit in comparison.limits.items())


def record_path(claim: Claim, results: Path) -> Path:
    """Where it stands which run made the claim's result."""
    return results / f"{Path(claim.result or '').stem}.run.json"


def record_of(claim: Claim, results: Path) -> dict[str, Any]:
    """What is known of the run that made the result: fingerprint, seconds, whether it finished; empty where nothing is."""
    path = record_path(claim, results)
    try:
        return read_json_file(path) if path.exists() else {}
    except (OSError, DamagedFile) as error:
        raise RecipeError(f"{path} can't be read: {error}; delete it, and the claim is run again") from None


def environment_of(tree: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Versions and hardware from the head of a result."""
    return tree.get("environment") or cast("Mapping[str, Any]", tree.get("header", {})).get("environment")


def _finding(tree: Any, comparison: Comparison, claim: Claim, runs: int | None) -> Finding | None:
    """None where the result has no such row yet."""
    values = _figures(tree, comparison.value, claim)
    if comparison.minus is not None:
        other = _figures(tree, comparison.minus, claim)
        if values and other and len(other) != len(values):
            raise RecipeError(
                f"claim {claim.name}, {comparison.says!r}: {len(values)} figures can't be compared with {len(other)} seed by seed"
            )
        values = [one - two for one, two in zip(values, other, strict=False)]
    if not values:
        return None
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return Finding(comparison, runs or 1, mean, None, (mean, mean))
    std = statistics.stdev(values)
    reach = float(stats.t.ppf(CONFIDENCE, n - 1)) * std / math.sqrt(n)
    return Finding(comparison, n, mean, std, (mean - reach, mean + reach))


def _within(low: float, high: float, comparison: Comparison) -> bool:
    limits = comparison.limits
    kept = (
        low >= limits.get("at least", low),
        high <= limits.get("at most", high),
        "above" not in limits or low > limits["above"],
        "below" not in limits or high < limits["below"],
    )
    return all(kept)


def _figures(tree: Any, way: Sequence[Step], claim: Claim) -> list[float]:
    """The figures at the end of ``way``: of every seed, where there are ``values``; none where no row is as it asks."""
    found = list(_followed(tree, list(way), claim))
    return [float(value) for one in found for value in _values(one, way, claim)]


def _followed(node: Any, way: list[Step], claim: Claim) -> Iterator[Any]:
    if not way:
        yield node
        return
    step, rest = way[0], way[1:]
    for child in _children(node, step, claim):
        yield from _followed(child, rest, claim)


def _children(node: Any, step: Step, claim: Claim) -> list[Any]:
    if isinstance(step, dict) and isinstance(node, list):
        rows = cast("list[Any]", node)
        return [row for row in rows if isinstance(row, dict) and all(row.get(key, ...) == value for key, value in step.items())]
    if isinstance(step, int) and isinstance(node, list) and -len(node) <= step < len(node):
        return [node[step]]
    if isinstance(step, str) and isinstance(node, dict):
        tree = cast("dict[str, Any]", node)
        if step in tree:
            return [tree[step]]
        if "*" in step:
            return [value for key, value in tree.items() if fnmatchcase(key, step)]
    raise RecipeError(f"claim {claim.name}: {claim.result} has nothing at {step!r}: mend the claim's way to its figure")


def _values(node: Any, way: Sequence[Step], claim: Claim) -> list[float]:
    """A number, a list of them, or a figure with its ``values``."""
    if isinstance(node, dict) and "values" in node:
        node = cast("dict[str, Any]", node)["values"]
    numbers: list[Any] = cast("list[Any]", node) if isinstance(node, list) else [node]
    if all(isinstance(number, int | float) for number in numbers):
        return numbers
    raise RecipeError(f"claim {claim.name}: what {claim.result} has at {list(way)} is no figure: mend the claim's way to it")
