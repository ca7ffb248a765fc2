"""The table of op rules: what every ATen operation does to channels. An operation without a row freezes what it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from prunus.errors import UnknownName
from prunus.graph import rules_compute, rules_elementwise, rules_movement, rules_statistics
from prunus.graph.op_call import OpCall, is_pointwise, is_view

Rule: TypeAlias = Callable[[OpCall], None]


def _rows(rule: Rule, names: str) -> dict[str, Rule]:
    return {name if "::" in name else f"aten::{name}": rule for name in names.split()}


OP_RULES: dict[str, Rule] = {
    # costly operations: channels are read and written
    **_rows(rules_compute.convolution, "convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution"),
    **_rows(rules_compute.matrix_product, "mm bmm addmm baddbmm mv addmv dot vdot"),
    **_rows(rules_compute.linear, "linear"),
    **_rows(rules_compute.embedding, "embedding"),
    # normalisation
    **_rows(
        rules_statistics.batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm"
        " _batch_norm_with_update _batch_norm_no_update batch_norm_with_update_functional",
    ),
    **_rows(rules_statistics.layer_norm, "native_layer_norm _fused_rms_norm"),
    **_rows(rules_statistics.group_norm, "native_group_norm"),
    **_rows(rules_statistics.weight_norm, "_weight_norm_interface"),
    # statistics over axes
    **_rows(
        rules_statistics.reduction,
        "mean sum prod amax amin max min var std var_mean std_mean logsumexp linalg_vector_norm norm any all"
        " argmax argmin median",
    ),
    **_rows(rules_statistics.along_axis, "_softmax _log_softmax cumsum cumprod logcumsumexp"),
    # spatial operations: trailing axes are pixels, the others pass
    **_rows(
        rules_movement.spatial(1),
        "max_pool1d avg_pool1d upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d reflection_pad1d replication_pad1d",
    ),
    **_rows(
        rules_movement.spatial(2),
        "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d"
        " mkldnn_max_pool2d"
        " fractional_max_pool2d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d _upsample_bilinear2d_aa"
        " upsample_bicubic2d _upsample_bicubic2d_aa reflection_pad2d replication_pad2d grid_sampler_2d max_unpool2d",
    ),
    **_rows(
        rules_movement.spatial(3),
        "max_pool3d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d"
        " _upsample_nearest_exact3d upsample_trilinear3d reflection_pad3d replication_pad3d grid_sampler_3d",
    ),
    # movement along the channel axis itself is exact only where a replay on the surviving labels gives the surviving labels
    **_rows(rules_movement.concatenate, "cat"),
    **_rows(rules_movement.stack, "stack"),
    **_rows(rules_movement.part, "slice split split_with_sizes narrow chunk"),
    **_rows(
        rules_movement.absolute_index, "select unbind index index_select gather roll unfold as_strided index_put take_along_dim"
    ),
    **_rows(rules_movement.pad, "constant_pad_nd"),
    **_rows(rules_movement.gated_half, "glu"),
    **_rows(rules_movement.pixel_shuffle, "pixel_shuffle"),
    **_rows(rules_movement.pixel_unshuffle, "pixel_unshuffle"),
    **_rows(rules_movement.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_rows(rules_movement.replay, "_unsafe_view _reshape_alias _reshape_copy reshape repeat flip tile expand_copy permute_copy"),
    # element by element, though not tagged so
    **_rows(
        rules_elementwise.pointwise,
        "native_dropout dropout alpha_dropout _to_copy clone contiguous copy_ empty_like zeros_like ones_like rand_like"
        " randn_like"
        " full_like bernoulli_ bernoulli uniform_ normal_ fill_ zero_ lift_fresh _prelu_kernel rrelu_with_noise masked_fill where"
        " hardswish hardsigmoid hardtanh silu gelu mish elu celu selu leaky_relu softplus softshrink hardshrink threshold relu6",
    ),
    # results that don't depend on channels
    **_rows(
        rules_elementwise.no_labels, "detach_ requires_grad_ resize_ set_ new_empty new_zeros new_ones new_full new_empty_strided"
    ),
}


_found: dict[Any, Rule | None] = {}


def rule_for(func: Any) -> Rule | None:
    """The rule of an operation: its row, else by its schema (views, element-wise), else None."""
    if func not in _found:
        _found[func] = _find(func)
    return _found[func]


def _find(func: Any) -> Rule | None:
    name = func._schema.name
    row = OP_RULES.get(str(func).replace(".", "::", 1)) or OP_RULES.get(name)
    if row is None and name.endswith("_"):
        row = OP_RULES.get(name[:-1])
    if row is not None:
        return row
    if is_pointwise(func):
        return rules_elementwise.pointwise
    if is_view(func):
        return rules_movement.replay
    return None


def op_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for custom operations: ``@prunus.op_rule("mylib::scale")``.

    The rule gets an `OpCall` after the operation has run, and says what it did to channels: ``op.follow(x)`` (the result has
    the channels of x), ``op.unify``, ``op.tie``, ``op.mark``, ``op.mix``, ``op.freeze``.

    Raises:
        UnknownName: a name isn't of the form ``namespace::operation``.
    """
    for name in names:
        if name.count("::") != 1:
            raise UnknownName(f"op rule for {name!r}: write the operation as 'namespace::operation', e.g. 'mylib::scale'")

    def register(rule: Rule) -> Rule:
        OP_RULES.update(dict.fromkeys(names, rule))
        _found.clear()
        return rule

    return register
