"""Weights that one part of a job leaves for another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prunus.errors import ArtifactError
from prunus.files import write_atomically


def write_weights(values: Mapping[str, Tensor], path: Path) -> None:
    """Keep tensors in a safetensors file. Raises `ArtifactError`."""
    try:
        write_atomically(path, save({name: value.detach().contiguous() for name, value in values.items()}))
    except OSError as error:
        raise ArtifactError(f"can't write {path}: {error.strerror or error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what `write_weights` wrote. Raises `ArtifactError` where it is damaged."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete its folder to repeat the job") from None
