"""All sparsity methods beside random, L1 with fine-tuning, training from scratch and longer training, to half of the MACs.

    python benchmarks/sparsity_table.py digits
    python benchmarks/sparsity_table.py resnet20 --data PATH_OF/cifar10_jpeg.zip --weights PATH_OF/resnet20_cifar10.safetensors

From the repository's root. Every row starts from the same trained network of its seed and has the same number of epochs behind
it; methods run with their preset ``short``:

- digits: 8x8 digits, three convolutions, trained for 10 epochs, 3 seeds. Nine epochs more: 6 with the method and 3 of
  fine-tuning; 9 of fine-tuning for random and L1; 9 of plain training for *longer*.
- resnet20: ResNet-20 on 10,000 images of CIFAR-10 (JPEG), adapted for 3 epochs, 1 seed, five methods. Three epochs more: 2 with
  the method and 1 of fine-tuning, or 3. Accuracies are never comparable with published ones for CIFAR-10.

*scratch-b* is L1's small network from random weights for twice the epochs of everything before: at half of the MACs that is as
much computation as a row's whole training. Rows that are done are kept; a stopped table goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _rows import Row, Table, main

from prunus.sparsity import SPARSITY_METHODS

FIVE = ("slimming", "resrep", "taylor", "fpgm", "aofp")
COMMON = (
    "prune.budget={ macs = 0.5 }",
    "prune.multiple_of=1",
    "prune.tolerance=0.05",
    "export.onnx=false",
    "export.latency_runs=3",
)
DIGITS = (
    *("model.source=benchmarks/_digits_network.py:network", "data.image_size=8", "data.augment=none"),
    *("train.epochs=10", "train.lr=0.05", "recover.lr=0.02"),
)
RESNET = ("prune.allocator=global", "prune.batches=8", "recover.lr=0.01", "data.train_limit=10000")


def rows(methods: tuple[str, ...], seeds: tuple[int, ...], sparse: int, tuned: int, trained: int, rate: float) -> tuple[Row, ...]:
    """The rows, for so many epochs with the method, of fine-tuning behind it, and of training before."""
    alone, from_scratch = sparse + tuned, 2 * (trained + sparse + tuned) - trained  # the row itself adds those of training
    found = [
        Row("l1", ("prune.criterion=l1", f"recover.epochs={alone}"), seeds),
        Row("random", ("prune.criterion=random", f"recover.epochs={alone}"), seeds),
    ]
    for name in methods:
        settings = {"method": name, "preset": "short", "epochs": sparse, "lr": rate, "warmup_epochs": 0.2}
        overrides = tuple(f"sparsity.{key}={value}" for key, value in settings.items())
        found.append(Row(name, (*overrides, f"recover.epochs={tuned}"), seeds))
        if name == "sfp":  # as the paper does it
            options = "sparsity.options={ mask_gradients = false }"
            found.append(Row("sfp, gradients let through", (*overrides, options, f"recover.epochs={tuned}"), seeds))
    found.append(Row("longer", ("prune.criterion=l1", f"recover.epochs={alone}"), seeds, "longer"))
    scratch = ("prune.criterion=l1", f"recover.epochs={from_scratch}", "recover.lr=0.05")
    return (*found, Row("scratch-b", scratch, seeds, "scratch"))


def table(chosen: argparse.Namespace) -> Table:
    name = f"sparsity_{chosen.network}"
    extra = {"command": f"python benchmarks/sparsity_table.py {chosen.network}", "presets": "short"}
    threads = f"compute.threads={chosen.threads}"
    if chosen.network == "digits":
        made = rows(tuple(SPARSITY_METHODS), (0, 1, 2), sparse=6, tuned=3, trained=10, rate=0.05)
        return Table(name, "digits", made, chosen.folder, (*COMMON, *DIGITS, threads), {**extra, "epochs": "10, then 6 + 3 or 9"})
    if chosen.data is None or chosen.weights is None:
        raise SystemExit("resnet20 needs --data and --weights")
    files = (f"data.source=cifar10:{chosen.data}", f"model.weights={chosen.weights}")
    made = rows(FIVE, (0,), sparse=2, tuned=1, trained=3, rate=0.01)
    overrides = (*COMMON, *RESNET, *files, threads)
    return Table(name, "cifar_resnet20", made, chosen.folder, overrides, {**extra, "epochs": "3, then 2 + 1 or 3"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("digits", "resnet20"))
    parser.add_argument("--data", help="resnet20: the images, a folder or a .zip of class folders")
    parser.add_argument("--weights", help="resnet20: the trained weights as safetensors")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    main(table, parser)
