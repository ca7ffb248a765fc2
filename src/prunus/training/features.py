"""Feature maps of the pruned network compared with the same channels of the unpruned one's."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.errors import TrainingError, UnknownName
from prunus.types import ForwardFn, call_model

_NORMS = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_CONVOLUTIONS = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True, eq=False)
class FeaturePair:
    """A layer whose outputs are compared; ``kept``: the teacher's channels (int64) that the student still has, None for all."""

    layer: str
    kept: Tensor | None


def feature_pairs(
    teacher: nn.Module,
    student: nn.Module,
    kept: Mapping[str, Mapping[int, Tensor]],
    inputs: Any,
    layers: Sequence[str] = (),
    forward_fn: ForwardFn | None = None,
) -> tuple[FeaturePair, ...]:
    """Layers to compare, and which channels of theirs are left (``kept`` of the surgery's record).

    Without ``layers``: the last batch norm (or, in a network without, the last convolution) at every extent of feature map that
    one forward pass of ``teacher`` on ``inputs`` meets. Layers of which nothing is left are left out.

    Raises:
        UnknownName: no such layer.
        TrainingError: a layer has no weight along its outputs, or there is nothing to compare.
    """
    modules = dict(teacher.named_modules())
    for name in layers:
        if name not in modules:
            raise UnknownName.among("layer to compare", name, modules)
    pairs: list[FeaturePair] = []
    for name in layers or _last_of_every_extent(teacher, inputs, forward_fn):
        weight = getattr(modules[name], "weight", None)
        if not isinstance(weight, Tensor) or getattr(modules[name], "transposed", False):
            raise TrainingError(f"`{name}` has no weight along its outputs, so that it isn't known which of them are left")
        own = kept.get(f"{name}.weight", {}).get(0)
        left = getattr(student.get_submodule(name), "weight", None)
        if isinstance(left, Tensor) and left.shape[0] == (weight.shape[0] if own is None else len(own)) > 0:
            pairs.append(FeaturePair(name, own))
    if not pairs:
        raise TrainingError("no layer's feature maps can be compared: the networks share no batch norm and no convolution")
    return tuple(pairs)


def _last_of_every_extent(teacher: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> list[str]:
    """Of batch norms if there are any, else of convolutions; in the order of the forward pass."""
    found: dict[bool, dict[tuple[int, ...], str]] = {True: {}, False: {}}
    handles: list[RemovableHandle] = []
    for name, module in teacher.named_modules():
        if isinstance(module, (_NORMS, _CONVOLUTIONS)) and isinstance(getattr(module, "weight", None), Tensor):
            if isinstance(module, _CONVOLUTIONS) and module.transposed:
                continue

            def note(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim > 2:
                    found[isinstance(module, _NORMS)][tuple(output.shape[2:])] = name

            handles.append(module.register_forward_hook(note))
    modes = [(module, module.training) for module in teacher.modules()]
    try:
        teacher.eval()
        with torch.no_grad():
            call_model(teacher, inputs, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return list(dict.fromkeys((found[True] or found[False]).values()))


class FeatureLoss:
    """Mean over the layers of ||student - teacher||^2 / ||teacher||^2, both over a batch and the channels that are left.

    A hint in the sense of Romero et al., "FitNets" (2015), without a regressor: the kept channels say which map stands for which.
    What an operation behind the layer does in place (a residual sum, a ReLU) is compared as well, in both networks alike.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, pairs: Sequence[FeaturePair]) -> None:
        self.teacher, self.student, self.pairs = teacher, student, tuple(pairs)
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Both networks leave their feature maps here meanwhile (the student's only where gradients are computed)."""
        handles: list[RemovableHandle] = []
        for number, model in enumerate((self.teacher, self.student)):
            for pair in self.pairs:
                handles.append(model.get_submodule(pair.layer).register_forward_hook(self._noting(number, pair.layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for seen in self._seen:
                seen.clear()

    def _noting(self, number: int, layer: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            if number == 0 or torch.is_grad_enabled():
                self._seen[number][layer] = output

        return note

    def __call__(self) -> Tensor:
        """The loss of the two latest passes."""
        teacher, student = self._seen
        if len(teacher) < len(self.pairs) or len(student) < len(self.pairs):
            missing = next(p.layer for p in self.pairs if p.layer not in teacher or p.layer not in student)
            raise TrainingError(f"`{missing}` gave no feature map in training: it can't be compared")
        parts: list[Tensor] = []
        for pair in self.pairs:
            wanted, given = teacher[pair.layer].float(), student[pair.layer].float()
            if pair.kept is not None:
                wanted = wanted.index_select(1, pair.kept.to(wanted.device))
            parts.append((given - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12))
        return torch.stack(parts).mean()
