"""What commands are given: the options that several of them share, and the network, data and inputs that these name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from prunus.errors import RecipeError
from prunus.sources import DataBundle, load_data, load_model, own_normalisation

ModelArgument = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, cifar:resnet20, or path/to/file.py:function")]
Weights = Annotated[
    str | None,
    typer.Option(help=".safetensors or .pt file, package:DISTRIBUTION/PATH, pretrained (downloaded), or hf:ORG/REPO/FILE"),
]
Input = Annotated[
    str | None, typer.Option("--input", help="shape of one input, e.g. 3x224x224 (default: the data's, else the usual one)")
]
Classes = Annotated[int | None, typer.Option(help="outputs of the classifier (default: the data's, else the network's own)")]
Arguments = Annotated[
    list[str] | None, typer.Option("--argument", help="NAME=VALUE for the network's constructor; may be repeated")
]
Keep = Annotated[list[str] | None, typer.Option(help="module or parameter name, or glob, that is never pruned; may be repeated")]
WholeGroups = Annotated[bool, typer.Option(help="grouped layers lose whole groups, not the same slots of every group")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, folder:PATH, wds:PATTERN, datasets:PATTERN, cifar10:PATH, fashion-mnist:PATH, elpv, or "
        "path/to/file.py:function"
    ),
]
ImageSize = Annotated[int | None, typer.Option(help="pixels; resizes and crops the data's images")]
Threads = Annotated[int, typer.Option(help="CPU threads that latency is measured with")]
TimingBatch = Annotated[int, typer.Option("--timing-batch", help="images per pass when latency is measured")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16, of eager and compile when latency is measured")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="memory format of eager and compile in that measurement")]
Cache = Annotated[
    Path | None, typer.Option(help="folder of measured layer times (default: $PRUNUS_CACHE, else the user's cache folder)")
]
Seed = Annotated[int, typer.Option(help="of everything random")]


def load_bundle(data: str | None, image_size: int | None, seed: int, model: str) -> DataBundle | None:
    """The data, normalised as the network is used to; None where none are given."""
    if data is None:
        return None
    return load_data(data, image_size=image_size, network_normalisation=own_normalisation(model), seed=seed)


def load_network(
    source: str,
    weights: str | None,
    num_classes: int | None,
    bundle: DataBundle | None,
    arguments: list[str] | None,
    seed: int = 0,
) -> nn.Module:
    """The network, with the data's classes and colours where nothing else is asked for."""
    settings = read_arguments(arguments)
    classes = num_classes if num_classes is not None or bundle is None else bundle.num_classes
    channels = bundle.input_shape[0] if bundle is not None else None
    return load_model(source, weights=weights, num_classes=classes, in_channels=channels, arguments=settings, seed=seed)


def read_arguments(arguments: list[str] | None) -> dict[str, Any]:
    """``width=8`` as a name and a JSON value, or text."""
    settings: dict[str, Any] = {}
    for item in arguments or []:
        name, sep, raw = item.partition("=")
        if not sep:
            raise RecipeError(f"can't read --argument {item!r}: write NAME=VALUE")
        try:
            settings[name] = json.loads(raw)
        except json.JSONDecodeError:
            settings[name] = raw
    return settings


def random_input(source: str, text: str | None) -> Tensor:
    """One seeded input of the shape that ``text`` tells, or of the usual one: (1, ...)."""
    text = text or ("3x32x32" if source.startswith("cifar:") else "3x224x224")
    try:
        shape = [int(part) for part in text.lower().split("x")]
        if not shape or min(shape) < 1:
            raise ValueError
    except ValueError:
        raise RecipeError(f"can't read --input {text!r}: write the shape of one input, e.g. 3x224x224") from None
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
