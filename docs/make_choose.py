"""Write docs/choose.md: which method when, every figure taken from benchmarks/results.

``python docs/make_choose.py`` (or ``make docs-evidence``); a test compares. The sentences are typed, their figures aren't.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.files import write_atomically

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGE = DOCS / "choose.md"
TEXT = """<!-- Written by docs/make_choose.py from benchmarks/results: run `make docs-evidence`. -->

# Which method when

Only what was measured in this repository, on small to middling networks: one for digits ({digits_accuracy} % before), ResNet-20
on CIFAR-10 (JPEG) ({resnet20_full} %), MobileNetV2 on cats and dogs ({cats_before} %) and a VGG-style network on both. Where
nothing was measured, the table says so. The literature's claims, tried one by one: [evidence](evidence.md).

| you have | without labels | with labels |
|---|---|---|
| 5 minutes, no data | `next_layer_weight` or `fpgm` (1) | - |
| 5 minutes, some images | `lasso`; then `reconstruct` (2, 3) | `taylor` and `global_per_cost`; then `reconstruct` (3) |
| an hour | `lasso`, `reconstruct`, `distill = 1.0` (6) | `taylor`, `reconstruct`, `distill`: a recipe's defaults (4) |
| a GPU-day | not measured | not measured; train the small network from scratch beside it (5) |
| no batch norm | {bare_best_free} (7); `bn_scale` and methods on scales need one | {bare_best_labelled} (7) |

**1. Weights alone.** Half of the channels of the digits network gone, ranked over all layers, then 50 steps of fine-tuning,
five seeds: {next_layer} % by `next_layer_weight`, {fpgm} % by `fpgm`, {l1} % by `l1`, {scales} % by `bn_scale`, {random} % at
random. With 70 % gone: {next_layer_70}, {fpgm_70}, {l1_70}, {scales_70} and {random_70} %
([criteria_digits](../benchmarks/results/criteria_digits.md)). Raw `l1` and `bn_scale` don't compare over layers: their
correlation with the oracle is {l1_rank} and {scales_rank} there.

**2. Images alone.** In the same table `lasso` keeps {lasso} % at 50 % and {lasso_70} % at 70 %: the best of the criteria
without labels, and level with the best of those with them (`functionality`, {functionality} and {functionality_70} %).

**3. Nothing trained.** ResNet-20 at half of its multiply-adds, three seeds: {l1_removed} % right after a removal by `l1`,
{l1_compensated} % with compensation, {l1_recalibrated} % with recalibration alone, {l1_reconstructed} % with `reconstruct`, in
about {seconds} s of one core. By `taylor`: {taylor_removed} % and {taylor_reconstructed} %. At a quarter, reconstructed:
{l1_quarter} and {taylor_quarter} %. Leave `recalibrate` out behind `reconstruct` unless training follows: it took {worse}
points ([recovery](../benchmarks/results/recovery.md)).

**4. Labels and an hour.** Test accuracy in percent at the same multiply-adds, as nearly as torch-pruning's steps allow (its row
has 4 % fewer to 6 % more; the tables mark where), and equal epochs of recovery, means over the seeds in brackets; `taylor` and
`lasso` (normalised by layer) by `global_per_cost`, torch-pruning's row the one that validation images chose among its own
([ResNet-20](../benchmarks/results/head_to_head_resnet20.md),
[ResNet-56](../benchmarks/results/head_to_head_resnet56.md), [MobileNetV2](../benchmarks/results/head_to_head_mobilenet_v2.md),
[VGG-style on CIFAR-10](../benchmarks/results/head_to_head_vgg_cifar10.md) and
[on photos](../benchmarks/results/head_to_head_vgg.md)):

{head_to_head}

And the controls, random channels with uniform widths:

{controls}

On ResNet-20 the ladder gives most, on ResNet-56 distillation behind recalibration, and fine-tuned alone the two tools are close
to each other; on MobileNetV2 the choice of channels counts as well. The VGG-style network is trained
twice. On CIFAR-10 it had learned what it could ({vgg_before} %
before, {vgg_cifar_longer} % trained longer); the ladder keeps {vgg_ladder_half} % at a half and {vgg_ladder} % at a quarter,
random channels {vgg_random_half} and {vgg_random} %: a network with channels to spare, where recovery counts for more than the
choice. On photos the table tells nothing apart: unpruned and trained as much longer it has {vgg_longer} % (three seeds), but
its half and its quarter trained from random weights {vgg_scratch_half} and {vgg_scratch} % ({vgg_scratch_seeds}). It hadn't been
trained out before it was pruned, and then pruning is worth little: train it, or a small one, first.

