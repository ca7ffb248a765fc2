"""Criteria that look at the derivative of the loss by a channel's gate."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.group_view import GroupView
from prunus.importance.evidence import Evidence


def taylor(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over minibatches of (dL/dgate)^2, L the batch-mean loss; the estimated squared loss change of removing the channel.

    Molchanov et al. 2019, first order on gates. Departure: the gate sits where the channel is read, so that one channel of a
    residual stage is one gate whose derivative is summed over all readers; for a plain conv-norm-ReLU it equals the gate behind
    the norm.
    """
    return evidence.of("gate_gradients", view.group)


def taylor_per_example(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over minibatches of the sum over examples of (dL/dgate of the example)^2: their signs can't cancel (Fisher form).

    L is the batch-mean loss, so b examples in one batch give 1/b of the mean over b batches of one example.
    """
    return evidence.of("example_gate_gradients", view.group)
