"""Test images with what the network says of them before and after pruning, for the report."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.sources import DataBundle
from prunus.sources.bundle import known_labels
from prunus.training.placement import placed, start_accelerator
from prunus.training.randomness import restored_generators
from prunus.types import ForwardFn, call_model

BATCH = 32
LARGEST_SIDE = 112  # pixels
JPEG_FROM = 32  # pixels: what is smaller has few bytes as a PNG, and no blocks
_SEED = 0


def show_samples(
    before: nn.Module,
    after: nn.Module,
    data: DataBundle,
    *,
    forward_fn: ForwardFn | None,
    count: int = 12,
    looked_at: int = 128,
) -> dict[str, Any] | None:
    """Pictures of ``count`` test images, with the class and the probability (softmax) that each network gives them.

    They are chosen from ``looked_at`` test images, the same for every run: drawn with a fixed seed, the classes as equal as they
    can be. Images on which the networks disagree come first, at most half of what is shown; the rest is spread over the classes.
    The networks run in eval mode; mode, device and random state stay as found.

    Returns:
        ``{"note": str, "rows": [{"image": "data:image/...", "label": str, "before": answer, "after": answer}, ...]}``, an answer
        being ``{"name": str, "probability": float}``; None where the task isn't plain classification of grey or RGB images, or
        the output isn't logits (n, classes).
    """
    with restored_generators():
        chosen = _draw(data.test, looked_at)
        items = [data.test[index] for index in chosen]
        readable = all(_is_labelled_image(item[0], item[1], data) for item in items)
        if data.input_shape[0] not in (1, 3) or not items or not readable:
            return None
        images, labels = torch.stack([item[0] for item in items]), [int(item[1]) for item in items]
        answers = [_probabilities(model, images, forward_fn, data.num_classes) for model in (before, after)]
    if answers[0] is None or answers[1] is None:
        return None
    old, new = answers[0].max(dim=1), answers[1].max(dim=1)
    differs: list[bool] = (old.indices != new.indices).tolist()
    shown = _choose(labels, differs, count)
    rows = [
        {
            "image": _picture(images[i], data),
            "label": data.class_names[labels[i]],
            "before": _answer(old, i, data),
            "after": _answer(new, i, data),
        }
        for i in shown
    ]
    return {"note": _note(len(rows), len(items), sum(differs)), "rows": rows}


def _draw(dataset: Any, count: int) -> list[int]:
    """Positions of ``count`` images: one of every class, in random order, then the second ones, and so on."""
    order: list[int] = np.random.RandomState(_SEED).permutation(len(dataset)).tolist()
    labels = known_labels(dataset)
    return [order[i] for i in _in_turns([labels[i] for i in order])[:count]] if labels is not None else order[:count]


def _in_turns(labels: Sequence[int], taken: Sequence[int] = ()) -> list[int]:
    """Positions, the first of every class before the second of any; the labels in ``taken`` have had their turns."""
    turns = Counter(taken)
    keys: list[tuple[int, int]] = []
    for position, label in enumerate(labels):
        keys.append((turns[label], position))
        turns[label] += 1
    return [position for _, position in sorted(keys)]


def _choose(labels: Sequence[int], differs: Sequence[bool], count: int) -> list[int]:
    """Positions to show: disagreements up to half, agreements in turns of the classes, then whatever there is."""
    apart = [i for i, different in enumerate(differs) if different]
    alike = [i for i, different in enumerate(differs) if not different]
    first = apart[: count // 2]
    turns = _in_turns([labels[i] for i in alike], [labels[i] for i in first])
    return [*first, *(alike[i] for i in turns), *apart[count // 2 :]][:count]


def _note(shown: int, looked_at: int, differing: int) -> str:
    images = f"{shown} of {looked_at} test images drawn at random"
    if differing == 0:
        return f"{images}; both networks give each of the {looked_at} the same class"
    return f"{images}; those on which the networks disagree ({differing} of the {looked_at}) come first"


def _is_labelled_image(image: Any, label: Any, data: DataBundle) -> bool:
    if isinstance(label, Tensor):
        label = label.item() if label.ndim == 0 and not label.is_floating_point() else None
    is_class = isinstance(label, int | np.integer) and 0 <= int(label) < data.num_classes
    return is_class and isinstance(image, Tensor) and tuple(image.shape) == tuple(data.input_shape)


@torch.no_grad()
def _probabilities(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None, classes: int) -> Tensor | None:
    """Softmax of the logits (n, classes), on the CPU; None where the output is something else."""
    device = start_accelerator().device
    found: list[Tensor] = []
    with placed(model, device):
        model.eval()
        for batch in images.split(BATCH):
            output = call_model(model, batch.to(device), forward_fn)
            if not isinstance(output, Tensor) or output.shape != (len(batch), classes) or not output.is_floating_point():
                return None
            found.append(output.float().softmax(dim=1).cpu())
    return torch.cat(found)


def _answer(best: Any, position: int, data: DataBundle) -> dict[str, Any]:
    return {"name": data.class_names[int(best.indices[position])], "probability": float(best.values[position])}


def _picture(image: Tensor, data: DataBundle) -> str:
    """A data URI of the image with its normalisation undone, at most `LARGEST_SIDE` pixels on a side."""
    from PIL import Image

    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (data.mean, data.std))
    pixels = image.detach().float().cpu() * std + mean
    unknown = not any(data.mean) and all(value == 1 for value in data.std)
    if unknown and (pixels.min() < 0 or pixels.max() > 1):  # the user's own code normalised it: show its range
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12)
    array = pixels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    encoded = {"png": _encoded(picture, "PNG", optimize=True)}
    if array.shape[2] == 3 and max(picture.size) > JPEG_FROM:
        encoded["jpeg"] = _encoded(picture, "JPEG", quality=80)
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
