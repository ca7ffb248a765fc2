"""Where a network's head sits, and what a new one computes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import RecipeError
from prunus.sources import replace_head

X = torch.randn(2, 3, 64, 64)


def build(name: str) -> nn.Module:
    quiet = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **quiet)


@pytest.mark.parametrize(
    ("name", "linear", "container"),
    [
        ("mobilenet_v2", "classifier.1", "classifier"),
        ("resnet18", "fc", "fc"),
        ("alexnet", "classifier.6", "classifier"),
        ("mobilenet_v3_small", "classifier.3", "classifier"),
        ("convnext_tiny", "classifier.2", "classifier.2"),  # its container flattens and normalises as well: that must stay
    ],
)
def test_the_head_is_found(name: str, linear: str, container: str) -> None:
    model = build(name)
    old = model.get_submodule(linear)
    assert replace_head(model, X, 5) == linear
    new = model.get_submodule(linear)
    assert isinstance(old, nn.Linear) and isinstance(new, nn.Linear)
    assert (new.in_features, new.out_features) == (old.in_features, 5) and tuple(model(X).shape) == (2, 5)
    assert replace_head(build(name), X, 5, kind="mlp", hidden=7) == container


def test_mlp_is_the_tutorials_three_layers() -> None:
    model = build("vgg11")
    assert replace_head(model, X, 2, kind="mlp", hidden=16, dropout=0.25) == "classifier"
    parts = list(model.get_submodule("classifier"))
    assert [type(p).__name__ for p in parts] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    assert [(p.in_features, p.out_features) for p in parts if isinstance(p, nn.Linear)] == [(25088, 16), (16, 16), (16, 2)]
    assert [p.p for p in parts if isinstance(p, nn.Dropout)] == [0.25, 0.25]


def test_everything_below_the_head_stays_as_it_was() -> None:
    model = build("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replace_head(model, X, 3)
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("fc."))
    assert model.training


def test_auxiliary_heads_get_the_same_number_of_classes() -> None:
    model = build("googlenet")
    assert replace_head(model, X, 4) == "fc"
    assert [tuple(t.shape) for t in model.train()(X)] == [(2, 4)] * 3


def test_a_convolution_in_front_of_pooling_is_a_head() -> None:
    model = build("squeezenet1_1")
    assert replace_head(model, X, 6) == "classifier.1"
    assert tuple(model(X).shape) == (2, 6)
    with pytest.raises(
        RecipeError, match=r"`classifier\.1` is a convolution, which an mlp can't replace: set transfer\.head = 'linear'"
    ):
        replace_head(model, X, 6, kind="mlp")


class _Normalised(nn.Module):
    """The last layer is not what comes out, nor has it as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.body(x).mean((2, 3)).view(len(x), 2, 4).mean(1))


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"_Normalised: no linear layer .* function of your own .* leave \[transfer\] out"):
        replace_head(_Normalised(), X, 2)
