"""Criteria against the oracle on real networks: ResNet-20 / CIFAR-10 (JPEG) or MobileNetV2 / cats and dogs.

    python benchmarks/criteria_networks.py resnet20 --data PATH_OF/cifar10_jpeg.zip --weights PATH_OF/resnet20_cifar10.safetensors
    python benchmarks/criteria_networks.py mobilenet_v2 --data PATH_OF/cats_dogs.zip

The oracle is evaluated on 512 channels, drawn from every layer, and 128 training images (--channels, --images); other
criteria score every channel, which takes hours by second derivatives in the larger network: --criteria all,-obd leaves one out.
The network is that of the recipe of the same table (cifar_resnet20, cats_dogs) before pruning: adapted to the JPEGs, or with its
new head, trained once and kept in the folder. Accuracies on CIFAR-10 stored as JPEGs are never comparable with published ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _criteria import HEAD, about, cells, markdown, run
from torch import nn

from prunus.config import Recipe, load_recipe
from prunus.laboratory import Recovery, Settings, Subject
from prunus.pipeline.images import load_images
from prunus.pipeline.networks import Networks
from prunus.pipeline.trainer import Compute, Trainer
from prunus.pipeline.transfer import train_head
from prunus.report.laboratory_plots import ranked
from prunus.sources import DataBundle
from prunus.surgery import SurgeryRecord, load, save

RECIPES = Path(__file__).parents[1] / "src" / "prunus" / "recipes"
KINDS = {"resnet20": ("cifar_resnet20", "cifar10"), "mobilenet_v2": ("cats_dogs", "folder")}
CRITERIA = "all,taylor(per_example=true),taylor(on=weights)"
SUBSET = 10_000
"""CIFAR-10: training images that the network is adapted with, the same as in the other tables."""


def recipe_of(args: argparse.Namespace) -> Recipe:
    name, source = KINDS[args.network]
    overrides = [f"data.source={source}:{args.data}", f"compute.threads={args.threads}"]
    overrides += [f"model.weights={args.weights}"] if args.weights else []
    overrides += [f"data.train_limit={SUBSET}"] if args.network == "resnet20" else []
    overrides += ["train.epochs=0"] if args.untuned else []
    return load_recipe(RECIPES / f"{name}.toml", overrides)


def trained(recipe: Recipe, data: DataBundle, file: Path) -> nn.Module:
    """The recipe's network before pruning: from ``file``, or trained (training that was killed goes on) and kept there."""
    examples = torch.stack([data.test[i][0] for i in range(2)])
    networks = Networks(recipe, data, examples)
    if file.exists():
        return load(file, networks.build(weights=False)).eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, data, file.parent, resume=True)
    trainer.use(Compute(torch.get_num_threads(), bool(recipe.compute.channels_last)))
    model = networks.build()
    if recipe.transfer is not None:
        assert networks.head is not None
        train_head(model, networks.head, recipe.transfer, trainer)
    trainer.fit(model, recipe.train, "train")
    save(model, SurgeryRecord.nothing_removed(model), file)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=KINDS)
    parser.add_argument("--data", required=True, help="the images: a folder or a .zip of class folders")
    parser.add_argument("--weights", help="resnet20: the trained weights as safetensors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--criteria", default=CRITERIA, help="-NAME leaves one out of all")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[], help="also accuracies after removing these shares, e.g. 0.3 0.5"
    )
    parser.add_argument("--steps", type=int, default=50, help="batches of fine-tuning after a removal")
    parser.add_argument(
        "--untuned", action="store_true", help="a quick look: a network that is only given its head; nothing is stored"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where parts and the network are kept")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = f"criteria_{args.network}"
    folder = args.folder / (name + "-untuned" * args.untuned)
    recipe = recipe_of(args)
    data = load_images(recipe, at_least=2)
    model = trained(recipe, data, folder / "network" / "base.prunus")
    settings = Settings(
        images=args.images,
        batch_size=args.batch_size,
        channels=args.channels,
        test_images=args.test_images,
        shares=tuple(args.shares),
        recovery=Recovery(args.steps),
    )
    words = {"resnet20": "CIFAR-10 (JPEG)", "mobilenet_v2": "cats and dogs"}
    subject = Subject(lambda _: model, data, {"model": recipe.model.source, "data": words[args.network], "untuned": args.untuned})
    command = f"python benchmarks/criteria_networks.py {args.network} --channels {args.channels} --images {args.images}"
    command += f" --seeds {args.seeds} --batch-size {args.batch_size} --criteria {args.criteria}"
    result = run("" if args.untuned else name, subject, args.criteria, args.seeds, folder, settings, {"command": command})
    print("\n".join([about(result | {"command": command}), "", *markdown(HEAD, [cells(row) for row in ranked(result)])]))


if __name__ == "__main__":
    main()
