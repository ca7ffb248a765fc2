"""Recovering accuracy without training: what can be computed from data."""

from prunus.reconstruction.channel_pruning import ChannelPruning, prune_channels
from prunus.reconstruction.compensation import Compensation, compensate, compensate_removed
from prunus.reconstruction.constants import FoldingReport, fold_constants
from prunus.reconstruction.factorize import Factorisation, factorize
from prunus.reconstruction.layer_fit import LayerFit
from prunus.reconstruction.lossless import LosslessResult, prune_lossless
from prunus.reconstruction.means import channel_means
from prunus.reconstruction.regression import ReconstructionReport, reconstruct
from prunus.reconstruction.statistics import recalibrate
from prunus.reconstruction.three_c import three_c

__all__ = [
    "ChannelPruning",
    "Compensation",
    "Factorisation",
    "FoldingReport",
    "LayerFit",
    "LosslessResult",
    "ReconstructionReport",
    "channel_means",
    "compensate",
    "compensate_removed",
    "factorize",
    "fold_constants",
    "prune_channels",
    "prune_lossless",
    "recalibrate",
    "reconstruct",
    "three_c",
]
