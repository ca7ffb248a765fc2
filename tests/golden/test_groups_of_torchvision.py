"""The groups of a few torchvision networks as they were: a change must be seen and meant.

To accept one: ``PRUNUS_REGENERATE=1 python -m pytest tests/golden``, then look at the difference in version control.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torchvision

from prunus.graph import trace

FILE = Path(__file__).with_name("groups.json")
NAMES = ["resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1", "regnet_y_400mf", "googlenet"]


def _groups(name: str) -> list[list[object]]:
    options = {"init_weights": False} if name == "googlenet" else {}
    graph = trace(torchvision.models.get_model(name, weights=None, **options).eval(), torch.zeros(1, 3, 64, 64))
    rows: list[list[object]] = []
    for g in graph.groups:
        writers = len(g.with_role("writes"))
        rows.append([g.name, g.num_channels, writers, len(g.members), g.frozen_because, g.mixing])
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_the_recorded_ones(name: str) -> None:
    found = _groups(name)
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("PRUNUS_REGENERATE"):
        lines = {n: rows for n, rows in sorted((recorded | {name: found}).items())}
        text = ",\n".join(f'"{n}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n]" for n, rows in lines.items())
        FILE.write_text("{\n" + text + "\n}\n")
        return
    assert found == recorded[name]
