"""Particle filter: random sets of channels that survive on the data or don't."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.graph.group_view import GroupView
from prunus.importance.evidence import DataRun, Evidence
from prunus.importance.oracle_batches import Ablation
from prunus.types import ChannelGraph

PARTICLES = 32
KEPT = 0.9
"""The probability that a channel is in a particle at first."""
FLIPPED = 0.01
"""The probability that a channel changes sides after each resampling."""


def particle_filter(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Share of particles (random sets of kept channels) that hold the channel, weighted by how well they do: in [0, 1].

        w[p]     = softmax over particles p of -loss(p)
        score[c] = mean over minibatches of sum over p of w[p] * mask[p, c]

    Anwar et al. 2015, a baseline. A reconstruction from a summary: `PARTICLES` masks over all channels, weighted by exp(-loss) on
    each minibatch, resampled by weight and jittered; the share is the mean over minibatches.

    When to use: in comparisons, on small networks: the few particles tell hundreds of channels apart poorly.
    """
    return evidence.of("particle_survival", view.group)


def particle_survival(model: nn.Module, graph: ChannelGraph, run: DataRun) -> dict[str, Tensor]:
    """Weighted share of particles that hold each channel, mean over minibatches: group name -> float64 (num_channels,).

    Every minibatch costs `PARTICLES` forward passes.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    generator = torch.Generator().manual_seed(run.seed)
    ablation = Ablation(model, graph, run, fast=False)
    masks = shares = torch.empty(0)
    count = 0
    with ablation() as batches:
        for batch in batches:
            sizes = list(ablation.sizes.values())
            if count == 0:
                masks = torch.rand(PARTICLES, sum(sizes), generator=generator) < KEPT
                shares = torch.zeros(sum(sizes), dtype=torch.float64)
            gates = (dict(zip(ablation.sizes, mask.float().split(sizes), strict=True)) for mask in masks)
            losses = torch.tensor([batch.loss_with(gate) for gate in gates], dtype=torch.float64)
            weights = torch.softmax(-losses, 0)
            shares += weights @ masks.double()
            masks = resampled(masks, weights, generator)
            count += 1
    return dict(zip(ablation.sizes, (shares / count).split(list(ablation.sizes.values())), strict=True))


def resampled(masks: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """As many particles, drawn by weight at equal distances (systematic resampling), some channels flipped: bool as ``masks``."""
    start = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(len(masks), dtype=torch.float64) + start) / len(masks)
    chosen = torch.searchsorted(weights.cumsum(0), points).clamp(max=len(masks) - 1)
    return masks[chosen] ^ (torch.rand(masks.shape, generator=generator) < FLIPPED)
