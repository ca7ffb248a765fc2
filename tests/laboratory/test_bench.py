"""A bench on a machine that is made up: figures, intervals, verdicts, reasons, what goes on and what is done anew, the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from prunus import Budget, prune, save
from prunus.cli import app
from prunus.cli.bench import bench_notes, bench_tables, read_counts
from prunus.errors import BudgetNotMet, ExportError, PrunusWarning, RecipeError, UnknownName
from prunus.export.layer_timing import LayerShape
from prunus.laboratory.bench import BenchSettings, Case, bench
from prunus.laboratory.bench_layers import even_widths
from prunus.laboratory.bench_limits import check_limits
from prunus.laboratory.bench_reasons import Timed, _of, causes, reasons
from prunus.laboratory.bench_statistics import median_interval, ratio_interval, spread, verdict
from prunus.laboratory.contestants import Origin, read_contestants
from prunus.report.bench import render_bench
from prunus.report.bench_plots import bench_figures
from report.hostile import texts_that_stayed_text

# -- intervals


def test_intervals_cover_every_process() -> None:
    """Passes that don't vary have a median without doubt; a process that was slower for both leaves the ratio alone."""
    steady, slow = [4.0] * 20, [6.0] * 20
    assert median_interval([steady, steady]) == (4.0, 4.0)
    assert median_interval([steady, slow]) == (4.0, 6.0)
    assert ratio_interval([steady, slow], [[2.0] * 20, [3.0] * 20]) == (2.0, 2.0)
    assert ratio_interval([steady, steady], [[2.0] * 20, [5.0] * 20]) == (0.8, 2.0)


def test_a_spell_that_hits_both_networks_in_their_turn_doesnt_widen_the_speed_up() -> None:
    generator = torch.Generator().manual_seed(0)
    weather = (1 + 3 * torch.rand(200, generator=generator)).tolist()
    together = ratio_interval([weather], [[ms / 2 for ms in weather]])
    apart = ratio_interval([weather], [[ms / 2 for ms in reversed(weather)]])
    assert together == (2.0, 2.0)
    assert apart[0] < 1.95 and apart[1] > 2.05


def test_no_verdict_where_the_interval_holds_one() -> None:
    assert [verdict(interval) for interval in ((1.01, 1.2), (0.99, 1.2), (0.8, 0.99))] == [
        "faster",
        "no difference shown",
        "slower",
    ]
    assert spread([[1.0] * 5 + [2.0] * 5, [1.5]]) == pytest.approx(1 / 1.5)


# -- reasons


def layer(name: str, ms: float, macs: float, floor: float = 0.0, even: float | None = None, bound: str = "arithmetic") -> dict:
    times = {"ms": ms, "floor_ms": floor, "even_ms": ms if even is None else even}
    return {"name": name, "macs": macs, "bytes": macs / 2, "bound": bound, **times}


def test_causes_by_hand() -> None:
    """Full: 10 ms, 100 MACs; layers a (6 ms, 60 MACs) and b (2 ms, 40), 1 ms of each at one channel, 2 ms beside them. Small: 7
    ms at half of the MACs, so 2 ms above the ideal: a 3.5 ms, 45 MACs, of which 0.5 ms would go with even widths; b 1.5 ms, 5
    MACs, waits for memory; beside them 2 ms. Per MAC beyond the floor: a 5/60, b 1/40, on average 6/100."""
    full = Timed(10.0, 100, [layer("a", 6.0, 60, 1.0), layer("b", 2.0, 40, 1.0)])
    small = Timed(7.0, 50, [layer("a", 3.5, 45, 1.0, even=3.0), layer("b", 1.5, 5, 1.0, bound="memory")])
    found = causes(full, small)
    assert found == pytest.approx(
        {
            "other": 2.0 - 0.5 * 2.0,
            "launch": 2.0 - 0.5 * 2.0,
            "widths": 0.5,
            "shapes": 2.5 - 0.5 - 45 * 5 / 60,
            "memory": 0.5 - 5 / 40,
            "cheap": 45 * (5 / 60 - 0.06) + 5 * (1 / 40 - 0.06),
        }
    )
    assert sum(found.values()) == pytest.approx(2.0)
    told = reasons(full, small, "eager")
    assert [reason["cause"] for reason in told] == ["other", "launch", "cheap", "widths", "memory"]
    texts = {reason["cause"]: reason["text"] for reason in told}
    assert "take 2 of its 7 ms (the reference's 2 of 10 ms); a runtime that fuses them" in texts["other"]
    assert texts["other"].endswith("(1 of the 2 ms above the ideal)")
    assert "launch-bound: its 2 layers take 2 of 7 ms even at a single channel" in texts["launch"]
    assert "odd widths: 1 of its layers would take 0.5 ms less" in texts["widths"]
    assert "their multiply-adds fell to 12%, what they read and write to 12%" in texts["memory"]
    assert "a million of those removed took 6.5e+04 ms, of all 8e+04 ms" in texts["cheap"]
    assert "fuses" not in reasons(full, small, "onnxruntime")[0]["text"]


