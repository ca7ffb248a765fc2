"""One torch thread in every test process (pytest-xdist runs two), and the same random numbers for every test."""

from __future__ import annotations

import os
import random
from pathlib import Path

# For processes that tests start; this one is set below.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images and trained weights for tests marked `data`; skips where there is none."""
    folder = Path(os.environ.get("PRUNUS_DATA", Path(__file__).parents[2] / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip(f"no data folder at {folder}; name one with PRUNUS_DATA")
    return folder
