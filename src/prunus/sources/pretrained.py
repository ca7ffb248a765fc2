"""What the libraries of networks know about their trained networks: the weights, and how pixels were normalised."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from prunus.errors import ArtifactError, UnknownName
from prunus.sources.weights import not_fetched


def fetch_pretrained(source: str, tag: str = "") -> dict[str, Tensor]:
    """The library's own weights of ``torchvision:NAME`` or ``timm:NAME``, downloaded if they aren't in the library's cache.

    ``tag`` chooses among several: a member of torchvision's enumeration (``IMAGENET1K_V1``) or timm's tag (``a1_in1k``).

    Raises:
        ArtifactError: the source has no such weights, or they can't be downloaded.
        UnknownName: no such tag.
    """
    prefix, _, name = source.partition(":")
    if prefix == "torchvision":
        return _from_torchvision(name, tag)
    if prefix == "timm":
        return _from_timm(name, tag)
    raise ArtifactError(f"{source} has no pretrained weights of its own: name a file of weights instead")


def own_normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation per channel that the library prepares images with for this network; None if it doesn't say."""
    prefix, _, name = source.partition(":")
    try:
        found = {"torchvision": _torchvision_normalisation, "timm": _timm_normalisation}[prefix](name)
    except (KeyError, ModuleNotFoundError):
        return None
    mean, std = found
    return (tuple(mean), tuple(std)) if mean and std else None


def _from_torchvision(name: str, tag: str) -> dict[str, Tensor]:
    choices: Any = importlib.import_module("torchvision.models").get_model_weights(name)
    if not list(choices):
        raise ArtifactError(f"torchvision has no trained weights of {name}: name a file of weights instead")
    if tag and tag not in choices.__members__:
        raise UnknownName.among(f"weights of torchvision:{name}", tag, choices.__members__)
    chosen = choices[tag] if tag else choices.DEFAULT
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # no connection, a proxy's page, a full disk
        raise not_fetched(f"{chosen} of torchvision", error, chosen.url) from error


def _from_timm(name: str, tag: str) -> dict[str, Tensor]:
    timm: Any = importlib.import_module("timm")
    architecture = name.partition(".")[0]
    known = [model for model in timm.list_pretrained() if model.partition(".")[0] == architecture]
    wanted = f"{architecture}.{tag}" if tag else name
    if tag and known and wanted not in known:
        raise UnknownName.among(f"weights of timm:{name}", tag, [model.partition(".")[2] for model in known])
    if not known or not timm.is_model(name):
        raise ArtifactError(f"timm has no trained weights of {name}: name a file of weights instead")
    config = timm.get_pretrained_cfg(wanted)
    try:
        return dict(timm.create_model(wanted, pretrained=True).state_dict())
    except Exception as error:  # no connection, a proxy's page, a full disk
        raise not_fetched(f"timm's {wanted}", error, config.url or f"of {config.hf_hub_id}") from error


def _torchvision_normalisation(name: str) -> tuple[Any, Any]:
    models: Any = importlib.import_module("torchvision.models")
    try:
        prepare = models.get_model_weights(name).DEFAULT.transforms()
    except (ValueError, AttributeError):
        return None, None
    return getattr(prepare, "mean", None), getattr(prepare, "std", None)


def _timm_normalisation(name: str) -> tuple[Any, Any]:
    timm: Any = importlib.import_module("timm")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (None, None) if config is None else (config.mean, config.std)