def test_a_cause_may_cost_more_than_is_left_above_the_ideal() -> None:
    """3.12 of 0.823 ms was told once: what other parts won back wasn't."""
    assert _of(0.5, 2.0) == " (0.5 of the 2 ms above the ideal)"
    assert _of(3.12, 0.823) == " (costs 3.12 ms; other parts are better than the ideal, so that 0.823 ms above it are left)"


def test_no_reason_where_nothing_is_above_the_ideal() -> None:
    full = Timed(10.0, 100, [layer("a", 8.0, 100)])
    assert reasons(full, Timed(5.0, 50, [layer("a", 4.0, 50)]), "eager") == []


def test_layers_of_other_names_are_held_against_the_average_and_too_long_ones_are_scaled() -> None:
    """Alone the layers take 20 and 16 ms of 10 and 8: they count half. Average 0.1 ms a MAC, the small one's 0.16."""
    full, small = Timed(10.0, 100, [layer("a", 20.0, 100)]), Timed(8.0, 50, [layer("z", 16.0, 50)])
    assert causes(full, small) == pytest.approx(
        {"other": 0.0, "launch": 0.0, "widths": 0.0, "memory": 0.0, "shapes": 8.0 - 50 * 0.1, "cheap": 0.0}
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (LayerShape("convolution", 3, 17, 1), (3, 32)),
        (LayerShape("convolution", 32, 33, 1), (32, 48)),
        (LayerShape("convolution", 1, 50, 1, groups=50), (1, 64)),
        (LayerShape("convolution", 5, 40, 1, groups=4), (5, 40)),
    ],
)
def test_even_widths(shape: LayerShape, expected: tuple[int, int]) -> None:
    assert even_widths(shape) == expected


# -- a bench


