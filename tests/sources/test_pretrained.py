"""Weights that libraries, packages and hubs hold. Nothing here touches a network: downloads are replaced or refused."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from prunus.errors import ArtifactError, UnknownName
from prunus.sources import load_model, load_weights, own_normalisation


def offline(*_: Any, **__: Any) -> Any:
    raise OSError("no route to host\nsecond line")


def test_pretrained_loads_what_torchvision_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    state["classifier.3.bias"] = torch.full((1000,), 0.25)
    enum = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **_: state)
    model = load_model("torchvision:mobilenet_v3_small", weights="pretrained:IMAGENET1K_V1")
    assert torch.equal(model.state_dict()["classifier.3.bias"], torch.full((1000,), 0.25))
    with pytest.raises(UnknownName, match="unknown weights of torchvision:mobilenet_v3_small 'IMAGENET1K_V7'"):
        load_model("torchvision:mobilenet_v3_small", weights="pretrained:IMAGENET1K_V7")
    with pytest.raises(ArtifactError, match=r"pretrained of torchvision:mobilenet_v3_small doesn't fit .* section \[transfer\]"):
        load_model("torchvision:mobilenet_v3_small", weights="pretrained", num_classes=2)


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ArtifactError) as error:
        load_model("torchvision:resnet18", weights="pretrained")
    text = str(error.value)
    assert "can't be downloaded (OSError: no route to host)" in text and "second line" not in text
    assert "resnet18-f37072fd.pth" in text and "model.weights = 'PATH'" in text


def test_timm_weights_and_their_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(UnknownName, match="unknown weights of timm:resnet18 'zz': known are: a1_in1k"):
        load_model("timm:resnet18", weights="pretrained:zz")
    create = timm.create_model
    asked: list[tuple[str, bool]] = []

    def created(name: str, pretrained: bool = False, **settings: Any) -> Any:
        asked.append((name, pretrained))
        model = create(name.partition(".")[0], **settings)
        if pretrained:
            torch.nn.init.constant_(model.fc.bias, 0.5)
        return model

    monkeypatch.setattr(timm, "create_model", created)
    assert float(load_model("timm:resnet18", weights="pretrained:a1_in1k").state_dict()["fc.bias"][0]) == 0.5
    assert asked == [("resnet18", False), ("resnet18.a1_in1k", True)]
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **s: offline() if pretrained else create(name, **s))
    with pytest.raises(ArtifactError, match=r"timm's resnet18 can't be downloaded \(OSError: no route to host\)"):
        load_model("timm:resnet18", weights="pretrained")


def test_networks_without_weights_of_their_own() -> None:
    with pytest.raises(ArtifactError, match="cifar:resnet20 has no pretrained weights of its own: name a file"):
        load_model("cifar:resnet20", weights="pretrained")


def test_weights_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    found = SimpleNamespace(locate_file=lambda file: tmp_path / file)

    def distribution(name: str) -> Any:
        if name != "some-weights":
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    layer = torch.nn.Linear(3, 2)
    load_weights(layer, "package:some-weights/w.safetensors")
    assert torch.equal(layer.weight, torch.ones(2, 3))
    with pytest.raises(ArtifactError, match="package 'other' isn't installed: pip install --no-deps other"):
        load_weights(layer, "package:other/w.safetensors")
    with pytest.raises(ArtifactError, match=r"the installed package some-weights has no file 'x\.pt'"):
        load_weights(layer, "package:some-weights/x.pt")


def test_weights_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "w.safetensors")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    layer = torch.nn.Linear(3, 2)
    load_weights(layer, "hf:org/repo/sub/w.safetensors")
    assert asked == [("org/repo", "sub/w.safetensors")] and torch.equal(layer.bias, torch.zeros(2))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=offline))
    with pytest.raises(ArtifactError, match=r"hf:org/repo/w\.pt can't be downloaded .* fetch the file, bring it here"):
        load_weights(layer, "hf:org/repo/w.pt")
    with pytest.raises(ArtifactError, match="can't read hf:org/repo: write hf:ORG/REPO/FILE"):
        load_weights(layer, "hf:org/repo")


def test_networks_know_how_their_images_were_normalised() -> None:
    pytest.importorskip("timm")
    assert own_normalisation("torchvision:mobilenet_v2") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert own_normalisation("timm:tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for silent in ("cifar:resnet20", "nets.py:small", "torchvision:absent", "timm:absent"):
        assert own_normalisation(silent) is None
