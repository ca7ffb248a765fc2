"""The coverage matrix: a fast part of it, and what its benchmark makes of the processes and their facts."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prunus.testing import check_network

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def matrix() -> Any:
    """The modules of the benchmark, imported as its own process does."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        found = {name: _load(name) for name in ("_coverage_networks", "_coverage_one", "_coverage_page", "coverage")}
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(
        networks=found["_coverage_networks"], one=found["_coverage_one"], page=found["_coverage_page"], run=found["coverage"]
    )


def _load(name: str) -> ModuleType:
    own = "coverage_matrix" if name == "coverage" else name  # there is a library called coverage
    spec = importlib.util.spec_from_file_location(own, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Small and unlike: fire modules, an inverted bottleneck with gates, plain and depthwise blocks, a gate of halves, channels last,
# re-parametrised branches, attention.
FAST = {
    "torchvision:squeezenet1_1": "exact",
    "timm:test_efficientnet": "exact",
    "timm:test_resnet": "exact",
    "timm:test_byobnet": "exact",
    "timm:test_convnext": "exact",
    "timm:starnet_s050": "exact",
    "timm:test_mambaout": "exact after repair",
    "timm:test_vit": "exact after repair",
}


@pytest.mark.parametrize("key", FAST)
def test_a_part_of_the_matrix(key: str, matrix: Any) -> None:
    (network,) = matrix.networks.matching([key])
    case = network.build()
    report = check_network(case.model, case.inputs, forward_fn=case.forward_fn, train_inputs=case.train_inputs)
    assert report.verdict == FAST[key], str(report)
    assert report.prunable_share == 1.0
    assert report.macs_left < 0.6
    assert report.max_error < 1e-12


def test_the_list_holds_all_of_torchvision_and_every_convolutional_module_of_timm(matrix: Any) -> None:
    import timm
    from torchvision.models import list_models

    listed = matrix.networks.networks()
    assert {n.name for n in listed if n.source == "torchvision"} == set(list_models())
    ours = [n for n in listed if n.source == "timm"]
    assert len({n.name for n in ours}) == len(ours) >= 120
    assert {n.name for n in ours} <= set(timm.list_models())
    language = {
        "deepseek_vit",
        "gemma4_vit",
        "qwen3_vit",
    }  # towers of large language models
    assert set(timm.list_modules()) - {n.family for n in ours} <= language
    first = list(dict.fromkeys((n.source, n.family) for n in listed))
    assert [(n.source, n.family) for n in listed[: len(first)]] == first  # one of each family comes before the second of any


def row(**facts: Any) -> dict[str, Any]:
    base = {
        "kind": "cnn",
        "family": "resnet",
        "verdict": "exact",
        "prunable_share": 1.0,
        "input": "64 x 64",
        "seconds": {"trace": 0.25, "plan": 0.0, "remove": 0.05},
        "forward_seconds": 0.1,
        "forward_mb": 10.0,
        "pruning_mb": 30.0,
        "model_mb": 10.0,
        "mixing": 0,
        "shortcomings": {},
    }
    return base | facts


HEADER = {"limit": 60, "memory_gb": 10.0, "environment": {"torch": "2", "torchvision": "0", "timm": "1"}}


def test_the_page_counts_and_explains(matrix: Any) -> None:
    reason = "no rule for this operation in `aten.bmm.default` (called in `layer1.0`), net.py:12"
    rows = {
        "torchvision:a": row(),
        "timm:b": row(verdict="partly frozen", prunable_share=0.5, shortcomings={"stem": reason}, family="odd"),
        "timm:c": row(verdict="time-out", family="odd", kind="hybrid", prunable_share=0.9),
        "timm:d": row(verdict="exact after repair", shortcomings={}, prunable_share=0.85),
    }
    text = matrix.page.page({"header": HEADER, "networks": rows})
    lines = text.splitlines()
    assert "| cnn | 3 | 1 | 1 | 1 | 0 | 0 | 0 | 2 |" in lines
    assert "| hybrid | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |" in lines
    assert "| all | 4 | 1 | 1 | 1 | 0 | 0 | 1 | 2 |" in lines
    assert "2 of 3 families have all their members here prunable in groups that hold at least 80% of the MACs." in text
    assert "The others: timm odd." in lines
    assert "| torchvision:a | 64 x 64 | exact | 100.0% | 0 | 0.30 | 0.10 | 2.0x |" in lines
    assert "- no rule for this operation in `aten.bmm.default`, net.py:12: 1 network, e.g. timm:b (`stem`)" in lines
    with_peer = {"torchvision:a": row(peer={"verdict": "inexact", "seconds": 1.5})}
    text = matrix.page.page({"header": HEADER, "networks": with_peer})
    assert "| torchvision:a | 64 x 64 | exact | 100.0% | 0 | 0.30 | 0.10 | 2.0x | inexact | 1.50 |" in text.splitlines()
    assert "torch-pruning 1.6.1 on 1 of them, same ratio, same limits: exact 0, inexact 1, broken forward 0" in text


def test_reasons_of_one_cause_are_told_once(matrix: Any) -> None:
    first = "removal fails (error 1.2e-03; shape '[1, 64]'; it breaks in `a.b`, vit2.py:151)"
    second = "removal fails (error 7.9e-01; shape '[1, 32]'; it breaks in `c`, vit2.py:151)"
    assert matrix.page.cause(first) == "removal fails (error #; shape '[#, #]'; it breaks, vit2.py:151)"
    assert matrix.page.cause(second) == matrix.page.cause(first)
    assert matrix.page.cause(first.replace("151", "152")) != matrix.page.cause(first)


def running(matrix: Any, tmp_path: Path, said: str, code: int | None) -> Any:
    """A process that has said this and ended with this code (None: it goes on)."""
    facts = tmp_path / "facts"
    facts.write_text(said)
    events: list[str] = []
    process = SimpleNamespace(
        is_alive=lambda: code is None and "kill" not in events,
        kill=lambda: events.append("kill"),
        join=lambda: None,
        exitcode=-signal.SIGKILL if code is None else code,
    )
    network = matrix.networks.Network("n", "timm", "f", "cnn", 1)
    return matrix.run.Running(network, "mark", process, facts, time.monotonic())


def test_facts_become_a_row(matrix: Any, tmp_path: Path) -> None:
    said = 'facts: {"parameters": 5}\na warning\nfacts: {"verdict": "exact", "groups": 3}\n'
    found = matrix.run.finish(running(matrix, tmp_path, said, 0), 60)
    assert {k: found[k] for k in ("kind", "family", "fingerprint", "parameters", "verdict", "groups")} == {
        "kind": "cnn",
        "family": "f",
        "fingerprint": "mark",
        "parameters": 5,
        "verdict": "exact",
        "groups": 3,
    }


@pytest.mark.parametrize(
    ("code", "verdict"), [(-signal.SIGXCPU, "time-out"), (-signal.SIGKILL, "time-out"), (1, "error"), (-signal.SIGSEGV, "error")]
)
def test_a_process_that_ends_early_keeps_its_facts(matrix: Any, tmp_path: Path, code: int, verdict: str) -> None:
    found = matrix.run.finish(running(matrix, tmp_path, 'facts: {"macs": 7}\nNameError: x\n', code), 60)
    assert found["verdict"] == verdict and found["macs"] == 7
    assert ("NameError: x" in found.get("error", "")) == (verdict == "error")


def test_a_process_that_hangs_is_stopped(matrix: Any, tmp_path: Path) -> None:
    job = running(matrix, tmp_path, "", None)
    assert matrix.run.finish(job, 60) is None
    job.begun -= 60 * matrix.run.WALL_FACTOR + 1
    found = matrix.run.finish(job, 60)
    assert found["verdict"] == "time-out"
    assert not job.process.is_alive()


def test_what_is_due(matrix: Any) -> None:
    network = matrix.networks.Network("n", "timm", "f", "cnn", 1)
    mark = matrix.run.fingerprint(network)
    assert mark != matrix.run.fingerprint(matrix.networks.Network("m", "timm", "f", "cnn", 1))

    def due(known: dict[str, Any] | None, **options: bool) -> bool:
        return matrix.run._is_due(
            known, network, SimpleNamespace(**({"again": False, "not_exact": False, "missing": False} | options))
        )

    assert due(None)
    assert not due({"fingerprint": mark, "verdict": "error"})
    assert due({"fingerprint": "old", "verdict": "exact"})
    assert due({"fingerprint": mark, "verdict": "exact"}, again=True)
    assert due(None, missing=True) and not due({"fingerprint": "old", "verdict": "error"}, missing=True)
    assert due({"fingerprint": mark, "verdict": "partly frozen"}, not_exact=True)
    assert not due({"fingerprint": "old", "verdict": "exact after repair"}, not_exact=True)


def test_the_committed_page_is_made_from_the_committed_figures(matrix: Any) -> None:
    rows = json.loads((BENCHMARKS / "results" / "coverage.json").read_text(encoding="utf-8"))
    page = (BENCHMARKS.parent / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == matrix.page.page(rows)
