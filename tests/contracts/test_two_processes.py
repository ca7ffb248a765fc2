"""Two processes score as one does: the oracle splits its channels, means over data their minibatches, the rest is in each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

WORK = Path(__file__).with_name("one_of_two_processes.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_of_two_processes", WORK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, str(WORK), str(rank), str(folder)] for rank in (0, 1)]
    runs = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        outputs = [run.communicate(timeout=300)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_score_as_one(both: list[dict[str, Any]], work: ModuleType) -> None:
    """The same bits in both; as one process but for the rounding of other batches of channels where the work is shared."""
    alone = work.every_score()
    assert both[0]["scores"] == both[1]["scores"]
    assert both[0]["scores"].keys() == alone.keys()
    shared = {f"{criterion} {options}" for criterion, options in (*work.SHARED, *work.DIVIDED)}
    assert {"taylor {}", "apoz {}"} <= shared
    for criterion, by_group in alone.items():
        found = both[0]["scores"][criterion]
        if criterion not in shared:
            assert found == by_group, criterion
            continue
        assert found.keys() == by_group.keys()
        for group, values in by_group.items():
            assert len(set(values)) > 1 or criterion in (
                "apoz {}",
                "feature_map_rank {}",
            )  # nothing is zero, nothing has low rank
            torch.testing.assert_close(torch.tensor(found[group]), torch.tensor(values), rtol=1e-9, atol=1e-13)


def test_each_process_silences_its_part_of_the_channels(both: list[dict[str, Any]]) -> None:
    """Of groups of 5, 6 and 7 channels."""
    assert both[0]["share"] == [3, 3, 4]
    assert both[1]["share"] == [2, 3, 3]


def test_minibatches_are_divided(both: list[dict[str, Any]]) -> None:
    assert [found["batches"] for found in both] == [3, 2]


def test_both_decide_by_the_figures_of_the_first(both: list[dict[str, Any]]) -> None:
    assert [found["agreed"] for found in both] == [[[0, 5], [0, 5]], [[0, 5], [1, 5]]]


def test_what_is_out_of_step_is_refused_in_both(both: list[dict[str, Any]]) -> None:
    other = r"EvidenceError: the processes of this run score on different data \(or on different weights\): "
    for found in both:
        assert found["errors"]["well"] == "none"
        assert found["errors"]["empty"].startswith("NoBatches: the data loader yields nothing")
        for name in ("sharded", "sharded, one loss"):
            _matches(
                other + "batch 1 isn't the same in all of them. The oracle splits channels.*no DistributedSampler", found, name
            )
        _matches(other + "they don't have the same number of batches", found, "sizes")
        _matches(other + "some have no batch 3. The oracle splits channels, not data", found, "more")
        _matches(other + "batch 1 isn't the same in all of them. Minibatches are divided", found, "taylor, sharded")
        _matches(other + "they don't have the same number of batches. Minibatches", found, "taylor, more")
        assert found["errors"]["taylor, empty"].startswith("NoBatches: the data loader yields nothing")
        assert found["errors"]["taylor, one batch"] == "none"
    stopped = "^EvidenceError: scoring stopped because process 1 failed: its own message says why$"
    _matches(stopped, both[0], "broken")
    _matches("^OSError: the disk is gone$", both[1], "broken")
    _matches(stopped, both[0], "taylor, broken")
    _matches("^OSError: the disk is gone$", both[1], "taylor, broken")
    _matches(stopped, both[0], "nan")
    _matches("^EvidenceError: the loss is nan on a scoring batch", both[1], "nan")


def _matches(pattern: str, found: dict[str, Any], name: str) -> None:
    assert re.search(pattern, found["errors"][name]), found["errors"][name]
