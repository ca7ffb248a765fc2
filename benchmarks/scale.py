"""What a run on ImageNet and beyond takes, on one GPU to a thousand: measured here in one process, the rest assumed and said so.

    python benchmarks/scale.py --photos PATH_OF/photos.zip [--seconds 20]
    python benchmarks/scale.py --page-only                  # docs/scale.md again, from benchmarks/results/scale.json
    python benchmarks/scale.py --page-only --set gpu_images=1200 --set network=1.25e9     # other machines; prints, keeps nothing

Measured on one thread: ResNet-50's training step and forward pass at 224 px, decoding photos with the training's transforms,
an all-reduce of its gradients between two processes (gloo), writing a checkpoint. The simulation takes the decoding rate from
there and the GPUs' rates from the assumptions, which are options.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from _scale_model import Machines, assumptions, step
from PIL import Image
from torch.nn import functional as F

from prunus.files import write_atomically
from prunus.pipeline.result import environment
from prunus.sources.datasets import load_data

RESULT = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
MARKS = ("<!-- figures -->", "<!-- end of figures -->")
PARAMETERS = 25_557_032  # ResNet-50
GPUS = (1, 8, 64, 256, 1000)
IMAGES = 1_281_167  # ImageNet's training images
IMAGE_BYTES = 110_000
QUALITY = 99  # of enlarged photos: brings them to about as many bytes
EPOCHS = 25
LARGEST_BATCH = 8192
ORACLE_CHANNELS, ORACLE_IMAGES = 26_560, 1000


def per_second(work: Callable[[], int], seconds: float) -> float:
    """Units a second, the median of rounds of ``work``, which returns its units, after one to warm up."""
    work()
    rates, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        begin = time.perf_counter()
        units = work()
        rates.append(units / (time.perf_counter() - begin))
    return statistics.median(rates)


def measure(photos: str, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = torch.randn(4, 3, 224, 224), torch.randint(0, 1000, (4,))

    def train() -> int:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        return len(inputs)

    @torch.no_grad()
    def forward() -> int:
        model(inputs)
        return len(inputs)

    found: dict[str, Any] = {"training, images/s": per_second(train, seconds)}
    model.eval()
    found["forward, images/s"] = per_second(forward, seconds)
    with tempfile.TemporaryDirectory() as folder:
        found["bytes of a photo"] = enlarge(photos, Path(folder))
        data = load_data(f"folder:{folder}", image_size=224, augment="resized-crop-flip", check_images=False)

        def decode() -> int:
            for index in range(len(data.train)):
                data.train[index]
            return len(data.train)

        found["decoding, images/s of a core"] = per_second(decode, seconds)
    found["checkpoint, bytes/s"] = per_second(lambda: write_checkpoint(model), seconds)
    found["all-reduce, bytes/s"] = two_processes()
    return found


def enlarge(photos: str, folder: Path) -> float:
    """Put 80 of the photos into ``folder``, 500 pixels on the longer side as ImageNet's mostly are; returns their mean bytes."""
    sizes = list[int]()
    with zipfile.ZipFile(photos) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))
        for number, name in enumerate(names[:: len(names) // 80][:80]):
            with Image.open(archive.open(name)) as photo:
                scale = 500 / max(photo.size)
                large = photo.convert("RGB").resize(
                    (round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC
                )
            for split in ("train", "test"):
                path = folder / split / "ab"[number % 2] / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                large.save(path, quality=QUALITY)
            sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def write_checkpoint(model: torch.nn.Module) -> int:
    data = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(Path(folder) / "checkpoint", data)
    return len(data)


def two_processes() -> float:
    """Bytes of gradients a second that two processes of this machine exchange."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--exchange"],
            env={**os.environ, **shared, "RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [one.communicate()[0] for one in started]
    return float(outputs[0])


def exchange() -> None:
    dist.init_process_group("gloo")
    gradients = torch.ones(PARAMETERS)

    def reduce() -> int:
        dist.all_reduce(gradients)
        return gradients.numel() * 4

    rates = list[float]()
    for _ in range(8):  # as many in both processes
        begin = time.perf_counter()
        rates.append(reduce() / (time.perf_counter() - begin))
    dist.destroy_process_group()
    print(statistics.median(rates[1:]))


def simulate(measured: dict[str, Any], machines: Machines) -> list[dict[str, Any]]:
    """A row for every number of GPUs, with 256 images each and with a global batch that is known to train well."""
    decode_rate = measured["decoding, images/s of a core"]
    rows = list[dict[str, Any]]()
    for gpus in GPUS:
        for batch in dict.fromkeys((256 * gpus, min(256 * gpus, LARGEST_BATCH))):
            found = step(gpus, batch / gpus, PARAMETERS, IMAGE_BYTES, decode_rate, machines)
            rate = batch / found.seconds
            oracle = ORACLE_CHANNELS * ORACLE_IMAGES / (3 * machines.gpu_images * gpus) / 3600
            rows.append(
                {
                    "gpus": gpus,
                    "global batch": batch,
                    "images/s": rate,
                    "of as many single GPUs": rate / (gpus * machines.gpu_images),
                    "bound by": found.bound_by,
                    f"hours for {EPOCHS} epochs": EPOCHS * IMAGES / rate / 3600,
                    "GPU-hours": EPOCHS * IMAGES / rate / 3600 * gpus,
                    "oracle, hours": oracle,
                }
            )
    return rows


def page(tree: dict[str, Any]) -> str:
    """The figures of docs/scale.md, as Markdown."""
    measured = tree["measured"]
    lines = ["Measured in one process with one thread:", "", "| what | figure |", "|---|---:|"]
    lines += [f"| {name} | {_figure(value)} |" for name, value in measured.items()]
    lines += ["", "Assumed:", "", "| what | value |", "|---|---:|"]
    lines += [f"| {row['why']} (`{row['name']}`) | {row['value']:,g} |" for row in tree["assumed"]]
    lines += ["", f"Simulated: ResNet-50, {EPOCHS} epochs of fine-tuning on ImageNet's {IMAGES:,} training images", ""]
    lines += ["| GPUs | global batch | images/s | of as many single GPUs | bound by | hours | GPU-hours | oracle, hours |"]
    lines += ["|---:|---:|---:|---:|---|---:|---:|---:|"]
    lines += [
        f"| {row['gpus']:,} | {row['global batch']:,} | {row['images/s']:,.0f} | {row['of as many single GPUs']:.0%} "
        f"| {row['bound by']} | {row[f'hours for {EPOCHS} epochs']:.3g} | {row['GPU-hours']:.1f} | {row['oracle, hours']:.2g} |"
        for row in tree["simulated"]
    ]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def with_figures(text: str, tree: dict[str, Any]) -> str:
    """``docs/scale.md`` with the tables of ``tree`` between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{page(tree)}\n{MARKS[1]}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="a .zip of photos in class folders, decoded for the measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another assumption")
    parser.add_argument("--exchange", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.exchange:
        return exchange()
    changed = {name: type(getattr(Machines(), name))(float(value)) for name, _, value in (s.partition("=") for s in args.set)}
    machines = replace(Machines(), **changed)
    if args.page_only:
        tree = json.loads(RESULT.read_text())
    elif args.photos is None:
        parser.error("--photos names the photos to decode; or give --page-only")
    else:
        header = {"command": f"python benchmarks/scale.py --photos PHOTOS.zip --seconds {args.seconds:g}"}
        tree = {"header": {**header, "environment": environment()}, "measured": measure(args.photos, args.seconds)}
    tree |= {"assumed": assumptions(machines), "simulated": simulate(tree["measured"], machines)}
    print(page(tree))
    if not changed:
        write_atomically(RESULT, (json.dumps(tree, indent=2) + "\n").encode())
        write_atomically(PAGE, with_figures(PAGE.read_text(), tree).encode())


if __name__ == "__main__":
    main()
