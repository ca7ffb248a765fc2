"""The library works without its extras: no training, terminal, data or export package is imported with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = """
import sys
extras = ("accelerate", "pydantic", "rich", "typer", "plotly", "torchvision", "PIL", "sklearn", "optuna", "timm", "onnx",
          "onnxscript", "onnxruntime", "openvino", "tensorboard", "huggingface_hub", "tensorly", "lightning",
          "transformers")
sys.modules.update(dict.fromkeys(extras))  # None: importing one raises ImportError
import torch
from torch import nn
import prunus
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
result = prunus.prune(model, torch.randn(2, 3, 9, 9), prunus.Budget(macs=0.5))
assert result.verification.passed and result.model[0].out_channels == 4
prunus.save(result.model, result.record, sys.argv[1])
again = prunus.load(sys.argv[1], nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
assert again[0].out_channels == 4
"""


def test_pruning_needs_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path / "small.prunus")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
