"""Every format: the file computes what the network computes, or there is no file."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ExportError, UnknownName
from prunus.export import ROUTES, export
from prunus.export.executorch import EXECUTORCH
from prunus.export.folding import folded
from prunus.export.sessions import Session
from prunus.export.signature import FlatInputs

FORMATS = list(ROUTES)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        for tensor, low, high in ((self.bn.running_mean, -1, 1), (self.bn.running_var, 0.5, 2), (self.bn.weight, 0.5, 2)):
            nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


class Keywords(nn.Module):
    def forward(self, image: Tensor, scale: Tensor, *, negate: bool = False) -> dict[str, Any]:
        y = image * scale
        return {"image": -y if negate else y, "parts": (y.sum(1), y.shape[0])}


class TwoRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 3, 4) * 2


def have(name: str) -> None:
    for package in ROUTES[name].packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_computes_what_the_network_computes(name: str, tmp_path: Any, capfd: Any) -> None:
    have(name)
    model, path = Classifier().train(), tmp_path / "new" / f"small{ROUTES[name].suffix}"
    images = torch.randn(6, 3, 8, 8)
    check = export(model, images[:2], path, name, check_inputs=[images])
    assert (check.passed, check.format, check.path, check.agreement, check.rows) == (True, name, path, 1.0, 6)
    assert 0 <= check.max_error < 1e-5 and model.training
    assert check.file_bytes == sum(p.stat().st_size for p in path.parent.iterdir())
    inputs = FlatInputs.of(images[:2])
    found = ROUTES[name].open(path, 1, inputs)(FlatInputs.of(images[4:]))
    torch.testing.assert_close(found[0], model.eval()(images[4:]).detach(), rtol=1e-5, atol=1e-6)
    assert bool(check.notes) == (name == "executorch")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "executorch"])
def test_the_batch_varies_also_from_one_image(name: str, tmp_path: Any) -> None:
    have(name)
    path = tmp_path / f"small{ROUTES[name].suffix}"
    model, one = Classifier(), torch.randn(1, 3, 8, 8)
    assert export(model, one, path, name).notes == ()
    five = torch.randn(5, 3, 8, 8)
    found = ROUTES[name].open(path, 1, FlatInputs.of(one))(FlatInputs.of(five))
    torch.testing.assert_close(found[0], model.eval()(five).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_keywords_constants_and_nested_outputs(name: str, tmp_path: Any) -> None:
    have(name)
    inputs = {"scale": torch.randn(2, 1), "image": torch.randn(2, 3), "negate": True}
    path = tmp_path / f"k{ROUTES[name].suffix}"
    assert export(Keywords(), inputs, path, name).max_error == 0
    flat = FlatInputs.of({"scale": torch.tensor([[2.0], [3.0]]), "image": torch.ones(2, 3), "negate": True})
    image, parts = ROUTES[name].open(path, 1, FlatInputs.of(inputs))(flat)
    assert image.tolist() == [[-2.0] * 3, [-3.0] * 3] and parts.tolist() == [6.0, 9.0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_differs_is_refused_and_the_old_one_stays(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    have(name)
    original = Session.__call__
    monkeypatch.setattr(Session, "__call__", lambda self, inputs: [o + 2e-4 * o.abs().max() for o in original(self, inputs)])
    path = tmp_path / f"linear{ROUTES[name].suffix}"
    path.write_text("old")
    with pytest.raises(
        ExportError, match=rf"the {name} file of Linear was not kept: its output .* differs from PyTorch's by 0\.0002"
    ):
        export(nn.Linear(3, 2), torch.randn(2, 3), path, name)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["pt2", "openvino"])
def test_a_network_that_fixes_its_batch_is_exported_so_and_says_so(name: str, tmp_path: Any) -> None:
    have(name)
    check = export(TwoRows(), torch.randn(2, 12), tmp_path / f"f{ROUTES[name].suffix}", name, check_inputs=[torch.randn(6, 12)])
    assert check.passed and check.notes[0].startswith("the batch size is fixed at 2: with a dynamic one")
    assert len(check.notes) == 1


def test_a_missing_package_names_the_extra(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ExportError, match=r"executorch can't be imported .*pip install 'prunus\[executorch\]'"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "l.pte", "executorch")
    assert EXECUTORCH.fixed_because and not list(tmp_path.iterdir())


def test_an_unknown_format() -> None:
    with pytest.raises(UnknownName, match=r"unknown export format 'onx': did you mean onnx\?"):
        export(nn.Linear(3, 2), torch.randn(2, 3), "x", "onx")


def test_openvino_is_a_graph_and_its_weights_and_names_no_path(tmp_path: Any) -> None:
    have("openvino")
    export(Classifier(), torch.randn(1, 3, 8, 8), tmp_path / "small.xml", "openvino")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.bin", "small.xml"]
    assert str(tmp_path) not in (tmp_path / "small.xml").read_text()


# -- programs of torch.export

RUN = """
import sys, torch
module = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2], weights_only=True)
assert not {"prunus", "secret_net"} & set(sys.modules)
torch.save(module(inputs), sys.argv[3])
"""


def test_a_program_runs_in_a_process_that_knows_neither_prunus_nor_the_network(tmp_path: Any, monkeypatch: Any) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "secret_net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n\n    def forward(self, x):\n        return {'map': self.conv(x).relu()}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    from secret_net import Net  # type: ignore[import-not-found]

    model, images = Net(), torch.randn(3, 3, 8, 8)
    export(model, images[:1], tmp_path / "net.pt2", "pt2")
    torch.save(images, tmp_path / "images")
    (folder / "secret_net.py").unlink()
    command = [sys.executable, "-c", RUN, *(str(tmp_path / name) for name in ("net.pt2", "images", "out"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out", weights_only=True)
    torch.testing.assert_close(found["map"], model(images)["map"].detach())


def test_a_program_holds_neither_paths_nor_the_example_images(tmp_path: Any) -> None:
    images = torch.full((1, 3, 8, 8), 0.7301)
    export(Classifier(), images, tmp_path / "small.pt2", "pt2")
    content = (tmp_path / "small.pt2").read_bytes()
    assert __file__.rsplit("/", 1)[-1].encode() not in content
    assert images[0, 0, 0, :2].numpy().tobytes() not in content


class Pairs(nn.Module):
    """Norms that can be folded (a), and that can't: the convolution is read twice (b), called twice (c), or there is none (d)."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abc":
            setattr(self, f"conv_{name}", nn.Conv2d(4, 4, 1, bias=name == "a"))
        for name in "abcd":
            norm = nn.BatchNorm2d(4)
            nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
            setattr(self, f"bn_{name}", norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_a(self.conv_a(x))
        y = self.conv_b(x)
        x = self.bn_b(y) + y
        x = self.bn_c(self.conv_c(x.relu()))
        return self.bn_d(self.conv_c(x).relu())


def test_norms_are_folded_where_nothing_else_reads_the_convolution() -> None:
    model, x = Pairs().eval(), torch.randn(2, 4, 5, 5)
    lighter = folded(model, torch.export.export(model, (x,)))
    assert lighter is not None
    left = {name for name, module in lighter.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == {"bn_b", "bn_c", "bn_d"} and isinstance(model.bn_a, nn.BatchNorm2d)
    torch.testing.assert_close(lighter(x), model(x))
    assert folded(nn.Linear(3, 2).eval(), torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))) is None


def test_the_program_of_a_classifier_has_no_batch_norm_left(tmp_path: Any) -> None:
    export(Classifier(), torch.randn(1, 3, 8, 8), tmp_path / "small.pt2", "pt2")
    targets = [str(node.target) for node in torch.export.load(tmp_path / "small.pt2").graph.nodes]
    assert not [t for t in targets if "batch_norm" in t] and [t for t in targets if "conv2d" in t]
