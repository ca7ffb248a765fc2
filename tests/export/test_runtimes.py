"""Timing is fair (in turns), leaves nothing changed, and its summary is what it says."""

from __future__ import annotations

import gc
import sys
import time

import pytest
import torch
from torch import nn

from prunus import budgets
from prunus.budgets import Timing
from prunus.errors import ExportError, UnknownName
from prunus.export import Latency, export_onnx, measure_file_latency, measure_latency, measure_onnx_latency
from prunus.export.fresh_process import NetworkTimer
from prunus.export.runtimes import RUNTIMES, summary, time_in_turns
from prunus.export.sessions import open_session
from prunus.export.signature import FlatInputs


class Recorder(nn.Module):
    """Notes under which conditions it is called."""

    def __init__(self, name, log, seconds=0.0):
        super().__init__()
        self.name, self.log, self.seconds = name, log, seconds
        self.child = nn.Dropout()

    def forward(self, x, scale=1.0):
        modes = (self.training, self.child.training, torch.is_inference_mode_enabled(), gc.isenabled(), torch.get_num_threads())
        self.log.append((self.name, modes))
        time.sleep(self.seconds)
        return x * scale


def test_networks_take_turns_in_eval_mode_without_garbage_collection():
    log = []
    networks = {"a": Recorder("a", log), "b": Recorder("b", log)}
    measure_latency(networks, {"x": torch.ones(3, 2), "scale": 2.0}, runs=3, warmup=2, threads=2)
    assert [name for name, _ in log] == ["a", "b"] * 5
    assert {modes for _, modes in log} == {(False, False, True, False, 2)}


