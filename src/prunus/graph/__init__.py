"""From a network to its channel groups.

A channel is a label. One forward pass under a dispatch mode pushes integer labels through the ATen operations (`tracer`,
`labels`); operations that only move data are run on the labels themselves, the others have a row in one table (`op_rules`).
Labels that meet are unified, and what can't be followed is frozen with its reason (`build`).
"""

from prunus.graph.group_view import GroupView
from prunus.graph.op_rules import OP_RULES, op_rule
from prunus.graph.trace import trace

__all__ = ["OP_RULES", "GroupView", "op_rule", "trace"]
