"""Defective solar cells (ELPV) on MobileNetV2 at 160 pixels: balanced accuracy before and after pruning to half the MACs.

python benchmarks/solar_cells.py [--folder runs]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _rows import Row, Table, main

ROWS = (
    Row("taylor"),
    Row("uniform-l1", ("prune.criterion=l1", "prune.allocator=uniform")),
    Row("random", ("prune.criterion=random",)),
)


def table(chosen: argparse.Namespace) -> Table:
    return Table("solar_cells", "solar_cells", ROWS, chosen.folder, (f"compute.threads={chosen.threads}",))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    main(table, parser)
