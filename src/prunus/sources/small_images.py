"""Two sources that need no files: scikit-learn's handwritten digits, and images made from a seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunus.errors import DataError, PrunusError
from prunus.sources.bundle import Splits

_DIGITS_TEST = 500
_DIGITS_MEAN, _DIGITS_STD = 0.3053, 0.3760  # of all pixels
_FAKE_SIZES = {"train": 512, "validation": 128, "test": 256}


@dataclass(frozen=True, eq=False)
class _StoredTensors:
    images: Tensor
    labels: list[int]

    def load(self, index: int) -> Tensor:
        return self.images[index]


def digits() -> Splits:
    """The 1,797 digits of ``sklearn.datasets.load_digits``, 1x8x8, pixels in 0..1; the same 500 are the test images always."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise PrunusError("the digits come with scikit-learn, which is missing: pip install 'prunus[data]'") from error
    stored: Any = load_digits()
    pixels = torch.from_numpy(stored.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(stored.target)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return Splits(
        train=_StoredTensors(pixels[train], labels[train].tolist()),
        validation=None,
        test=_StoredTensors(pixels[test], labels[test].tolist()),
        class_names=tuple(str(digit) for digit in range(10)),
        stored_shape=(1, 8, 8),
        mean=(_DIGITS_MEAN,),
        std=(_DIGITS_STD,),
    )


@dataclass(frozen=True, eq=False)
class _FakeImages:
    """A pattern per class, blurred to a quarter of the size, under noise of twice its strength; made when asked for."""

    patterns: Tensor
    shape: tuple[int, int, int]
    labels: list[int]
    seed: int

    def load(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + index)
        noise = torch.randn(self.shape, generator=generator)
        pattern = self.patterns[self.labels[index]].unsqueeze(0)
        signal = functional.interpolate(pattern, size=self.shape[1:], mode="bilinear", align_corners=False)[0]
        return (0.5 + 0.1 * signal + 0.2 * noise).clamp(0, 1)


def fake(text: str, seed: int) -> Splits:
    """Images that need no file and can be learned: ``text`` is CxHxWxCLASSES; 512 for training, 128 and 256 to validate and test.

    Raises:
        DataError: ``text`` is not four positive numbers, or there is one class only.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text)
    numbers = [int(n) for n in match.groups()] if match else []
    if not numbers or min(numbers) < 1 or not 2 <= numbers[3] <= _FAKE_SIZES["validation"]:
        raise DataError(f"can't read fake:{text}: write channels, height, width and 2 to 128 classes, e.g. fake:3x32x32x10")
    channels, height, width, classes = numbers
    shape = (channels, height, width)
    coarse = (max(height // 4, 2), max(width // 4, 2))
    patterns = torch.randn((classes, channels, *coarse), generator=torch.Generator().manual_seed(seed))
    parts = {
        name: _FakeImages(patterns, shape, [i % classes for i in range(size)], seed * 1_000_003 + 10_000 * (number + 1))
        for number, (name, size) in enumerate(_FAKE_SIZES.items())
    }
    return Splits(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        class_names=tuple(f"class{i}" for i in range(classes)),
        stored_shape=shape,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
