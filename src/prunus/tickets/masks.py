"""Masks over named weights: which single weights a network has. Exact counts, and nothing that training does revives one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import ArtifactError, NothingPruned, UnknownName, UnsupportedNetwork
from prunus.files import DamagedFile, write_atomically
from prunus.tensor_files import read_tensors, tensor_bytes

_KEY = "prunus.masks"


@dataclass(frozen=True, eq=False)
class Masks:
    """Which weights stay: parameter name -> bool of the parameter's shape. Parameters that are absent stay whole.

    Densities are shares of the masked parameters' weights that stay, not of the whole network's parameters.
    """

    by_name: Mapping[str, Tensor]

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return sum(self.counts().values())

    @property
    def total(self) -> int:
        """Weights under the masks."""
        return sum(mask.numel() for mask in self.by_name.values())

    @property
    def density(self) -> float:
        """Share of the weights that stays, 0..1."""
        return self.kept / self.total

    def counts(self) -> dict[str, int]:
        """Weights that stay in every parameter."""
        return {name: int(mask.sum()) for name, mask in self.by_name.items()}

    def densities(self) -> dict[str, float]:
        """Share that stays in every parameter, 0..1."""
        return {name: float(mask.float().mean()) for name, mask in self.by_name.items()}

    def within(self, other: Masks) -> bool:
        """Whether every weight that stays here stays there, too (masks of later rounds are nested in those of earlier ones)."""
        return all(not bool((mask & ~other.by_name[name]).any()) for name, mask in self.by_name.items())

    def overlap(self, other: Masks) -> float:
        """Weights that stay in both, for each that stays in either (intersection over union, 0..1)."""
        both = sum(int((mask & other.by_name[name]).sum()) for name, mask in self.by_name.items())
        either = self.kept + other.kept - both
        return both / either if either else 1.0


def dense_masks(model: nn.Module, exclude: Iterable[str] = ()) -> Masks:
    """Masks that keep everything, over every parameter of two or more dimensions: never over biases, norms' scales and shifts.

    ``exclude``: names of parameters, or globs, that get no mask. A parameter that two modules share has one mask.

    Raises:
        UnknownName: a name in ``exclude`` fits no such parameter.
        NothingPruned: no parameter is left.
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    left_out: set[str] = set()
    for pattern in exclude:
        found = {name for name in weights if fnmatchcase(name, pattern)}
        if not found:
            raise UnknownName.among("weight to exclude", pattern, weights)
        left_out |= found
    if not set(weights) - left_out:
        raise NothingPruned("there is no weight to mask: every parameter is excluded, or none has two dimensions")
    return Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in weights.items() if name not in left_out})


def keep_highest(
    scores: Mapping[str, Tensor], masks: Masks, count: int | Mapping[str, int], generator: torch.Generator | None = None
) -> Masks:
    """The masks in which exactly ``count`` of the weights that are left stay: those with the highest scores.

    ``count`` is one number for all parameters together, or one for each. Of equal scores those win that ``generator`` draws;
    without one, the later in the order of (parameter, index). Thresholds, which published code uses, prune one weight
    more or all that tie; counts don't.

    Raises:
        NothingPruned: more weights are to stay than are left, or fewer than none.
    """
    if isinstance(count, Mapping):
        return Masks({n: _highest({n: scores[n]}, {n: mask}, count[n], generator)[n] for n, mask in masks.by_name.items()})
    return Masks(_highest(scores, masks.by_name, count, generator))


def _highest(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int, generator: torch.Generator | None
) -> dict[str, Tensor]:
    left = torch.cat([mask.reshape(-1) for mask in masks.values()])
    alive = left.nonzero().squeeze(1)
    if not 0 <= count <= len(alive):
        raise NothingPruned(f"{count} weights are to stay of the {len(alive)} that are left in {', '.join(masks)}")
    values = torch.cat([scores[name].detach().reshape(-1) for name in masks])[alive]
    if bool(values.isnan().any()):
        raise NothingPruned(f"the scores of {', '.join(masks)} aren't numbers, so that no weight is better than another")
    if generator is not None:
        order = torch.randperm(len(alive), generator=generator).to(alive.device)
        alive, values = alive[order], values[order]
    chosen = alive[values.argsort(stable=True)[len(alive) - count :]]
    flat = torch.zeros_like(left)
    flat[chosen] = True
    parts = flat.split([mask.numel() for mask in masks.values()])
    return {name: part.reshape(mask.shape) for part, (name, mask) in zip(parts, masks.items(), strict=True)}


