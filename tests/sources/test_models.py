"""Networks named by a string: the right one is built, from its seed, and what can't be built says why."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from prunus.errors import PrunusError, RecipeError, UnknownName
from prunus.sources import load_model, load_weights, model_names


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def write(path: Path, text: str) -> str:
    path.write_text(dedent(text))
    return str(path)


@pytest.mark.parametrize(
    ("name", "thousands"),
    # He et al. 2015, table 6, in millions: 0.27, 0.46, 0.66, 0.85, 1.7.
    [("resnet20", 270), ("resnet32", 464), ("resnet44", 659), ("resnet56", 853), ("resnet110", 1728)],
)
def test_cifar_networks_have_the_published_size(name: str, thousands: int) -> None:
    assert num_parameters(load_model(f"cifar:{name}")) // 1000 == pytest.approx(thousands, abs=3)


def test_projection_shortcuts_are_the_only_difference() -> None:
    padded, projected = load_model("cifar:resnet20"), load_model("cifar:resnet20-projection")
    extra = set(projected.state_dict()) - set(padded.state_dict())
    assert {name.split(".")[0] for name in extra} == {"layer2", "layer3"}
    assert projected.get_parameter("layer2.0.shortcut.0.weight").shape == (32, 16, 1, 1)
    assert num_parameters(projected) - num_parameters(padded) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_padded_shortcut_adds_zeros_on_both_sides() -> None:
    shortcut = load_model("cifar:resnet8").get_submodule("layer2.0.shortcut")
    x = torch.randn(2, 16, 6, 6)
    out = shortcut(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == 0 and out[:, 24:].abs().sum() == 0


@pytest.mark.parametrize("source", ["cifar:resnet14", "cifar:resnet14-projection", "timm:resnet10t"])
def test_classes_and_channels_reach_the_network(source: str) -> None:
    model = load_model(source, num_classes=7, in_channels=1).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_torchvision_network_of_that_name_and_class_count() -> None:
    model = load_model("torchvision:resnet18", num_classes=5, in_channels=3)
    assert type(model).__name__ == "ResNet"
    assert num_parameters(model) == 11_689_512 - 995 * 513  # the published count less 995 of the 1000 classes


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_warn_about_their_start_do_not(name: str) -> None:
    model = load_model(f"torchvision:{name}", num_classes=3)  # warnings are errors in the tests
    assert model.get_submodule("fc").get_parameter("weight").shape[0] == 3


def test_segmentation_backbone_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert "backbone" in dict(load_model("torchvision:lraspp_mobilenet_v3_large", num_classes=2).named_children())


def test_seed_decides_the_weights_and_global_state_stays() -> None:
    before = torch.get_rng_state()
    first, again, other = (load_model("cifar:resnet8", seed=s).get_parameter("conv1.weight") for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_arguments_reach_the_constructor_and_win() -> None:
    model = load_model("timm:resnet10t", num_classes=10, arguments={"num_classes": 4, "zero_init_last": False})
    assert model.get_submodule("fc").get_parameter("weight").shape[0] == 4
    assert model.get_parameter("layer1.0.bn2.weight").abs().sum() > 0


def test_user_function_gets_arguments_and_the_offers_it_has_parameters_for(tmp_path: Path) -> None:
    file = write(
        tmp_path / "network.py",
        """
        from torch import nn
        from width import WIDTH  # a file beside this one

        def build(num_classes, depth=1):
            return nn.Sequential(*[nn.Conv2d(3, WIDTH, 1) for _ in range(depth)], nn.Linear(WIDTH, num_classes))
        """,
    )
    write(tmp_path / "width.py", "WIDTH = 6")
    model = load_model(f"{file}:build", num_classes=4, in_channels=1, arguments={"depth": 2})
    assert [type(m).__name__ for m in model.children()] == ["Conv2d", "Conv2d", "Linear"]
    assert model.get_parameter("2.weight").shape == (4, 6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar:resnet21", r"unknown model 'cifar:resnet21': did you mean .*cifar:resnet20"),
        ("torchvision:resnet19", r"unknown model 'torchvision:resnet19': did you mean .*torchvision:resnet1[08]"),
        ("timm:resnet10x", r"unknown model 'timm:resnet10x': did you mean .*timm:resnet10t"),
        ("timm:hf-hub:someone/something", r"unknown model 'timm:hf-hub:someone/something'"),
        ("resnet18", r"unknown model 'resnet18': did you mean .*timm:resnet18"),
        ("@@@@", r"unknown model '@@@@': write torchvision:NAME, timm:NAME, cifar:resnet20"),
        ("nowhere/net.py:build", r"there is no file nowhere/net.py \(looked in .*\), named by 'nowhere/net.py:build'"),
    ],
)
def test_unknown_names(source: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        load_model(source)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("biuld", UnknownName, r"unknown function in .*network.py 'biuld': did you mean build\?"),
        ("text", RecipeError, r"returned a str: a model function returns a torch.nn.Module"),
        ("broken", RecipeError, r"broken\(\) raised ZeroDivisionError: division by zero \(line 9 of .*network.py\)"),
        ("needs", RecipeError, r"needs\(\) raised TypeError: .*missing 1 required positional argument: 'width'"),
    ],
)
def test_errors_of_user_functions(tmp_path: Path, function: str, error: type[PrunusError], message: str) -> None:
    file = write(
        tmp_path / "network.py",
        """
        from torch import nn

        def build():
            return nn.Identity()
        def text():
            return "a network"
        def broken():
            return 1 / 0
        def needs(width):
            return nn.Linear(width, 1)
        """,
    )
    with pytest.raises(error, match=message):
        load_model(f"{file}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module_at_all", r"importing it raised ModuleNotFoundError: .*\(line 1 of .*file.py\)"),
        ("x = 1\ndef f(:\n", r"importing it raised SyntaxError: .*\(line 2 of .*file.py\)"),
    ],
)
def test_file_that_cannot_be_imported(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_model(write(tmp_path / "file.py", text) + ":f")


def test_file_without_a_function(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"names no function: write path/to/file.py:function"):
        load_model(write(tmp_path / "file.py", ""))


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (
            "torchvision:resnet18",
            {"in_channels": 1},
            "reads images of 3 channels and the data have 1: take a timm: or cifar: network",
        ),
        (
            "torchvision:resnet18",
            {"arguments": {"weights": "DEFAULT"}},
            r"'weights' is set by Prunus: name the weights as model\.weights",
        ),
        ("timm:resnet18", {"arguments": {"pretrained": True}}, "'pretrained' is set by Prunus"),
        ("cifar:resnet20", {"arguments": {"depth": 3}}, r"can't be built with depth=3: TypeError: .*unexpected keyword argument"),
        ("timm:resnet18", {"arguments": {"foo": 3}}, r"timm:resnet18 can't be built with foo=3: TypeError"),
    ],
)
def test_settings_that_do_not_fit(source: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_model(source, **settings)  # type: ignore[arg-type]


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PrunusError, match=r"timm: networks need the package timm: pip install 'prunus\[timm\]'"):
        load_model("timm:resnet18")


def test_model_names() -> None:
    assert "cifar:resnet56-projection" in model_names("cifar")
    assert set(model_names("torchvision")) < set(model_names())
    with pytest.raises(UnknownName, match="unknown model source 'tim': did you mean timm"):
        model_names("tim")


@pytest.mark.data
@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_fit_the_cifar_networks(data_folder: Path, depth: int) -> None:
    path = data_folder / "weights" / f"resnet{depth}_cifar10.safetensors"
    model = load_model(f"cifar:resnet{depth}", weights=path)
    untrained = load_model(f"cifar:resnet{depth}")
    assert not torch.equal(model.get_parameter("linear.bias"), untrained.get_parameter("linear.bias"))
    load_weights(untrained, path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True))
