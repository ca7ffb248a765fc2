"""Files of weights load whole and strictly, or nothing changes and the error says what doesn't fit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.sources import load_model, load_weights


def network(seed: int = 0) -> nn.Module:
    return load_model("cifar:resnet8", seed=seed)


def same(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path, saved = tmp_path / f"weights{suffix}", network(1).state_dict()
    save_file(saved, path) if suffix == ".safetensors" else torch.save(saved, path)
    model = network(2)
    assert not same(model, saved)
    load_weights(model, path)
    assert same(model, saved)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w},
        lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
        lambda w: {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in w.items()}},
        lambda w: {name: tensor for name, tensor in w.items() if not name.endswith("num_batches_tracked")},
        lambda w: OrderedDict((name, tensor) for name, tensor in w.items() if not name.endswith("num_batches_tracked")),
    ],
    ids=["state_dict", "model", "module.", "module._orig_mod.", "no counters", "no counters, ordered"],
)
def test_usual_wrappings(tmp_path: Path, wrap: Any) -> None:
    saved = network(1).state_dict()
    torch.save(wrap(saved), tmp_path / "weights.pt")
    model = network(2)
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, saved)


def test_missing_unexpected_and_misshapen_keys_are_told_and_nothing_is_loaded(tmp_path: Path) -> None:
    weights = network(1).state_dict()
    for name in ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.conv2.weight"):
        del weights[name]
    weights["fc.weight"] = torch.zeros(1)
    weights["linear.weight"] = torch.zeros(100, 64)
    torch.save(weights, tmp_path / "weights.pt")
    model = network(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        load_weights(model, tmp_path / "weights.pt")
    text = str(caught.value)
    total = len(before)
    assert (
        f"4 of the {total} keys of the network are missing from the file: conv1.weight, bn1.bias, layer1.0.conv1.weight, ..."
        in text
    )
    assert f"1 of the {total - 3} keys of the file are unknown to the network: fc.weight" in text
    assert "linear.weight is (100, 64) in the file and (10, 64) in the network" in text
    assert "(CifarResNet), nothing was loaded" in text
    assert same(model, before)


class Payload:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ArtifactError, match=r"evil.pt holds more than tensors.*could run any code.*save only its weights"):
        load_weights(network(), tmp_path / "evil.pt")


def test_whole_pickled_network_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "net.pt")
    with pytest.raises(ArtifactError, match=r"torch.save\(model.state_dict\(\), ...\), or as .safetensors"):
        load_weights(network(), tmp_path / "net.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path, saved = tmp_path / f"weights{suffix}", network().state_dict()
    save_file(saved, path) if suffix == ".safetensors" else torch.save(saved, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match=rf"weights\{suffix} (is not a whole safetensors file|is damaged|holds more than)"):
        load_weights(network(), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"not weights at all, but long enough", "is not a whole safetensors file .*: fetch or write it again"),
        ("a.pt", b"not weights at all, but long enough", "is no PyTorch file"),
        ("a.h5", b"", r"can't read weights from .*a.h5: it must be .safetensors or .pt, .pth, .bin"),
        ("a.prunus", b"", "a .prunus file goes through prunus.load"),
    ],
)
def test_foreign_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_weights(network(), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not a dict of weights: save model.state_dict"),
        ({"epoch": 3, "lr": 0.1}, "is not a dict of weights: 'epoch' is a int, 'lr' is a float. Save model.state_dict"),
    ],
)
def test_file_without_a_dict_of_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match=message):
        load_weights(network(), tmp_path / "a.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file of weights at .*none.pt"):
        load_model("cifar:resnet8", weights=tmp_path / "none.pt")
