"""A training run at the end of an epoch, in one file without pickle: safetensors for tensors, JSON in its header for the rest.

The file is replaced atomically, and the one before it is kept beside it (``NAME.previous``): there is always a whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from prunus.errors import ArtifactError, PrunusWarning, TrainingError
from prunus.files import DamagedFile, write_atomically
from prunus.tensor_files import read_tensors, tensor_bytes
from prunus.training.log import EpochLog

FORMAT = "prunus-training-checkpoint/1"
_KEY = "prunus"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: the finished epochs, what the run is (`identity`), and its tensors and numbers (`state`)."""

    epochs: tuple[EpochLog, ...]
    identity: Mapping[str, Any]
    state: Mapping[str, Any]


def fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, the seed and the parameter shapes of a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def usable_path(checkpoint: Path) -> Path:
    """Find out now, not after the first epoch, that a checkpoint can't be put there."""
    checkpoint = Path(checkpoint)
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"can't make the folder of the checkpoint {checkpoint}: {error.strerror or error}") from None
    if checkpoint.is_dir():
        raise TrainingError(f"the checkpoint {checkpoint} is a folder: give the name of a file")
    return checkpoint


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` atomically; the one that was there before stays as `previous`.

    Raises:
        ArtifactError: the file can't be written (the checkpoint that was there before is intact).
        TrainingError: the state holds something that only pickle could store.
    """
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "epochs": [vars(epoch) for epoch in checkpoint.epochs],
        "identity": checkpoint.identity,
        "fingerprint": fingerprint(checkpoint.identity),
        "state": _pack(checkpoint.state, "", tensors),
    }
    try:
        write_atomically(path, tensor_bytes(tensors, _KEY, header), keep=previous(path))
    except OSError as error:
        kept = f"the checkpoint that was there before ({path}) is intact" if path.exists() else "there is no earlier checkpoint"
        raise ArtifactError(
            f"can't write the checkpoint of epoch {len(checkpoint.epochs)} to {path}: {error.strerror or error}; {kept}. "
            "Make room or choose another place, then resume"
        ) from error


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept."""
    return path.with_name(f"{path.name}.previous")


def load_newest(path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint at ``path``, or the one before it where the file is damaged (a `PrunusWarning` says so) or was being
    replaced when the run was killed; None where there is neither. Raises like `load_checkpoint`."""
    older = previous(path)
    if not path.exists():
        return load_checkpoint(older, identity) if older.exists() else None
    try:
        return load_checkpoint(path, identity)
    except ArtifactError as error:
        try:
            found = load_checkpoint(older, identity)
        except (ArtifactError, TrainingError):
            raise error from None
        text = f"{error}. The one before it, {older}, is whole and taken instead: it has {len(found.epochs)} finished epochs"
        warnings.warn(text, PrunusWarning, stacklevel=4)
        return found


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Read the checkpoint of the run that ``identity`` describes.

    Raises:
        ArtifactError: the file is truncated, unreadable, or no training checkpoint of Prunus.
        TrainingError: it belongs to another run; the message shows what differs.
    """
    try:
        tensors, header = read_tensors(path, _KEY)
        if header is None or header.get("format") != FORMAT:
            raise ArtifactError(f"{path} is no training checkpoint ({FORMAT}): give another file, or train without resume")
        stored = header["identity"]
        if header["fingerprint"] != fingerprint(identity):
            differences = _differences(stored, identity)
            raise TrainingError(
                f"the checkpoint {path} belongs to another run: {'; '.join(differences) or 'its fingerprint differs'}. "
                "Resume with what it was made with, or train without resume"
            )
        epochs = tuple(EpochLog(**epoch) for epoch in header["epochs"])
        # Copies in ordinary memory: the mapped file may be replaced while the run goes on.
        return Checkpoint(epochs, stored, _unpack(header["state"], {name: tensor.clone() for name, tensor in tensors.items()}))
    except (DamagedFile, OSError, *_MALFORMED) as error:
        raise ArtifactError(
            f"can't read the checkpoint {path}: {error}. It is truncated or damaged: "
            "delete it to start again, or put an older copy there"
        ) from None


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any], shown: int = 4) -> list[str]:
    then_flat, now_flat = _flatten(stored), _flatten(json.loads(json.dumps(now)))
    lines = [
        f"{name} was {json.dumps(then_flat.get(name, 'absent'))}, is {json.dumps(now_flat.get(name, 'absent'))}"
        for name in dict.fromkeys([*then_flat, *now_flat])
        if then_flat.get(name, "absent") != now_flat.get(name, "absent")
    ]
    return lines[:shown] + ([f"and {len(lines) - shown} more differences"] if len(lines) > shown else [])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat.update(_flatten(cast("Mapping[str, Any]", value), f"{prefix}{name} ") if nested else {prefix + name: value})
    return flat


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON tree of ``value``, its tensors put into ``tensors`` under their path."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        key = path if path not in tensors else f"{path}#{len(tensors)}"
        # A clone, because tied parameters share memory, which safetensors refuses.
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {"dict": [[_pack(k, path, tensors), _pack(v, f"{path}.{k}".lstrip("."), tensors)] for k, v in items]}
    if isinstance(value, (tuple, list)):
        parts = [_pack(v, f"{path}.{i}", tensors) for i, v in enumerate(cast("list[Any]", value))]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    raise TrainingError(
        f"the state {path!r} is a {type(value).__name__}: a checkpoint holds tensors, numbers, "
        "strings, None, and dicts, lists and tuples of them"
    )


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(part, tensors) for part in cast("list[Any]", tree)]
    if isinstance(tree, dict):
        ((kind, content),) = cast("dict[str, Any]", tree).items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(_unpack(part, tensors) for part in content)
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    return tree
