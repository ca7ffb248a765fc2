"""Lottery tickets, supermasks, and the question whether it is the architecture or the weights."""

from prunus.tickets.actions import KEPT_ACTIONS, PRUNED_ACTIONS, start, start_kept, start_pruned
from prunus.tickets.criteria import MASK_CRITERIA, WeightHistory, mask_scores
from prunus.tickets.lottery import (
    CONTROLS,
    Snapshot,
    control_start,
    kept_after,
    next_round,
    random_masks,
    round_counts,
    sign_agreement,
)
from prunus.tickets.masks import Masks, apply_masks, dense_masks, keep_highest, load_masks, remove_masks, save_masks
from prunus.tickets.scratch import ARMS, Arm, arms, milestones, reinitialise, scratch_epochs
from prunus.tickets.structured import masks_of_plan, plan_of_masks
from prunus.tickets.supermask import attach_supermasks, remove_supermasks, set_evaluation, straight_through
from prunus.tickets.torch_masks import from_torch_masks, plan_of_filters, to_torch_masks

__all__ = [
    "ARMS",
    "CONTROLS",
    "KEPT_ACTIONS",
    "MASK_CRITERIA",
    "PRUNED_ACTIONS",
    "Arm",
    "Masks",
    "Snapshot",
    "WeightHistory",
    "apply_masks",
    "arms",
    "attach_supermasks",
    "control_start",
    "dense_masks",
    "from_torch_masks",
    "keep_highest",
    "kept_after",
    "load_masks",
    "mask_scores",
    "masks_of_plan",
    "milestones",
    "next_round",
    "plan_of_filters",
    "plan_of_masks",
    "random_masks",
    "reinitialise",
    "remove_masks",
    "remove_supermasks",
    "round_counts",
    "save_masks",
    "scratch_epochs",
    "set_evaluation",
    "sign_agreement",
    "start",
    "start_kept",
    "start_pruned",
    "straight_through",
    "to_torch_masks",
]
