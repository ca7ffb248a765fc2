"""Criteria that look at derivatives of the loss: by a channel's gate, by its activation, its weights, its norm."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.group_view import GroupView
from prunus.importance.combine import aggregate
from prunus.importance.evidence import Evidence


def taylor(view: GroupView, evidence: Evidence, *, division: str = "none") -> Tensor | None:
    """Mean over minibatches of (dL/dgate)^2, L the batch-mean loss; the estimated squared loss change of removing the channel.

    Molchanov et al. 2019, first order on gates. Departure: the gate sits where the channel is read, so that one channel of a
    residual stage is one gate whose derivative is summed over all readers; for a plain conv-norm-ReLU it equals the gate behind
    the norm. ``division``: ``mean`` averages the derivative over the weights that read the channel before squaring;
    ``released`` is the rule of the authors' code for ResNets, which divides the squared score by the number of blocks that write
    a residual stage, and by three anywhere else.
    """
    return _divided(evidence.of("gate_gradients", view.group), view, division)


def taylor_per_example(view: GroupView, evidence: Evidence, *, division: str = "none") -> Tensor | None:
    """Mean over minibatches of the sum over examples of (dL/dgate of the example)^2: their signs can't cancel (Fisher form).

    L is the batch-mean loss, so b examples in one batch give 1/b of the mean over b batches of one example. ``division``: as for
    taylor.
    """
    return _divided(evidence.of("example_gate_gradients", view.group), view, division)


def _divided(squared: Tensor | None, view: GroupView, division: str) -> Tensor | None:
    if squared is None or division == "none":
        return squared
    if division == "mean":
        return squared / len(view.matrices("reads")) ** 2
    # A stage of n blocks is written by n weights and by what it starts from: the shortcut's projection, or the layer before.
    writers = len(view.matrices("writes"))
    return squared / (writers - 1 if writers > 1 else 3)


def taylor_on_weights(view: GroupView, evidence: Evidence, *, members: str = "sum") -> Tensor | None:
    """Mean over minibatches of the sum over a filter of (weight x dL/dweight)^2; summed over the weights that write the group.

    Molchanov et al. 2019, on weights: each product is squared before summing, because behind a layer follows a norm the plain sum
    is nearly zero. ``members``: mean, sum, max or l2 over the weights.
    """
    found = evidence.of("weight_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_on_norms(view: GroupView, evidence: Evidence, *, members: str = "sum") -> Tensor | None:
    """Mean over minibatches of (gamma dL/dgamma + beta dL/dbeta)^2; summed over the norm layers of the group, None without one.

    Molchanov et al. 2019, on batch norms. It is the derivative by a gate between norm and activation, which equals taylor's
    behind a ReLU and no other function. ``members``: mean, sum, max or l2 over the norm layers.
    """
    found = evidence.of("norm_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_on_norm_scales(view: GroupView, evidence: Evidence, *, members: str = "sum") -> Tensor | None:
    """Mean over minibatches of (gamma dL/dgamma)^2; summed over the norm layers of the group, None without one.

    What the released code of Molchanov et al. 2019 computes on batch norms: it passes over beta. ``members``: as on norms.
    """
    found = evidence.of("norm_scale_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_2016(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over examples of abs(mean over the map of activation x gradient), divided by its L2 norm over the layer.

    Molchanov et al. 2017 (arXiv 2016). The gradient is that of each example's own loss. Departures: activations are those that
    the next layers read; where several layers read a channel, their products are summed, as at the point before they part. The
    paper's penalty on cost (0.001) is the option ``macs_penalty``: per million multiply-adds that go with the channel, those of
    the reading layers included, which the paper's form doesn't count. ``variant``: ``paper``; ``blog``; ``released``, method 6
    of the code released in 2019.
    """
    return evidence.of("product_means", view.group)


def taylor_2016_blog(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Abs of the sum over minibatches of the mean over examples and map of activation x gradient, then the layer's L2 norm.

    The widely copied recipe of J. Gildenblat (2017): signs of examples and positions cancel before the absolute value is taken.
    """
    found = evidence.of("product_sums", view.group)
    return None if found is None else found.abs()


def taylor_2016_released(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean of abs(activation x gradient) over examples and map, divided by its L2 norm in each minibatch; mean over minibatches.

    Method 6 of the code released with Molchanov et al. 2019: the absolute value is taken of every element.
    """
    return evidence.of("absolute_products", view.group)


def gradient_mean(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over examples and map of abs(dL/dactivation), taken where the channel is read; L is each example's own loss.

    Where several layers read a channel, the mean goes over the positions of all of them.
    """
    return evidence.of("gradient_means", view.group)


def taylor_second_order(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over minibatches of (H / 2 - dL/dgate)^2 with H the gate's own second derivative; exact for a quadratic loss.

    Molchanov et al. 2019, second order, from the diagonal of the Hessian of the gates by double backward: one backward pass
    for every channel, so dear on wide networks. The gate sits where the channel is read, as for taylor.
    """
    return evidence.of("second_order_changes", view.group)


def obd(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Half the second derivative of the loss by the channel's gate (mean over minibatches): the change of the loss at a minimum.

    LeCun et al. 1989, saliency h w^2 / 2, for the gate (w = 1) in place of single weights: the joint change of all of a channel's
    weights. It may be negative where training hasn't converged. Dear as taylor_second_order. (The code released with Molchanov
    et al. 2019 sums w h without the half and the square.)
    """
    found = evidence.of("gate_curvatures", view.group)
    return None if found is None else found / 2
