"""The networks of the coverage matrix and how each is built: random weights, batch 1, the smallest usual input that it takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.trace import cloned, tensors_in, twice

TIMM_LIST = Path(__file__).parent / "coverage_timm.json"
SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)


@dataclass(frozen=True)
class Case:
    """A network that is ready to be pruned; ``shown`` names the shape of its input."""

    model: nn.Module
    inputs: Any
    shown: str
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    train_inputs: Any = None


@dataclass(frozen=True)
class Network:
    """``name`` in ``source``'s own spelling; ``family`` is the module that defines it, ``kind`` what it is."""

    name: str
    source: str
    family: str
    kind: str
    parameters: int

    @property
    def key(self) -> str:
        return f"{self.source}:{self.name}"

    def build(self) -> Case:
        """Random weights and the smallest usual input on which evaluation and, if it can, training run."""
        make = {"detection": _detection, "optical flow": _flow, "video": _video, "segmentation": _segmentation}
        if self.source == "timm":
            return _smallest(self, _timm)
        return make[self.kind](self) if self.kind in make else _smallest(self, _classifier)


def networks() -> list[Network]:
    """Everything: the smallest of each family by size, then the second of each, and so on."""
    ranked: list[tuple[int, int, Network]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for network in sorted([*_torchvision(), *_timm_selection()], key=lambda n: (n.parameters, n.key)):
        ranked.append((seen[network.source, network.family], network.parameters, network))
        seen[network.source, network.family] += 1
    return [network for _, _, network in sorted(ranked, key=lambda entry: entry[:2])]


def _torchvision() -> list[Network]:
    from torchvision.models import get_model_builder, get_model_weights, list_models

    found: list[Network] = []
    for name in list_models():
        parts = get_model_builder(name).__module__.split(".")[2:]
        package = {"optical_flow": "optical flow", "quantization": "quantized"}.get(parts[0], parts[0])
        family = parts[-1]
        if len(parts) == 1:
            package = (
                "transformer"
                if family in ("vision_transformer", "swin_transformer")
                else "hybrid"
                if family == "maxvit"
                else "cnn"
            )
        parameters = next(iter(get_model_weights(name))).meta["num_params"]
        found.append(Network(name, "torchvision", family, package, parameters))
    return found


def _timm_selection() -> list[Network]:
    rows = json.loads(TIMM_LIST.read_text())["networks"]
    return [Network(row["name"], "timm", row["family"], row["kind"], row["parameters"]) for row in rows]


def _smallest(network: Network, make: Callable[[Network, int | None], nn.Module]) -> Case:
    """Try sizes, and at last the network as its authors configured it, until evaluation runs; then a few more for training."""
    only_evaluates: Case | None = None
    failure: Exception | None = None
    for size in (*SIZES, None):
        try:
            model = make(network, size)
            colours, height, width = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
            shape = (height, width) if size is None else (size, size)
            inputs = torch.randn(1, colours, *shape)
            _run(model.eval(), inputs)
        except Exception as error:
            failure = error
            continue
        case = Case(model, inputs, f"{shape[0]} x {shape[1]}")
        if _trains(model, inputs):
            return case
        only_evaluates = only_evaluates or case
    if only_evaluates is None:
        assert failure is not None
        raise failure
    return only_evaluates


def _run(model: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _trains(model: nn.Module, inputs: Tensor) -> bool:
    for candidate in (inputs, twice(inputs)):
        try:
            _run(model.train(), candidate)
            return True
        except Exception:
            continue
        finally:
            model.eval()
    return False


def _classifier(network: Network, size: int | None) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {"quantize": False} if network.kind == "quantized" else {}
    if network.family in ("googlenet", "inception"):
        options["init_weights"] = False
    if network.family == "vision_transformer" and size:
        options["image_size"] = size
    if network.family == "maxvit" and size:
        options["input_size"] = (size, size)
    return torchvision.models.get_model(network.name, weights=None, **options)


def _timm(network: Network, size: int | None) -> nn.Module:
    import timm

    if size is None:
        return timm.create_model(network.name)
    try:
        return timm.create_model(network.name, img_size=size)
    except (TypeError, AssertionError, ValueError, RuntimeError):
        return timm.create_model(network.name)


def _segmentation(network: Network) -> Case:
    import torchvision

    model = torchvision.models.get_model(network.name, weights=None, weights_backbone=None)
    return Case(model, torch.randn(1, 3, 64, 64), "64 x 64")


def _video(network: Network) -> Case:
    import torchvision

    model = torchvision.models.get_model(network.name, weights=None)
    size = 224 if network.family in ("mvit", "s3d") else 64
    frames = 16 if network.family in ("mvit", "s3d") else 4
    return Case(model, torch.randn(1, 3, frames, size, size), f"{frames} x {size} x {size}")


def _flow(network: Network) -> Case:
    import torchvision

    model = torchvision.models.get_model(network.name, weights=None)
    images = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    return Case(model, (images[0], images[1], 2), "2 x 128 x 128")


def _detection(network: Network) -> Case:
    """What the heads compute is compared, too: boxes above the threshold may be none."""
    import torchvision

    sizes = {} if network.family.startswith("ssd") else {"min_size": 128, "max_size": 128}
    model = torchvision.models.get_model(network.name, weights=None, weights_backbone=None, **sizes)
    size = {"ssd": 300, "ssdlite": 320}.get(network.family, 128)
    image = torch.rand(3, size, size)
    target = {"boxes": torch.tensor([[8.0, 8.0, 90.0, 80.0], [30.0, 40.0, 120.0, 125.0]]), "labels": torch.tensor([1, 1])}
    if network.family == "keypoint_rcnn":
        target["keypoints"] = torch.tensor([20.0, 30.0, 1.0]).expand(2, 17, 3).clone()
    if network.family == "mask_rcnn":
        target["masks"] = torch.ones(2, size, size, dtype=torch.uint8)
    return Case(model, ([image],), f"{size} x {size}", _with_heads, ([image], [target]))


def _with_heads(model: nn.Module, inputs: Any) -> Any:
    """The network's result and what its heads gave on the way."""
    seen: list[Any] = []
    names = (
        "head",
        "rpn.head",
        "roi_heads.box_predictor",
        "roi_heads.mask_predictor",
        "roi_heads.keypoint_predictor",
    )
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _, __, out: seen.extend(tensors_in(out))) for name in names if name in modules
    ]
    try:
        result = model(*cloned(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return [result, seen]


def matching(patterns: Iterable[str]) -> list[Network]:
    """Networks whose ``source:name`` or name fits one of the globs; all without a glob."""
    from fnmatch import fnmatchcase

    globs = list(patterns)
    return [n for n in networks() if not globs or any(fnmatchcase(n.key, g) or fnmatchcase(n.name, g) for g in globs)]
