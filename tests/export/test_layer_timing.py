"""Layers that are built to be timed have the sizes of those of the network; times are kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.budgets import Timing
from prunus.errors import ArtifactError, PrunusWarning
from prunus.export.fresh_process import NetworkTimer
from prunus.export.layer_timing import LayerShape, time_layer
from prunus.export.time_cache import TimeCache, cache_folder

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False), (2, 6, 12, 14)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4, bias=False), (2, 8, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, bias=False), (2, 6, 5, 5)),
    "one axis": (lambda: nn.Conv1d(6, 8, 3, bias=False), (2, 6, 12)),
    "linear": (lambda: nn.Linear(6, 8, bias=False), (10, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_built_as_the_network_has_it(name: str) -> None:
    """Sizes of input, weight and output, multiply-adds, and the result itself on the layer's own weight."""
    make, size = LAYERS[name]
    module, x = make(), torch.randn(size)
    graph = prunus.trace(nn.Sequential(module), x)
    shape = LayerShape.of(graph.layers[0], size[0], size[0])
    x_size, weight_size, groups = shape.operands(shape.reads, shape.writes)
    weight: Any = module.weight
    assert (x_size, weight_size) == (size, tuple(weight.shape))
    assert torch.equal(shape._call(x, weight, groups), module(x))
    macs, _ = shape.work(shape.reads, shape.writes)
    assert macs == graph.cost().macs * size[0]


def test_widths_of_grouped_layers() -> None:
    """Depthwise: the groups are the width. Grouped: the same slots go from every group, or whole groups."""
    make, size = LAYERS["depthwise"]
    shape = LayerShape.of(prunus.trace(nn.Sequential(make()), torch.randn(size)).layers[0], 2, 1)
    assert shape.operands(1, 4) == ((1, 4, 9, 9), (4, 1, 3, 3), 4)
    make, size = LAYERS["grouped"]
    shape = LayerShape.of(prunus.trace(nn.Sequential(make()), torch.randn(size)).layers[0], 2, 1)
    assert shape.operands(1, 8) == ((1, 4, 9, 9), (8, 1, 3, 3), 4)
    assert shape.operands(2, 9) == ((1, 6, 9, 9), (9, 2, 3, 3), 3)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", [name for name in LAYERS])
def test_every_kind_runs(name: str, runtime: str) -> None:
    pytest.importorskip(runtime if runtime != "eager" else "onnxruntime")
    make, size = LAYERS[name]
    shape = LayerShape.of(prunus.trace(nn.Sequential(make()), torch.randn(size)).layers[0], size[0], 1)
    pairs = [(shape.reads, shape.writes), (shape.reads, shape.writes // shape.groups * max(1, shape.groups // 2))]
    times = time_layer(shape, pairs, runtime, Timing(), seconds=0.001)
    assert len(times) == 2 and all(0 < ms < 1000 for ms in times)


def test_settings_of_the_timing() -> None:
    shape = LayerShape("convolution", 16, 16, 3, 0, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
    out = shape.eager(16, 16, Timing(dtype="bfloat16", channels_last=True))()
    assert out.dtype == torch.bfloat16 and out.shape == (3, 16, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    time_layer(shape, [(16, 16)], "eager", Timing(threads=threads + 1), seconds=0.001)
    assert torch.get_num_threads() == threads


# -- the cache


def test_what_was_noted_is_read_again(tmp_path: Path) -> None:
    cache = TimeCache(tmp_path / "new", {"cpu": "one"})
    assert cache.get("shape", 1, 2) is None
    cache.add("shape", {(1, 2): 3.5, (1, 4): 4.5})
    assert TimeCache(tmp_path / "new", {"cpu": "one"}).get("shape", 1, 4) == 4.5
    assert TimeCache(tmp_path / "new", {"cpu": "two"}).get("shape", 1, 4) is None
    assert json.loads(cache.path.read_text())["about"]["cpu"] == "one"


def test_two_processes_keep_both_their_times(tmp_path: Path) -> None:
    first, second = TimeCache(tmp_path, {}), TimeCache(tmp_path, {})
    first.add("a", {(1, 1): 1.0})
    second.add("b", {(1, 1): 2.0})
    assert (TimeCache(tmp_path, {}).get("a", 1, 1), TimeCache(tmp_path, {}).get("b", 1, 1)) == (1.0, 2.0)


@pytest.mark.parametrize("content", ["", "[]", '{"about": {}, "ms": {"x": "y"}}', '{"ms": 3}'])
def test_a_damaged_file_is_started_anew(tmp_path: Path, content: str) -> None:
    cache = TimeCache(tmp_path, {})
    cache.path.write_text(content)
    cache = TimeCache(tmp_path, {})
    cache.add("a", {(1, 1): 1.0})
    assert TimeCache(tmp_path, {}).get("a", 1, 1) == 1.0


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"layer times can't be kept in .*Name another folder with Timing\(cache=\.\.\.\)"):
        TimeCache(tmp_path / "file", {}).add("a", {(1, 1): 1.0})


def test_where_times_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRUNUS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "prunus"
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "mine"))
    assert cache_folder(None) == tmp_path / "mine"
    assert cache_folder(tmp_path / "asked") == tmp_path / "asked"


# -- fresh processes


def test_a_network_that_no_other_process_can_load_is_timed_here() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with NetworkTimer(torch.randn(2, 3), "eager", Timing(batch=4), seconds=0.01) as timer:
        with pytest.warns(PrunusWarning, match=r"the network is timed in this process, not in a fresh one, .*Local"):
            found = timer({"a": Local()})
        assert not timer.fresh and found["a"].batch == 4 and 0 < found["a"].median_ms < 1000
        timer({"a": Local()})  # the warning comes once
