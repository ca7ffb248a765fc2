"""The coverage matrix: a fast part of it, and what its benchmark makes of the processes and their facts."""

from __future__ import annotations

import copy
import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.testing import check_network

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def matrix() -> Any:
    """The modules of the benchmark, imported as its own process does."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        found = {
            name: _load(name)
            for name in ("_coverage_networks", "_coverage_one", "_coverage_page", "_peer_judge", "_peer", "coverage")
        }
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(
        networks=found["_coverage_networks"],
        one=found["_coverage_one"],
        page=found["_coverage_page"],
        run=found["coverage"],
        judge=found["_peer_judge"],
        peer=found["_peer"],
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
PEER = {"name": "torch-pruning", "version": "1.6.1", "limit": 45, "memory_gb": 10.0}


def test_the_page_counts_and_explains(matrix: Any) -> None:
    reason = "no rule for this operation in `aten.bmm.default` (called in `layer1.0`), net.py:12"
    rows = {
        "torchvision:a": row(),
        "timm:b": row(verdict="partly frozen", prunable_share=0.5, shortcomings={"stem": reason}, family="odd"),
        "timm:c": row(verdict="time-out", family="odd", kind="hybrid", prunable_share=0.9),
        "timm:d": row(verdict="exact after repair", shortcomings={}, prunable_share=0.85),
        "timm:e": row(kind="transformer", family="vit"),
    }
    text = matrix.page.page({"header": HEADER, "networks": rows})
    lines = text.splitlines()
    assert "| cnn | 3 | 1 | 1 | 1 | 0 | 0 | 0 | 2 |" in lines
    assert "| hybrid | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |" in lines
    assert "| all | 5 | 2 | 1 | 1 | 0 | 0 | 1 | 3 |" in lines
    rest = "have all their members here prunable in groups that hold at least 80% of the MACs."
    assert f"Of 3 families of networks with convolutions, 2 (66.7%) {rest} The others: timm odd." in lines
    assert f"Of 1 families of transformers, 1 (100.0%) {rest}" in lines
    assert "| torchvision:a | 64 x 64 | exact | 100.0% | 0 | 0.30 | 0.10 | 2.0x |" in lines
    assert "- no rule for this operation in `aten.bmm.default`, net.py:12: 1 network, e.g. timm:b (`stem`)" in lines


def test_the_page_sets_both_tools_on_the_same_networks_side_by_side(matrix: Any) -> None:
    rows = {
        "torchvision:a": row(peer={"verdict": "inexact", "seconds": 1.5, "prunus_seconds": 0.5}, groups=3),
        "timm:b": row(peer={"verdict": "exact", "seconds": 0.25, "prunus_seconds": 0.5}, groups=3, mixing=2),
        "timm:c": row(peer={"verdict": "exact", "seconds": 0.5, "prunus_seconds": 0.5}, verdict="partly frozen", groups=3),
        "timm:d": row(peer={"verdict": "error", "prunus_seconds": 0.125}, verdict="refused"),
        "timm:e": row(peer={"verdict": "exact up to norms", "seconds": 9.0}, verdict="error"),  # nothing to compare its time with
        "timm:f": row(verdict="time-out"),
    }
    text = matrix.page.page({"header": HEADER | {"peer": PEER}, "networks": rows})
    lines = text.splitlines()
    assert "## Beside torch-pruning 1.6.1" in lines
    assert "| | networks | exact | exact up to norms | inexact | refused | error |" in lines
    assert "| Prunus | 5 | 2 | 1 | 0 | 1 | 1 |" in lines
    assert "| torch-pruning 1.6.1 | 5 | 2 | 1 | 1 | 0 | 1 |" in lines
    assert "in 1 of these networks some groups stay whole" in text
    assert (
        "On the 3 networks where both return a network the median is 0.50 s for Prunus and 0.50 s for torch-pruning 1.6.1; "
        "the median of its time over Prunus' is 1.00 (from 0.50, timm:b, to 3.00, torchvision:a), and Prunus is faster on 1."
        in text
    )
    assert "| torchvision:a | 64 x 64 | exact | 100.0% | 0 | 0.30 | 0.10 | 2.0x | inexact | 1.50 | 0.50 |" in lines
    assert "| timm:d | 64 x 64 | refused | 100.0% | 0 | 0.30 | 0.10 | 2.0x | error |  | 0.12 |" in lines
    assert "Beside" not in matrix.page.page({"header": HEADER, "networks": {"timm:f": rows["timm:f"]}})


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
        args = SimpleNamespace(**({"again": False, "not_exact": False, "missing": False} | options))
        return matrix.run._is_due(known, network, args)

    assert due(None)
    assert not due({"fingerprint": mark, "verdict": "error"})
    assert due({"fingerprint": "old", "verdict": "exact"})
    assert due({"fingerprint": mark, "verdict": "exact"}, again=True)
    assert due(None, missing=True) and not due({"fingerprint": "old", "verdict": "error"}, missing=True)
    assert due({"fingerprint": mark, "verdict": "partly frozen"}, not_exact=True)
    assert not due({"fingerprint": "old", "verdict": "exact after repair"}, not_exact=True)


def test_the_peer_sees_surveyed_networks_only_and_small_convolutional_ones_first(matrix: Any) -> None:
    keys = ["timm:test_vit", "timm:test_resnet", "torchvision:resnet18", "timm:starnet_s050"]
    kinds = ["transformer", "cnn", "cnn", "cnn"]
    known = {key: {"kind": kind, "parameters": size} for key, kind, size in zip(keys, kinds, [1, 300, 400, 200], strict=True)}
    args = SimpleNamespace(peer=True, again=False, only=[])
    assert [n.key for n in matrix.run.due(known, args)] == [
        "timm:starnet_s050",
        "timm:test_resnet",
        "torchvision:resnet18",
        "timm:test_vit",
    ]
    known["timm:test_resnet"]["peer"] = {}
    assert "timm:test_resnet" not in [n.key for n in matrix.run.due(known, args)]
    args.again, args.only = True, ["test_*"]
    assert [n.key for n in matrix.run.due(known, args)] == ["timm:test_resnet", "timm:test_vit"]


@pytest.mark.parametrize(
    ("stage", "verdict", "told"),
    [
        ("peer", "time-out", None),
        ("judge", "not judged", "the comparison: time-out"),
        ("prunus", "not judged", "Prunus: time-out"),
    ],
)
def test_only_its_own_step_counts_against_the_peer(
    matrix: Any, tmp_path: Path, stage: str, verdict: str, told: str | None
) -> None:
    said = f'facts: {{"stage": "build"}}\nfacts: {{"stage": "{stage}"}}\n'
    facts = matrix.run.peer_facts(matrix.run.finish(running(matrix, tmp_path, said, -signal.SIGXCPU), 45))
    assert facts["verdict"] == verdict
    assert (told is None and "error" not in facts) or (told is not None and facts["error"].startswith(told))


class Shuffled(nn.Module):
    """Two convolutions with a channel shuffle of two groups between them and a norm behind."""

    def __init__(self, norm: nn.Module, groups: int = 2) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 3)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return self.last(self.norm(x))


def cut(net: Shuffled, written: list[int], read: list[int]) -> Shuffled:
    """A copy with these outputs of the first and these inputs of the last convolution; the norm goes with the latter."""
    small = copy.deepcopy(net)
    small.first.weight = nn.Parameter(net.first.weight[written].detach())
    small.first.bias = nn.Parameter(net.first.bias[written].detach())  # pyright: ignore[reportOptionalSubscript]
    small.last.weight = nn.Parameter(net.last.weight[:, read].detach())
    if isinstance(net.norm, nn.GroupNorm):
        small.norm.num_channels = len(read)  # pyright: ignore
        small.norm.weight = nn.Parameter(net.norm.weight[read].detach())
        small.norm.bias = nn.Parameter(net.norm.bias[read].detach())
    return small


# The shuffle takes channel 4 g + i to position 2 i + g: {0, 1, 4, 5} are read as {0, 2, 1, 3}.
@pytest.mark.parametrize(
    ("norm", "written", "read", "mixes", "verdict"),
    [
        (nn.Identity(), [0, 1, 4, 5], [0, 1, 2, 3], False, "exact"),
        (nn.Identity(), [0, 1, 4, 5], [0, 1, 4, 5], False, "inexact"),  # as without the shuffle
        (nn.Identity(), [0, 1, 2, 5], [0, 2, 4, 3], False, "inexact"),  # what the re-split of unequal parts does
        (nn.Identity(), [0, 1, 4, 5], [0, 1, 2], False, "broken forward"),
        (nn.Identity(), list(range(8)), list(range(8)), False, "nothing pruned"),
        (nn.GroupNorm(1, 8), [0, 1, 4, 5], [0, 1, 2, 3], True, "exact up to norms"),
        (nn.GroupNorm(2, 8), [0, 1, 4, 5], [0, 1, 2, 3], True, "not judged"),  # the second norm-group is empty
        (nn.GroupNorm(1, 8), [0, 1, 4, 5], [0, 1, 4, 5], True, "not judged"),
    ],
)
def test_the_judge_finds_wrong_channels(
    matrix: Any, norm: nn.Module, written: list[int], read: list[int], mixes: bool, verdict: str
) -> None:
    net = matrix.judge.with_unlike_values(Shuffled(copy.deepcopy(norm))).eval()
    case = matrix.networks.Case(net, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "8 x 8")
    found = matrix.judge.judge(net, cut(net, written, read), case, mixes)
    assert found["verdict"] == verdict, found
    if verdict == "inexact":
        assert found["max_error"] > 1e-3
    if verdict == "exact":
        assert found["max_error"] < 1e-12 and 0.4 < found["parameters_left"] < 0.6


def test_all_values_of_a_weight_are_unlike_and_far_from_zero(matrix: Any) -> None:
    twin = matrix.judge.with_unlike_values(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Linear(1500, 2000)))
    for parameter in twin.parameters():
        assert len(parameter.unique()) == parameter.numel()
        assert parameter.abs().min() > 0.3 * parameter.abs().max()


def test_the_inputs_that_are_left_are_found_by_value(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(1.0, 49).view(4, 6, 2)
    small = weight[[0, 2]][:, [1, 4, 5]]
    expected = torch.tensor([[False, True, False, False, True, True]]).expand(4, 6).clone()
    expected[[1, 3]] = True  # filters that are gone: nobody reads them
    assert matrix.judge.read(weight, small, 1).equal(expected)
    monkeypatch.setattr(matrix.judge, "MOST_UNLIKE", 10)  # values may be alike by chance: a vote
    assert matrix.judge.read(weight, small, 1).equal(expected[:1].expand(4, 6))
    transposed = weight.transpose(0, 1).contiguous()
    assert matrix.judge.read(transposed, small.transpose(0, 1), 0).equal(expected[:1].expand(4, 6).T)


def test_the_layers_that_write_the_outputs_are_found(matrix: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    case = matrix.networks.Case(net.eval(), torch.randn(1, 3, 8, 8), "8 x 8")
    graph, seconds = matrix.peer.prune_with_prunus(net, case)
    assert seconds > 0
    assert matrix.peer.last_layers(net, case, graph) == ["5"]
    assert matrix.peer.last_layers(net, case, None) == ["5"]
    headless = matrix.networks.Case(net[:3].eval(), case.inputs, case.shown)
    graph, _ = matrix.peer.prune_with_prunus(headless.model, headless)
    assert matrix.peer.last_layers(headless.model, headless, graph) == ["2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("groups", "verdict"), [(1, "exact"), (2, "inexact")])
def test_the_peer_on_a_channel_shuffle(matrix: Any, groups: int, verdict: str) -> None:
    pytest.importorskip("torch_pruning")
    net = matrix.judge.with_unlike_values(Shuffled(nn.Identity(), groups)).eval()
    case = matrix.networks.Case(net, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "8 x 8")
    pruned = copy.deepcopy(net)
    matrix.peer.prune(pruned, case, ["last"])
    assert pruned.first.out_channels == 4
    assert matrix.judge.judge(net, pruned, case, mixes=False)["verdict"] == verdict


def test_the_committed_page_is_made_from_the_committed_figures(matrix: Any) -> None:
    rows = json.loads((BENCHMARKS / "results" / "coverage.json").read_text(encoding="utf-8"))
    page = (BENCHMARKS.parent / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == matrix.page.page(rows)
