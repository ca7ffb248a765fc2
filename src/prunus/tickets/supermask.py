"""Supermasks (Zhou et al. 2019): the weights stay as they were drawn, and only which of them are there is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import UnknownName
from prunus.tickets.masks import Masks, dense_masks, owner, parameter_order, restore_order

EVALUATIONS = ("sample", "threshold")


def straight_through(probability: Tensor, draw: Tensor) -> Tensor:
    """``draw`` in value (0 or 1), with the derivative of ``probability``: the gradient passes as if nothing had been drawn."""
    return draw + probability - probability.detach()


class Supermask(nn.Module):
    """The parametrisation of one weight by a trained mask; ``logits`` m start at zero, a chance of one half.

        w_eff = w * b,   b ~ Bernoulli(sigmoid(m)), straight through;   w = +-std with ``signed_constant``
        w_eff = w * b * size(b) / sum(b) with ``rescale``: the gradient passes through the denominator, too

    In training b is always drawn; in evaluation it is drawn as well (``sample``, as the paper does) or is ``m >= 0``
    (``threshold``: the same network every time).
    """

    logits: nn.Parameter
    evaluation: str

    def __init__(self, shape: torch.Size, rescale: bool, signed_constant: bool, evaluation: str) -> None:
        super().__init__()
        self.order: tuple[str, ...] = ()
        self.logits = nn.Parameter(torch.zeros(shape))
        self.rescale, self.signed_constant, self.evaluation = rescale, signed_constant, evaluation

    def mask(self) -> Tensor:
        """The weights that are more likely there than not: bool of the weight's shape."""
        return self.logits.detach() >= 0

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the network computes with."""
        if self.signed_constant:
            weight = weight.sign() * weight.std(correction=0)
        if self.training or self.evaluation == "sample":
            probability = torch.sigmoid(self.logits)
            mask = straight_through(probability, torch.bernoulli(probability.detach()))
        else:
            mask = self.mask().to(weight)
        if self.rescale:
            mask = mask * (mask.numel() / mask.sum().clamp_min(1))
        return weight * mask


def attach_supermasks(
    model: nn.Module,
    exclude: tuple[str, ...] = (),
    *,
    rescale: bool = False,
    signed_constant: bool = False,
    evaluation: str = "threshold",
) -> list[nn.Parameter]:
    """Put trained masks on every weight of two or more dimensions, in place; returns their logits, which alone are to be trained.

    Everything else is frozen. ``exclude``: parameters, or globs, without a mask. The paper trains the logits by SGD with momentum
    0.9 and a learning rate of 100.

    Raises:
        UnknownName: ``evaluation`` is neither ``sample`` nor ``threshold``, or a name in ``exclude`` fits nothing.
        UnsupportedNetwork: a weight is shared or parametrised already.
    """
    _checked(evaluation)
    names = list(dense_masks(model, exclude).by_name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found: list[nn.Parameter] = []
    for name in names:
        module, attribute = owner(model, name)
        weight: Tensor = getattr(module, attribute)
        supermask = Supermask(weight.shape, rescale, signed_constant, evaluation).to(weight.device)
        supermask.order = parameter_order(module)
        parametrize.register_parametrization(module, attribute, supermask)
        found.append(supermask.logits)
    return found


def set_evaluation(model: nn.Module, evaluation: str) -> None:
    """Choose how the masks of a network in evaluation mode are had: ``sample`` or ``threshold``."""
    _checked(evaluation)
    for _, supermask in supermasks(model):
        supermask.evaluation = evaluation


def supermasks(model: nn.Module) -> Iterator[tuple[str, Supermask]]:
    """The masks in training, by the name that the parameter had."""
    for path, module in model.named_modules():
        if isinstance(module, Supermask):
            where, _, attribute = path.rpartition(".")[0].rpartition(".")
            yield f"{where.removesuffix('parametrizations').removesuffix('.')}.{attribute}".lstrip("."), module


def remove_supermasks(model: nn.Module) -> Masks:
    """End with the masks of `Supermask.mask`, in place: ordinary weights, zero where the mask is; returns the masks."""
    was = model.training
    model.eval()
    set_evaluation(model, "threshold")
    attached = dict(supermasks(model))
    found = {name: supermask.mask() for name, supermask in attached.items()}
    for name, supermask in attached.items():
        path, _, attribute = name.rpartition(".")
        with torch.no_grad():
            parametrize.remove_parametrizations(model.get_submodule(path), attribute)
        restore_order(model.get_submodule(path), supermask.order)
    model.train(was)
    return Masks(found)


def _checked(evaluation: str) -> None:
    if evaluation not in EVALUATIONS:
        raise UnknownName.among("evaluation of a supermask", evaluation, EVALUATIONS)
