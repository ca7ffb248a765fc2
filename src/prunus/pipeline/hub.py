"""A folder of the form that the Hugging Face hub has: config.json, model.safetensors and a model card. Nothing is uploaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import ArtifactError, ExportError
from prunus.files import write_atomically
from prunus.surgery import SurgeryRecord, save
from prunus.surgery.artifact import IN_FOLDER
from prunus.types import Cost


@dataclass(frozen=True)
class Origin:
    """Where a pruned network comes from and what is known of it; sources are shown without folders of this machine.

    ``budget`` has rows with target, requested, full, achieved and met; ``stages`` rows with stage, accuracy and count.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    data: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    before: Cost | None = None
    after: Cost | None = None
    budget: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    verification: Mapping[str, Any] = field(default_factory=dict[str, Any])


def write_hub_folder(folder: Path, model: nn.Module, record: SurgeryRecord, origin: Origin) -> list[str]:
    """Write the three files; ``model.safetensors`` holds the surgery record, so that `prunus.load` reads the folder.

    Raises:
        ExportError: huggingface_hub isn't installed.
        ArtifactError: the folder can't be written.
    """
    card = _card(origin, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(model, record, folder / IN_FOLDER)
        write_atomically(folder / "README.md", card.encode())
        write_atomically(folder / "config.json", json.dumps(_config(model, record, origin), indent=2).encode())
    except OSError as error:
        raise ArtifactError(f"{folder} can't be written: {error}") from error
    return ["config.json", IN_FOLDER, "README.md"]


def _config(model: nn.Module, record: SurgeryRecord, origin: Origin) -> dict[str, Any]:
    described = asdict(origin) | {"model": without_folders(origin.model), "data": without_folders(origin.data)}
    return {
        "library_name": "prunus",
        "architectures": [type(model).__name__],
        **described,
        "fingerprint": record.fingerprint,
        "edits": len(record.edits),
        "versions": dict(record.versions),
    }


def without_folders(source: str | None) -> str | None:
    """``folder:/home/me/photos.zip`` as ``folder:photos.zip``: what others may read holds no paths of this machine."""
    if source is None or not ("/" in source or "\\" in source):
        return source
    kind, sep, rest = source.partition(":")
    if kind.endswith(".py") or "/" in kind or "\\" in kind:  # path/to/file.py:function
        return f"{Path(kind).name}{sep}{rest}"
    return f"{kind}{sep}{Path(rest).name}"


def _card(origin: Origin, record: SurgeryRecord) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError as error:
        raise ExportError(f"huggingface_hub can't be imported ({error}): install it with `pip install 'prunus[data]'`") from error
    results = None
    if origin.stages and origin.data:
        dataset = without_folders(origin.data) or ""
        last = origin.stages[-1]
        results = [
            EvalResult(
                "image-classification", dataset.partition(":")[0], dataset, "accuracy", last["accuracy"], dataset_split="test"
            )
        ]
    data = ModelCardData(
        library_name="prunus",
        tags=["prunus", "pruning", "structured-pruning", "pytorch"],
        pipeline_tag="image-classification" if origin.classes else None,
        model_name=origin.name,
        eval_results=results,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(origin, record)}"))


def _text(origin: Origin, record: SurgeryRecord) -> str:
    done = "made smaller by removing whole channels" if record.edits else "saved"
    parts = [
        f"# {origin.name}",
        f"`{without_folders(origin.model)}`, {done} with Prunus.",
        *_budget(origin),
        *_accuracy(origin),
        _surgery(origin, record),
        "## How to load it",
        "```python\nimport prunus\n\n# model: the full-size network of the same architecture, from your own code or library\n"
        'small = prunus.load("this folder", model)\n```',
        _inputs(origin),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _budget(origin: Origin) -> list[str]:
    found: list[str] = []
    if origin.budget:
        rows = [
            f"| {b['target']} | {b['full']:,.0f} | {b['requested']:,.0f} | {b['achieved']:,.0f} | {'yes' if b['met'] else 'no'} |"
            for b in origin.budget
        ]
        found += ["## Budget", "\n".join(["| target | full | requested | achieved | met |", "|---|---:|---:|---:|---|", *rows])]
    if origin.before is not None and origin.after is not None:
        rows = [
            f"| {what} | {old:,} | {new:,} | {new / old:.1%} |"
            for what, old, new in [
                ("multiply-adds per input", origin.before.macs, origin.after.macs),
                ("parameters", origin.before.parameters, origin.after.parameters),
            ]
        ]
        found += ["## Cost", "\n".join(["| | before | after | left |", "|---|---:|---:|---:|", *rows])]
    return found


def _accuracy(origin: Origin) -> list[str]:
    if not origin.stages:
        return []
    rows = [f"| {s['stage']} | {s['accuracy']:.2%} | {s['count']} |" for s in origin.stages]
    return [
        "## Accuracy",
        "\n".join([f"On test images of `{without_folders(origin.data)}`:", "", "| | top-1 | images |", "|---|---:|---:|", *rows]),
    ]


def _surgery(origin: Origin, record: SurgeryRecord) -> str:
    if not record.edits:
        return ""
    text = f"## Surgery\n\n{len(record.edits)} edits of {len(record.kept)} parameters and buffers; the file holds their record."
    check = origin.verification
    if check:
        text += (
            " The small network was compared in float64 with the original in which the removed channels are silenced: largest "
            f"relative error {check['max_error']:.1e}, {check['tolerance']:.0e} allowed."
        )
    return text


def _inputs(origin: Origin) -> str:
    shape = " x ".join(map(str, origin.input_shape))
    text = f"Inputs are {shape}"
    if origin.mean and (any(origin.mean) or any(value != 1 for value in origin.std)):
        text += f", pixels in 0..1 normalised with mean {list(origin.mean)} and standard deviation {list(origin.std)}"
    return text + (
        f". Classes: {', '.join(origin.classes[:20])}{', ...' if len(origin.classes) > 20 else ''}." if origin.classes else "."
    )
