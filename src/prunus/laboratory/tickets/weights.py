"""Weights that one part of a job leaves for another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prunus.errors import ArtifactError
from prunus.files import DamagedFile, write_atomically
from prunus.tensor_files import read_tensors, tensor_bytes

_KEY = "prunus.weights"


def write_weights(values: Mapping[str, Tensor], path: Path) -> None:
    """Keep tensors in a safetensors file. Raises `ArtifactError`."""
    try:
        write_atomically(path, tensor_bytes(values, _KEY, {}))
    except OSError as error:
        raise ArtifactError(f"can't write {path}: {error.strerror or error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what `write_weights` wrote. Raises `ArtifactError` where it is damaged."""
    try:
        return read_tensors(path, _KEY)[0]
    except (OSError, DamagedFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete its folder to repeat the job") from None
