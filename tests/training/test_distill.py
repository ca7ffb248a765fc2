"""Distillation against its formula, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunus.config import OptimizerConfig, parse_recipe
from prunus.errors import RecipeError, TrainingError
from prunus.training import train
from prunus.training.distill import DistillationLoss


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
