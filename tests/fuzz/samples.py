"""A valid file for every reader of Prunus, how it is damaged, and what reads it."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import prunus
from fuzz import mutations
from prunus.allocation.search import SearchSpace, search_trials
from prunus.allocation.sensitivity import scan
from prunus.allocation.trials import run_trials, stored_trials
from prunus.config import load_recipe
from prunus.export.time_cache import TimeCache
from prunus.laboratory.tickets.weights import read_weights, write_weights
from prunus.pipeline.stages import read_json, write_checked
from prunus.sources import load_data
from prunus.sources.idx import read_idx
from prunus.sources.weights import load_weights
from prunus.surgery.record import SurgeryRecord
from prunus.surgery.remove import apply_record
from prunus.surgery.replaced import LayerShape, ReplaceEdit
from prunus.tensor_files import read_tensors, tensor_bytes
from prunus.ticket_recipe import load_ticket_recipe
from prunus.tickets import dense_masks
from prunus.tickets.masks import load_masks, save_masks
from prunus.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from prunus.training.log import EpochLog

Damage = Callable[[bytes, random.Random], bytes]
BUDGET = prunus.Budget(channels=0.5, tolerance=0.2)
RECIPES = Path(prunus.__file__).parent / "recipes"


@dataclass(frozen=True)
class Sample:
    """``content`` of a file called ``name``; ``damages`` beside the blind ones; ``read`` gets the path.

    ``same``: whether what was read is what was written. A file with a checksum that was damaged blindly must not be read as
    something else.
    """

    name: str
    content: bytes
    read: Callable[[Path], Any]
    damages: tuple[Damage, ...] = ()
    same: Callable[[Any], bool] | None = None


def network(seed: int = 0) -> nn.Sequential:
    """Three convolutions and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(8 * 16, 4)
    ).eval()


IMAGES = torch.rand(2, 3, 8, 8)


def make_samples(folder: Path) -> list[Sample]:
    """All of them; ``folder`` is for files on the way."""
    model = network()
    graph = prunus.trace(model, IMAGES)
    scores = prunus.score(model, graph, "l1")
    return [
        *_artifacts(folder, model, graph, scores),
        *_weights(folder, model),
        *_of_runs(folder, model),
        *_of_allocators(folder, graph, scores),
        *_recipes(),
        *_images(),
    ]


# -- networks


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _forge(content: bytes, rng: random.Random, key: str) -> bytes:
    """A file with another value in it and the right checksum, as somebody would write it on purpose."""
    path = Path("forged")
    path.write_bytes(content)
    tensors, tree = read_tensors(path, key)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    what = rng.randrange(5)
    if what == 0 and tensors:
        name = rng.choice(list(tensors))
        tensors[name] = rng.choice((torch.full((3,), float("nan")), torch.zeros(0), torch.zeros(1, 1), tensors[name].half()))
    elif what == 1:
        tensors.pop(rng.choice(list(tensors)))
    else:
        try:
            return tensor_bytes(tensors, key, json.loads(mutations.in_json(json.dumps(tree).encode(), rng)))
        except (RecursionError, TypeError, ValueError):  # what is nested without end can't be written this way
            return content
    return tensor_bytes(tensors, key, tree or {})


def _artifacts(folder: Path, model: nn.Module, graph: prunus.ChannelGraph, scores: prunus.Scores) -> list[Sample]:
    found: list[Sample] = []
    small, record = prunus.remove(model, graph, prunus.allocate(graph, scores, BUDGET, "uniform"))
    row = (
        LayerShape("conv2d", 8, 4, (3, 1), (1, 1), (0, 0), (1, 1)),
        LayerShape("conv2d", 4, 8, (1, 3), (1, 1), (0, 0), (1, 1), True),
    )
    whole = SurgeryRecord.nothing_removed(model)
    thin_record = SurgeryRecord(whole.fingerprint, (ReplaceEdit("3", row),), whole.versions)
    thin = apply_record(model, thin_record)
    for name, net, done in (("small.prunus", small, record), ("thin.prunus", thin, thin_record)):
        prunus.save(net, done, folder / name)
        expected = {key: value.clone() for key, value in net.state_dict().items()}
        found.append(
            Sample(
                name,
                (folder / name).read_bytes(),
                lambda path: prunus.load(path, network(1)),
                (mutations.in_header, partial(_forge, key="prunus.record")),
                lambda net, expected=expected: _equal(net.state_dict(), expected),
            )
        )
    text = record.to_json().encode()
    return [*found, Sample("record.json", text, lambda p: _apply(p.read_bytes()), (mutations.in_json,))]


