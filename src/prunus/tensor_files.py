"""Tensors in a safetensors file, with a JSON object and a checksum in its header: written and read without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunus.files import MOST_JSON, SEAL, DamagedFile, parse_json, sealed, unsealed

_LENGTH_BYTES = 8  # of the header's length, with which a safetensors file begins


def tensor_bytes(tensors: Mapping[str, Tensor], key: str, tree: Mapping[str, Any]) -> bytes:
    """A safetensors file that holds ``tensors``, and ``tree`` with a checksum of everything under ``key`` of its metadata."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: the library writes several in an order that changes from process to process.
    return save(ready, {key: json.dumps(sealed(tree, lambda: _digest(ready)))})


def read_tensors(path: Path, key: str = "") -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a safetensors file, and the object under ``key`` of its metadata (None: there is no such key).

    Raises:
        OSError: the file can't be read.
        DamagedFile: it is no whole safetensors file, or its checksum doesn't match. One without a checksum is taken as it is.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise DamagedFile(str(error).partition("\n")[0]) from None
    text = metadata.get(key)
    if key and text is None and any(SEAL in value for value in metadata.values()):
        raise DamagedFile("its checksum is under another name")
    return tensors, None if text is None else unsealed(parse_json(text), lambda: _digest(tensors))


def _check_header(path: Path) -> None:
    """A header is parsed as a whole, so its length is looked at first."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DamagedFile("it is a pipe or a device, not a file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > MOST_JSON:
        raise DamagedFile(f"its header announces {length} bytes")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
