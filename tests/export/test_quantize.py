"""INT8 files: calibrated on images, refused without, and as good as they are said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.errors import ExportError
from prunus.export import export_onnx
from prunus.export.quantize import quantize
from prunus.export.sessions import open_session
from prunus.export.signature import FlatInputs
from prunus.pipeline.int8 import judge

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def files(tmp_path: Any) -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "float.onnx")
    size = quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", torch.randn(32, 3, 8, 8).split(8))
    assert size == (tmp_path / "int8.onnx").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]
    return model, tmp_path / "float.onnx", tmp_path / "int8.onnx"


def test_weights_are_eight_bits_of_which_seven_are_used_one_scale_to_a_channel(files: Any) -> None:
    model, _, quantised = files
    graph = onnx.load(quantised).graph
    kernels = [
        onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    ]
    (kernel,) = kernels
    assert kernel.shape == (8, 3, 3, 3) and np.abs(kernel).max(axis=(1, 2, 3)).tolist() == [64] * 8
    weight = model[0].weight.detach().numpy()
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 64
    assert np.abs(kernel * scale - weight).max() <= scale.max() / 2 + 1e-6


def test_the_file_is_near_the_float_network(files: Any) -> None:
    model, _, quantised = files
    images = torch.randn(64, 3, 8, 8)
    found = open_session(quantised)(FlatInputs.of(images))[0]
    wanted = model(images).detach()
    assert 1e-6 < (found - wanted).abs().max() / wanted.abs().max() < 0.05


def test_judged_on_images_with_labels(files: Any) -> None:
    model, plain, _ = files
    images = torch.randn(20, 3, 8, 8)
    labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    found = judge(model, open_session(plain), list(zip(images.split(8), labels.split(8), strict=True)))
    assert (found.images, found.accuracy, found.accuracy_float, found.agreement) == (20, 0.75, 0.75, 1.0)
    assert 0 <= found.error < 1e-5
    half = judge(nn.Sequential(model, Doubled()), open_session(plain), [(images, labels)])
    assert half.error == pytest.approx(0.5, rel=1e-4) and half.agreement == 1.0


class Doubled(nn.Module):
    def forward(self, x: Any) -> Any:
        return 2 * x


def test_without_images_nothing_is_quantised(files: Any, tmp_path: Any) -> None:
    with pytest.raises(ExportError, match="INT8 needs images to measure the range of every activation on, and none were given"):
        quantize(files[1], tmp_path / "other.onnx", [])
    assert not (tmp_path / "other.onnx").exists()


def test_values_that_are_not_finite_are_refused(files: Any, tmp_path: Any, monkeypatch: Any) -> None:
    from prunus.export.sessions import Session

    monkeypatch.setattr(Session, "__call__", lambda self, inputs: [torch.tensor([float("nan")])])
    with pytest.raises(ExportError, match="INT8 file was not kept: its output 'output' has values that aren't finite"):
        quantize(files[1], tmp_path / "other.onnx", [torch.randn(4, 3, 8, 8)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]
