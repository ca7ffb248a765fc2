"""Is every exported file the network it was made from? Four kinds of networks, pruned, along every route and as INT8.

ResNet-20 (trained on CIFAR-10; 30 % of its multiply-adds removed by L1 norms, their means folded in and batch norms
recalibrated on 512 training images, no training),
MobileNetV2 that a finished run of the recipe ``cats_dogs`` left, a U-Net of random weights (half of its multiply-adds), and
SSDlite with MobileNetV3 of random weights (half): as torchvision has it, and its backbone and heads alone, without the boxes'
post-processing. Each file is compared with PyTorch on 400 test images (the U-Net and the detection network on 40 of the
photos): largest difference of an output as a share of its largest value (1e-4 is allowed), and share of images with the same
class; bytes and latency beside the unpruned network's file, one image, one thread. What is refused is listed with its reason.

    python benchmarks/exports.py --weights resnet20_cifar10.safetensors --cifar folder:cifar10_jpeg.zip \\
        --run runs/cats_dogs --photos folder:cats_dogs.zip

About 12 minutes on a quiet core; finished networks are kept, ``--again NAME`` repeats one. Latency is that of the machine as it
is: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Subset

import prunus
from prunus.export import ROUTES
from prunus.files import write_atomically
from prunus.pipeline.export import Request, export_networks, pruned_network, pruned_run
from prunus.pipeline.exports import Exported, Timed, export_rows
from prunus.pipeline.machine import environment
from prunus.sources import load_data, load_model, make_loader, own_normalisation
from prunus.surgery import save

RESULT = Path(__file__).parent / "results" / "exports.json"
IMAGES, FEW = 400, 40
TIMED = Timed(runs=30, threads=1)
UNSTEADY = 1.5
"""Nine in ten passes take at most so many times as long as the fastest tenth."""


class UNet(nn.Module):
    """Three levels down and up, with concatenated skips: 3 classes for every pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(self._block(i, o) for i, o in zip([3, *sizes], sizes, strict=False))
        self.bottom = self._block(sizes[-1], 8 * width)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, stride=2) for size in reversed(sizes))
        self.up = nn.ModuleList(self._block(2 * size, size) for size in reversed(sizes))
        self.head = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _block(reads: int, writes: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in (reads, writes):
            layers += [nn.Conv2d(width, writes, 3, padding=1, bias=False), nn.BatchNorm2d(writes), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            skips.append(block(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up, block, skip in zip(self.ups, self.up, reversed(skips), strict=True):
            x = block(torch.cat([up(x), skip], 1))
        return self.head(x)


class Heads(nn.Module):
    """A detection network without its post-processing: classes and boxes of every anchor, for a batch of images."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


def random_statistics(network: nn.Module) -> nn.Module:
    """Batch norms away from the identity that they start as: a check of one that does nothing would show nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def request(int8: bool) -> Request:
    return Request(tuple(ROUTES), int8=int8, images=IMAGES, timed=TIMED)


def resnet20(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Trained on CIFAR-10, pruned without training."""
    source = "cifar:resnet20"
    data = load_data(args.cifar, network_normalisation=own_normalisation(source), check_images=False, seed=0)
    full = load_model(source, weights=args.weights).eval()
    example = data.test[0][0][None]
    some = torch.randperm(len(data.calibration), generator=torch.Generator().manual_seed(0))[:512].tolist()  # type: ignore[arg-type]
    loader = make_loader(Subset(data.calibration, some), batch_size=64, shuffle=False)
    cut = prunus.prune(full, example, prunus.Budget(macs=0.7), "l1", loader, compensate="mean", recalibrate=True)
    save(cut.model, cut.record, out / "pruned.prunus")
    return export_networks(pruned_network(source, full, out / "pruned.prunus", example, data, {}), request(int8=True), out)


def mobilenet_v2(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What a run of the recipe cats_dogs left."""
    return export_networks(pruned_run(args.run, args.photos), request(int8=True), out)


def photos(args: argparse.Namespace, size: int, count: int) -> Tensor:
    """Test photos with values in 0..1."""
    data = load_data(args.photos, image_size=size, check_images=False, seed=0)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:count].tolist()  # type: ignore[arg-type]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return torch.stack([data.test[i][0] * std + mean for i in order])


def without_labels(name: str, small: nn.Module, full: nn.Module, example: Any, checks: list[Any], out: Path) -> dict[str, Any]:
    """Rows of a network that has no classes of whole images."""
    subject = Exported(small, full, example, [(check, torch.zeros(0)) for check in checks])
    return {"name": name, "images": FEW, "accuracy": None, "exports": export_rows(subject, list(ROUTES), out, TIMED)}


def unet(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Random weights, half of the multiply-adds."""
    torch.manual_seed(0)
    images = photos(args, 96, FEW)
    full = random_statistics(UNet())
    cut = prunus.prune(full, images[:1], prunus.Budget(macs=0.5), "l1")
    return without_labels("unet", cut.model, full, images[:1], list(images.split(8)), out)


def detector(args: argparse.Namespace) -> tuple[nn.Module, nn.Module, Tensor]:
    """SSDlite of random weights, pruned as a whole; its own transform normalises the photos."""
    torch.manual_seed(0)
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    full = random_statistics(build(weights=None, weights_backbone=None, num_classes=5))
    images = photos(args, 320, FEW)
    cut = prunus.prune(full, ([images[0]],), prunus.Budget(macs=0.5), "l1")
    return full, cut.model, images


def ssdlite(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The whole detection network, its boxes chosen by score and overlap."""
    full, small, images = detector(args)
    checks = [([image],) for image in images]
    return without_labels("ssdlite320", small, full, ([images[0]],), checks, out)


def ssdlite_heads(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Backbone and heads."""
    full, small, images = detector(args)
    normalised = images.sub(0.5).div(0.5)
    return without_labels("ssdlite320, heads", Heads(small), Heads(full), normalised[:1], list(normalised.split(8)), out)


CASES: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "resnet20": resnet20,
    "mobilenet_v2": mobilenet_v2,
    "unet": unet,
    "ssdlite": ssdlite,
    "ssdlite_heads": ssdlite_heads,
}


def table(cases: dict[str, Any]) -> str:
    """All rows as Markdown."""
    lines = [
        "| network | format | largest difference | same class | images | MB, full > small | ms, full > small | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, case in cases.items():
        for row in case["exports"]:
            if "refused" in row:
                lines.append(f"| {name} | {row['format']} | | | | | | refused: {row['refused']} |")
                continue
            difference = f"{row['max_error']:.1e}" if "max_error" in row else f"{row['error']:.1e} rms"
            same = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
            size = f"{row['file_bytes_before'] / 1e6:.2f} > {row['file_bytes'] / 1e6:.2f}"
            times = latencies(row["latency_before"], row["latency_after"])
            verdict = "agrees" if "max_error" in row else int8_verdict(row)
            lines.append(
                f"| {name} | {row['format']} | {difference} | {same} | {case['images']} | {size} | {times} | {verdict} |"
            )
    lines += ["", "INT8: bytes and latency are those of the small network's float ONNX file, and of its INT8 file."]
    return "\n".join(lines) + "\n"


def latencies(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Medians, where passes are alike: else the machine was busy with something else, and they say nothing."""
    if any(row["p90_ms"] > UNSTEADY * row["p10_ms"] for row in (before, after)):
        return "machine busy"
    return f"{before['median_ms']:.2f} > {after['median_ms']:.2f}"


def int8_verdict(row: dict[str, Any]) -> str:
    return f"accuracy {row['accuracy_float']:.2%} as float, {row['accuracy']:.2%} as INT8"


def main() -> None:
    """Do what isn't done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="of ResNet-20")
    parser.add_argument("--cifar", required=True, help="CIFAR-10, e.g. folder:cifar10_jpeg.zip")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of the recipe cats_dogs")
    parser.add_argument("--photos", required=True, help="cats and dogs, e.g. folder:cats_dogs.zip")
    parser.add_argument("--again", action="append", default=[], choices=list(CASES))
    args = parser.parse_args()
    done = json.loads(RESULT.read_text())["cases"] if RESULT.exists() else {}
    for name, work in CASES.items():
        if name in done and name not in args.again:
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            case = work(args, Path(folder))
        done[name] = {key: case[key] for key in ("images", "accuracy", "exports")}
        ordered = {key: done[key] for key in CASES if key in done}
        result = {"environment": {**environment(), "threads": TIMED.threads}, "cases": ordered}
        write_atomically(RESULT, json.dumps(result, indent=1).encode())
        RESULT.with_suffix(".md").write_text(table(ordered), encoding="utf-8")
    RESULT.with_suffix(".md").write_text(table(done), encoding="utf-8")
    print(table(done))


if __name__ == "__main__":
    main()
