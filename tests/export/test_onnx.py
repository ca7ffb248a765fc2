"""The ONNX file computes what the network computes, or there is no file."""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from prunus.errors import ExportError
from prunus.export import compare, export_onnx, sessions
from prunus.export import onnx as export_module

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        nn.init.uniform_(self.bn.running_mean, -1, 1)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, x):
        return self.head(self.drop(self.bn(self.conv(x)).relu().mean((2, 3))))


class Keywords(nn.Module):
    def forward(self, image, scale=None, *, negate=False, extra=None):
        y = image * scale + extra["shift"]
        return OrderedDict(image=-y if negate else y, parts=(y.sum(1), y.shape[0]), nothing=None)


class TwoRows(nn.Module):
    def forward(self, x):
        return x.view(2, 3, 4) * 2


def run(path, **feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(3)
    model = Classifier().train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("onnx") / "new" / "small.onnx"
    check = export_onnx(model, torch.randn(1, 3, 8, 8), path, check_inputs=[torch.randn(5, 3, 8, 8)])
    return model, before, path, check


def test_the_file_computes_what_the_network_computes_at_any_batch(exported):
    model, _, path, check = exported
    reference = Classifier().eval()
    reference.load_state_dict(model.state_dict())
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(torch.from_numpy(run(path, input=x)[0]), reference(x).detach(), rtol=1e-5, atol=1e-6)
    assert (check.passed, check.format, check.path, check.tolerance, check.notes) == (True, "onnx", path, 1e-4, ())
    assert check.agreement == 1.0 and 0 <= check.max_error < 1e-5
    assert check.file_bytes == path.stat().st_size


def test_the_network_of_the_caller_is_untouched(exported):
    model, before, _, _ = exported
    assert model.training and model.drop.training and not model.bn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_file_with_the_networks_own_names_and_no_paths_of_this_machine(exported):
    _, _, path, _ = exported
    assert [p.name for p in path.parent.iterdir()] == ["small.onnx"]
    graph = onnx.load(path).graph
    assert {"head.weight", "head.bias"} <= {entry.name for entry in graph.initializer}
    assert [entry.name for entry in graph.output] == ["output"]
    assert not [item for node in graph.node for item in node.metadata_props]
    assert str(export_module.__file__).rsplit("/", 1)[0].encode() not in path.read_bytes()


def test_keyword_inputs_constants_and_nested_outputs_without_a_word_on_the_console(tmp_path, capfd, caplog):
    inputs = {"scale": torch.randn(2, 1), "image": torch.randn(2, 3), "negate": True, "extra": {"shift": torch.randn(3)}}
    check = export_onnx(Keywords(), inputs, tmp_path / "k.onnx", opset=18)
    model = onnx.load(tmp_path / "k.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert [entry.name for entry in model.graph.input] == ["scale", "image", "extra_shift"]
    assert [entry.name for entry in model.graph.output] == ["output_image", "parts_0"]
    scale, image, shift = torch.randn(4, 1), torch.randn(4, 3), torch.randn(3)
    first, second = run(tmp_path / "k.onnx", scale=scale, image=image, extra_shift=shift)
    expected = image * scale + shift
    torch.testing.assert_close(torch.from_numpy(first), -expected)
    torch.testing.assert_close(torch.from_numpy(second), expected.sum(1))
    assert check.passed and check.agreement == 1.0
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_a_network_that_fixes_its_batch_is_exported_so_and_says_so(tmp_path):
    check = export_onnx(TwoRows(), torch.randn(2, 12), tmp_path / "f.onnx", check_inputs=[torch.randn(2, 12), torch.randn(3, 12)])
    assert check.passed and check.agreement is None
    assert check.notes[0].startswith(
        "the batch size is fixed at 2: with a dynamic one TwoRows itself can't run on inputs of shapes"
    )
    assert check.notes[1:] == ("1 of 2 check inputs have another shape and could not be compared",)
    assert onnx.load(tmp_path / "f.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


@pytest.fixture
def shifted_runtime(monkeypatch):
    """Make onnxruntime's outputs differ by a share of the largest one."""

    def install(share):
        original = sessions.Session.__call__

        def call(session, inputs):
            return [output + share * output.abs().max() for output in original(session, inputs)]

        monkeypatch.setattr(sessions.Session, "__call__", call)

    return install


def test_a_file_that_differs_is_refused_and_the_old_one_stays(tmp_path, shifted_runtime):
    shifted_runtime(2e-4)
    path = tmp_path / "linear.onnx"
    path.write_text("old")
    with pytest.raises(
        ExportError, match=r"Linear was not kept: its output 'output' differs from PyTorch's by 0\.0002 of the largest"
    ):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_difference_below_the_tolerance_is_reported(tmp_path, shifted_runtime):
    shifted_runtime(5e-5)
    check = export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "linear.onnx")
    assert check.max_error == pytest.approx(5e-5, rel=0.02)


def test_agreement_is_the_share_of_rows_with_the_same_class(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TOLERANCE", 10.0)

    # Two rows of every batch change their class: of batches of 4 and 5, 5 of 9 rows stay.
    def call(session, inputs):
        output = inputs.tensors[0].clone()
        output[[0, 2]] = output[[0, 2]].flip(1)
        return [output]

    monkeypatch.setattr(sessions.Session, "__call__", call)
    check = export_onnx(nn.Identity(), torch.tensor([[1.0, 2.0]]).repeat(4, 1), tmp_path / "i.onnx")
    assert check.agreement == pytest.approx(5 / 9)


@pytest.mark.parametrize("other", [torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 1.0]), torch.ones(3)])
def test_what_cannot_be_compared_counts_as_infinitely_wrong(other):
    assert compare.relative_error(torch.ones(2), other) == math.inf
    assert compare.relative_error(other, torch.ones(2)) == math.inf


def test_the_error_is_relative_to_the_largest_output():
    assert compare.relative_error(torch.tensor([-4.0, 1.0]), torch.tensor([-4.0, 2.0])) == 0.25
    assert compare.relative_error(torch.zeros(2), torch.tensor([0.0, 0.5])) == 0.5


def test_weights_above_the_limit_of_one_file_go_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "LARGEST_SINGLE_FILE", 1000)
    model = nn.Linear(64, 32)
    check = export_onnx(model, torch.randn(2, 64), tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert check.file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir()) > 64 * 32 * 4
    x = torch.randn(3, 64)
    torch.testing.assert_close(torch.from_numpy(run(tmp_path / "big.onnx", input=x)[0]), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_a_full_disk_is_an_export_error_and_the_old_file_stays(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "linear.onnx"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"linear\.onnx can't be written: .*No space left on device"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_behind_goes_at_the_next_write(tmp_path):
    left = tmp_path / ".linear.onnx.partial"
    left.mkdir()
    (left / "linear.onnx").write_text("half")
    export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "linear.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["linear.onnx"]


def test_check_inputs_that_can_be_read_once_are_compared_in_the_second_attempt_too(tmp_path):
    check = export_onnx(
        TwoRows(), torch.randn(2, 12), tmp_path / "f.onnx", check_inputs=iter([torch.full((2, 12), math.nan)] * 0)
    )
    assert check.passed
    with pytest.raises(ExportError, match=r"differs from PyTorch's by inf of the largest value at batch 2"):
        export_onnx(TwoRows(), torch.randn(2, 12), tmp_path / "g.onnx", check_inputs=iter([torch.full((2, 12), math.nan)]))


def test_larger_check_inputs_are_compared_in_pieces_where_the_batch_is_fixed(tmp_path):
    with pytest.raises(ExportError, match=r"differs from PyTorch's by inf of the largest value at batch 2"):
        export_onnx(
            TwoRows(),
            torch.randn(2, 12),
            tmp_path / "f.onnx",
            check_inputs=[torch.randn(6, 12).index_fill(0, torch.tensor(5), math.nan)],
        )


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    class Singular(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match=r"Singular can't be exported as onnx: .*_linalg_svd"):
        export_onnx(Singular(), torch.randn(2, 3, 4), tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_run_says_so(tmp_path):
    with pytest.raises(ExportError, match="Linear can't be run on the example inputs with batch 2: mat1 and mat2"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 4), tmp_path / "l.onnx")


def test_inputs_and_outputs_without_a_tensor_are_refused(tmp_path):
    class Words(nn.Module):
        def forward(self, x):
            return {"text": "no tensor"}

    with pytest.raises(ExportError, match="example inputs are a dict without any tensor"):
        export_onnx(nn.Identity(), {"flag": True}, tmp_path / "x.onnx")
    with pytest.raises(ExportError, match="Words returns a dict without any tensor"):
        export_onnx(Words(), torch.ones(2, 2), tmp_path / "x.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"{package} can't be imported .*pip install 'prunus\[export\]'"):
        export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "l.onnx")
