"""Each layer of ResNet-20 pruned alone: what selection and least squares do to the accuracy, over the compression of the layer.

    python benchmarks/reconstruction_layers.py --data PATH/cifar10_jpeg.zip --weights resnet20_cifar10.safetensors

The figure of He et al. (ICCV 2017, single layers) on CIFAR-10 (JPEG): the widths inside the nine blocks, one at a time, at
several compressions; channels chosen as the first k, by max response and by Lasso, the layer that reads them left as it is or
refitted on 512 training images, 20 points of each. Figure: rise of the error on 1,000 test images, in points. One network, one
seed. The network is the one that the other tables prune, trained once and kept in the folder; a stopped run goes on layer by
layer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _criteria import RESULTS, markdown
from criteria_networks import recipe_of, trained
from torch import Tensor, nn

import prunus
from prunus.files import write_atomically
from prunus.laboratory.images import scoring_batches, test_loader
from prunus.pipeline.images import load_images
from prunus.pipeline.result import environment
from prunus.reconstruction import prune_channels
from prunus.types import PruningPlan

SELECTIONS = ("first_k", "max_response", "lasso")
COMPRESSIONS = (4 / 3, 2.0, 4.0, 8.0)
"""Channels of the layer divided by those that stay."""
COLOURS = {"first_k": "#b3261e", "max_response": "#1f5fa8", "lasso": "#2e7d32"}
_WIDTH, _HEIGHT, _MARGIN = 250, 170, 42


@torch.no_grad()
def error(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Share of images that are classified wrongly, in percent."""
    model.eval()
    wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in batches)
    return 100 * wrong / sum(len(y) for _, y in batches)


def one_layer(model: nn.Module, graph: prunus.ChannelGraph, group: str, samples: list[Any], test: list[Any]) -> dict[str, Any]:
    """Errors of one layer: selection and way -> the error at each compression."""
    reader = group.replace("conv1", "conv2") + ".weight"
    weights = [name for name, tensor in model.named_parameters() if tensor.ndim > 1]
    channels = graph[group].num_channels
    found: dict[str, list[float]] = {}
    for selection in SELECTIONS:
        for refit in (False, True):
            for compression in COMPRESSIONS:
                count = max(1, round(channels / compression))
                plan = PruningPlan({group: torch.arange(channels) < count}, graph.cost())
                skip = [name for name in weights if name != reader]
                small = prune_channels(model, graph, plan, samples, selection, refit=refit, skip=skip, points=20).model
                found.setdefault(f"{selection}{', refitted' if refit else ''}", []).append(error(small, test))
    return found


def drawing(parts: dict[str, dict[str, list[float]]], base: float) -> str:
    """Small multiples as SVG: a panel for each layer."""
    top = max(value - base for part in parts.values() for values in part.values() for value in values)
    columns = 3
    rows = -(-len(parts) // columns)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * _WIDTH}" height="{rows * _HEIGHT + 50}" '
        'font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, name in enumerate(("lasso", "max_response", "first_k")):
        x = 20 + 240 * number
        body += [
            f'<line x1="{x}" y1="14" x2="{x + 26}" y2="14" stroke="{COLOURS[name]}" stroke-width="2"/>',
            f'<line x1="{x}" y1="26" x2="{x + 26}" y2="26" stroke="{COLOURS[name]}" stroke-width="2" stroke-dasharray="4 3"/>',
            f'<text x="{x + 32}" y="18">{name}, refitted</text><text x="{x + 32}" y="30">{name}, left as it is</text>',
        ]
    for index, (group, part) in enumerate(parts.items()):
        body.append(_panel(group, part, base, top, index % columns * _WIDTH, index // columns * _HEIGHT + 40))
    return "\n".join([*body, "</svg>"]) + "\n"


def _panel(group: str, part: dict[str, list[float]], base: float, top: float, left: float, above: float) -> str:
    x0, x1, y0, y1 = left + _MARGIN, left + _WIDTH - 12, above + _HEIGHT - 34, above + 18
    xs = [x0 + (x1 - x0) * i / (len(COMPRESSIONS) - 1) for i in range(len(COMPRESSIONS))]
    lines = [f'<text x="{x0}" y="{above + 12}" font-weight="bold">{group}</text>']
    for tick in range(5):
        y = y0 + (y1 - y0) * tick / 4
        lines += [
            f'<line x1="{x0}" x2="{x1}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>',
            f'<text x="{x0 - 4}" y="{y + 3:.1f}" text-anchor="end">{top * tick / 4:.0f}</text>',
        ]
    lines += [
        f'<text x="{x:.1f}" y="{y0 + 13}" text-anchor="middle">{compression:.3g}x</text>'
        for x, compression in zip(xs, COMPRESSIONS, strict=True)
    ]
    for name, values in part.items():
        selection, _, refitted = name.partition(", ")
        points = " ".join(f"{x:.1f},{y0 + (y1 - y0) * max(v - base, 0) / top:.1f}" for x, v in zip(xs, values, strict=True))
        dashes = "" if refitted else ' stroke-dasharray="4 3"'
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[selection]}" stroke-width="2"{dashes}/>')
    return "\n".join(lines)


def store(parts: dict[str, dict[str, list[float]]], base: float, command: str, images: int) -> None:
    names = list(next(iter(parts.values())))
    means: dict[str, list[float]] = {}
    for name in names:
        at = zip(*(part[name] for part in parts.values()), strict=True)
        means[name] = [sum(errors) / len(errors) - base for errors in at]
    tree = {"command": command, "environment": environment(), "test images": images, "error before, %": base}
    tree |= {"compressions": COMPRESSIONS, "error, %": parts, "mean rise, points": means}
    write_atomically(RESULTS / "reconstruction_layers.json", (json.dumps(tree, indent=1) + "\n").encode())
    write_atomically(RESULTS / "reconstruction_layers.svg", drawing(parts, base).encode())
    about = (
        f"Made by `{command}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}. ResNet-20 on CIFAR-10 "
        f"(JPEG), error {base:.1f} % on {images:,} test images; rise of the error in points, mean over {len(parts)} layers, "
        "each pruned alone."
    )
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in means.items()]
    lines = [
        about,
        "",
        *markdown(("selection", *(f"{c:.3g}x" for c in COMPRESSIONS)), rows),
        "",
        "![](reconstruction_layers.svg)",
    ]
    write_atomically(RESULTS / "reconstruction_layers.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the images: a folder or a .zip of class folders")
    parser.add_argument("--weights", required=True, help="the trained weights as safetensors")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/criteria_resnet20"), help="where the network and parts are kept"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.network, args.untuned = "resnet20", False
    torch.set_num_threads(args.threads)
    recipe = recipe_of(args)
    data = load_images(recipe, at_least=2)
    model = trained(recipe, data, args.folder / "network" / "base.prunus")
    samples = scoring_batches(data, args.images, 64, 0)
    test = list(test_loader(data, args.test_images, 250))
    graph = prunus.trace(model, test[0][0][:1])
    base = error(model, test)
    parts: dict[str, dict[str, list[float]]] = {}
    for group in [group.name for group in graph.prunable]:
        file = args.folder / f"layers-{args.images}-{args.test_images}-{group}.json"
        if not file.exists():
            write_atomically(file, json.dumps(one_layer(model, graph, group, samples, test)).encode())
        parts[group] = json.loads(file.read_text())
        print(group, parts[group], flush=True)
    command = f"python benchmarks/reconstruction_layers.py --images {args.images} --test-images {args.test_images}"
    store(parts, base, command, args.test_images)


if __name__ == "__main__":
    main()
