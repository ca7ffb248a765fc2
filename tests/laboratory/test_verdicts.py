"""Verdicts are read from figures: how the way to a figure goes, what holds, and what is said where it can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from prunus.claims import Claim
from prunus.errors import RecipeError
from prunus.laboratory.verdicts import judge, limits, spread

WORDS = {name: "-" for name in ("claim", "family", "paper", "where", "network", "data", "budget", "expected", "time")}
TREE = {
    "environment": {"cpu": "fast", "threads": 1},
    "rows": [
        {"row": "a", "kept": 1, "accuracy": {"values": [0.9, 0.8, 0.7], "mean": 0.8, "std": 0.1}, "one": {"values": [0.5]}},
        {"row": "b", "kept": 1, "accuracy": {"values": [0.8, 0.6, 0.4], "mean": 0.6, "std": 0.2}, "two": {"values": [0.5, 0.4]}},
    ],
    "parts": {"a/0": {"loss": 1.0}, "a/1": {"loss": 2.0}, "b/0": {"loss": 5.0}, "*": {"loss": 9.0}},
    "share": 0.25,
    "several": [3.0, 5.0],
    "text": "no figure",
    "runs": 3,
    "seconds": 12.5,
}


def claim_of(*comparisons: dict[str, Any], **fields: Any) -> Claim:
    about = {"name": "one", "command": "python benchmarks/one.py", "result": "one.json", "seeds": 3, **WORDS, **fields}
    return Claim.model_validate({**about, "comparisons": [{"says": "it", **comparison} for comparison in comparisons]})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "one.json").write_text(json.dumps(TREE))
    return tmp_path


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (["share"], [0.25]),
        (["several"], [3.0, 5.0]),
        (["several", -1], [5.0]),
        (["rows", {"row": "b"}, "accuracy"], [0.8, 0.6, 0.4]),
        (["rows", {"row": "b"}, "accuracy", "mean"], [0.6]),
        (["rows", {"kept": 1}, "accuracy", "std"], [0.1, 0.2]),
        (["parts", "a/*", "loss"], [1.0, 2.0]),
        (["parts", "*", "loss"], [9.0]),  # a key of that very name goes first
    ],
)
def test_ways_to_figures(results: Path, way: list[Any], expected: list[float]) -> None:
    verdict = judge(claim_of({"value": way, "at_least": -100.0}, seeds=1), results)
    (finding,) = verdict.findings
    assert (finding.n, finding.mean) == (len(expected), pytest.approx(sum(expected) / len(expected)))
    assert verdict.word == "reproduced" and verdict.environment == TREE["environment"]


def test_differences_are_paired_and_their_bounds_are_students(results: Path) -> None:
    """0.1, 0.2 and 0.3 more; scipy's own test gives the same bounds."""
    ways = {name: ["rows", {"row": row}, "accuracy"] for name, row in (("value", "a"), ("minus", "b"))}
    (finding,) = judge(claim_of({**ways, "at_least": 0.0}), results).findings
    low, high = (
        stats.ttest_1samp([0.1, 0.2, 0.3], 0, alternative=side).confidence_interval(0.95) for side in ("greater", "less")
    )
    assert finding.bounds == (pytest.approx(float(low.low)), pytest.approx(float(high.high)))


@pytest.mark.parametrize(
    ("limit", "word", "why"),
    [
        ({"at_least": 0.031}, "reproduced", ""),
        ({"at_least": 0.032}, "not reproduced", "it holds in the mean, but not beyond the noise of the runs"),
        ({"at_least": 0.21}, "not reproduced", ""),
        ({"at_most": 0.369}, "reproduced", ""),
        ({"at_most": 0.368}, "not reproduced", "it holds in the mean, but not beyond the noise of the runs"),
        ({"at_least": 0.031, "at_most": 0.3}, "not reproduced", "it holds in the mean, but not beyond the noise of the runs"),
    ],
)
def test_verdicts(results: Path, limit: dict[str, float], word: str, why: str) -> None:
    ways = {name: ["rows", {"row": row}, "accuracy"] for name, row in (("value", "a"), ("minus", "b"))}
    verdict = judge(claim_of({**ways, **limit}), results)
    assert (verdict.word, verdict.why, verdict.n) == (word, why, 3)
    assert verdict.findings[0].mean == pytest.approx(0.2) and verdict.findings[0].std == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("limit", "word"), [("at_least", "reproduced"), ("at_most", "reproduced"), ("above", "not"), ("below", "not")]
)
def test_a_tie_is_not_above_and_not_below(results: Path, limit: str, word: str) -> None:
    ways = {name: ["rows", {"row": "a"}, "accuracy"] for name in ("value", "minus")}
    assert judge(claim_of({**ways, limit: 0.0}), results).word.startswith(word)
    assert judge(claim_of({**ways, "above": -0.01, "below": 0.01}), results).word == "reproduced"


