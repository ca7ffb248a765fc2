"""What `prunus bench` is given: names of networks, saved networks, folders of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunus.errors import RecipeError
from prunus.laboratory.pruned_runs import PrunedRun
from prunus.pipeline.networks import Networks
from prunus.sources import DataBundle, load_model
from prunus.surgery import load

ARTIFACT = ".prunus"


@dataclass(frozen=True)
class Origin:
    """How sources are built, and what saved networks were made from: ``of``, a source."""

    of: str | None = None
    weights: str | None = None
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0

    def build(self, source: str) -> nn.Module:
        """The network that ``source`` names."""
        return load_model(source, weights=self.weights, num_classes=self.num_classes, arguments=self.arguments, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Contestants:
    """Networks by their names, in the order given; ``input_shape``: what those of a run take, None where there is no run."""

    networks: dict[str, nn.Module]
    input_shape: tuple[int, ...] | None = None


def read_contestants(names: Sequence[str], origin: Origin) -> Contestants:
    """The networks that ``names`` stand for.

    A name is ``LABEL=`` (or nothing) and then a source (``torchvision:resnet18``, ``file.py:function``), a file that Prunus
    saved, or the folder of a finished run, which stands for its full and its small network. A saved file is of ``origin.of``; one
    that lies in the folder of a run is of that run's network.

    Raises:
        RecipeError: a saved file of which nobody knows the network, networks of the same name, runs on other inputs.
        PrunusError: what building and loading networks raise.
    """
    networks: dict[str, nn.Module] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        label, source = _labelled(name)
        found, shape = _read(source, origin)
        for suffix, network in found.items():
            full = f"{label} {suffix}".strip()
            if full in networks:
                raise RecipeError(f"two networks are called {full!r}: name one of them, e.g. other={source}")
            networks[full] = network
        if shape is not None:
            shapes[label] = shape
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{label}: {'x'.join(map(str, shape))}" for label, shape in shapes.items())
        raise RecipeError(f"networks are timed on the same input, but these take different ones ({told}): bench them apart")
    return Contestants(networks, next(iter(shapes.values()), None))


def _labelled(name: str) -> tuple[str, str]:
    """``small=runs/mine/small.prunus`` as two; a name with a slash or colon before the sign has no label."""
    label, sign, source = name.partition("=")
    return (label, source) if sign and source and not any(c in label for c in "/\\:") else (name, name)


def _read(source: str, origin: Origin) -> tuple[dict[str, nn.Module], tuple[int, ...] | None]:
    path = Path(source)
    if path.is_dir():
        run = PrunedRun.read(path)
        networks = _networks_of(run)
        files = {"full": run.base, "small": path / f"small{ARTIFACT}"}
        return {name: load(file, networks.build(weights=False)) for name, file in files.items()}, run.input_shape
    if path.suffix != ARTIFACT:
        return {"": origin.build(source)}, None
    if origin.of is not None:
        return {"": load(path, origin.build(origin.of))}, None
    folder = next((f for f in (path.parent, path.parent.parent) if (f / "result.json").is_file()), None)
    if folder is None:
        raise RecipeError(
            f"nothing says which network {source} was made from: name it with --of, e.g. --of torchvision:resnet18, or give "
            "the folder of the run that made it"
        )
    run = PrunedRun.read(folder)
    return {"": load(path, _networks_of(run).build(weights=False))}, run.input_shape


def _networks_of(run: PrunedRun) -> Networks:
    """Builds the run's network without its images, of which only number of classes and shape matter."""
    shape, classes = run.input_shape, run.classes
    empty = TensorDataset(torch.empty(0, *shape))
    channels = shape[0]
    images = DataBundle(empty, empty, empty, shape, classes, "none", (0.0,) * channels, (1.0,) * channels, empty)
    return Networks(run.recipe, images, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
