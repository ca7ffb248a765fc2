"""Running claims: what is up to date is left, what changed is made again, what stopped goes on, and what fails says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunus.claims import Claim
from prunus.errors import ProcessError, RecipeError, UnknownName
from prunus.laboratory.benchmark import (
    Checkout,
    Given,
    carry_out,
    command_of,
    left_as_they_are,
    open_checkout,
    refuse_unknown,
    state,
)

CLAIM = """
claim = "It works."
family = "-"
paper = "-"
where = "-"
network = "-"
data = "-"
budget = "-"
command = "python benchmarks/one.py --seeds {seeds}"
result = "one.json"
expected = "-"
time = "-"
[[comparisons]]
says = "it"
value = ["share"]
at_least = 0.5
"""
SCRIPT = """
import argparse, json, pathlib
from _shared import SHARE
parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int)
parser.add_argument("--images")
given = parser.parse_args()
print("working on", given.images)
print("seeds", given.seeds)
runs = pathlib.Path("runs.txt")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
pathlib.Path("benchmarks/results/one.json").write_text(json.dumps({"share": SHARE, "seeds": given.seeds}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("claims", "results"):
        (tmp_path / "benchmarks" / folder).mkdir(parents=True)
    (tmp_path / "benchmarks" / "data.toml").write_text('images = "pictures of things"\nmore = "others"\n')
    (tmp_path / "benchmarks" / "claims" / "one.toml").write_text(CLAIM)
    with_data = CLAIM.replace("{seeds}", "{seeds} --images {images}").replace("one.json", "two.json")
    (tmp_path / "benchmarks" / "claims" / "two.toml").write_text(with_data)
    (tmp_path / "benchmarks" / "one.py").write_text(SCRIPT)
    (tmp_path / "benchmarks" / "_shared.py").write_text("SHARE = 0.75\n")
    return tmp_path


def one(root: Path) -> tuple[Checkout, Claim]:
    checkout = open_checkout(root)
    return checkout, checkout.claims["one"]


def run(root: Path, given: Given = Given(), again: bool = False) -> bool:  # noqa: B008
    checkout, claim = one(root)
    return carry_out(claim, checkout, given, again, lambda line: None)


def test_what_is_up_to_date_is_left(root: Path) -> None:
    checkout, claim = one(root)
    assert state(claim, checkout, Given()) == "no result"
    said: list[str] = []
    assert carry_out(claim, checkout, Given(), False, said.append)
    assert (
        said == ["working on None", "seeds 3"] and (root / "runs/benchmark/one.log").read_text() == "working on None\nseeds 3\n"
    )
    record = json.loads((root / "benchmarks/results/one.run.json").read_text())
    assert record["finished"] and record["seconds"] > 0 and record["command"] == claim.command
    assert state(claim, checkout, Given()) == "up to date" and not run(root)
    assert run(root, again=True) and (root / "runs.txt").read_text() == "xx"


@pytest.mark.parametrize("name", ["one.py", "_shared.py"])
def test_a_changed_script_or_one_that_it_imports_is_run_again(root: Path, name: str) -> None:
    assert run(root)
    path = root / "benchmarks" / name
    path.write_text(path.read_text() + "# changed\n")
    checkout, claim = one(root)
    assert state(claim, checkout, Given()) == "out of date"
    assert run(root) and not run(root)


def test_other_arguments_are_another_result(root: Path) -> None:
    assert run(root) and run(root, Given(seeds=5)) and not run(root, Given(seeds=5))
    assert json.loads((root / "benchmarks/results/one.json").read_text())["seeds"] == 5
    (root / "benchmarks" / "claims" / "one.toml").write_text(CLAIM.replace("It works.", "It works well."))
    assert not run(root, Given(seeds=5)), "the text of a claim is no part of what is run"


def test_an_older_result_is_told_as_that(root: Path) -> None:
    (root / "benchmarks/results/one.json").write_text('{"share": 1}')
    checkout, claim = one(root)
    assert state(claim, checkout, Given()) == "unrecorded" and run(root)


def test_a_failure_says_what_the_script_said(root: Path) -> None:
    (root / "benchmarks" / "one.py").write_text("print('on the way')\nraise SystemExit('no more disk')\n")
    with pytest.raises(ProcessError, match=r"one: its script ended with code 1; it said last: on the way / no more disk\. All"):
        run(root)
    checkout, claim = one(root)
    (root / "benchmarks/results/one.json").write_text('{"share": 1}')
    assert state(claim, checkout, Given()) == "stopped half-way"
    before = json.loads((root / "benchmarks/results/one.run.json").read_text())
    assert not before["finished"]
    (root / "benchmarks" / "one.py").write_text("print('nothing written')\n")
    (root / "benchmarks/results/one.json").unlink()
    with pytest.raises(ProcessError, match="its script ended without writing"):
        run(root)


def test_seconds_of_a_stopped_run_count_as_well(root: Path) -> None:
    path = root / "benchmarks/results/one.run.json"
    assert run(root)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "finished": False, "seconds": 1000.0}))
    assert run(root) and json.loads(path.read_text())["seconds"] > 1000