def _apply(text: bytes) -> Any:
    """A record comes to `from_json` as text."""
    return apply_record(network(1), SurgeryRecord.from_json(text.decode("utf-8", "replace")))


def _weights(folder: Path, model: nn.Module) -> list[Sample]:
    values = model.state_dict()
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": values}, new)
    torch.save(values, old, _use_new_zipfile_serialization=False)
    save_masks(dense_masks(model), folder / "masks")
    write_weights(values, folder / "weights")
    read = partial(load_weights, network(1))
    return [
        Sample("weights.safetensors", tensor_bytes(values, "none", {}), read, (mutations.in_header,)),
        Sample("weights.pt", new.getvalue(), read, (mutations.in_zip,)),
        Sample("weights.pth", old.getvalue(), read),
        Sample(
            "masks.safetensors",
            (folder / "masks").read_bytes(),
            load_masks,
            (mutations.in_header,),
            lambda found: _equal(dict(found.by_name), dict(dense_masks(model).by_name)),
        ),
        Sample(
            "left.safetensors",
            (folder / "weights").read_bytes(),
            read_weights,
            (mutations.in_header,),
            lambda found: _equal(found, values),
        ),
    ]


def _of_runs(folder: Path, model: nn.Module) -> list[Sample]:
    identity = {"seed": 3, "settings": {"lr": 0.1}}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "within": None, "pairs": (1, [2.5, "x"])}
    save_checkpoint(folder / "c", Checkpoint((EpochLog(1, 0.5, 0.1, 1.0, 10.0),), identity, state))
    result = {"epochs": [{"epoch": 1, "loss": 0.25}], "evaluation": {"accuracy": 0.5}, "warnings": ["w"], "seconds": 1.5}
    write_checked(folder / "stage.json", result)
    return [
        Sample(
            "train.safetensors",
            (folder / "c").read_bytes(),
            lambda path: load_checkpoint(path, identity),
            (mutations.in_header, partial(_forge, key="prunus")),
            lambda found: _equal(dict(found.state["model"]), model.state_dict()),
        ),
        Sample(
            "stage.json", (folder / "stage.json").read_bytes(), read_json, (mutations.in_json,), lambda found: found == result
        ),
    ]


def _of_allocators(folder: Path, graph: prunus.ChannelGraph, scores: prunus.Scores) -> list[Sample]:
    points = scan(graph, scores, lambda plan: 0.9 - 0.01 * plan.num_removed, (0.25, 0.5))
    sensitivity = {"criterion": "l1", "points": [point.to_json() for point in points]}
    space = SearchSpace.of(graph, scores, BUDGET)
    journal = folder / "search.journal"
    trials = run_trials(search_trials(space, graph, scores, "random", 0, lambda plan: 0.5), str(journal), 3)
    sizes = {group.name: group.num_channels for group in graph.prunable}
    search = {"criterion": "l1", "widths": sizes, "trials": [trial.to_json() for trial in trials]}
    about = {"threads": 1, "runtime": "eager"}
    cache = TimeCache(folder, about)
    cache.add("conv 8 8", {(1, 2): 0.5, (2, 3): 0.75})

    def read_cache(path: Path) -> None:
        path.rename(path.with_name(cache.path.name))
        times = TimeCache(path.parent, about)
        for ms in (times.get("conv 8 8", 1, 2), times.get("conv 8 8", 2, 3)):
            assert ms is None or 0 <= ms < float("inf")

    def allocated(allocator: str, option: str, path: Path) -> Any:
        return prunus.allocate(graph, scores, BUDGET, allocator, **{option: path})

    json_damage = (mutations.in_json,)
    return [
        Sample("sensitivity.json", json.dumps(sensitivity).encode(), partial(allocated, "sensitivity", "points"), json_damage),
        Sample("search.json", json.dumps(search).encode(), partial(allocated, "search", "result"), json_damage),
        Sample("times.json", cache.path.read_bytes(), read_cache, json_damage),
        Sample("search.journal", journal.read_bytes(), lambda path: stored_trials(str(path)), (mutations.in_lines_of_json,)),
    ]


