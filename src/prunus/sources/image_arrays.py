"""Images that lie decoded in memory, as arrays of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class StoredArrays:
    """``pixels`` (n, height, width) for grey images or (n, height, width, 3) for RGB, and the class index of each."""

    pixels: NDArray[np.uint8]
    labels: list[int]

    def load(self, index: int) -> Any:
        """The image, 8-bit grey or RGB."""
        return Image.fromarray(self.pixels[index])
