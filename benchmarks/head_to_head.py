"""Prunus and torch-pruning side by side, with controls, at equal multiply-adds behind an equal recovery.

    python benchmarks/head_to_head.py resnet20 --data cifar10=PATH --data resnet20_weights=PATH [--jobs 2] [--device cpu]
    python benchmarks/head_to_head.py resnet20 --data ... --measure      # latencies, afterwards, on a quiet machine
    python benchmarks/head_to_head.py resnet20 --data ... --pilot taylor,peer-taylor     # a quick look; nothing is stored

Tables and rows: benchmarks/head_to_head.toml. Every row of a seed starts from the same trained network and trains as many epochs
on the same images in the same order; what differs is how the network became small. torch-pruning's ratio is bisected until its
multiply-adds are nearest to the target; Prunus is given the target as a budget. Accuracies are those of the last epoch on all
test images. At every ratio the best row of each side, chosen by validation images, is compared seed by seed, with the 95 %
interval of the difference. A part is one row at one ratio with one seed; finished parts are kept, a stopped table goes on.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _criteria import RESULTS
from _curves import Curve, curves
from _head_to_head import Part, Row, read_tables, shaped
from _head_to_head_page import compare, machines, page, points, side, summary
from _rows import kept_latency

from prunus.export import measure_latency
from prunus.files import write_atomically
from prunus.pipeline.result import environment

HERE = Path(__file__).parent
SCRIPTS = ("_head_to_head.py", "_peer_pruning.py")


class HeadToHead:
    """One table in one folder."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        tables, rows = read_tables(HERE / "head_to_head.toml")
        self.table = tables[chosen.table]
        self.rows = {name: rows[name] for name in self.table.rows}
        self.places = dict(item.split("=", 1) for item in chosen.data)
        if absent := self.table.data.keys() - self.places.keys():
            raise SystemExit(f"{chosen.table} needs --data {'=PATH --data '.join(sorted(absent))}=PATH")
        self.pilot = chosen.pilot is not None
        self.more = ("data.train_limit=1000", "train.epochs=1") if self.pilot else ()
        self.table = replace(self.table, epochs=2) if self.pilot else self.table
        self.folder = chosen.folder / f"head_to_head_{self.table.name}{'-pilot' * self.pilot}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def parts(self) -> list[tuple[Row, int, int]]:
        """Rows, ratios and seeds, those first from which others start; what prunes nothing has one ratio."""
        found = [
            (row, ratio, seed)
            for ratio in self.table.ratios
            for seed in self.table.seeds
            for row in self.rows.values()
            if row.way != "longer" or ratio == self.table.ratios[0]
        ]
        return sorted(found, key=lambda part: (part[0].by == "control", part[0].name != self.table.scratch_of))

    def wanted(self, row: Row, ratio: int, seed: int) -> bool:
        """Whether this call should make the part; the table shows all that there are."""
        given = {"rows": row.name, "ratios": str(ratio), "seeds": str(seed)}
        return all(value in getattr(self.chosen, name).split(",") for name, value in given.items() if getattr(self.chosen, name))

    def file(self, row: Row, ratio: int, seed: int) -> Path:
        """Where the part is kept."""
        return self.folder / f"{row.name}-{ratio}x-{seed}.json"

    def fingerprint(self, row: Row, ratio: int, seed: int) -> str:
        """A hash of what decides about a part: recipe (wherever data lie), row, table, the code that makes it, and the peer."""
        recipe = self.table.recipe_of(seed, {name: name for name in self.table.data}, self.more).model_dump(
            mode="json", exclude_defaults=True
        )
        about = {
            **vars(self.table),
            "rows": None,
            "ratios": None,
            "seeds": None,
            "ratio": ratio,
            "peer": version("torch-pruning"),
        }
        told = json.dumps([recipe, vars(row), {k: str(v) for k, v in about.items()}], sort_keys=True, default=str)
        found = hashlib.sha256(told.encode())
        for name in SCRIPTS:
            found.update(ast.dump(ast.parse((HERE / name).read_text())).encode())  # a comment more voids no figures
        return found.hexdigest()[:16]

    def kept(self, row: Row, ratio: int, seed: int) -> dict[str, Any] | None:
        """The part's figures, if they are those that it would have today; a stored part isn't replaced by one made again."""
        file, stored = self.file(row, ratio, seed), RESULTS / f"head_to_head_{self.table.name}.json"
        places = [json.loads(stored.read_text())["parts"].get(file.stem, {})] if stored.exists() and not self.pilot else []
        places += [json.loads(file.read_text())] if file.exists() else []
        wanted = self.fingerprint(row, ratio, seed)
        return next((found for found in places if found.get("fingerprint") == wanted), None)

    def make_part(self, name: str, ratio: int, seed: int) -> dict[str, Any]:
        """Make one part and keep it."""
        row = self.rows[name]
        recipe = self.table.recipe_of(seed, self.places, self.more)
        part = Part(self.table, row, ratio, recipe, self.folder)
        about = {"fingerprint": self.fingerprint(row, ratio, seed), "row": name, "ratio": ratio, "seed": seed}
        found = {**about, "cpu": environment()["cpu"], **part.made()}
        write_atomically(self.file(row, ratio, seed), json.dumps(found).encode())
        return found

    def make(self, jobs: int) -> None:
        """Everything that isn't there yet, then the table."""
        waiting = [part for part in self.parts() if self.wanted(*part) and self.kept(*part) is None]
        for seed in sorted({seed for _, _, seed in waiting}):  # rows share these: they are made before any part
            recipe = self.table.recipe_of(seed, self.places, self.more)
            if not (self.folder / f"base-{seed}.prunus").exists():
                Part(self.table, next(iter(self.rows.values())), self.table.ratios[0], recipe, self.folder).base()
        copied = self.rows[self.table.scratch_of]  # its networks are what scratch controls train anew: figures alone don't do
        for _, ratio, seed in [part for part in waiting if part[0].way.startswith("scratch")]:
            if (copied, ratio, seed) not in waiting and not self.file(copied, ratio, seed).with_suffix(".safetensors").exists():
                waiting.insert(0, (copied, ratio, seed))
        for first in (True, False):  # controls train architectures that other rows leave
            self._parallel([part for part in waiting if (part[0].by != "control") == first], jobs)
        self.write()

    def _parallel(self, waiting: Sequence[tuple[Row, int, int]], jobs: int) -> None:
        left, running = list(waiting), list[subprocess.Popen[bytes]]()
        try:
            while left or running:
                while left and len(running) < jobs:
                    row, ratio, seed = left.pop(0)
                    print(f"{row.name} at {ratio}x, seed {seed}; {len(left)} behind it", flush=True)
                    running.append(subprocess.Popen([*sys.orig_argv, "--part", row.name, str(ratio), str(seed)]))
                running[0].wait()
                if any(process.poll() for process in running):
                    raise SystemExit("a part failed: its message is above; the same command goes on where this one stopped")
                running = [process for process in running if process.poll() is None]
                self.write()
        finally:  # stopped, or one failed: the others mustn't go on alone
            for process in running:
                process.terminate()

    def write(self) -> None:
        """The table so far, as JSON, as Markdown and as curves."""
        parts = {self.file(*part).stem: found for part in self.parts() if (found := self.kept(*part)) is not None}
        if not parts or self.pilot:
            return
        rows = [found for row in self.rows.values() for ratio in self.table.ratios if (found := summary(row, ratio, parts))]
        path = RESULTS / f"head_to_head_{self.table.name}.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        about = {
            "command": f"python benchmarks/head_to_head.py {self.table.name}",
            "environment": {**environment(), "cpu": " and ".join(machines(parts))},
        }
        compared = [found for ratio in self.table.ratios if (found := compare(rows, ratio))]
        tree = {
            **about,
            "peer": f"torch-pruning {version('torch-pruning')}",
            "epochs": self.table.epochs,
            "planned": len(self.parts()),
            "rows": rows,
            "compared": compared,
            "parts": parts,
            **kept_latency(old),
        }
        store(path, tree)
        drawn = [Curve(name, side(row), points(rows, name)) for name, row in self.rows.items() if len(points(rows, name)) > 1]
        if drawn:
            svg = curves(f"{self.table.name}: test accuracy behind equal recovery, %", "share of the multiply-adds, %", drawn)
            write_atomically(path.with_suffix(".svg"), svg.encode())

    def measure(self, runs: int) -> None:
        """Latency of every finished row's network of the first seed, of all ratios, alternating in one process."""
        seed = self.table.seeds[0]
        part = Part(
            self.table,
            next(iter(self.rows.values())),
            self.table.ratios[0],
            self.table.recipe_of(seed, self.places),
            self.folder,
        )
        models = {"full": part.base()}
        for row, ratio, own in self.parts():
            file = self.file(row, ratio, own).with_suffix(".safetensors")
            if own == seed and row.way != "longer" and file.exists():
                models[f"{row.name}-{ratio}x"] = shaped(part.networks.build(weights=False), file)
        found = measure_latency(models, part.examples[:1], runs=runs, threads=1)
        path = RESULTS / f"head_to_head_{self.table.name}.json"
        tree = json.loads(path.read_text())
        tree["latency"] = {
            name: {"median_ms": took.median_ms, "p10_ms": took.p10_ms, "p90_ms": took.p90_ms} for name, took in found.items()
        }
        tree["latency_environment"] = environment()
        store(path, tree)


