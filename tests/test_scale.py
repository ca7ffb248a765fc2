"""The model behind docs/scale.md: hand-computed steps, and a page that holds what the committed figures say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        for name in ("_scale_model", "scale"):
            spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def test_steps_by_hand(scale: ModuleType) -> None:
    """1,000 images/s of a GPU, 4 in a node that reach 0.5 of it, 1 MB of gradients on a link of 10 MB/s, 1 ms a message."""
    machines = scale.Machines(1000.0, 0.5, 4, 10e6, 1e-3, 0.5, 2, 1e6, 2)
    alone = scale.step(1, 100, 500_000, 1000, 1000, machines)
    assert (alone.compute, alone.exchange) == (pytest.approx(0.1), 0)
    assert (alone.decode, alone.read) == (pytest.approx(0.05), pytest.approx(0.1))
    node = scale.step(4, 100, 500_000, 1000, 1000, machines)
    assert (node.compute, node.exchange, node.read) == (pytest.approx(0.2), 0, pytest.approx(0.4))
    assert (node.seconds, node.bound_by) == (pytest.approx(0.4), "reading")
    nodes = scale.step(16, 100, 500_000, 10, 1000, machines)  # 4 nodes: 1.5 MB each, 6 messages; a third of 0.2 s hides
    assert nodes.exchange == pytest.approx(0.15 + 0.006 - 0.5 * 2 / 3 * 0.2)
    assert (nodes.seconds, nodes.bound_by) == (pytest.approx(0.2 + nodes.exchange), "arithmetic")
    assert scale.step(16, 10, 500_000, 10, 1000, machines).bound_by == "exchange of gradients"
    assert scale.step(1, 100, 500_000, 1000, 100, machines).bound_by == "decoding"


def test_the_page_holds_the_committed_figures(scale: ModuleType) -> None:
    tree = json.loads(scale.RESULT.read_text())
    assert scale.with_figures(scale.PAGE.read_text(), tree) == scale.PAGE.read_text()
    assert scale.simulate(tree["measured"], scale.Machines()) == tree["simulated"]
    assert scale.assumptions(scale.Machines()) == tree["assumed"]
    eight = next(row for row in tree["simulated"] if row["gpus"] == 8)
    assert eight["images/s"] <= 16_621 * 1.001, "never faster than what was published for eight"
