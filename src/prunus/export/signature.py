"""The flat view of a network that graph runtimes have: named tensors in, named tensors out, everything else a constant."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.errors import ExportError
from prunus.types import call_model


@dataclass(frozen=True, eq=False)
class FlatInputs:
    """``example_inputs`` taken apart: its tensors in order, their names, and how to put the nest together again."""

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    spec: Any

    @classmethod
    def of(cls, inputs: Any) -> FlatInputs:
        """Flatten a tensor, tuple or dict, moved to the CPU. `ExportError` if it holds no tensor."""
        paths, spec = pytree.tree_flatten_with_path(inputs)
        leaves = tuple(leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf for _, leaf in paths)
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if not tensors:
            kind = type(inputs).__name__
            raise ExportError(f"the example inputs are a {kind} without any tensor: pass what the network is called on")
        names = _names([path for path, leaf in paths if isinstance(leaf, Tensor)], "input")
        return cls(tensors, tuple(names), leaves, spec)

    @property
    def batch(self) -> int:
        """Size of the first axis of the first tensor that has one (0 if none has)."""
        return next((t.shape[0] for t in self.tensors if t.ndim), 0)

    @property
    def batched(self) -> tuple[bool, ...]:
        """Which tensors carry the batch on their first axis: those whose first axis has the size `batch`."""
        return tuple(t.ndim > 0 and t.shape[0] == self.batch for t in self.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> FlatInputs:
        """The same nest around other tensors."""
        rest = iter(tensors)
        leaves = tuple(next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves)
        return FlatInputs(tuple(tensors), self.names, leaves, self.spec)

    def at_batch(self, batch: int) -> FlatInputs:
        """The same inputs with every batched tensor repeated or cut to ``batch`` rows."""
        rows = torch.arange(batch) % max(self.batch, 1)
        return self.with_tensors([t[rows] if b else t for t, b in zip(self.tensors, self.batched, strict=True)])

    def nest(self) -> Any:
        """The inputs as the network takes them."""
        return pytree.tree_unflatten(list(self.leaves), self.spec)

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same as positional and keyword arguments."""
        nest = self.nest()
        return (nest, {}) if isinstance(nest, tuple) else ((), dict(nest)) if isinstance(nest, Mapping) else ((nest,), {})


class FlatNetwork(nn.Module):
    """A private copy of a network in eval mode on the CPU, called on flat tensors and returning a flat tuple of tensors.

    The exporter can't represent integers or None among the outputs, nor constants among the inputs; here they are gone.
    """

    def __init__(self, network: nn.Module, inputs: FlatInputs) -> None:
        super().__init__()
        try:
            self.network = copy.deepcopy(network).cpu().eval()
        except Exception as error:
            raise ExportError(f"{type(network).__name__} can't be copied for export: {error}") from error
        self.inputs = inputs
        super().eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of the nest that the network returns."""
        output = call_model(self.network, self.inputs.with_tensors(tensors).nest())
        return tuple(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))

    def output_names(self) -> list[str]:
        """Names made of the keys and positions in the nest that the network returns. `ExportError` if it has no tensor."""
        with torch.no_grad():
            output = call_model(self.network, self.inputs.nest())
        paths, _ = pytree.tree_flatten_with_path(output)
        tensor_paths = [path for path, leaf in paths if isinstance(leaf, Tensor)]
        if not tensor_paths:
            name, kind = type(self.network).__name__, type(output).__name__
            raise ExportError(f"{name} returns a {kind} without any tensor: there is nothing to export")
        return _names(tensor_paths, "output", taken=self.inputs.names)


def _names(paths: Sequence[Any], stem: str, taken: Sequence[str] = ()) -> list[str]:
    """One C identifier per path, none of them in ``taken`` and no two alike: a graph has one namespace for all its values."""
    names: list[str] = []
    for path in paths:
        name = "_".join(re.findall(r"\w+", pytree.keystr(path), re.ASCII)) or stem
        name = f"{stem}_{name}" if name[0].isdigit() or name in taken else name
        while name in names:
            name += "_"
        names.append(name)
    return names
