"""What layers of the original network give at sampled points: one pass over the data for all of them, kept in a file."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

from prunus.errors import PrunusWarning
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, to_device
from prunus.importance.points import draw_points, outputs_at
from prunus.reconstruction.layer_sites import Site
from prunus.reconstruction.layer_visits import Visited, Watch, visit

MOST_STORED = 2**32
"""So many bytes are kept at most; what is beyond is passed through the network again whenever it is needed."""


@dataclass(frozen=True)
class _Stored:
    """One call on one batch: where in the file its arrays begin, and what batch it was."""

    start: int
    images: int
    positions: int
    in_sum: bool
    batch: bytes


class Original:
    """The network before pruning, the data, and what its layers give at ``points`` points of every image.

    `remember` passes the data through the network once for many layers. What they give goes into a file without a name in the
    folder for temporary files, so that memory doesn't grow with the number of images. Without it, and for batches that come back
    different (a loader that shuffles), beyond `MOST_STORED` bytes or where the folder is full, every look at a layer is a pass.
    """

    def __init__(self, model: nn.Module, run: DataRun, points: int, seed: int = 0) -> None:
        self.model, self.run, self.points, self.seed = model, run, points, seed
        self._file: IO[bytes] | None = None
        self._stored: dict[tuple[str, int], list[_Stored]] = {}

    def generator(self) -> torch.Generator:
        """What points are drawn with: anew for every layer, so that they don't depend on the other layers."""
        return torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def remember(self, sites: Mapping[str, Site]) -> None:
        """Look at these layers, by the names of their weights in this network, in one pass over the data."""
        generators = {name: self.generator() for name in sites}
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`; a full disk is noticed at once
            for number, batch in enumerate(self.run):
                key = digest(batch)
                if key is None or self._file.tell() > MOST_STORED:
                    break
                watches = {name: self._watch(name, site, generators[name]) for name, site in sites.items()}
                visit(self.model, self.run.inputs(to_device(batch, self.model)), self.run, watches.values())
                for name, watch in watches.items():
                    self._stored[name, number] = [self._write(self._file, found, key) for found in watch.found]
        except OSError as error:
            warnings.warn(
                f"what the original network gives can't be kept in {tempfile.gettempdir()}: {error.strerror or error}; it is "
                "computed anew for every layer, which takes longer. Set TMPDIR to a folder with room",
                PrunusWarning,
                stacklevel=3,
            )

    def remembers(self, weight: str, number: int) -> bool:
        """Whether anything of a layer is kept for the data's ``number``-th batch."""
        return (weight, number) in self._stored

    def at(
        self, weight: str, site: Site, number: int, batch: Any, key: bytes | None, generator: torch.Generator
    ) -> list[Visited]:
        """Every call of a layer on a batch, the data's ``number``-th: values (points, outputs), drawn by ``generator`` if not
        remembered. ``key``: the batch's `digest`."""
        stored = self._stored.get((weight, number), [])
        same = [entry.in_sum == site.in_sum for entry in stored]
        if self._file is not None and all(same) and len(same) == len(site.layer.calls) and stored[0].batch == key:
            device = dict(named_tensors(self.model))[weight].device
            return [self._read(self._file, entry, device) for entry in stored]
        watch = self._watch(weight, site, generator)
        visit(self.model, self.run.inputs(to_device(batch, self.model)), self.run, [watch])
        return watch.found

    def close(self) -> None:
        """Give the file's room back."""
        self._stored.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, weight: str, site: Site, generator: torch.Generator) -> Watch:
        def draw(images: int, positions: int) -> Tensor:
            return draw_points(images, positions, self.points, generator)

        return Watch(dict(named_tensors(self.model))[weight], site, draw, outputs_at)

    @staticmethod
    def _write(file: IO[bytes], found: Visited, key: bytes) -> _Stored:
        start = file.tell()
        for tensor in (found.places, found.values, found.shortcut):
            if tensor is not None:
                exact = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
                np.save(file, exact.detach().cpu().numpy(), allow_pickle=False)
        return _Stored(start, found.images, found.positions, found.shortcut is not None, key)

    @staticmethod
    def _read(file: IO[bytes], stored: _Stored, device: torch.device) -> Visited:
        file.seek(stored.start)
        count = 3 if stored.in_sum else 2
        places, values, *shortcut = [torch.from_numpy(np.load(file, allow_pickle=False)).to(device) for _ in range(count)]
        return Visited(places, stored.images, stored.positions, values, *shortcut)


def digest(batch: Any) -> bytes | None:
    """What tells a batch from another one; None where it holds something whose contents can't be seen."""
    leaves, shape = pytree.tree_flatten(batch)
    found = hashlib.sha256(repr(shape).encode())  # the fastest where processors have it built in
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            found.update(repr(leaf).encode())
        else:
            return None
    return found.digest()
