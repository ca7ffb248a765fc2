"""`save` and `load`: a small network as one safetensors file with its surgery record in the header. No pickle anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.files import DamagedFile, write_atomically
from prunus.graph.labels import named_tensors
from prunus.surgery.record import SurgeryRecord
from prunus.surgery.remove import apply_record
from prunus.tensor_files import read_tensors, tensor_bytes
from prunus.wrapping import refuse_wrapped

_KEY = "prunus.record"
IN_FOLDER = "model.safetensors"
"""The file's name in a folder of the form that the Hugging Face hub has."""


def save(model: nn.Module, record: SurgeryRecord, path: str | os.PathLike[str]) -> None:
    """Write ``model`` and its record to one file, atomically: an old file survives any failure.

    Raises:
        ArtifactError: the folder doesn't exist, the disk is full, ...
        UnsupportedNetwork: the model is wrapped or divided (DDP, FSDP).
    """
    refuse_wrapped(model)
    try:
        write_atomically(Path(path), tensor_bytes(_persistent(model), _KEY, json.loads(record.to_json())))
    except OSError as error:
        raise ArtifactError(f"can't write {path}: {error.strerror or error}; a file that was there before is intact") from error


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Read what `save` wrote into a new network; ``model`` is a fresh full-size one of the same architecture and stays untouched.

    ``path`` may also be a folder that holds such a file as ``model.safetensors``, as ``prunus export --format hf`` writes it.

    Raises:
        ArtifactError: no such file, truncated, changed since it was written, not made by Prunus, or of another architecture.
    """
    path = _file(Path(path))
    tensors, record = _read(path)
    small = apply_record(model, record)
    own = _persistent(small)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ArtifactError(f"{path} is of another architecture: missing {missing[:5]}, unexpected {unexpected[:5]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ArtifactError(
                    f"{path} is damaged: `{name}` is {tuple(tensors[name].shape)}, its record says {tuple(tensor.shape)}"
                )
            if tensor.dtype != tensors[name].dtype:
                raise ArtifactError(
                    f"{path} holds `{name}` as {tensors[name].dtype}, this network as {tensor.dtype}: "
                    "bring the full-size network to the file's type first, e.g. with `model.half()`"
                )
            tensor.copy_(tensors[name])
    return small


def read_record(path: str | os.PathLike[str]) -> SurgeryRecord:
    """The surgery record of a file that `save` wrote; raises `ArtifactError` like `load`."""
    return _read(_file(Path(path)))[1]


def _file(path: Path) -> Path:
    return path / IN_FOLDER if (path / IN_FOLDER).exists() else path


def _persistent(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once under its first name (a shared tensor is stored once)."""
    saved = model.state_dict(keep_vars=True).keys()
    return {name: tensor for name, tensor in named_tensors(model) if name in saved}


def _read(path: Path) -> tuple[dict[str, Tensor], SurgeryRecord]:
    try:
        tensors, tree = read_tensors(path, _KEY)
    except FileNotFoundError:
        raise ArtifactError(f"there is no file {path}") from None
    except (DamagedFile, OSError) as error:
        raise ArtifactError(f"{path} can't be read: it is truncated or not a file that prunus.save wrote ({error})") from None
    if tree is None:
        raise ArtifactError(f"{path} is a safetensors file but not one that prunus.save wrote: it holds no surgery record")
    return tensors, SurgeryRecord.from_tree(tree)
