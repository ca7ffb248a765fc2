"""A network cut to a quarter without a single label: criteria that need none, reconstruction, the unpruned network's own answers.

    python benchmarks/without_labels.py --data cifar10=PATH --data resnet20_weights=PATH [--folder runs] [--seeds 0,1,2]

ResNet-20 on CIFAR-10 (JPEG), trained networks, images, their order and epochs as in head_to_head.py, whose folder this shares; a
quarter of the multiply-adds; the loss is the divergence from the unpruned network's softened answers and feature maps alone
(`recover.distill = 1.0`). Validation and test images keep their labels, to judge by. Finished parts are
kept; the table shows what there is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from _criteria import RESULTS, markdown
from _head_to_head import Part, Row, read_tables
from _head_to_head_page import percent, spread

from prunus.config import RecoverConfig
from prunus.files import write_atomically
from prunus.pipeline.result import environment

RATIO = 4
LADDER = ("reconstruct", "distill")
ROWS = (
    Row("l1", "prunus", "l1", "uniform", rungs=LADDER),
    Row("lasso", "prunus", "lasso", "auto", rungs=LADDER),
)


class Unlabelled(Part):
    """A part whose training sees no labels."""

    def _recovery(self, epochs: int) -> RecoverConfig:
        return RecoverConfig.model_validate({**super()._recovery(epochs).model_dump(), "distill": 1.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="cifar10 and resnet20_weights")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="the folder of head_to_head.py")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", help="make only these now, separated by commas; the table shows all there are")
    args = parser.parse_args()
    table = read_tables(Path(__file__).parent / "head_to_head.toml")[0]["resnet20"]
    places = dict(item.split("=", 1) for item in args.data)
    if absent := table.data.keys() - places.keys():
        raise SystemExit(f"this needs --data {'=PATH --data '.join(sorted(absent))}=PATH")
    folder = args.folder / "head_to_head_resnet20"
    folder.mkdir(parents=True, exist_ok=True)
    for row in [row for row in ROWS if not args.rows or row.name in args.rows.split(",")]:
        for seed in map(int, args.seeds.split(",")):
            file = folder / f"without-labels-{row.name}-{seed}.json"
            if not file.exists():
                own = replace(row, name=f"without-labels-{row.name}")
                part = Unlabelled(table, own, RATIO, table.recipe_of(seed, places), folder)
                write_atomically(file, json.dumps({"seed": seed, **part.made()}).encode())
            print(f"{row.name}, seed {seed}: {100 * json.loads(file.read_text())['after']:.2f} %", flush=True)
    found = [summary(row, folder) for row in ROWS if list(folder.glob(f"without-labels-{row.name}-*.json"))]
    store(found, table.epochs)


def summary(row: Row, folder: Path) -> dict[str, Any]:
    """A row over the seeds there are."""
    parts = [json.loads(file.read_text()) for file in sorted(folder.glob(f"without-labels-{row.name}-*.json"))]
    figures = {name: spread([part[name] for part in parts]) for name in ("before", "after", "macs", "parameters")}
    seconds = {name: spread([part["seconds"][name] for part in parts]) for name in ("pruning", "recovery")}
    about = {"row": row.name, "allocator": row.allocator, "ratio": RATIO, "seeds": [part["seed"] for part in parts]}
    return {**about, **figures, "seconds": seconds, "bases": [part["base"] for part in parts]}


def store(rows: list[dict[str, Any]], epochs: int) -> None:
    """The table as JSON and Markdown."""
    tree: dict[str, Any] = {
        "command": "python benchmarks/without_labels.py",
        "environment": environment(),
        "epochs": epochs,
        "rows": rows,
    }
    write_atomically(RESULTS / "without_labels.json", (json.dumps(tree, indent=1) + "\n").encode())

    cells = [
        [
            *(row["row"], row["allocator"], str(len(row["seeds"])), percent(row["before"]), percent(row["after"])),
            *(
                f"{row['macs']['mean'] / 1e6:.2f}",
                f"{row['seconds']['pruning']['mean'] + row['seconds']['recovery']['mean']:.0f}",
            ),
        ]
        for row in rows
    ]
    head = ("criterion", "allocator", "seeds", "before recovery, %", "after, %", "M MACs", "s")
    about = (
        f"Made by `{tree['command']}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}. ResNet-20 at a "
        f"quarter of its multiply-adds, reconstructed, {epochs} epochs of distillation, no labels; last epoch, all test images."
    )
    write_atomically(RESULTS / "without_labels.md", ("\n".join([about, "", *markdown(head, cells)]) + "\n").encode())


if __name__ == "__main__":
    main()
