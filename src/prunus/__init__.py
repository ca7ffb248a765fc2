"""Prunus: exact structured pruning for PyTorch convolutional networks."""

from prunus.allocation import ALLOCATORS, allocate, reach
from prunus.budgets import Timing
from prunus.errors import (
    ArtifactError,
    BudgetNotMet,
    DataError,
    EvidenceError,
    ExportError,
    InvalidBudget,
    NothingPruned,
    PrunusError,
    PrunusWarning,
    RecipeError,
    TrainingError,
    UnknownName,
    UnsupportedNetwork,
    VerificationFailed,
)
from prunus.graph import OP_RULES, op_rule, trace
from prunus.importance import CRITERIA, score
from prunus.pipeline.prune import PruneResult, prune
from prunus.pipeline.removal import remove
from prunus.pipeline.time_network import time_network
from prunus.reconstruction import prune_lossless
from prunus.surgery import SurgeryRecord, load, save, silence, verify
from prunus.types import (
    Budget,
    ChannelGraph,
    ChannelGroup,
    Cost,
    GroupMember,
    Layer,
    ParameterAxis,
    PruningPlan,
    Scores,
    VerificationReport,
)
from prunus.version import VERSION as __version__

__all__ = [
    "ALLOCATORS",
    "CRITERIA",
    "OP_RULES",
    "ArtifactError",
    "Budget",
    "BudgetNotMet",
    "ChannelGraph",
    "ChannelGroup",
    "Cost",
    "DataError",
    "EvidenceError",
    "ExportError",
    "GroupMember",
    "InvalidBudget",
    "Layer",
    "NothingPruned",
    "ParameterAxis",
    "PruneResult",
    "PruningPlan",
    "PrunusError",
    "PrunusWarning",
    "RecipeError",
    "Scores",
    "SurgeryRecord",
    "Timing",
    "TrainingError",
    "UnknownName",
    "UnsupportedNetwork",
    "VerificationFailed",
    "VerificationReport",
    "__version__",
    "allocate",
    "load",
    "op_rule",
    "prune",
    "prune_lossless",
    "reach",
    "remove",
    "save",
    "score",
    "silence",
    "time_network",
    "trace",
    "verify",
]
