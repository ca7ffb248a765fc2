"""The laboratory: criteria judged side by side, against the oracle and by what is left when their lowest channels are removed."""

from prunus.laboratory.agreement import Agreement, agreement, correlations, lowest_overlap, spearman
from prunus.laboratory.compare import compare
from prunus.laboratory.contenders import Contender, read_criteria
from prunus.laboratory.removal import RECOVERIES, Recovery
from prunus.laboratory.settings import Settings, Subject

__all__ = [
    "RECOVERIES",
    "Agreement",
    "Contender",
    "Recovery",
    "Settings",
    "Subject",
    "agreement",
    "compare",
    "correlations",
    "lowest_overlap",
    "read_criteria",
    "spearman",
]
