"""Distillation against its formula, and what it leaves alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunus.config import OptimizerConfig, parse_recipe
from prunus.errors import RecipeError, TrainingError, UnknownName
from prunus.training import train
from prunus.training.distill import DistillationLoss
from prunus.training.features import FeatureLoss, feature_pairs


class Fixed(nn.Module):
    """Gives the same logits to every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


BATCH = (torch.zeros(2, 3), torch.tensor([0, 1]))


def test_the_formula_by_hand() -> None:
    """Teacher (1/2, 1/2) and student (4/5, 1/5) at T = 2, so logits of twice their logarithms; labels 0 and 1."""
    teacher, student = Fixed([0.0, 0.0]), Fixed([2 * math.log(4.0), 0.0])
    loss = DistillationLoss(teacher, 0.25, 2.0)(student(BATCH[0]), BATCH)
    divergence = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    labels = -(math.log(16 / 17) + math.log(1 / 17)) / 2  # at T = 1 the student says 16 : 1
    assert float(loss.detach()) == pytest.approx(0.75 * labels + 0.25 * 4 * divergence, rel=1e-6)
    loss.backward()
    assert teacher.logits.grad is None and student.logits.grad is not None


def test_validation_has_the_labels_loss_alone() -> None:
    student = Fixed([1.0, 0.0])
    loss_fn = DistillationLoss(Fixed([5.0, 0.0]), 1.0, 2.0)
    with torch.no_grad():
        assert float(loss_fn(student(BATCH[0]), BATCH)) == float(functional.cross_entropy(student(BATCH[0]), BATCH[1]))


def test_a_student_comes_to_agree_with_its_teacher_against_the_labels() -> None:
    student, teacher = Fixed([3.0, 0.0]), Fixed([0.0, 3.0])
    batches = [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))] * 20
    settings = OptimizerConfig(epochs=40, lr=0.5, momentum=0.0, warmup_epochs=0, weight_decay=0.0)
    train(student, batches, settings, seed=0, loss_fn=DistillationLoss(teacher, 1.0, 1.0))
    assert student.logits.softmax(0).tolist() == pytest.approx(teacher.logits.softmax(0).tolist(), abs=0.01)
    assert teacher.logits.tolist() == [0.0, 3.0]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"distillation compares logits: .* of the same shape as the teacher's"):
        DistillationLoss(Fixed([0.0, 0.0, 0.0]), 0.5, 2.0)(Fixed([0.0, 0.0])(BATCH[0]), BATCH)
    tree = {"model": {"source": "cifar:resnet8"}, "recover": {"distill": 0.5}, "functions": {"loss": "mine.py:loss"}}
    with pytest.raises(RecipeError, match=r"recover\.distill compares class probabilities: .* functions\.loss of your own"):
        parse_recipe(tree)


class Maps(nn.Module):
    """A convolution and a norm that do nothing, and as many logits as there are channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=0.0)
        self.norm.eval()
        self.head = nn.Linear(width, 2, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def filled(width: int, *weights: float) -> Maps:
    net = Maps(width)
    with torch.no_grad():
        net.conv.weight.copy_(torch.tensor(weights).view(-1, 1, 1, 1))
    return net


def test_feature_maps_by_hand() -> None:
    """Teacher's channels (1, 5, 2), of which the first and third are left: (1, 2); the student has (1, 3)."""
    teacher, student = filled(3, 1.0, 5.0, 2.0), filled(2, 1.0, 3.0)
    kept = {"norm.weight": {0: torch.tensor([0, 2])}}
    x = torch.full((2, 1, 2, 2), 2.0)
    pairs = feature_pairs(teacher, student, kept, x)
    assert [(pair.layer, pair.kept.tolist()) for pair in pairs] == [("norm", [0, 2])]
    features = FeatureLoss(teacher, student, pairs)
    loss_fn = DistillationLoss(teacher, 0.0, 1.0, features=features, feature_weight=0.5)
    targets = torch.tensor([0, 1])
    with features.watching():
        loss = loss_fn(student(x), (x, targets))
        with torch.no_grad():
            judged = loss_fn(student(x), (x, targets))
    # maps are twice the weights: ((2 - 2)^2 + (6 - 4)^2) / (2^2 + 4^2) = 0.2; the labels' loss is log 2
    assert float(loss.detach()) == pytest.approx(math.log(2) + 0.5 * 0.2, rel=1e-6)
    assert float(judged) == pytest.approx(math.log(2), rel=1e-6)
    loss.backward()
    # d/dw of 0.5 (sum (2w - 4)^2 over 8 places) / (20 * 8), by the second weight: 0.5 * 2 * (6 - 4) * 2 / 20
    assert student.conv.weight.grad.flatten().tolist() == pytest.approx([0.0, 0.2], abs=1e-6)
    assert teacher.conv.weight.grad is None
    assert not student.norm._forward_hooks and not teacher.norm._forward_hooks


