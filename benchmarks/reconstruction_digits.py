"""Which half of a layer's inputs to keep, with and without least squares: handwritten digits, the small rig of `criteria_digits`.

    python benchmarks/reconstruction_digits.py [--seeds 3]

Half the inputs of each of the three layers behind the first are removed, one layer at a time, chosen in five ways; the layer is
left as it is or refitted by least squares on the 1,300 training images, 10 points of each. Figure: squared error of the layer's
output on the 497 test images as a share of its variance, mean over the layers. Expected: the root of it, or a figure like it, as
measured by another implementation; its order and what least squares does are to be compared, not the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from _criteria import RESULTS, markdown
from criteria_digits import TRAINING, digits, trained
from torch import Tensor, nn

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment
from prunus.reconstruction import prune_channels
from prunus.types import PruningPlan

SELECTIONS = ("lasso", "lasso_alternating", "next_layer_weight", "max_response", "first_k", "random")
LAYERS = {"0": "4.weight", "4": "8.weight", "8": "13.weight"}
"""Group -> the layer that reads it."""
EXPECTED = {
    "left as it is": {"lasso": 0.48, "next_layer_weight": 0.57, "max_response": 0.61, "first_k": 0.66},
    "refitted": {"next_layer_weight": 0.153, "lasso": 0.164, "max_response": 0.171, "first_k": 0.183, "random": 0.188},
}


@torch.no_grad()
def outputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What the layer of this weight gives."""
    found: list[Tensor] = []
    hook = model.get_submodule(layer.rpartition(".")[0]).register_forward_hook(lambda _, __, out: found.append(out))
    model.eval()(images)
    hook.remove()
    return found[0]


def one_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Errors of one trained network: way -> selection -> error."""
    images, labels = digits()
    model = trained(seed, folder, images, labels)
    train, test = list(images[:TRAINING].split(100)), images[TRAINING:]
    graph = prunus.trace(model, test[:1])
    found: dict[str, dict[str, float]] = {"left as it is": {}, "refitted": {}}
    for selection in SELECTIONS:
        chosen = prunus.score(model, graph, "random", seed=seed) if selection == "random" else selection
        for way in found:
            errors: list[float] = []
            for group, layer in LAYERS.items():
                channels = graph[group].num_channels
                plan = PruningPlan({group: torch.arange(channels) < channels // 2}, graph.cost())
                others = ["0.weight", *(name for name in LAYERS.values() if name != layer)]
                small = prune_channels(model, graph, plan, train, chosen, refit=way == "refitted", skip=others, seed=seed).model
                before, now = outputs(model, layer, test), outputs(small, layer, test)
                spread = (before - before.mean([d for d in range(before.ndim) if d != 1], keepdim=True)).square().sum()
                errors.append(float((now - before).square().sum() / spread))
            found[way][selection] = statistics.mean(errors)
    return found


def store(parts: list[dict[str, dict[str, float]]], command: str) -> None:
    rows: list[dict[str, Any]] = []
    for selection in SELECTIONS:
        row: dict[str, Any] = {"selection": selection}
        for way, expected in EXPECTED.items():
            values = [part[way][selection] for part in parts]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            row[way] = {"values": values, "mean": statistics.mean(values), "std": deviation, "expected": expected.get(selection)}
        rows.append(row)
    ordered = {
        way: sorted(SELECTIONS, key=lambda name: next(r for r in rows if r["selection"] == name)[way]["mean"]) for way in EXPECTED
    }
    tree = {"command": command, "environment": environment(), "seeds": len(parts), "rows": rows, "ascending": ordered}
    write_atomically(RESULTS / "reconstruction_digits.json", (json.dumps(tree, indent=1) + "\n").encode())
    head = ["selection", *(f"{way}{suffix}" for way in EXPECTED for suffix in ("", ", expected"))]
    cells = [[row["selection"], *(text for way in EXPECTED for text in _cells(row[way]))] for row in rows]
    lines = [
        f"Made by `{command}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}; seeds: {len(parts)}, mean ± "
        "standard deviation. Squared error of the reading layer's output on test images, as a share of its variance, half the "
        "inputs kept; *expected* was measured by another implementation and is compared by its order.",
        "",
        *markdown(tuple(head), cells),
        "",
        *(f"Ascending, {way}: {' < '.join(names)}." for way, names in ordered.items()),
    ]
    write_atomically(RESULTS / "reconstruction_digits.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


def _cells(figure: dict[str, Any]) -> tuple[str, str]:
    spread = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
    return f"{figure['mean']:.3f}{spread}", "" if figure["expected"] is None else str(figure["expected"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/criteria_digits"), help="where trained networks are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[dict[str, dict[str, float]]] = []
    for seed in range(args.seeds):
        file = args.folder / f"reconstruction-{seed}.json"
        if not file.exists():
            found = one_seed(seed, args.folder)
            write_atomically(file, json.dumps(found).encode())
        parts.append(json.loads(file.read_text()))
    store(parts, f"python benchmarks/reconstruction_digits.py --seeds {args.seeds}")


if __name__ == "__main__":
    main()
