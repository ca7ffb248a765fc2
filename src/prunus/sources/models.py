"""Networks named by a string: ``torchvision:NAME``, ``timm:NAME``, ``cifar:NAME`` or ``path/to/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import PrunusError, RecipeError, UnknownName
from prunus.sources.cifar import NAMES as CIFAR_NAMES
from prunus.sources.cifar import cifar_resnet
from prunus.sources.pretrained import fetch_pretrained
from prunus.sources.user_file import call_user_function, names_user_file
from prunus.sources.weights import fit_weights, load_weights

_PREFIXES = ("cifar", "torchvision", "timm")
_FORMS = "torchvision:NAME, timm:NAME, cifar:resnet20 (or another depth), or path/to/file.py:function"
_DOWNLOADING = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def load_model(
    source: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build the network that ``source`` names, its random weights drawn from ``seed``; downloads only where ``weights`` says so.

    Args:
        source: ``torchvision:NAME``, ``timm:NAME``, ``cifar:resnet8|14|20|32|44|56|110`` (``-projection`` behind it for 1x1
            convolutions in the shortcuts) or ``path/to/file.py:function``.
        weights: None leaves the random weights. A file for `load_weights`; ``package:DISTRIBUTION/PATH``, a file of an installed
            package; ``pretrained`` or ``pretrained:TAG``, torchvision's or timm's own; ``hf:ORG/REPO/FILE``. The last two are
            downloaded, or found where their libraries keep downloads.
        num_classes: outputs of the classifier; None is the network's own number. A user's function gets it if it has a parameter
            of that name, and likewise ``in_channels``.
        in_channels: channels of the input; None is the network's own number.
        arguments: keyword arguments of the constructor or function; they win over the two above.
        seed: of torch's random numbers while the network is built; the global state stays as it was.

    Raises:
        UnknownName: no such network, file or function.
        RecipeError: the arguments don't fit, the function raised or returned no `nn.Module`.
        ArtifactError: the weights can't be read, fetched or don't fit.
        PrunusError: the library that has the network isn't installed.
    """
    chosen = dict(arguments or {})
    with _seeded(seed):
        model = _build(source, num_classes, in_channels, chosen)
    if isinstance(weights, str) and (weights == "pretrained" or weights.startswith("pretrained:")):
        fit_weights(model, fetch_pretrained(source, weights.partition(":")[2]), f"{weights} of {source}")
    elif weights is not None:
        load_weights(model, weights)
    return model


def model_names(prefix: str | None = None) -> tuple[str, ...]:
    """All names with that prefix (``cifar``, ``torchvision``, ``timm``), or those of every library that is installed."""
    if prefix is None:
        installed = [p for p in _PREFIXES if p == "cifar" or importlib.util.find_spec(p) is not None]
        return tuple(name for p in installed for name in model_names(p))
    if prefix == "torchvision":
        names = _library("torchvision.models").list_models()
    elif prefix == "timm":
        names = _library("timm").list_models()
    elif prefix == "cifar":
        names = CIFAR_NAMES
    else:
        raise UnknownName.among("model source", prefix, _PREFIXES)
    return tuple(f"{prefix}:{name}" for name in names)


def _build(source: str, num_classes: int | None, in_channels: int | None, arguments: dict[str, Any]) -> nn.Module:
    given = {"num_classes": num_classes, "in_channels": in_channels}
    offers = {name: value for name, value in given.items() if value is not None}
    prefix, _, name = source.partition(":")
    if prefix not in _PREFIXES and names_user_file(source):
        return _user_model(source, offers, arguments)
    if prefix not in _PREFIXES:
        raise _unknown(source, model_names())
    refused = [key for key in arguments if key in _DOWNLOADING]
    if refused:
        raise RecipeError(
            f"{source}: the argument {refused[0]!r} is set by Prunus: name the weights as model.weights in a recipe, or "
            f"--weights on the command line (a file, or pretrained to download the library's own)"
        )
    try:
        if prefix == "torchvision":
            return _torchvision_model(name, offers, arguments)
        if prefix == "timm":
            return _timm_model(name, offers, arguments)
        if source not in model_names("cifar"):
            raise _unknown(source, model_names("cifar"))
        return cifar_resnet(name, **{**offers, **arguments})
    except PrunusError:
        raise
    except Exception as error:  # a constructor may refuse its arguments in any way
        settings = ", ".join(f"{key}={value!r}" for key, value in {**offers, **arguments}.items()) or "no arguments"
        raise RecipeError(f"{source} can't be built with {settings}: {type(error).__name__}: {error}") from error


def _torchvision_model(name: str, offers: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise _unknown(f"torchvision:{name}", model_names("torchvision"))
    in_channels = offers.pop("in_channels", 3)
    if in_channels != 3:
        raise RecipeError(
            f"torchvision:{name} reads images of 3 channels and the data have {in_channels}: take a timm: or cifar: network, "
            f"or write a function of your own (path/to/file.py:function)"
        )
    builder = models.get_model_builder(name)
    quiet: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        quiet["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        quiet["init_weights"] = True  # their default, which warns unless it is said
    return builder(**{**quiet, **offers, **arguments})


def _timm_model(name: str, offers: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", model_names("timm"))
    if "in_channels" in offers:
        offers["in_chans"] = offers.pop("in_channels")
    return timm.create_model(name, pretrained=False, **{**offers, **arguments})


def _user_model(source: str, offers: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    model = call_user_function(source, arguments, offers)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{source!r} returned a {type(model).__name__}: a model function returns a torch.nn.Module")
    return model


def _unknown(source: str, known: tuple[str, ...]) -> UnknownName:
    """Near names, or the forms: fifteen hundred names would help nobody."""
    near = get_close_matches(source, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"write {_FORMS}"
    return UnknownName(f"unknown model {source!r}: {hint}")


def _library(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = {"torchvision": "data"}.get(package, package)
        raise PrunusError(f"{package}: networks need the package {package}: pip install 'prunus[{extra}]'") from error


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