def test_a_stop_ends_the_script_and_leaves_a_record(root: Path) -> None:
    (root / "benchmarks" / "one.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    checkout, claim = one(root)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(claim, checkout, Given(), False, stop)
    assert not json.loads((root / "benchmarks/results/one.run.json").read_text())["finished"]


def test_data_are_needed_filled_in_and_no_part_of_the_fingerprint(root: Path, tmp_path: Path) -> None:
    checkout = open_checkout(root)
    claim = checkout.claims["two"]
    with pytest.raises(RecipeError, match=r"two needs data that weren't given: --data images=PATH \(pictures of things\)"):
        carry_out(claim, checkout, Given(), False, lambda line: None)
    given = Given(data={"images": str(tmp_path / "here.zip")})
    assert command_of(claim, given)[-1] == str(tmp_path / "here.zip") and command_of(claim, Given())[-1] == "IMAGES"
    (root / "benchmarks" / "one.py").write_text(SCRIPT.replace("results/one.json", "results/two.json"))
    assert carry_out(claim, checkout, given, False, lambda line: None)
    assert state(claim, checkout, Given(data={"images": "/elsewhere"})) == "up to date"


def test_what_no_script_takes_is_refused(root: Path) -> None:
    checkout = open_checkout(root)
    claims = list(checkout.claims.values())
    with pytest.raises(UnknownName, match="unknown data 'image': did you mean images"):
        refuse_unknown(checkout, claims, Given(data={"image": "x"}))
    with pytest.raises(RecipeError, match=r"--data more=\.\.\.: no script of what was chosen takes it"):
        refuse_unknown(checkout, claims, Given(data={"more": "x"}))
    with pytest.raises(
        RecipeError, match=r"--device: what was chosen \(one, two\) takes no device \(they run on the CPU\): leave it out"
    ):
        refuse_unknown(checkout, claims, Given(device="cuda"))
    (root / "benchmarks" / "claims" / "one.toml").write_text(CLAIM.replace(" --seeds {seeds}", ""))
    changed = open_checkout(root)
    with pytest.raises(RecipeError, match=r"--seeds: what was chosen \(one\) takes no number of seeds: leave it out"):
        refuse_unknown(changed, [changed.claims["one"]], Given(seeds=3))
    refuse_unknown(changed, [changed.claims["two"]], Given(seeds=3, data={"images": "x"}))


def test_what_some_scripts_take_is_theirs_and_the_others_are_named(root: Path) -> None:
    (root / "benchmarks" / "claims" / "one.toml").write_text(CLAIM.replace(" --seeds {seeds}", ""))
    checkout = open_checkout(root)
    claims, given = list(checkout.claims.values()), Given(seeds=7)
    refuse_unknown(checkout, claims, given)
    assert left_as_they_are(claims, given) == ["without --seeds, as their claims say: one.py (no number of seeds)"]
    assert left_as_they_are([checkout.claims["two"]], given) == [] == left_as_they_are(claims, Given())
    assert "7" in command_of(checkout.claims["two"], given) and "7" not in command_of(checkout.claims["one"], given)


def test_a_checkout_is_found_above_or_told_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "benchmarks" / "results")
    assert open_checkout(None).root == root
    with pytest.raises(RecipeError, match=r"there are no claims at .*: they come with the repository, not with the installed"):
        open_checkout(root / "benchmarks")
