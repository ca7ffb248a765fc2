"""The same recipe, seed and device give the same result, to its hash; another seed gives another."""

from __future__ import annotations

import json
from pathlib import Path

from faults.small_run import recipe
from prunus.pipeline.result_hash import result_hash, without_times
from prunus.pipeline.run import run


def test_the_same_recipe_gives_the_same_hash(tmp_path: Path) -> None:
    first, again, other = (run(recipe(seed=seed), tmp_path / name) for seed, name in ((3, "a"), (3, "b"), (4, "c")))
    assert first["hash"] == again["hash"] != other["hash"]
    assert (tmp_path / "a" / "small.prunus").read_bytes() == (tmp_path / "b" / "small.prunus").read_bytes()
    for name in ("a", "b"):
        stored = json.loads((tmp_path / name / "result.json").read_text())
        assert stored["hash"] == first["hash"] == result_hash(stored)


def test_times_are_left_out_and_nothing_else() -> None:
    tree = {"seconds": 1.5, "stages": [{"accuracy": 0.5, "seconds": 2}], "latency": {"median_ms": 1}, "macs": 7}
    assert without_times(tree) == {"stages": [{"accuracy": 0.5}], "macs": 7}
    assert result_hash(tree) == result_hash({**tree, "seconds": 9}) != result_hash({**tree, "macs": 8})
