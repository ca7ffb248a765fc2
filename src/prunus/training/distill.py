"""Knowledge distillation: the pruned network learns from the unpruned one's answers as well as from the labels."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import TrainingError
from prunus.training.features import FeatureLoss
from prunus.training.objective import Objective
from prunus.training.placement import training_precision
from prunus.types import ForwardFn


class DistillationLoss:
    """``(1 - weight)`` of the cross entropy with the labels, and ``weight`` of the divergence from ``teacher``'s answers.

    The second part is T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch: Hinton, Vinyals and Dean,
    "Distilling the Knowledge in a Neural Network" (2015), section 2. ``features`` adds ``feature_weight`` times the distance of
    the feature maps. The teacher runs in eval mode, on the same images, in training's mixed precision, without gradients; where
    none are being computed (validation) the labels' loss alone is returned, so that figures stay comparable.

    Raises:
        TrainingError: an output isn't logits of the same shape as the teacher's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float,
        temperature: float,
        *,
        label_smoothing: float = 0.0,
        forward_fn: ForwardFn | None = None,
        features: FeatureLoss | None = None,
        feature_weight: float = 0.0,
    ) -> None:
        self.teacher, self.weight, self.temperature = teacher.eval(), weight, temperature
        self.labels = Objective(None, None, forward_fn, label_smoothing)
        self.features, self.feature_weight = features, feature_weight
        self._answered: tuple[Any, Any] = (None, None)

    def __call__(self, output: Any, batch: Any) -> Tensor:
        training = torch.is_grad_enabled()
        by_labels = self.labels.loss(output, batch, training=training)
        if not training:
            return by_labels
        if isinstance(output, Tensor):
            self.teacher.to(output.device)
        answer = self._answer(self.labels.inputs(batch))
        if not isinstance(output, Tensor) or not isinstance(answer, Tensor) or output.shape != answer.shape:
            raise TrainingError(
                "distillation compares logits: the network must return one tensor, of the same shape as the teacher's"
            )
        student, teacher = (functional.log_softmax(logits / self.temperature, dim=1) for logits in (output, answer))
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        loss = (1 - self.weight) * by_labels + self.weight * self.temperature**2 * divergence
        return loss if self.features is None else loss + self.feature_weight * self.features()

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Feature maps are noted meanwhile, where they are compared; answers are forgotten behind it."""
        with self.features.watching() if self.features is not None else nullcontext():
            yield
        self._answered = (None, None)

    def _answer(self, inputs: Any) -> Any:
        """What the teacher says; asked once for the same images (mixup compares them with two sets of labels)."""
        if self._answered[0] is not inputs:
            with torch.no_grad(), training_precision():
                self._answered = inputs, convert_to_fp32(self.labels.forward(self.teacher, inputs))
        return self._answered[1]
