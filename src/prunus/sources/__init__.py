"""What ``timm:resnet18`` and ``folder:photos`` mean: networks, weights and images named by a string. Knows nothing of pruning."""

from __future__ import annotations

from prunus.sources.bundle import DataBundle, make_loader
from prunus.sources.datasets import load_data
from prunus.sources.heads import replace_head
from prunus.sources.models import load_model, model_names
from prunus.sources.pretrained import own_normalisation
from prunus.sources.user_file import load_function
from prunus.sources.weights import load_weights

__all__ = [
    "DataBundle",
    "load_data",
    "load_function",
    "load_model",
    "load_weights",
    "make_loader",
    "model_names",
    "own_normalisation",
    "replace_head",
]