def store(path: Path, tree: Mapping[str, Any]) -> None:
    """The figures as JSON and, beside it, as a page to read."""
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())
    write_atomically(path.with_suffix(".md"), page(tree).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(read_tables(HERE / "head_to_head.toml")[0]))
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="what the table needs; repeated")
    parser.add_argument("--jobs", type=int, default=1, help="parts at the same time, each with one thread")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where training and judging run (default: Accelerate's choice)")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where parts and networks are kept")
    for name in ("rows", "ratios", "seeds"):
        parser.add_argument(f"--{name}", help=f"make only these {name} now, separated by commas; the table shows all there are")
    parser.add_argument("--part", nargs=3, metavar=("ROW", "RATIO", "SEED"), help="one part")
    parser.add_argument("--measure", action="store_true", help="only latencies of finished rows, on a quiet machine")
    parser.add_argument("--pilot", help="ROW,ROW: 1,000 training images, 1 + 2 epochs, first ratio and seed; nothing is stored")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no GPU here; leave it out, or run this where there is one")
    if chosen.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = HeadToHead(chosen)
    if chosen.part:
        work.make_part(chosen.part[0], int(chosen.part[1]), int(chosen.part[2]))
    elif chosen.measure:
        work.measure(runs=100)
    elif chosen.pilot:
        for name in chosen.pilot.split(","):
            found = work.make_part(name, work.table.ratios[0], work.table.seeds[0])
            print({key: value for key, value in found.items() if key != "fingerprint"}, flush=True)
    else:
        work.make(chosen.jobs)


if __name__ == "__main__":
    main()
