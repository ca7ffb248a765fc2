"""`export_networks`: a pruned network in every format that is asked for, checked on test images, beside the unpruned one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prunus.config import Recipe, parse_recipe
from prunus.errors import ExportError, PrunusError, UnknownName
from prunus.export import ROUTES
from prunus.export.compare import is_classifier
from prunus.graph import trace
from prunus.pipeline.called import Called
from prunus.pipeline.exports import Exported, Timed, export_rows
from prunus.pipeline.hub import Origin, write_hub_folder
from prunus.pipeline.images import load_images
from prunus.pipeline.int8 import int8_row
from prunus.pipeline.machine import environment
from prunus.pipeline.networks import Networks
from prunus.pipeline.stages import read_json, write_json
from prunus.sources import DataBundle, load_function, make_loader
from prunus.surgery import SurgeryRecord, load
from prunus.surgery.artifact import read_record
from prunus.types import Cost, ForwardFn

FORMATS = (*ROUTES, "hf")
"""What ``--format`` takes: the formats of `prunus.export.ROUTES`, and a folder of the Hugging Face form."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned network with what its export needs: the full one where it is known, images, and where it all comes from."""

    small: nn.Module
    record: SurgeryRecord
    full: nn.Module | None
    example: Tensor
    origin: Origin
    data: DataBundle | None = None
    forward_fn: ForwardFn | None = None


@dataclass(frozen=True)
class Request:
    """What is written: ``formats`` of `FORMATS`, INT8 or not, and by how many images it is checked and calibrated."""

    formats: tuple[str, ...] = ("onnx",)
    int8: bool = False
    images: int = 400
    calibration: int = 128
    batch_size: int = 32
    seed: int = 0
    timed: Timed = field(default_factory=Timed)

    def check(self) -> None:
        """Raise `UnknownName` for a format that there isn't."""
        for name in self.formats:
            if name not in FORMATS:
                raise UnknownName.among("export format", name, FORMATS)


def export_networks(pruned: Pruned, request: Request, out: Path) -> dict[str, Any]:
    """Write the files and ``export.json`` into ``out``, and return what the latter holds.

    ``exports`` has a row for every format: figures of the comparison, bytes and latency before and after; or ``refused``, the
    reason why there is no file. The test images are drawn with the seed, all classes mixed.

    Raises:
        UnknownName: no such format.
        ExportError: INT8 without data.
    """
    request.check()
    if request.int8 and pruned.data is None:
        raise ExportError("INT8 needs training images to measure the range of every activation on: name them with --data")
    generator = torch.Generator().manual_seed(request.seed)
    test = _batches(pruned.data.test, request.images, request.batch_size, generator) if pruned.data else []
    small, full = (
        m if m is None or pruned.forward_fn is None else Called(m, pruned.forward_fn) for m in (pruned.small, pruned.full)
    )
    assert small is not None
    subject = Exported(small.eval(), None if full is None else full.eval(), pruned.example, test)
    formats = [name for name in dict.fromkeys(request.formats) if name in ROUTES]
    out.mkdir(parents=True, exist_ok=True)
    rows = export_rows(subject, formats, out, request.timed)
    if request.int8:
        assert pruned.data is not None
        calibration = _batches(pruned.data.calibration, request.calibration, request.batch_size, generator)
        rows.append(_int8(subject, out / "small.int8.onnx", [images for images, _ in calibration], request.timed))
    accuracy, images = _accuracy(subject), sum(len(batch) for batch, _ in test)
    if "hf" in request.formats:
        judged = [] if accuracy is None else [{"stage": "as exported", "accuracy": accuracy, "count": images}]
        origin = pruned.origin if pruned.origin.stages else replace(pruned.origin, stages=judged)
        files = write_hub_folder(out / "hf", pruned.small, pruned.record, origin)
        rows.append({"format": "hf", "file": "hf", "files": [f"hf/{name}" for name in files], "file_bytes": _bytes(out / "hf")})
    result = {
        "name": pruned.origin.name,
        "model": pruned.origin.model,
        "data": pruned.origin.data,
        "images": images,
        "accuracy": accuracy,
        "seed": request.seed,
        "exports": rows,
        "environment": environment(),
    }
    write_json(out / "export.json", result)
    return result


