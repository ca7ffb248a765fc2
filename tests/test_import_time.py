"""`import prunus` brings no heavy package along, and takes little beside PyTorch's own import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("accelerate", "cmaes", "huggingface_hub", "IPython", "matplotlib", "mlflow", "onnx", "onnxruntime", "onnxscript"),
    *("openvino", "optuna", "pandas", "PIL", "plotly", "pydantic", "rich", "sklearn", "tensorboard", "tensorly", "timm"),
    *("torch._dynamo", "torch._inductor", "torchvision", "typer", "scipy.optimize", "scipy.stats", "scipy.interpolate"),
    *("lightning", "transformers"),
)
IMPORTED = """
import sys, time
begin = time.process_time()
import torch
middle = time.process_time()
before = set(sys.modules)
import prunus
end = time.process_time()
import json
print(json.dumps({"torch": middle - begin, "prunus": end - middle, "new": sorted(set(sys.modules) - before)}))
"""


def imported() -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORTED], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict:
    """The second of two imports: the first one may have compiled the sources."""
    imported()
    return imported()


def test_nothing_heavy_is_imported(found: dict) -> None:
    assert not {name for name in HEAVY if name in found["new"]}
    ours = [name for name in found["new"] if name.split(".")[0] == "prunus"]
    assert not {name.split(".")[1] for name in ours if "." in name} & {
        "cli",
        "laboratory",
        "report",
        "training",
        "sources",
        "config",
    }


def test_the_import_takes_less_than_that_of_torch(found: dict) -> None:
    """CPU seconds of both in one process: other work on the machine takes from both alike."""
    assert found["prunus"] < found["torch"]