def tiny(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Machine:
    """Takes 1 ms and 1 ms for every 1,000 parameters, on onnxruntime half of that; notes what it was asked."""

    asked: list[str]
    noise: float = 0.0
    broken: str | None = None

    def __init__(self, inputs: Any, runtime: str, timing: Any, seconds: float) -> None:
        self.runtime, self.timing, self.seconds, self.fresh = runtime, timing, seconds, True

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def passes(self, networks: Mapping[str, nn.Module]) -> dict[str, list[float]]:
        self.asked.append(f"{self.runtime} {self.timing.threads} {self.timing.batch} {self.timing.channels_last}")
        if self.runtime == self.broken:
            raise ExportError("no such luck")
        factor = 0.5 if self.runtime == "onnxruntime" else 1.0
        wobble = [1 - self.noise, 1.0, 1.0 + self.noise] * 40
        return {name: [factor * w * self.ms(network) for w in wobble] for name, network in networks.items()}

    def ms(self, network: nn.Module) -> float:
        return self.timing.batch * (1 + sum(p.numel() for p in network.parameters()) / 1e3)

    def memory(self, network: nn.Module) -> dict[str, int]:
        return {"before_bytes": 100, "peak_bytes": 100 + sum(p.numel() for p in network.parameters())}


def made_up(shape: LayerShape, widths: Sequence[tuple[int, int]], runtime: str, timing: Any, *, seconds: float) -> list[float]:
    return [1e-3 + 1e-6 * shape.work(*pair)[0] for pair in widths]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    kind = type("Machine", (Machine,), {"asked": []})
    monkeypatch.setattr("prunus.laboratory.bench.NetworkTimer", kind)
    monkeypatch.setattr("prunus.laboratory.bench_layers.time_layer", made_up)
    peaks = {"macs_per_second": 4e9, "bytes_per_second": 4e9}
    monkeypatch.setattr("prunus.laboratory.bench_layers.machine_peaks", lambda timing: peaks)
    monkeypatch.setattr("prunus.report.laboratory.plotly", lambda: "/* plotly */")
    return kind


NETWORKS = {"full": tiny(8), "small": tiny(4)}
INPUT = torch.randn(1, 3, 8, 8)


def test_figures_of_a_bench(tmp_path: Path, machine: type[Machine]) -> None:
    """Parameters: 8 (27 + 1) + 4 (72 + 1) = 516 and 4 (27 + 1) + 4 (36 + 1) = 260. MACs on 6 x 6 and 4 x 4 pixels: 36 x 27 x 8 +
    16 x 72 x 4 = 12,384 and 6,192, an ideal of 2. 1.516 ms over 1.260 ms is 1.203 times as fast."""
    settings = BenchSettings(batches=(1, 8), threads=(2,), processes=2)
    result = bench(NETWORKS, INPUT, tmp_path, settings, about={"input": "3x8x8"})
    assert [row["case"] for row in result["cases"]] == [
        "eager, 2 threads, batch 1",
        "eager, 2 threads, batch 8",
        "onnxruntime, 2 threads, batch 1",
        "onnxruntime, 2 threads, batch 8",
    ]
    assert machine.asked == [f"{runtime} 2 {batch} False" for runtime in settings.runtimes for batch in (1, 8) for _ in (0, 1)]
    assert [(row["name"], row["macs"], row["parameters"]) for row in result["networks"]] == [
        ("full", 12384, 516),
        ("small", 6192, 260),
    ]
    first, _, other, _ = result["cases"]
    small, told = first["networks"]["small"], first["compared"]["small"]
    assert small["p50_ms"] == pytest.approx(1.26) and small["p99_ms"] == pytest.approx(1.26) and small["runs"] == 240
    assert small["memory_bytes"] == 260 and small["process_bytes"] == 360
    assert small["images_per_second"] == pytest.approx(1e3 / 1.26)
    assert result["cases"][1]["networks"]["small"]["images_per_second"] == pytest.approx(1e3 / 1.26)
    assert other["networks"]["full"]["p50_ms"] == pytest.approx(0.758)
    assert told["speed_up"] == pytest.approx(1.516 / 1.26) and told["ideal"] == 2.0 and told["verdict"] == "faster"
    assert told["of_ideal"] == pytest.approx(1.516 / 1.26 / 2) and told["short"]
    assert sum(told["causes"].values()) == pytest.approx(1.26 - 1.516 / 2)
    assert told["reasons"][0]["cause"] == "other"
    assert [layer["name"] for layer in first["layers"]["small"]] == ["0", "2"]
    assert json.loads((tmp_path / "bench.json").read_text()) == result and (tmp_path / "bench.html").is_file()


def test_a_stopped_bench_goes_on_and_a_finished_one_is_measured_anew(tmp_path: Path, machine: type[Machine]) -> None:
    settings = BenchSettings(threads=(1, 2), processes=1)
    told: list[str] = []

    def stop(text: str) -> None:
        told.append(text)
        if text.startswith("3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(NETWORKS, INPUT, tmp_path, settings, announce=stop)
    assert len(machine.asked) == 2 and not (tmp_path / "bench.json").exists()
    bench(NETWORKS, INPUT, tmp_path, settings, announce=told.append)
    assert told[3:] == ["3 of 4: onnxruntime, 1 thread, batch 1", "4 of 4: onnxruntime, 2 threads, batch 1"]
    assert machine.asked == ["eager 1 1 False", "eager 2 1 False", "onnxruntime 1 1 False", "onnxruntime 2 1 False"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.html", "bench.json"]
    bench(NETWORKS, INPUT, tmp_path, settings)
    assert len(machine.asked) == 8


def test_a_stopped_bench_of_something_else_is_refused(tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if text.startswith("2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(NETWORKS, INPUT, tmp_path, announce=stop)
    with pytest.raises(RecipeError, match=r"another recipe \(networks\.small: .*choose another folder with --out"):
        bench({**NETWORKS, "small": tiny(5)}, INPUT, tmp_path)


def test_channels_last_is_tried_as_well_where_a_runtime_has_it(tmp_path: Path, machine: type[Machine]) -> None:
    assert BenchSettings(channels_last=True).cases() == [Case("eager"), Case("onnxruntime"), Case("eager", channels_last=True)]
    result = bench(
        NETWORKS, INPUT, tmp_path, BenchSettings(("eager",), channels_last=True, processes=1, layers=False, memory=False)
    )
    assert machine.asked == ["eager 1 1 False", "eager 1 1 True"]
    row = result["cases"][1]
    assert row["case"] == "eager, 1 thread, batch 1, channels_last" and row["layers"] == {}
    assert row["networks"]["small"]["memory_bytes"] is None and row["compared"]["small"]["reasons"] == []


def test_a_runtime_that_cant_be_measured_says_why_and_the_others_go_on(tmp_path: Path, machine: type[Machine]) -> None:
    machine.broken = "onnxruntime"
    with pytest.warns(PrunusWarning, match="onnxruntime, 1 thread, batch 1 can't be measured: no such luck"):
        result = bench(NETWORKS, INPUT, tmp_path)
    assert result["cases"][0]["error"] is None and result["cases"][1]["error"] == "no such luck"
    assert "no such luck" in render_bench(result)
    assert "not measured: no such luck" in str(bench_tables(result)[1].title)
    with pytest.raises(ExportError, match=r"nobody knows whether the limits are kept, .*batch 1: no such luck"):
        check_limits(result, max_ms=100)
    with pytest.warns(PrunusWarning), pytest.raises(ExportError, match=r"nothing could be measured: onnxruntime, .*no such luck"):
        bench(NETWORKS, INPUT, tmp_path, BenchSettings(("onnxruntime",)))


def test_a_busy_machine_is_told(tmp_path: Path, machine: type[Machine]) -> None:
    """Passes of 0.9, 1 and 1.1 times the median: a spread of 20 %."""
    machine.noise = 0.1
    with pytest.warns(PrunusWarning, match="eager, .*passes of full vary by 20% of their median: the machine is busy"):
        result = bench(NETWORKS, INPUT, tmp_path, BenchSettings(("eager",), processes=1))
    assert "the machine is busy" in result["cases"][0]["notes"][0]
    low, high = result["cases"][0]["compared"]["small"]["interval"]
    assert low == high, "both wobbled together"


def test_a_network_that_cant_be_traced_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.errors import UnsupportedNetwork
    from prunus.graph import trace

    def refuses(network: nn.Module, inputs: Any) -> Any:
        if network is NETWORKS["small"]:
            raise UnsupportedNetwork("it is lazy")
        return trace(network, inputs)

    monkeypatch.setattr("prunus.laboratory.bench.trace", refuses)
    result = bench(NETWORKS, INPUT, tmp_path, BenchSettings(("eager",), processes=1))
    told = result["cases"][0]["compared"]["small"]
    assert (told["ideal"], told["reasons"]) == (None, []) and told["speed_up"] == pytest.approx(1.516 / 1.26)
    assert result["notes"] == ["small can't be traced, so that its multiply-adds aren't known: it is lazy"]
    assert "small can&#x27;t be traced" in render_bench(result)


def test_what_cant_be_benched(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to bench"):
        bench({}, INPUT, tmp_path)
    with pytest.raises(UnknownName, match="unknown runtime 'onxruntime': did you mean onnxruntime"):
        BenchSettings(("onxruntime",)).cases()
    with pytest.raises(ExportError, match="threads and processes of at least 1"):
        BenchSettings(threads=(0,)).cases()


# -- limits


def test_limits(tmp_path: Path) -> None:
    """Small takes 1.26 ms, full 1.516 ms, which is free to."""
    result = bench(NETWORKS, INPUT, tmp_path, BenchSettings(("eager",), processes=1))
    check_limits(result, max_ms=1.27, min_speed_up=1.2)
    with pytest.raises(
        BudgetNotMet, match=r"^small takes 1.26 ms \(1.26 to 1.26\) on eager, .*, 5.0% more than the 1.2 ms allowed$"
    ):
        check_limits(result, max_ms=1.2)
    with pytest.raises(BudgetNotMet, match=r"^small is 1.2 times as fast as .* \(1.2 to 1.2\) on eager, .*, not 1.3 times$"):
        check_limits(result, min_speed_up=1.3)
    result["cases"][0]["networks"]["small"]["interval_ms"] = [1.1, 1.4]
    with pytest.raises(BudgetNotMet, match="the interval holds the limit, so that another measurement may come out otherwise"):
        check_limits(result, max_ms=1.2)
    alone = bench({"small": NETWORKS["small"]}, INPUT, tmp_path, BenchSettings(("eager",), processes=1))
    check_limits(alone, max_ms=1.27)
    with pytest.raises(BudgetNotMet, match=r"small takes 1\.26 ms"):
        check_limits(alone, max_ms=1.25)
    with pytest.raises(ExportError, match="name two"):
        check_limits(alone, min_speed_up=1.3)


# -- names


def test_contestants(tmp_path: Path) -> None:
    source = tmp_path / "nets.py"
    shutil.copy(Path(__file__).parent / "bench_nets.py", source)
    made = read_contestants([f"full={source}:tiny"], Origin()).networks["full"]
    small = prune(made, INPUT, Budget(channels=0.5))
    save(small.model, small.record, tmp_path / "small.prunus")
    found = read_contestants([f"full={source}:tiny", f"{tmp_path}/small.prunus"], Origin(of=f"{source}:tiny"))
    assert list(found.networks) == ["full", f"{tmp_path}/small.prunus"] and found.input_shape is None
    assert found.networks[f"{tmp_path}/small.prunus"][0].out_channels == 4
    with pytest.raises(RecipeError, match=r"nothing says which network .*small\.prunus was made from: name it with --of"):
        read_contestants([f"{tmp_path}/small.prunus"], Origin())
    with pytest.raises(RecipeError, match=r"two networks are called 'a': name one of them, e\.g\. other=.*nets\.py:tiny"):
        read_contestants([f"a={source}:tiny", f"a={source}:tiny"], Origin())


def test_counts() -> None:
    assert read_counts("--batch", "1,8, 32,8") == (1, 8, 32)
    for text in ("", "0", "a", "1.5"):
        with pytest.raises(RecipeError, match="can't read --batch"):
            read_counts("--batch", text)


# -- what is shown


def test_page_tables_and_notes(tmp_path: Path) -> None:
    result = bench(NETWORKS, INPUT, tmp_path, BenchSettings(batches=(1, 8), processes=1), about={"networks": ["<mine>"]})
    figures = bench_figures(result)
    small, ideal = figures["plot-speed-up"]["data"]
    assert small["x"] == pytest.approx([1.516 / 1.26] * 4) and ideal["x"] == [2.0] * 4
    assert small["y"][0] == "eager, 1 thread, batch 1"
    assert [trace["x"] for trace in figures["plot-batches"]["data"]] == [[1, 8]] * 4
    assert [len(trace["x"]) for trace in figures["plot-roof"]["data"]] == [2, 2, 3]
    text = render_bench(result)
    assert "small is 1.20 times as fast as full on" in text and "60.2 % of the ideal" in text and "✓ faster" in text
    assert "&lt;mine&gt;" in text and texts_that_stayed_text(render_bench, result) > 20
    notes = bench_notes(result)
    assert notes[0] == "small, eager, 1 thread, batch 1: faster, 1.20 times as fast (1.20 to 1.20), 60% of the ideal, because"
    assert notes[1].startswith("  - work beside the layers: batch norms")
    cells = [list(column.cells) for column in bench_tables(result)[0].columns]
    assert cells[0] == ["full", "small"] and cells[1] == ["1.52", "1.26"] and cells[-2:] == [["-", "1.2"], ["-", "2"]]
    with pytest.raises(ExportError, match="the bench can't be shown: KeyError 'notes'"):
        render_bench({"networks": [], "cases": []})


def test_the_command_and_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(Path(__file__).parent / "bench_nets.py", tmp_path / "nets.py")
    monkeypatch.chdir(tmp_path)
    line = ["bench", "full=nets.py:tiny", "small=nets.py:narrow", "--input", "3x8x8", "--runtime", "eager", "--processes", "1"]
    done = CliRunner().invoke(app, [*line, "--max-ms", "1.3"])
    assert done.exit_code == 0, done.stderr
    assert "eager, 1 thread, batch 1" in done.stdout and "written to bench: bench.json, bench.html" in done.stdout
    done = CliRunner().invoke(app, [*line, "--max-ms", "1.2", "--json"])
    assert done.exit_code == 1 and json.loads(done.stdout)["reference"] == "full"
    assert "error: small takes 1.26 ms (1.26 to 1.26) on eager, 1 thread, batch 1" in done.stderr
    assert CliRunner().invoke(app, [*line, "--threads", "x"]).exit_code == 2