class Masked(nn.Module):
    """The parametrisation behind `apply_masks`: the weight where the mask is, ``held`` elsewhere, whatever the optimizer did."""

    mask: Tensor
    held: Tensor

    def __init__(self, mask: Tensor, held: Tensor, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order = order
        self.register_buffer("mask", mask)
        self.register_buffer("held", held)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the network computes with."""
        return torch.where(self.mask, weight, self.held)


def apply_masks(model: nn.Module, masks: Masks, held: Mapping[str, Tensor] | None = None) -> None:
    """Put masks on a network, in place: a pruned weight is zero, or its value in ``held``, until `remove_masks`.

    The weights become `torch.nn.utils.parametrize` parametrisations, so that pruned ones get no gradient, and neither
    momentum, weight decay nor anything else that an optimizer does to the stored tensor can move what the network computes with.
    The masks are buffers: they move and are saved with the network.

    Raises:
        UnknownName: a mask of a parameter that the network doesn't have.
        UnsupportedNetwork: a mask of another shape, a weight that is parametrised already, or one that two modules share.
    """
    weights = dict(model.named_parameters())
    for name, mask in masks.by_name.items():
        if name not in weights:
            raise UnknownName.among("masked parameter", name, weights)
        weight = weights[name]
        if weight.shape != mask.shape:
            raise UnsupportedNetwork(f"the mask of `{name}` is {tuple(mask.shape)}, the parameter {tuple(weight.shape)}")
        module, attribute = owner(model, name)
        value = torch.zeros_like(weight) if held is None else held[name].to(weight)
        keep = mask.to(weight.device)
        parametrization = Masked(keep, torch.where(keep, torch.zeros_like(weight), value.detach()), parameter_order(module))
        parametrize.register_parametrization(module, attribute, parametrization)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter and the attribute it is.

    Raises:
        UnsupportedNetwork: two modules share the parameter, or it is parametrised: a mask would act in one place only.
    """
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module) or attribute == "original":
        raise UnsupportedNetwork(f"`{name}` is parametrised already: remove its parametrisation (or mask) first")
    places = [n for n, p in model.named_parameters(remove_duplicate=False) if p is getattr(module, attribute)]
    if len(places) > 1:
        raise UnsupportedNetwork(f"`{name}` is shared ({', '.join(places)}): leave it without a mask (exclude)")
    return module, attribute


def remove_masks(model: nn.Module) -> Masks:
    """Take the masks off again, in place: the weights keep the values they had under them. Returns the masks."""
    found: dict[str, Tensor] = {}
    for path, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        for attribute in list(module.parametrizations):  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
            (first, *_) = module.parametrizations[attribute]  # pyright: ignore[reportIndexIssue]
            if isinstance(first, Masked):
                found[f"{path}.{attribute}" if path else attribute] = first.mask
                parametrize.remove_parametrizations(module, attribute)
                restore_order(module, first.order)
    return Masks(found)


def parameter_order(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's own parameters in their order."""
    return tuple(name for name, _ in module.named_parameters(recurse=False))


def restore_order(module: nn.Module, order: tuple[str, ...]) -> None:
    """Put a module's parameters back into this order: a parametrisation that is taken off leaves its parameter last."""
    parameters = module._parameters  # pyright: ignore[reportPrivateUsage]
    for name in order:
        if name in parameters:
            parameters[name] = parameters.pop(name)


def save_masks(masks: Masks, path: Path) -> None:
    """Write masks as a safetensors file, whole or not at all. Raises `ArtifactError`."""
    try:
        write_atomically(path, tensor_bytes(masks.by_name, _KEY, {}))
    except OSError as error:
        raise ArtifactError(f"can't write the masks to {path}: {error.strerror or error}") from error


def load_masks(path: Path) -> Masks:
    """Read what `save_masks` wrote, in the order of the names. Raises `ArtifactError` for anything else."""
    try:
        tensors, _ = read_tensors(path, _KEY)
    except (OSError, DamagedFile) as error:
        raise ArtifactError(f"{path} can't be read as masks: {error}") from error
    if not tensors or any(mask.dtype != torch.bool for mask in tensors.values()):
        raise ArtifactError(f"{path} holds no masks: their tensors are bool")
    return Masks(dict(sorted(tensors.items())))  # the file tells them in no order, and draws would follow it
