"""Files of trained weights: on disk, in an installed package, or on a hub."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.files import DamagedFile
from prunus.tensor_files import read_tensors

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_NESTS = ("state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load ``path`` into ``model``, in place and strictly: every parameter and buffer, of the same shape, or nothing at all.

    ``path`` may be ``package:DISTRIBUTION/PATH``, a file of an installed package, or ``hf:ORG/REPO/FILE``, which is downloaded.
    ``.safetensors``, or ``.pt``, ``.pth``, ``.bin`` read without executing pickled code. A dict nested under ``state_dict`` or
    ``model`` is unpacked and the key prefixes of wrapped networks are dropped. Counters ``num_batches_tracked`` may be absent.

    Raises:
        ArtifactError: no such file or package, no connection, unknown suffix, damaged or foreign contents, missing, unexpected
            or misshapen keys.
    """
    path = _locate(str(path))
    fit_weights(model, _without_prefix(_tensors(path, _read(path))), str(path))


def fit_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load ``weights`` as `load_weights` does; ``where`` names them in errors."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, tensor)
    _check_keys(where, type(model).__name__, weights, own)
    model.load_state_dict(weights)


def _locate(name: str) -> Path:
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "package":
        return _in_package(rest)
    if colon and prefix == "hf":
        return _from_hub(rest)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ArtifactError(f"there is no file of weights at {path}")
    return path


def _in_package(name: str) -> Path:
    distribution, _, file = name.partition("/")
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(file)))
    except (metadata.PackageNotFoundError, ValueError):
        raise ArtifactError(
            f"package:{name}: the package {distribution!r} isn't installed: pip install --no-deps {distribution}"
        ) from None
    if not path.is_file():
        raise ArtifactError(f"package:{name}: the installed package {distribution} has no file {file!r}")
    return path


def _from_hub(name: str) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise ArtifactError(f"can't read hf:{name}: write hf:ORG/REPO/FILE, e.g. hf:timm/resnet18.a1_in1k/model.safetensors")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # no library, no connection, no such repository, no right to read it
        raise not_fetched(f"hf:{name}", error) from error


def not_fetched(what: str, error: Exception, address: str = "") -> ArtifactError:
    """What to tell a user whose download failed."""
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ArtifactError(
        f"{what} can't be downloaded ({reason}). On a machine that is online, fetch the file{f' {address}' if address else ''}, "
        f"bring it here and name it: model.weights = 'PATH' in a recipe, --weights PATH on the command line"
    )


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            return read_tensors(path)[0]
        except (OSError, DamagedFile) as error:
            raise ArtifactError(f"{path} is not a whole safetensors file ({error}): fetch or write it again") from error
    if suffix not in _TORCH_SUFFIXES:
        advice = "; a .prunus file goes through prunus.load" if suffix == ".prunus" else ""
        raise ArtifactError(f"can't read weights from {path}: it must be .safetensors or {', '.join(_TORCH_SUFFIXES)}{advice}")
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} holds more than tensors, or is no PyTorch file: it was not opened, since its pickle could run any code. "
            f"If you trust it, save only its weights, torch.save(model.state_dict(), ...), or as .safetensors, and name that file"
        ) from error
    except Exception as error:  # PyTorch's reader fails in many ways on damaged files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ArtifactError(f"{path} is damaged or no PyTorch file ({reason}): fetch or write it again") from error


def _check_archive(path: Path) -> None:
    """`torch.save` stores tensors as they are: an archive that holds more than its own size was made to fill the memory."""
    if not path.is_file():
        raise DamagedFile("it is no regular file")
    if not zipfile.is_zipfile(path):
        return  # of the oldest format, which is no archive
    with zipfile.ZipFile(path) as archive:
        held = sum(member.file_size for member in archive.infolist())
    if held > path.stat().st_size:
        raise DamagedFile(f"its {path.stat().st_size} bytes unfold to {held}")


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(cast("Mapping[str, Any]", content).get(nest), Mapping):
            content = cast("Mapping[str, Any]", content)[nest]
            break
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{path} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()")
    entries = cast("Mapping[Any, Any]", content)
    foreign = [f"{name!r} is a {type(value).__name__}" for name, value in entries.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ArtifactError(f"{path} is not a dict of weights: {_some(foreign)}. Save model.state_dict()")
    return {str(name): value for name, value in entries.items()}


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _check_keys(path: str, network: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    misshapen = [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(tensor.shape)} in the network"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} of the {total} keys of {where} {what}: {_some(names)}"
        for names, total, where, what in (
            (missing, len(own), "the network", "are missing from the file"),
            (unexpected, len(weights), "the file", "are unknown to the network"),
            (misshapen, len(own), "the network", "have another shape"),
        )
        if names
    ]
    if problems:
        raise ArtifactError(
            f"{path} doesn't fit the network ({network}), nothing was loaded: {'; '.join(problems)}. Check the network's "
            f"name and its number of classes; to start from the weights of another task, give the recipe a section "
            f"[transfer], which replaces the head, or replace it in a function of your own (path/to/file.py:function)"
        )


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