def _int8(subject: Exported, path: Path, calibration: Sequence[Tensor], timed: Timed) -> dict[str, Any]:
    try:
        return int8_row(subject, path, calibration, timed)
    except ExportError as error:
        return {"format": "int8", "refused": str(error)}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _batches(dataset: Dataset[Any], count: int, batch_size: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Images drawn at random, in batches of tensors, with their classes; other labels, which nothing reads, are empty."""
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    chosen = torch.randperm(size, generator=generator)[:count].sort().values.tolist()
    loader = make_loader(Subset(dataset, chosen), batch_size=batch_size, shuffle=False)
    none = torch.zeros(batch_size, 0)
    return [(x, y if isinstance(y, Tensor) and y.ndim == 1 else none[: len(x)]) for x, y in loader]


@torch.no_grad()
def _accuracy(subject: Exported) -> float | None:
    """Top-1 of the small network in PyTorch on the test images; None where they have no classes."""
    right = images = 0
    for batch, labels in subject.batches:
        output = subject.small(batch)
        if not (isinstance(output, Tensor) and is_classifier(output) and labels.ndim == 1):
            return None
        right += int((output.argmax(1) == labels).sum())
        images += len(batch)
    return right / images if images else None


def pruned_run(folder: Path, data: str | None = None) -> Pruned:
    """The network that a run left in its folder, with the recipe's images, or those of ``data``.

    Raises:
        PrunusError: the folder holds no finished run, or its network or images can't be loaded.
    """
    stored, small = folder / "recipe.json", folder / "small.prunus"
    if not (stored.exists() and small.exists()):
        raise ExportError(f"{folder} isn't the folder of a finished run: it needs recipe.json and small.prunus")
    recipe = _recipe(stored, data)
    bundle = load_images(recipe, at_least=1)
    example = bundle.test[0][0][None]
    networks = Networks(recipe, bundle, torch.cat([example, example]))
    base = folder / "stages" / "base.prunus"
    full = load(base, networks.build(weights=False)) if base.exists() else None
    forward = load_function(recipe.functions.forward) if recipe.functions.forward else None
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    origin = _origin(recipe, bundle, result)
    return Pruned(load(small, networks.build(weights=False)), read_record(small), full, example, origin, bundle, forward)


def _recipe(stored: Path, data: str | None) -> Recipe:
    tree = read_json(stored)
    if data is not None:
        tree["data"]["source"] = data
    return parse_recipe(tree, str(stored))


def _origin(recipe: Recipe, data: DataBundle, result: dict[str, Any]) -> Origin:
    networks = result.get("networks", {})

    def cost(which: str) -> Cost | None:
        row = networks.get(which)
        return None if row is None else Cost(row["macs"], row["parameters"], row["activation_bytes"])

    return Origin(
        recipe.name,
        recipe.model.source,
        recipe.model.arguments,
        data.class_names,
        data.input_shape,
        recipe.data.source,
        data.mean,
        data.std,
        cost("before"),
        cost("after"),
        result.get("budget", ()),
        [s for s in result.get("stages", ()) if s.get("accuracy") is not None],
        result.get("verification", {}),
    )


def pruned_network(
    source: str, full: nn.Module, file: Path | None, example: Tensor, data: DataBundle | None, arguments: dict[str, Any]
) -> Pruned:
    """A network and the file of its pruned version; without a file the network itself is exported, with nothing beside it."""
    small, record = (full, SurgeryRecord.nothing_removed(full)) if file is None else (load(file, full), read_record(file))
    try:
        before, after = (trace(network, example).cost() for network in (full, small))
    except PrunusError:  # what can't be traced can still be exported; the card then shows no costs
        before = after = None
    origin = Origin(
        source.rpartition(":")[2],
        source,
        arguments,
        data.class_names if data else (),
        tuple(example.shape[1:]),
        data.source if data else None,
        data.mean if data else (),
        data.std if data else (),
        before,
        after,
    )
    return Pruned(small, record, None if file is None else full, example, origin, data)
