"""The oracle on a sample of the channels, drawn from every layer: what other criteria are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunus.errors import RecipeError
from prunus.importance.evidence import DataRun
from prunus.importance.oracle_batches import Ablation
from prunus.types import ChannelGraph, ChannelGroup

LEAST_OF_GROUP = 4
"""So many channels of every group are in a sample if it is large enough: fewer have no rank correlation worth the name."""


def stratified_sample(groups: Iterable[ChannelGroup], number: int | None, seed: int) -> dict[str, Tensor]:
    """Channels drawn from every group in proportion to its size: group name -> int64, ascending; all of them for None.

    Small groups get `LEAST_OF_GROUP` channels (or all they have) where ``number`` allows; it is met exactly, unless there are
    fewer channels.

    Raises:
        RecipeError: fewer channels than groups are asked for.
    """
    sizes = {group.name: group.num_channels for group in groups}
    if number is None or number >= sum(sizes.values()):
        return {name: torch.arange(size) for name, size in sizes.items()}
    if number < len(sizes):
        raise RecipeError(f"a sample of {number} channels can't hold one of each of the {len(sizes)} groups: ask for more")
    generator = torch.Generator().manual_seed(seed)
    quotas = _quotas(sizes, number)
    return {name: torch.randperm(size, generator=generator)[: quotas[name]].sort().values for name, size in sizes.items()}


def _quotas(sizes: Mapping[str, int], number: int) -> dict[str, int]:
    """Whole numbers that add up to ``number``: the least of every group, the rest in proportion, by largest remainders."""
    least = min(LEAST_OF_GROUP, number // len(sizes))
    quotas = {name: min(least, size) for name, size in sizes.items()}
    while rest := number - sum(quotas.values()):
        room = {name: size - quotas[name] for name, size in sizes.items() if size > quotas[name]}
        wanted = {name: rest * left / sum(room.values()) for name, left in room.items()}
        for name, share in wanted.items():
            quotas[name] += int(share)
        over = number - sum(quotas.values())
        for name in sorted(wanted, key=lambda n: wanted[n] % 1, reverse=True)[:over]:
            quotas[name] += 1
    return quotas


def sampled_oracle(
    model: nn.Module, graph: ChannelGraph, run: DataRun, sample: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Absolute change of the mean loss by silencing each sampled channel alone, and the number of losses that took.

    Group name -> float64 (channels in the sample,). Groups that computed weights or opaque operations read are left out. With
    all channels in the sample it is the criterion ``oracle``.

    Raises:
        EvidenceError: the data are empty or a loss isn't finite.
    """
    totals: dict[str, Tensor] = {}
    examples = 0
    ablation = Ablation(model, graph, run)
    with ablation() as batches:
        for batch in batches:
            for name in ablation.sizes:
                part = batch.examples * ablation.changes(batch, name, sample[name])
                totals[name] = totals[name] + part if name in totals else part
            examples += batch.examples
    return {name: (total / examples).abs() for name, total in totals.items()}, ablation.evaluations
