"""The table of kinds of evidence, and the one way to collect several of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice

from torch import Tensor, nn

from prunus.importance.ablation import ABLATION_COLLECTORS
from prunus.importance.activations import ACTIVATION_KINDS, activation_statistics
from prunus.importance.curvature import CURVATURE_COLLECTORS
from prunus.importance.evidence import Collector, DataRun, example_gate_gradients, gate_gradients
from prunus.importance.evidence_gradients import GRADIENT_COLLECTORS
from prunus.importance.functionality import preferences
from prunus.importance.lasso import lasso_entries
from prunus.importance.oracle_damage import half_damages
from prunus.importance.oracle_particles import particle_survival
from prunus.importance.shared_evidence import collect_shared
from prunus.types import ChannelGraph


def _one_statistic(kind: str) -> Collector:
    return lambda model, graph, run: activation_statistics((kind,), model, graph, run)[kind]


COLLECTORS: dict[str, Collector] = {
    "gate_gradients": gate_gradients,
    "example_gate_gradients": example_gate_gradients,
    **GRADIENT_COLLECTORS,
    **CURVATURE_COLLECTORS,
    **ABLATION_COLLECTORS,
    **{kind: _one_statistic(kind) for kind in ACTIVATION_KINDS},
    "half_damages": half_damages,
    "particle_survival": particle_survival,
    "lasso_entries": lasso_entries,
    "preferences": preferences,
}
"""Kind of evidence -> what collects it: (model, graph, run) -> group name -> (num_channels,)."""


def collect(kinds: Collection[str], model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, dict[str, Tensor]]:
    """Evidence of every kind: kind -> group name -> (num_channels,); all statistics of activations come from one pass.

    Several processes divide the work where they can, see `collect_shared` and the oracle.
    """
    if len(kinds) > 1 and isinstance(run.data, Iterator):  # each kind goes through all of it
        run = replace(run, data=list(islice(run.data, run.batches)))
    shared = collect_shared(kinds, model, graph, run, _collect)
    return shared | _collect([kind for kind in kinds if kind not in shared], model, graph, run)


def _collect(kinds: Collection[str], model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, dict[str, Tensor]]:
    activations = sorted(kind for kind in kinds if kind in ACTIVATION_KINDS)
    found = activation_statistics(activations, model, graph, run) if activations else {}
    return found | {kind: COLLECTORS[kind](model, graph, run) for kind in sorted(kinds) if kind not in found}
