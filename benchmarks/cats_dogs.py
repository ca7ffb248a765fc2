"""Cats and dogs on MobileNetV2 at 160 pixels: half the MACs by Taylor, in one shot and in five rounds, beside the controls.

    python benchmarks/cats_dogs.py --data PATH_OF/cats_dogs.zip [--folder runs] [--jobs 2]
    python benchmarks/cats_dogs.py --data PATH_OF/cats_dogs.zip --measure     # latencies, afterwards, on a quiet machine

Every row: the ImageNet network with a new head, trained; pruned; fine-tuned for that many steps. Test accuracy is that
of the last epoch, never of the best one. `uniform` cuts every layer by the same share, by L1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _rows import Row, Table, main

ROUNDS, EPOCHS, STEPS_PER_EPOCH = 5, 12, 63  # the recipe's epochs; five rounds share that many steps
ROWS = (
    Row("taylor"),
    Row("taylor-five-rounds", (f"prune.rounds={ROUNDS}", f"recover.steps={EPOCHS * STEPS_PER_EPOCH // ROUNDS}")),
    Row("l1", ("prune.criterion=l1",)),
    Row("random", ("prune.criterion=random",)),
    Row("uniform-l1", ("prune.criterion=l1", "prune.allocator=uniform")),
    Row("taylor-30", ("prune.budget=macs=0.3",), seeds=(0,)),
    Row("longer", kind="longer"),
    Row("scratch", kind="scratch"),
)


def table(chosen: argparse.Namespace) -> Table:
    common = (f"data.source=folder:{chosen.data}", f"compute.threads={chosen.threads}", "export.onnx=false")
    return Table("cats_dogs", "cats_dogs", ROWS, chosen.folder, common)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the photos: a folder or a .zip")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    main(table, parser)