`lasso` asks for images without labels and does as well as `taylor` on the ResNets; on the VGG-style network on CIFAR-10 at a
quarter it is behind, with {vgg_lasso} % after the same ladder; on MobileNetV2 at a quarter its scores, divided by what a
channel costs, left 8 channels to the first residual streams and {mobilenet_lasso} %; with uniform widths, which `auto` takes
for it, it was {mobilenet_lasso_uniform} % ({mobilenet_lasso_seeds} each). It needs scikit-learn, and what only transposed
convolutions read it can't score. Over all layers `l1` keeps {l1_global} % on ResNet-20 at a quarter, with uniform widths
{l1_uniform} % ({l1_uniform_seeds}).
Distillation needs a teacher worth learning from, which the VGG-style network of the photos isn't. MobileNetV2 at half of its
multiply-adds, twelve epochs with distillation: {cats_taylor} % by `taylor` and `global_per_cost` (three seeds). One seed each:
{cats_uniform} % with `l1` and uniform widths, {cats_l1} % with `l1` over all layers, {cats_random} % at random; at 30 % of the
multiply-adds {cats_30} % ([cats_dogs](../benchmarks/results/cats_dogs.md)). But raw scores over all layers can empty one: in
the table of the digits network `taylor` keeps {taylor_raw} % at 50 %, where its older form, normalised by layer
(`taylor_2016`), keeps {taylor_2016} %.

**5. From scratch.** On digits, half of the multiply-adds and as much computation: {scratch} % from scratch, {tuned} %
fine-tuned by `l1`, {fpgm_trained} % by `fpgm` during training, {slimming} % by Network Slimming on so short a schedule (three
seeds, [sparsity_digits](../benchmarks/results/sparsity_digits.md)). From good weights it is another matter: from random ones
MobileNetV2's small network reaches {cats_scratch} % on 1,998 photos (one seed).
In the tables of paragraph 4, with as much computation: ResNet-20's quarter {resnet20_scratch} % on 10,000 images
({resnet20_scratch_seeds}), as much as Lasso's choice fine-tuned, above torch-pruning's best row, below the ladder;
MobileNetV2's {mobilenet_scratch} % ({mobilenet_scratch_seeds}); but the VGG-style network's quarter on CIFAR-10
{vgg_cifar_scratch} % ({vgg_cifar_scratch_seeds}), above every pruned row of either tool.
Where no weights from elsewhere are lost and the training fits your time, try it beside pruning.

**6. No labels, an hour.** ResNet-20 at a quarter, four epochs that see the unpruned network's answers and feature maps alone:
{unlabelled}; with labels, by `taylor`, {ladder} %. By `l1` it depends on the seed ({unlabelled_values} %): try more than one
([without_labels](../benchmarks/results/without_labels.md)).

**7. No batch norm.** The digits network with biases in its place, {bare_accuracy} % before, half of the channels gone, ranked
over all layers, five seeds; right after the removal and behind 50 steps of fine-tuning: {bare}
([criteria_digits_no_batch_norm](../benchmarks/results/criteria_digits_no_batch_norm.md)).

