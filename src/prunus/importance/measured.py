"""The rows of criteria that watch or disturb the network: activations, the oracle and its relatives."""

from __future__ import annotations

from dataclasses import replace

from prunus.importance import ablation, activations, functionality, lasso, oracle_damage, oracle_particles
from prunus.importance.row import CriterionRow

_TRIMMING = "Hu et al., Network Trimming, 2016"
_RESOURCE = "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017"

_ORACLE = CriterionRow(
    "oracle",
    ablation.oracle,
    _RESOURCE,
    needs=frozenset({"loss_changes"}),
    comparable=True,
    settings={"signed": (False, True)},
)
_OTHER = replace(_ORACLE, settings={})
_GREEDY = {
    False: _ORACLE,
    "absolute": replace(_OTHER, function=ablation.greedy_oracle, needs=frozenset({"removal_order"})),
    "signed": replace(_OTHER, function=ablation.signed_greedy_oracle, needs=frozenset({"signed_removal_order"})),
}
_RACING = {
    False: _ORACLE,
    True: replace(_OTHER, function=ablation.raced_oracle, needs=frozenset({"raced_loss_changes"})),
}


def _activation(name: str, function: activations.Score, paper: str) -> CriterionRow:
    return CriterionRow(name, function, paper, needs=frozenset({name}))


MEASURED: tuple[CriterionRow, ...] = (
    _activation("apoz", activations.apoz, _TRIMMING),
    _activation("activation_mean", activations.activation_mean, _RESOURCE + " (a baseline)"),
    _activation("activation_std", activations.activation_std, _RESOURCE + " (a baseline)"),
    _activation("activation_max", activations.activation_max, "a baseline of the activation family: no paper's own"),
    _activation("entropy", activations.entropy, "Luo and Wu, An Entropy-based Pruning Method for CNN Compression, 2017"),
    _activation("feature_map_rank", activations.feature_map_rank, "Lin et al., HRank, CVPR 2020"),
    replace(_ORACLE, variants={"racing": _RACING, "greedy": _GREEDY}),
    CriterionRow(
        "aofp_damage",
        oracle_damage.aofp_damage,
        "Ding et al., Approximated Oracle Filter Pruning, ICML 2019",
        needs=frozenset({"half_damages"}),
    ),
    CriterionRow(
        "functionality",
        functionality.functionality,
        "Qin et al., Functionality-Oriented Convolutional Filter Pruning, BMVC 2019",
        needs=frozenset({"preferences"}),
        comparable=True,
        settings={"clusters": functionality.CLUSTERS, "by": ("responses", "images")},
    ),
    CriterionRow("lasso", lasso.lasso, "He et al., Channel Pruning, ICCV 2017", needs=frozenset({"lasso_entries"})),
    CriterionRow(
        "particle_filter",
        oracle_particles.particle_filter,
        "Anwar et al., Structured Pruning of Deep Convolutional Neural Networks, 2015",
        needs=frozenset({"particle_survival"}),
        comparable=True,
    ),
)
