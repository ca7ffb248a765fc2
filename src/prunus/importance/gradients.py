"""Criteria that look at derivatives of the loss: by a channel's gate, by its activation, its weights, its norm."""

from __future__ import annotations

from torch import Tensor

from prunus.graph.group_view import GroupView
from prunus.importance.combine import aggregate
from prunus.importance.evidence import Evidence


def taylor(view: GroupView, evidence: Evidence, *, division: str = "none") -> Tensor | None:
    """Mean over minibatches of (dL/dgate)^2, L the batch-mean loss; the estimated squared loss change of removing the channel.

        g[c]     = dL/dgate[c] = sum over the weights w that read channel c of w * dL/dw
        score[c] = mean over minibatches of g[c]^2

    Molchanov et al. 2019, first order on gates. Departure: the gate sits where the channel is read, so that one channel of a
    residual stage is one gate whose derivative is summed over all readers; for a plain conv-norm-ReLU it equals the gate behind
    the norm. ``division``: ``mean`` averages the derivative over the weights that read the channel before squaring;
    ``released`` is the rule of the authors' code for ResNets, which divides the squared score by the number of blocks that write
    a residual stage, and by three anywhere else.

    When to use: by default, wherever there are labelled images: a forward and a backward pass score all channels at once, on one
    scale over all layers. A network that knows its training images by heart should see them augmented.
    """
    return _divided(evidence.of("gate_gradients", view.group), view, division)


def taylor_per_example(view: GroupView, evidence: Evidence, *, division: str = "none") -> Tensor | None:
    """Mean over minibatches of the sum over examples of (dL/dgate of the example)^2: their signs can't cancel (Fisher form).

        score[c] = mean over minibatches of sum over examples n of (dL/dgate[n, c])^2

    L is the batch-mean loss, so b examples in one batch give 1/b of the mean over b batches of one example. ``division``: as for
    taylor.

    When to use: where minibatches are large or few: examples that pull a channel in opposite directions cancel in the form by
    batch, and both count here.
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

        score[c] = mean over minibatches of sum over i, y, x of (W[c, i, y, x] * dL/dW[c, i, y, x])^2

    Molchanov et al. 2019, on weights: each product is squared before summing, because behind a layer follows a norm the plain sum
    is nearly zero. ``members``: mean, sum, max or l2 over the weights.

    When to use: for groups that no plain weight reads, of which the form on gates says nothing; and to compare with the paper.
    """
    found = evidence.of("weight_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_on_norms(view: GroupView, evidence: Evidence, *, members: str = "sum") -> Tensor | None:
    """Mean over minibatches of (gamma dL/dgamma + beta dL/dbeta)^2; summed over the norm layers of the group, None without one.

        score[c] = mean over minibatches of (gamma[c] * dL/dgamma[c] + beta[c] * dL/dbeta[c])^2

    Molchanov et al. 2019, on batch norms. It is the derivative by a gate between norm and activation, which equals taylor's
    behind a ReLU and no other function. ``members``: mean, sum, max or l2 over the norm layers.

    When to use: to compare with figures that were published for it, on networks of convolution, batch norm and ReLU.
    """
    found = evidence.of("norm_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_on_norm_scales(view: GroupView, evidence: Evidence, *, members: str = "sum") -> Tensor | None:
    """Mean over minibatches of (gamma dL/dgamma)^2; summed over the norm layers of the group, None without one.

        score[c] = mean over minibatches of (gamma[c] * dL/dgamma[c])^2

    What the released code of Molchanov et al. 2019 computes on batch norms: it passes over beta. ``members``: as on norms.

    When to use: only to reproduce what that code gives.
    """
    found = evidence.of("norm_scale_products", view.group)
    return None if found is None else aggregate(found, members)


def taylor_2016(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over examples of abs(mean over the map of activation x gradient), divided by its L2 norm over the layer.

        theta[c] = mean over n of abs(mean over y, x of a[n, c, y, x] * dL_n/da[n, c, y, x])
        score[c] = theta[c] / sqrt(sum over channels k of theta[k]^2)

    Molchanov et al. 2017 (arXiv 2016). The gradient is that of each example's own loss. Departures: activations are those that
    the next layers read; where several layers read a channel, their products are summed, as at the point before they part. The
    paper's penalty on cost (0.001) is the option ``macs_penalty``: per million multiply-adds that go with the channel, those of
    the reading layers included, which the paper's form doesn't count. ``variant``: ``paper``; ``blog``; ``released``, method 6
    of the code released in 2019.

    When to use: with the paper's schedule of many small removals, and where layers should lose channels at a similar pace: the
    norm over the layer takes away what one layer matters more than another. The raw scores don't compare over layers.
    """
    return evidence.of("product_means", view.group)


def taylor_2016_blog(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Abs of the sum over minibatches of the mean over examples and map of activation x gradient, then the layer's L2 norm.

        r[c]     = sum over minibatches of mean over n, y, x of a[n, c, y, x] * dL_n/da[n, c, y, x]
        score[c] = abs(r[c]) / sqrt(sum over channels k of r[k]^2)

    The widely copied recipe of J. Gildenblat (2017): signs of examples and positions cancel before the absolute value is taken.

    When to use: to repeat what tutorials that follow this recipe do.
    """
    found = evidence.of("product_sums", view.group)
    return None if found is None else found.abs()


def taylor_2016_released(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean of abs(activation x gradient) over examples and map, divided by its L2 norm in each minibatch; mean over minibatches.

        t[c]     = mean over n, y, x of abs(a[n, c, y, x] * dL_n/da[n, c, y, x])
        score[c] = mean over minibatches of t[c] / sqrt(sum over channels k of t[k]^2)

    Method 6 of the code released with Molchanov et al. 2019: the absolute value is taken of every element.

    When to use: to compare with figures that this code gave.
    """
    return evidence.of("absolute_products", view.group)


def gradient_mean(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over examples and map of abs(dL/dactivation), taken where the channel is read; L is each example's own loss.

        score[c] = mean over n, y, x of abs(dL_n/da[n, c, y, x])

    Where several layers read a channel, the mean goes over the positions of all of them.

    When to use: in comparisons, to see what the activation adds to the gradient in Taylor's product.
    """
    return evidence.of("gradient_means", view.group)


def taylor_second_order(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Mean over minibatches of (H / 2 - dL/dgate)^2 with H the gate's own second derivative; exact for a quadratic loss.

        score[c] = mean over minibatches of (d2L/dgate[c]^2 / 2 - dL/dgate[c])^2

    Molchanov et al. 2019, second order, from the diagonal of the Hessian of the gates by double backward: one backward pass
    for every channel, so dear on wide networks. The gate sits where the channel is read, as for taylor.

    When to use: on small networks in which single channels matter so much that a straight line misjudges their loss, and taylor
    ranks the most important ones wrongly. Its cost grows with the number of channels, as the oracle's does.
    """
    return evidence.of("second_order_changes", view.group)


def obd(view: GroupView, evidence: Evidence) -> Tensor | None:
    """Half the second derivative of the loss by the channel's gate (mean over minibatches): the change of the loss at a minimum.

        score[c] = mean over minibatches of d2L/dgate[c]^2 / 2

    LeCun et al. 1989, saliency h w^2 / 2, for the gate (w = 1) in place of single weights: the joint change of all of a channel's
    weights. It may be negative where training hasn't converged. Dear as taylor_second_order. (The code released with Molchanov
    et al. 2019 sums w h without the half and the square.)

    When to use: on a network trained until its gradients vanish, where the first order has nothing left to say.
    """
    found = evidence.of("gate_curvatures", view.group)
    return None if found is None else found / 2