**Without any training behind the cut**, ResRep is the method that was made for it: {resrep} % on digits at half of the
multiply-adds, where the same penalty without its resetting of gradients keeps {penalty} % and `l1` {resrep_l1} %
({resrep_seeds} seeds, `benchmarks/results/resrep.json`).
"""


def page() -> str:
    """The page with its figures."""
    return TEXT.format(**_criteria(), **_recovery(), **_head_to_head(), **_unlabelled(), **_bare(), **_tables(), **_resrep())


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _criteria() -> dict[str, str]:
    tree = _read("criteria_digits")
    at = {share: tree["settings"]["shares"].index(share) for share in (0.5, 0.7)}
    names = {
        "next_layer": "next_layer_weight",
        "fpgm": "fpgm",
        "l1": "l1",
        "scales": "bn_scale",
        "random": "random",
        "lasso": "lasso",
        "functionality": "functionality",
        "taylor_raw": "taylor",
        "taylor_2016": "taylor_2016",
    }
    curves = {key: tree["removal"]["curves"][name]["fine-tuned"] for key, name in names.items()}
    found = {key: _percent(points[at[0.5]]["mean"]) for key, points in curves.items()}
    found |= {f"{key}_70": _percent(points[at[0.7]]["mean"]) for key, points in curves.items()}
    raw = {row["name"]: row["spearman"]["raw"]["mean"] for row in tree["criteria"] if "spearman" in row}
    found |= {"l1_rank": f"{raw['l1']:.2f}", "scales_rank": f"{raw['bn_scale']:.2f}"}
    return {**found, "digits_accuracy": _percent(tree["network"]["accuracy"]["mean"])}


def _recovery() -> dict[str, str]:
    rows = {(r["macs kept"], r["criterion"], r["rung"]): r for r in _read("recovery")["rows"] if r["network"] == "resnet20"}
    names = {
        "removed": "removal",
        "compensated": "compensate",
        "recalibrated": "recalibrate alone",
        "reconstructed": "reconstruct",
    }
    found = {f"{by}_{key}": _percent(rows["0.5", by, rung]["accuracy"]) for by in ("l1", "taylor") for key, rung in names.items()}
    found |= {f"{by}_quarter": _percent(rows["0.25", by, "reconstruct"]["accuracy"]) for by in ("l1", "taylor")}
    losses = [
        100 * (rows[share, by, "reconstruct"]["accuracy"] - rows[share, by, "recalibrate"]["accuracy"])
        for share in ("0.5", "0.25")
        for by in ("l1", "taylor")
    ]
    full = rows["0.5", "l1", "removal"]["full"]
    worse = f"{min(losses):.0f} to {max(losses):.0f}"
    return {
        **found,
        "seconds": f"{rows['0.5', 'l1', 'reconstruct']['seconds']:.0f}",
        "worse": worse,
        "resnet20_full": _percent(full),
    }


def _head_to_head() -> dict[str, str]:
    names = {
        "ladder": ("resnet20", "taylor-ladder", 4),
        "l1_uniform": ("resnet20", "l1-uniform", 4),
        "l1_global": ("resnet20", "l1-global", 4),
        "mobilenet_lasso": ("mobilenet_v2", "lasso-ladder", 4),
        "mobilenet_lasso_uniform": ("mobilenet_v2", "lasso-uniform-ladder", 4),
        "vgg_longer": ("vgg", "longer", 2),
        "vgg_scratch_half": ("vgg", "scratch-e", 2),
        "vgg_scratch": ("vgg", "scratch-e", 4),
        "vgg_cifar_longer": ("vgg_cifar10", "longer", 2),
        "vgg_ladder_half": ("vgg_cifar10", "taylor-ladder", 2),
        "vgg_ladder": ("vgg_cifar10", "taylor-ladder", 4),
        "vgg_lasso": ("vgg_cifar10", "lasso-ladder", 4),
        "vgg_random_half": ("vgg_cifar10", "random", 2),
        "vgg_cifar_scratch": ("vgg_cifar10", "scratch-b", 4),
        "resnet20_scratch": ("resnet20", "scratch-b", 4),
        "mobilenet_scratch": ("mobilenet_v2", "scratch-b", 4),
        "vgg_random": ("vgg_cifar10", "random", 4),
    }
    trees = {table: _read(f"head_to_head_{table}")["rows"] for table, _, _ in names.values()}
    rows = {(table, row["row"], row["ratio"]): row for table, own in trees.items() for row in own}
    found = {key: _percent(rows[place]["after"]["mean"]) for key, place in names.items()}
    found |= {f"{key}_seeds": _seeds(rows[place]) for key, place in names.items()}
    found["vgg_before"] = _percent(rows["vgg_cifar10", "longer", 2]["before"]["mean"])
    return {**found, "head_to_head": _side_by_side(METHODS), "controls": _side_by_side(CONTROLS)}


METHODS = {
    "`taylor`: reconstructed, distilled": "taylor-ladder",
    "`lasso`: the same": "lasso-ladder",
    "`taylor`: reconstructed, fine-tuned": "taylor-reconstruct",
    "`taylor`: recalibrated, distilled": "taylor-distill",
    "`taylor`: recalibrated, fine-tuned": "taylor",
    "`lasso`: fine-tuned": "lasso",
    "torch-pruning, fine-tuned": "",
}
CONTROLS = {
    "random channels, fine-tuned": "random",
    "`l1`, uniform widths, fine-tuned": "l1-uniform",
    "from scratch, as many epochs": "scratch-e",
    "from scratch, as much computation": "scratch-b",
    "unpruned, trained longer": "longer",
}


def _side_by_side(shown: Mapping[str, str]) -> str:
    """These rows of all head-to-head tables there are, at all their ratios."""
    tables = {
        "ResNet-20": "resnet20",
        "ResNet-56": "resnet56",
        "MobileNetV2": "mobilenet_v2",
        "VGG-style, CIFAR-10": "vgg_cifar10",
        "VGG-style, photos": "vgg",
    }
    shares = {2: "a half", 3: "a third", 4: "a quarter"}
    lines = ["| | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for title, name in tables.items():
        tree = _read(f"head_to_head_{name}")
        for found in tree["compared"]:
            cells = [_cell(tree, found["ratio"], row) for row in shown.values()]
            lines.append(f"| {title}, {shares[found['ratio']]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(tree: Any, ratio: int, name: str) -> str:
    """Accuracy and number of seeds of a row; without a name, of the peer's best, which is named."""
    best = next(found["rows"]["torch-pruning"] for found in tree["compared"] if found["ratio"] == ratio)
    wanted = (name or best, min(found["ratio"] for found in tree["compared"]) if name == "longer" else ratio)
    row = next((row for row in tree["rows"] if (row["row"], row["ratio"]) == wanted), None)
    if row is None:
        return ""
    return f"{_percent(row['after']['mean'])} ({len(row['seeds'])})" + ("" if name else f" `{best.removeprefix('peer-')}`")