def test_layers_are_the_last_norm_of_every_extent() -> None:
    def net(wide: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, wide, 1), nn.BatchNorm2d(wide), nn.MaxPool2d(2)),
            *(nn.Conv2d(wide, 3, 1), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
        )

    x = torch.randn(2, 1, 4, 4)
    teacher = net(6).train()
    statistics = teacher[1].running_mean.clone()
    kept = {"4.weight": {0: torch.tensor([1, 3, 4])}}
    pairs = feature_pairs(teacher, net(3), kept, x)
    assert [(pair.layer, None if pair.kept is None else pair.kept.tolist()) for pair in pairs] == [("4", [1, 3, 4]), ("7", None)]
    assert torch.equal(teacher[1].running_mean, statistics) and teacher.training
    chosen = feature_pairs(teacher, net(3), {**kept, "3.weight": kept["4.weight"]}, x, layers=["3"])
    assert [pair.layer for pair in chosen] == ["3"]


def test_what_has_no_feature_maps_is_refused() -> None:
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(UnknownName, match="unknown layer to compare 'nrm': did you mean norm"):
        feature_pairs(Maps(2), Maps(2), {}, x, layers=["nrm"])
    with pytest.raises(TrainingError, match="no layer's feature maps can be compared"):
        feature_pairs(nn.Sequential(nn.Flatten()), nn.Sequential(nn.Flatten()), {}, x)
    features = FeatureLoss(Maps(2), Maps(2), feature_pairs(Maps(2), Maps(2), {}, x))
    with pytest.raises(TrainingError, match="`norm` gave no feature map in training"):
        features()


def test_mixed_images_are_shown_to_the_teacher_once() -> None:
    teacher, calls = Fixed([0.0, 1.0]), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    loss_fn = DistillationLoss(teacher, 0.5, 1.0)
    student, x = Fixed([1.0, 0.0]), torch.zeros(2, 3)
    for targets in (torch.tensor([0, 1]), torch.tensor([1, 1])):
        loss_fn(student(x), (x, targets))
    assert len(calls) == 1
    loss_fn(student(x.clone()), (x.clone(), torch.tensor([1, 1])))
    assert len(calls) == 2


MIXED = """
import torch
from torch import nn
from prunus.config import OptimizerConfig
from prunus.training import train
from prunus.training.distill import DistillationLoss
from prunus.training.features import FeatureLoss, feature_pairs

torch.manual_seed(0)
def network(width):
    convolution = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
    return nn.Sequential(*convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
teacher, student, dtypes = network(6), network(4), []
batch = (torch.randn(8, 1, 5, 5), torch.arange(8) % 2)
kept = {"1.weight": {0: torch.tensor([0, 2, 3, 5])}}
features = FeatureLoss(teacher, student, feature_pairs(teacher, student, kept, batch[0]))
teacher.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
loss_fn = DistillationLoss(teacher, 0.5, 2.0, features=features, feature_weight=0.1)
alone = loss_fn._answer(batch[0].clone())
settings = OptimizerConfig(epochs=2, lr=0.1, warmup_epochs=0)
with loss_fn.watching():
    log = train(student, [batch], settings, seed=0, loss_fn=loss_fn, mixed_precision="bf16")
    mixed = loss_fn._answer(batch[0].clone())
print(*(str(dtype).removeprefix("torch.") for dtype in dtypes), mixed.dtype, bool(0 < (alone - mixed).abs().max() < 0.02))
print(log.epochs[0].loss > log.epochs[1].loss)
"""


def test_the_teacher_runs_in_trainings_mixed_precision() -> None:
    """In a process of its own, for a process has one mixed precision; before training starts there is none."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run([sys.executable, "-c", MIXED], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["float32 bfloat16 bfloat16 torch.float32 True", "True"]