def test_everything_is_put_back_even_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    network = Recorder("a", []).train()
    network.child.eval()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        measure_latency({"a": network, "b": Broken()}, torch.ones(1), runs=1, warmup=0, threads=threads + 1)
    assert (network.training, network.child.training, gc.isenabled(), torch.get_num_threads()) == (True, False, True, threads)


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        measure_latency({"a": nn.Identity()}, torch.ones(1), runs=1, warmup=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_slower_network_is_slower_and_the_figures_are_milliseconds():
    found = measure_latency({"slow": Recorder("s", [], 0.01), "fast": Recorder("f", [])}, torch.ones(4, 2), runs=5, warmup=1)
    assert 10 <= found["slow"].p10_ms <= found["slow"].median_ms <= found["slow"].p90_ms < 1000
    assert found["fast"].median_ms < found["slow"].median_ms / 2
    assert (found["fast"].runs, found["fast"].threads, found["fast"].batch, found["fast"].runtime) == (5, 1, 4, "eager")


def test_every_runtime_of_budgets_is_in_the_table_and_says_how_its_layers_are_timed():
    assert set(budgets.RUNTIMES) <= set(RUNTIMES)
    assert all(RUNTIMES[name].layers for name in budgets.RUNTIMES)
    assert all(row.name == name and (row.layers is None or row.layers in RUNTIMES) for name, row in RUNTIMES.items())
    with pytest.raises(UnknownName, match="unknown runtime 'onxruntime': did you mean onnxruntime"):
        time_in_turns({"a": nn.Identity()}, torch.ones(1), "onxruntime")


def test_about_so_many_seconds_are_measured():
    """Passes of 2 ms in 0.1 s, at least 15 of each network; those of the sample aren't among them."""
    log = []
    found = time_in_turns({"a": Recorder("a", log, 0.002)}, torch.ones(1), "eager", warmup=1, seconds=0.1)
    assert 15 <= len(found["a"]) <= 50 and len(log) == len(found["a"]) + 5
    assert len(time_in_turns({"a": nn.Identity()}, torch.ones(1), "eager", seconds=0.0)["a"]) == 15


class Wide(nn.Module):
    """Holds 80 MB for a moment."""

    def forward(self, x):
        return x + torch.full((20_000_000,), 1.0).sum()


def test_peak_memory_is_that_of_one_network_in_a_process_of_its_own():
    with NetworkTimer(torch.ones(2, 3), "eager", Timing()) as timer:
        wide, narrow = (timer.memory(network) for network in (Wide(), nn.Linear(3, 3)))
        assert 80e6 <= wide["peak_bytes"] - wide["before_bytes"] < 110e6
        assert narrow["peak_bytes"] - narrow["before_bytes"] < 40e6
        assert timer.memory(Recorder("local", [nn.Linear(1, 1).register_forward_hook(lambda *_: None)])) is None


def test_passes_are_told_one_by_one():
    with NetworkTimer(torch.ones(2, 3), "eager", Timing(), seconds=0.01) as timer:
        found = timer.passes({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    assert {name: len(times) for name, times in found.items()} == {"a": len(found["a"]), "b": len(found["a"])}
    assert all(ms > 0 for times in found.values() for ms in times)


def test_the_99th_percentile_takes_a_hundred_passes():
    assert summary([1.0] * 99, 1, 1, "eager").p99_ms is None
    assert summary([float(n) for n in range(101)], 1, 1, "eager").p99_ms == 99.0


def test_summary_is_median_and_percentiles():
    assert summary([float(n) for n in range(11, 0, -1)], 2, 8, "eager") == Latency(6.0, 2.0, 10.0, 11, 2, 8, "eager")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "linear.onnx"
    export_onnx(nn.Linear(3, 2), torch.randn(2, 3), path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_files_are_timed_in_the_runtimes_of_files(file, runtime):
    pytest.importorskip(runtime)
    found = measure_file_latency({"before": file, "after": file}, torch.randn(5, 3), runtime, runs=4, warmup=1, threads=2)
    assert list(found) == ["before", "after"]
    for latency in found.values():
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
        assert (latency.runs, latency.threads, latency.batch, latency.runtime) == (4, 2, 5, runtime)


def test_measure_onnx_latency_is_that_of_onnxruntime(file):
    assert measure_onnx_latency({"a": file}, torch.randn(5, 3), runs=1)["a"].runtime == "onnxruntime"


def test_an_unknown_runtime_of_files(file):
    with pytest.raises(UnknownName, match=r"unknown runtime 'openvin': did you mean openvino\?"):
        measure_file_latency({"a": file}, torch.randn(5, 3), "openvin")


def test_openvino_computes_in_float32_what_onnxruntime_computes(file):
    pytest.importorskip("openvino")
    inputs = FlatInputs.of(torch.randn(5, 3))
    one, other = (open_session(file, 1, runtime) for runtime in ("onnxruntime", "openvino"))
    assert one.inputs == other.inputs == ("input",) and one.outputs == other.outputs == ("output",)
    torch.testing.assert_close(one(inputs)[0], other(inputs)[0], rtol=1e-5, atol=1e-6)


def test_a_missing_runtime_names_its_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"openvino can't be imported .*pip install 'prunus\[openvino\]'"):
        open_session(file, 1, "openvino")


def test_wrong_inputs_and_files_are_clear_errors(file, tmp_path):
    with pytest.raises(ExportError, match=r"takes 1 inputs \['input'\], but 2 tensors \['input_0', 'input_1'\] were given"):
        measure_onnx_latency({"a": file}, (torch.randn(2, 3), torch.randn(2)))
    with pytest.raises(ExportError, match="onnxruntime can't run the graph on these inputs"):
        measure_onnx_latency({"a": file}, torch.randn(2, 4))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"onnxruntime can't load .*broken\.onnx"):
        measure_onnx_latency({"a": broken}, torch.randn(2, 3))


@pytest.mark.parametrize("setting", [{"runs": 0}, {"warmup": -1}, {"threads": 0}])
def test_counts_out_of_range_are_refused(setting):
    with pytest.raises(ExportError, match="timing needs runs >= 1, threads >= 1 and warmup >= 0, not runs="):
        measure_latency({"a": nn.Identity()}, torch.ones(1), **setting)


def test_nothing_to_time_is_refused():
    with pytest.raises(ExportError, match="nothing to time"):
        measure_latency({}, torch.ones(1))