def _unlabelled() -> dict[str, str]:
    rows = _read("without_labels")["rows"]
    told = [f"{_percent(row['after']['mean'])} % by `{row['row']}` ({_seeds(row)})" for row in rows]
    values = next(row["after"]["values"] for row in rows if row["row"] == "l1")
    return {"unlabelled": ", ".join(told), "unlabelled_values": ", ".join(map(_percent, values))}


def _seeds(row: Any) -> str:
    return "one seed" if len(row["seeds"]) == 1 else f"{len(row['seeds'])} seeds"


def _bare() -> dict[str, str]:
    """The network without batch norm at half of its channels: criteria by what is left right after the removal."""
    tree = _read("criteria_digits_no_batch_norm")
    at = tree["settings"]["shares"].index(0.5)
    curves = tree["removal"]["curves"]
    means = {name: [curves[name][how][at]["mean"] for how in ("none", "fine-tuned")] for name in curves if name != "oracle"}
    ordered = sorted(means, key=lambda name: -means[name][0])
    labelled = next(name for name in ordered if name in ("taylor", "taylor_2016", "functionality"))
    told = ", ".join(f"{_percent(means[name][0])} and {_percent(means[name][1])} % by `{name}`" for name in ordered)
    found = {"bare": told, "bare_accuracy": _percent(tree["network"]["accuracy"]["mean"])}
    return {**found, "bare_best_free": f"`{ordered[0]}`", "bare_best_labelled": f"`{labelled}`"}


def _tables() -> dict[str, str]:
    cats = {row["row"]: row for row in _read("cats_dogs")["rows"]}
    names = {"taylor": "taylor", "uniform": "uniform-l1", "l1": "l1", "random": "random", "30": "taylor-30", "scratch": "scratch"}
    found = {f"cats_{key}": _percent(cats[row]["test_accuracy"]["mean"]) for key, row in names.items()}
    found["cats_before"] = _percent(cats["taylor"]["test_accuracy_before"]["mean"])
    digits = {row["row"]: row["test_accuracy"]["mean"] for row in _read("sparsity_digits")["rows"]}
    short = {"scratch": "scratch-b", "tuned": "l1", "fpgm_trained": "fpgm", "slimming": "slimming"}
    return found | {key: _percent(digits[row]) for key, row in short.items()}


def _resrep() -> dict[str, str]:
    tree = _read("resrep")
    names = {"resrep": "gradient resetting", "penalty": "penalty alone", "resrep_l1": "plain training, L1"}
    found = {key: _percent(tree["rows"][row]["after"]["mean"]) for key, row in names.items()}
    return {**found, "resrep_seeds": str(tree["seeds"])}


def main() -> None:
    """Write the page."""
    write_atomically(PAGE, page().encode())
    print(PAGE)


if __name__ == "__main__":
    main()