# -- recipes and images


def _recipes() -> list[Sample]:
    recipe, tickets = (RECIPES / "cats_dogs.toml").read_bytes(), (RECIPES / "tickets" / "digits.toml").read_bytes()
    return [
        Sample("recipe.toml", recipe, load_recipe, (mutations.in_toml,)),
        Sample("tickets.toml", tickets, load_ticket_recipe, (mutations.in_toml,)),
    ]


def picture(form: str, number: int = 0, size: int = 12) -> bytes:
    """A small picture in a file format of pillow's."""
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 50 + number).convert("P" if form == "GIF" else "RGB").save(buffer, form)
    return buffer.getvalue()


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, count in (("train", 6), ("test", 2)):
            for label in ("cat", "dog"):
                for number in range(count):
                    archive.writestr(f"{split}/{label}/{number}.png", picture("PNG", number))
    return buffer.getvalue()


def read_all(source: str) -> Any:
    """Every image of a source, as training reads them."""
    data = load_data(source, image_size=8)
    return [part[i] for part in (data.train, data.validation, data.test) for i in range(len(part))]  # type: ignore[arg-type]


def _read_picture(path: Path) -> Any:
    from prunus.sources.archive import Folder
    from prunus.sources.image_files import StoredFiles

    images = StoredFiles(Folder(path.parent), [path.name], [0], None)
    images.check(0)
    return images.load(0)


def _read_cells(path: Path) -> Any:
    """Labels beside the images that they name."""
    (path.parent / "images").mkdir(exist_ok=True)
    for number in range(8):
        (path.parent / "images" / f"{number}.png").write_bytes(picture("PNG", number))
    return read_all(f"elpv:{path.parent}")


@cache  # the pictures are noise
def _shard() -> bytes:
    """A tar file of eight pictures with their classes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(8):
            label = json.dumps({"label": number % 2}) if number % 3 else str(number % 2)
            for kind, content in (("png", picture("PNG", number)), ("json" if number % 3 else "cls", label.encode())):
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _read_shard(path: Path) -> Any:
    (path.parent / "whole.tar").write_bytes(_shard())
    return read_all(f"wds:train={path};test={path.parent / 'whole.tar'}")


def _index() -> bytes:
    """What is kept beside that tar file."""
    from prunus.sources.tar_index import index_path, read_index

    with TemporaryDirectory() as folder:
        shard = Path(folder) / "whole.tar"
        shard.write_bytes(_shard())
        os.utime(shard, ns=(0, 0))
        read_index(shard)
        return index_path(shard).read_bytes()


def _read_index(path: Path) -> Any:
    """A damaged index must be seen through: what is read is what the shard holds."""
    from prunus.sources.tar_index import read_index

    shard = path.with_suffix("")
    shard.write_bytes(_shard())
    os.utime(shard, ns=(0, 0))
    index = read_index(shard)
    return [index.offsets.tolist(), index.sizes.tolist(), index.labels.tolist(), [index.name(n) for n in range(8)]]


def _images() -> list[Sample]:
    with TemporaryDirectory() as folder:
        index = _read_index(Path(folder) / "whole.tar.index")
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 4, 4) + bytes(range(80))
    cells = "\n".join(f"images/{n}.png {float(n % 2)} mono" for n in range(8)).encode()
    pictures = [
        Sample(f"picture.{form.lower()}", picture(form), _read_picture) for form in ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
    ]
    return [
        Sample("images.zip", _archive(), lambda path: read_all(f"folder:{path}"), (mutations.in_zip,)),
        Sample("shard.tar", _shard(), _read_shard),
        Sample("whole.tar.index", _index(), _read_index, (mutations.in_header,), same=lambda found: found == index),
        *pictures,
        Sample("picture.ppm", picture("PPM"), _read_picture),
        Sample("images-idx3-ubyte", idx, lambda path: read_idx(path, 3)),
        Sample("images-idx3-ubyte.gz", gzip.compress(idx, mtime=0), lambda path: read_idx(path, 3)),
        Sample("labels.csv", cells, _read_cells),
    ]