def test_one_comparison_that_fails_is_enough(results: Path) -> None:
    good, bad = ({"value": ["share"], "at_least": limit} for limit in (0.2, 0.3))
    verdict = judge(claim_of(good, bad, seeds=1), results)
    assert verdict.word == "not reproduced" and [finding.holds for finding in verdict.findings] == [True, False]


def test_too_few_runs_say_nothing(results: Path) -> None:
    two = claim_of({"value": ["rows", {"row": "b"}, "two"], "at_least": 0.1})
    assert (judge(two, results).word, judge(two, results).why) == ("not run here", "2 of the 3 runs that it needs")
    pooled = {"value": ["share"], "at_least": 0.1}
    assert judge(claim_of(pooled), results).why == "1 of the 3 runs that it needs"
    assert judge(claim_of(pooled, runs=["runs"]), results).word == "reproduced"


def test_rows_that_are_not_there_yet_and_no_result(results: Path) -> None:
    wanted = claim_of({"value": ["rows", {"row": "c"}, "accuracy"], "at_least": 0.1})
    assert judge(wanted, results).why == "the result doesn't have all of its rows yet"
    assert judge(wanted, results / "elsewhere").word == "not run here"
    about = {**WORDS, "name": "far", "out_of_reach": "it needs a telescope"}
    far = judge(Claim.model_validate(about), results)
    assert (far.word, far.why, far.n) == ("out of reach here", "it needs a telescope", None)


def test_seconds_come_from_the_result_or_from_the_record_of_its_run(results: Path) -> None:
    comparison = {"value": ["share"], "at_least": 0.1}
    assert judge(claim_of(comparison), results).seconds is None
    assert judge(claim_of(comparison, seconds=["seconds"]), results).seconds == 12.5
    record = {"fingerprint": "f", "seconds": 7.0, "finished": False}
    (results / "one.run.json").write_text(json.dumps(record))
    assert judge(claim_of(comparison), results).seconds is None
    (results / "one.run.json").write_text(json.dumps({**record, "finished": True}))
    assert judge(claim_of(comparison), results).seconds == 7.0


@pytest.mark.parametrize(
    ("comparison", "told"),
    [
        ({"value": ["rows", 7], "at_least": 0.0}, "claim one: one.json has nothing at 7: mend the claim's way to its figure"),
        ({"value": ["shares"], "at_least": 0.0}, "claim one: one.json has nothing at 'shares'"),
        ({"value": ["text"], "at_least": 0.0}, "what one.json has at ['text'] is no figure"),
        (
            {"value": ["rows", {"row": "a"}, "accuracy"], "minus": ["several"], "at_least": 0.0},
            "claim one, 'it': 3 figures can't be compared with 2 seed by seed",
        ),
    ],
)
def test_mistakes_of_a_claim_are_told(results: Path, comparison: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        judge(claim_of(comparison), results)
    assert told in str(error.value)


def test_a_damaged_result_is_told(results: Path) -> None:
    (results / "one.json").write_text("{")
    with pytest.raises(RecipeError, match=r"the result of one, .*one.json, can't be read: it isn't JSON: .*; run it again"):
        judge(claim_of({"value": ["share"], "at_least": 0.0}), results)


def test_figures_in_words(results: Path) -> None:
    ways = {name: ["rows", {"row": row}, "accuracy"] for name, row in (("value", "a"), ("minus", "b"))}
    claim = claim_of({**ways, "at_least": -0.01, "at_most": 0.5, "unit": "points"}, {"value": ["share"], "at_most": 1.0})
    difference, share = judge(claim, results).findings
    assert (spread(difference), limits(difference.comparison)) == ("+20.00 ± 10.00 points", "at least -1, at most 50")
    assert (spread(share), limits(share.comparison)) == ("0.25", "at most 1")
