"""Command lines that ``--help`` shows below a command's options."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "inspect": ("prunus inspect torchvision:resnet18", "prunus inspect mine.py:network --input 3x64x64"),
    "prune": (
        "prunus prune torchvision:resnet18 --budget macs=0.5 --out resnet18.prunus --onnx resnet18.onnx",
        "prunus prune mine.py:network --input 3x64x64 --budget macs=0.5,parameters=0.4 --dry-run",
        "prunus prune timm:mobilenetv3_small_100 --budget latency=0.7@onnxruntime",
        "prunus prune torchvision:resnet18 --data folder:photos --weights mine.pt --criterion taylor --budget macs=0.5",
    ),
    "evaluate": ("prunus evaluate torchvision:resnet18 --data folder:photos --num-classes 2 --pruned small.prunus",),
    "methods": ("prunus methods",),
    "criteria": ("prunus criteria",),
    "demo": ("prunus demo --out runs/demo",),
    "run": (
        "prunus run digits --out runs/digits",
        "prunus run mine.toml --set prune.budget=macs=0.3 --out runs/mine",
        "prunus run mine.toml --out runs/mine --resume",
        "prunus run mine.toml --out runs/mine --controls",
    ),
    "recipes": ("prunus recipes", "prunus recipes cats_dogs > mine.toml"),
    "report": ("prunus report runs/*", "prunus report runs/mine runs/other --out comparison.html"),
    "export": (
        "prunus export runs/mine --format onnx --format pt2 --int8",
        "prunus export torchvision:resnet18 --pruned small.prunus --data folder:photos --num-classes 2 --out exported",
    ),
    "bench": (
        "prunus bench torchvision:resnet18 small=small.prunus --of torchvision:resnet18 --runtime eager,onnxruntime",
        "prunus bench runs/mine --runtime onnxruntime --threads 1,2 --batch 1,8",
        "prunus bench runs/mine --runtime onnxruntime --max-ms 5 --no-layers",
    ),
    "benchmark": (
        "prunus benchmark list",
        "prunus benchmark resrep_lossless --seeds 3",
        "prunus benchmark all --data cifar10=cifar10_jpeg.zip --data resnet20_weights=resnet20_cifar10.safetensors",
    ),
    "latency": ("prunus latency torchvision:mobilenet_v2 --runtime onnxruntime --out runs/latency",),
    "sensitivity": ("prunus sensitivity --model cifar:resnet20 --data digits --out runs/sensitivity",),
    "search": ("prunus search --model cifar:resnet20 --data digits --budget macs=0.5 --trials 60 --workers 2 --out runs/search",),
    "score": ("prunus score --model torchvision:resnet18 --criterion l1 --out scores.csv",),
    "compare": ("prunus compare --model cifar:resnet20 --data digits --criteria l1,taylor,oracle --out runs/compare",),
    "recover": (
        "prunus recover cifar:resnet20 runs/mine/small.prunus --full runs/mine/stages/base.prunus --data digits --preset quick",
    ),
    "lr-range": ("prunus lr-range cifar:resnet20 --data digits --steps 20",),
    "ticket": ("prunus ticket mine.toml --processes 2",),
}


def show_examples(app: typer.Typer) -> None:
    """Put the examples of every command behind its help."""
    for command in app.registered_commands:
        assert command.callback is not None
        lines = EXAMPLES[command.name or command.callback.__name__]
        command.epilog = "\n\n".join(("Examples:", *lines))
