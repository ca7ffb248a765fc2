"""ResNet-20 on CIFAR-10 (JPEG): the widths inside the blocks pruned to 60 % of the MACs, three epochs of fine-tuning.

    python benchmarks/cifar_resnet20.py --data PATH_OF/cifar10_jpeg.zip --weights PATH_OF/resnet20_cifar10.safetensors

A subset of the training images, the same for every row, and all 10,000 test images. Accuracies are never comparable with
published ones for CIFAR-10: these images are JPEGs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _rows import Row, Table, main

SUBSET = 10_000
ROWS = (
    Row("taylor"),
    Row("l1", ("prune.criterion=l1",)),
    Row("random", ("prune.criterion=random",)),
    Row("uniform-l1", ("prune.criterion=l1", "prune.allocator=uniform")),
    Row("longer", kind="longer"),
    Row("scratch", kind="scratch"),
)


def table(chosen: argparse.Namespace) -> Table:
    common = (
        f"data.source=cifar10:{chosen.data}",
        f"model.weights={chosen.weights}",
        f"data.train_limit={SUBSET}",
        f"compute.threads={chosen.threads}",
    )
    return Table("cifar_resnet20", "cifar_resnet20", ROWS, chosen.folder, common, {"training_images": SUBSET})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the images: a folder or a .zip of class folders")
    parser.add_argument("--weights", required=True, help="the trained weights as safetensors")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    main(table, parser)
