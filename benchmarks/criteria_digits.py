"""Criteria against the oracle on a small network for handwritten digits, beside figures measured before on such a rig.

    python benchmarks/criteria_digits.py [--seeds 5] [--removal]
    python benchmarks/criteria_digits.py --no-batch-norm --removal       # the same network with biases in its place

8x8 digits, 1,300 to train and 497 to test; three 3x3 convolutions with batch norm and ReLU (16, 32, 32 channels, max-pooling
behind the first two), global average pooling, a linear layer; SGD, 15 epochs. Every seed trains a network of its own; the oracle
silences each of the 80 channels. Expected: mean over 5 seeds of the global Spearman with the oracle, as measured by another
implementation whose seeds, batches and scoring images aren't known. That one took activations in front of the pooling, so that
its rows of activation_mean and apoz are of another quantity: taken there, seed 0 gives -0.52 and -0.09 here, too; where a channel
is read, behind the pooling, 0.56 and 0.39.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _criteria import RESULTS, markdown, run, store
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunus.files import write_atomically
from prunus.laboratory import Settings, Subject
from prunus.sources import DataBundle

EPOCHS, BATCH, LR = 15, 64, 0.05
SLOW_EPOCHS = 60
"""Without batch norm: so many until accuracies are alike."""
TRAINING = 1300
EXPECTED: tuple[tuple[str, str, float], ...] = (
    ("taylor(per_example=True)", "raw", 0.95),
    ("taylor", "raw", 0.89),
    ("taylor(on=weights)", "raw", 0.88),
    ("l1", "raw", -0.56),
    ("l2", "raw", -0.01),
    ("bn_scale", "raw", -0.41),
    ("activation_mean", "raw", -0.51),
    ("apoz", "raw", 0.02),
    ("random", "raw", -0.01),
    ("taylor(per_example=True)", "within", 0.85),
    ("l1", "within", 0.61),
    ("taylor_2016", "raw", -0.05),
    ("taylor_2016", "l2", 0.79),
)
"""Criterion, scores as they are (raw) or L2-normalised within each layer or its mean within layers, and the figure expected."""
IN_ORDER = ("taylor(per_example=True)", "l2", "bn_scale", "l1")


def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 images, 0..1, in an order that is the same for every seed."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(found.target)[order]


def network(batch_norm: bool = True) -> nn.Sequential:
    """Untrained."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 16, True), (16, 32, True), (32, 32, False)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained(seed: int, folder: Path, images: Tensor, labels: Tensor, batch_norm: bool = True) -> nn.Module:
    """The network of this seed: from ``folder``, or trained and kept there."""
    torch.manual_seed(seed)
    model, file = network(batch_norm), folder / f"network-{seed}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    for _ in range(EPOCHS if batch_norm else SLOW_EPOCHS):
        for rows in torch.randperm(TRAINING).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model.eval()


def verdicts(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Expected and found; ``within``: they differ by at most two standard errors of ours."""
    rows = {row["name"]: row for row in result["criteria"]}
    found: list[dict[str, Any]] = []
    for name, kind, expected in EXPECTED:
        figure = rows[name]["spearman"][kind]
        error = None if figure["std"] is None else figure["std"] / math.sqrt(len(result["seeds"]))
        apart = None if not error else abs(figure["mean"] - expected) / error
        row = {"criterion": name, "scores": kind, "expected": expected, "mean": figure["mean"], "standard_error": error}
        found.append({**row, "standard_errors_apart": apart, "within": None if apart is None else apart <= 2})
    return found


def report(result: Mapping[str, Any], found: list[dict[str, Any]]) -> str:
    rows = [
        [
            *(row["criterion"], row["scores"], f"{row['expected']:.2f}", f"{row['mean']:.3f}"),
            "" if row["standard_error"] is None else f"{row['standard_error']:.3f}",
            "one seed" if row["within"] is None else f"{row['standard_errors_apart']:.1f}: {'yes' if row['within'] else 'NO'}",
        ]
        for row in found
    ]
    means = [next(row["mean"] for row in found if row["criterion"] == name and row["scores"] == "raw") for name in IN_ORDER]
    ordered = "yes" if means == sorted(means, reverse=True) else "NO"
    head = ("criterion", "scores", "expected", "mean", "standard error", "apart, standard errors: within two")
    lines = ["", "Beside figures measured before:", "", *markdown(head, rows)]
    return "\n".join([*lines, "", f"In order {' > '.join(IN_ORDER)}: {ordered} ({len(result['seeds'])} seeds)."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=TRAINING, help="training images for oracle and criteria")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="images per scoring batch")
    parser.add_argument("--criteria", default="all,taylor(per_example=true),taylor(on=weights)")
    parser.add_argument("--removal", action="store_true", help="accuracies after removal, too: some minutes a seed")
    parser.add_argument("--no-batch-norm", action="store_true", help="the network without it; not beside figures measured before")
    parser.add_argument("--folder", type=Path, help="where parts and networks are kept (default: runs/ and the table's name)")
    args = parser.parse_args()
    normed, name = not args.no_batch_norm, "criteria_digits" + "_no_batch_norm" * args.no_batch_norm
    folder = args.folder or Path("runs") / name
    torch.set_num_threads(1)
    images, labels = digits()
    train, test = (TensorDataset(images[part], labels[part]) for part in (slice(TRAINING), slice(TRAINING, None)))
    names = tuple(map(str, range(10)))
    data = DataBundle(train, test, test, (1, 8, 8), names, "digits", (0.0,), (1.0,), calibration=train)
    model = "16-32-32 convolutions" if normed else "16-32-32 convolutions without batch norm"
    epochs = EPOCHS if normed else SLOW_EPOCHS
    about = {"model": model, "data": "handwritten digits", "epochs": epochs, "lr": LR, "batch": BATCH}
    subject = Subject(lambda seed: trained(seed, folder / "networks", images, labels, normed), data, about)
    settings = Settings(images=args.images, batch_size=args.batch_size, test_images=None)
    settings = settings if args.removal else Settings(**{**vars(settings), "shares": ()})
    flags = " --no-batch-norm" * args.no_batch_norm + " --removal" * args.removal
    command = f"python benchmarks/criteria_digits.py --seeds {args.seeds}{flags}"
    result = run("", subject, args.criteria, args.seeds, folder, settings, {})
    if not normed:
        store(
            name,
            {**result, "command": command + f" --criteria '{args.criteria}'" * (args.criteria != parser.get_default("criteria"))},
        )
        return
    found = verdicts(result)
    store("criteria_digits", {**result, "command": command, "expected": found})
    text, path = report(result, found), RESULTS / "criteria_digits.md"
    write_atomically(path, (path.read_text() + text + "\n").encode())
    print(text)


if __name__ == "__main__":
    main()
