"""Is it pruned exactly? Checks for users and their CI: `check_network` for a network, `check_op_rule` for an operation's rule."""

from prunus.testing.network import NetworkReport, check_network, random_plan
from prunus.testing.operation import OpRuleReport, check_op_rule

__all__ = ["NetworkReport", "OpRuleReport", "check_network", "check_op_rule", "random_plan"]
