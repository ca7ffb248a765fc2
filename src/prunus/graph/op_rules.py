"""The table of op rules: what every ATen operation does to channels. An operation without a row freezes what it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from prunus.errors import UnknownName
from prunus.graph import (
    rules_algebra,
    rules_attention,
    rules_compute,
    rules_elementwise,
    rules_movement,
    rules_opaque,
    rules_parts,
    rules_selection,
    rules_sequence,
    rules_statistics,
    rules_vision,
)
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
    **_rows(rules_statistics.along_axis, "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp"),
    **_rows(rules_selection.counted, "aminmax nansum count_nonzero"),
    **_rows(rules_selection.order_statistic, "kthvalue mode nanmedian"),
    **_rows(rules_selection.running_extreme, "cummax cummin"),
    **_rows(rules_selection.largest, "topk"),
    **_rows(rules_selection.ranking, "sort"),
    **_rows(rules_selection.distances, "_cdist_forward _euclidean_dist cdist"),
    **_rows(rules_selection.renormalised, "renorm"),
    # attention and sequences
    **_rows(
        rules_attention.scaled_dot_product,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention"
        " _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math"
        " _scaled_dot_product_attention_math_for_mps scaled_dot_product_attention",
    ),
    **_rows(rules_attention.scaled_by_number, "mul.Scalar"),
    **_rows(
        rules_opaque.FUSED_LAYER,
        "_native_multi_head_attention _transformer_encoder_layer_fwd _flash_attention_forward _efficient_attention_forward",
    ),
    **_rows(rules_sequence.recurrent_layer, "mkldnn_rnn_layer"),
    **_rows(
        rules_opaque.RECURRENT_CELL,
        "_thnn_fused_lstm_cell _thnn_fused_gru_cell _cudnn_rnn miopen_rnn lstm gru rnn_tanh rnn_relu lstm_cell gru_cell"
        " rnn_tanh_cell rnn_relu_cell",
    ),
    **_rows(rules_sequence.packing, "_pack_padded_sequence _pad_packed_sequence"),
    **_rows(rules_sequence.embedding_bag, "_embedding_bag _embedding_bag_forward_only"),
    **_rows(rules_sequence.bilinear, "_trilinear"),
    # regions, windows and grids of images
    **_rows(rules_vision.region_pool, "torchvision::roi_align torchvision::roi_pool"),
    **_rows(rules_vision.position_sensitive_pool, "torchvision::ps_roi_align torchvision::ps_roi_pool"),
    **_rows(rules_vision.suppression, "torchvision::nms"),
    **_rows(rules_vision.deformable_convolution, "torchvision::deform_conv2d"),
    **_rows(rules_vision.windows, "im2col"),
    **_rows(rules_vision.overlap_add, "col2im"),
    **_rows(rules_vision.grid_sample, "grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler"),
    **_rows(rules_vision.affine_grid, "affine_grid_generator"),
    # Fourier transforms and complex numbers
    **_rows(rules_algebra.fourier, "_fft_r2c _fft_c2c _fft_c2r"),
    **_rows(rules_algebra.triangle, "tril triu"),
    **_rows(rules_algebra.complex_parts, "view_as_real"),
    **_rows(rules_algebra.complex_from_parts, "view_as_complex"),
    # spatial operations: trailing axes are pixels, the others pass
    **_rows(
        rules_movement.spatial(1),
        "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d"
        " upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d reflection_pad1d replication_pad1d",
    ),
    **_rows(
        rules_movement.spatial(2),
        "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d"
        " mkldnn_max_pool2d"
        " fractional_max_pool2d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d _upsample_bilinear2d_aa"
        " upsample_bicubic2d _upsample_bicubic2d_aa reflection_pad2d replication_pad2d max_unpool2d _upsample_lanczos2d_aa",
    ),
    **_rows(
        rules_movement.spatial(3),
        "max_pool3d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d"
        " _upsample_nearest_exact3d upsample_trilinear3d reflection_pad3d replication_pad3d max_unpool3d",
    ),
    # movement along the channel axis itself is exact only where a replay on the surviving labels gives the surviving labels
    **_rows(rules_movement.concatenate, "cat"),
    **_rows(rules_movement.stack, "stack"),
    **_rows(rules_parts.part, "slice split split_with_sizes narrow chunk"),
    **_rows(rules_parts.absolute_index, "select unbind index_select gather roll unfold as_strided take_along_dim"),
    **_rows(rules_parts.part, "unsafe_split unsafe_split_with_sizes"),
    **_rows(rules_movement.pad, "constant_pad_nd"),
    **_rows(rules_algebra.in_place_shape, "transpose_ swapaxes_ swapdims_ t_ squeeze_ unsqueeze_ as_strided_"),
    **_rows(
        rules_selection.scattered,
        "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce",
    ),
    **_rows(rules_selection.picked, "index _unsafe_index"),
    **_rows(rules_selection.written_at, "index_put _unsafe_index_put _index_put_impl_"),
    **_rows(rules_selection.place_written, "slice_scatter select_scatter"),
    **_rows(rules_selection.searched, "searchsorted bucketize"),
    **_rows(rules_movement.gated_half, "glu"),
    **_rows(rules_movement.pixel_shuffle, "pixel_shuffle"),
    **_rows(rules_movement.pixel_unshuffle, "pixel_unshuffle"),
    **_rows(rules_movement.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_rows(
        rules_movement.replay, "_unsafe_view _reshape_alias _reshape_copy reshape repeat flip rot90 tile expand_copy permute_copy"
    ),
    # element by element, though not tagged so
    **_rows(
        rules_elementwise.pointwise,
        "native_dropout dropout alpha_dropout _to_copy clone contiguous copy_ empty_like zeros_like ones_like rand_like"
        " randn_like"
        " full_like bernoulli_ bernoulli uniform_ normal_ fill_ zero_ lift_fresh _prelu_kernel rrelu_with_noise masked_fill where"
        " fake_quantize_per_tensor_affine_cachemask"
        " copy fill zero complex polar lift floor_divide normal poisson exponential_ geometric_ cauchy_ log_normal_ randint_like"
        " log_sigmoid_forward"
        " hardswish hardsigmoid hardtanh silu gelu mish elu celu selu leaky_relu softplus softshrink hardshrink threshold relu6",
    ),
    # results that don't depend on channels
    **_rows(
        rules_elementwise.no_labels,
        "detach_ requires_grad_ resize_ set_ new_empty new_zeros new_ones new_full new_empty_strided"
        " empty empty_strided zeros ones full eye arange linspace logspace rand randn randint randperm scalar_tensor"
        " _local_scalar_dense",
    ),
    # operations after which there are no channels: what they touch is frozen, with a reason
    **_rows(
        rules_opaque.DECOMPOSITION,
        "_linalg_svd _linalg_det _linalg_slogdet _linalg_eigh _linalg_eigvals linalg_eig linalg_qr linalg_inv_ex _linalg_solve_ex"
        " linalg_cholesky_ex cholesky_inverse cholesky_solve linalg_lu linalg_lu_factor_ex linalg_lu_solve lu_unpack"
        " linalg_matrix_exp linalg_householder_product linalg_solve_triangular triangular_solve ormqr linalg_ldl_factor_ex"
        " linalg_ldl_solve",
    ),
    **_rows(rules_opaque.RANDOM_DRAW, "multinomial _standard_gamma _sample_dirichlet binomial"),
    **_rows(
        rules_opaque.VALUES_DECIDE,
        "nonzero nonzero_static masked_select masked_scatter _unique _unique2 unique_dim unique_consecutive bincount histc"
        " repeat_interleave",
    ),
    **_rows(
        rules_opaque.LOSS,
        "nll_loss_forward nll_loss2d_forward _ctc_loss mse_loss smooth_l1_loss huber_loss binary_cross_entropy"
        " binary_cross_entropy_with_logits soft_margin_loss multi_margin_loss multilabel_margin_loss_forward",
    ),
    **_rows(rules_opaque.QUANTISED, "_int_mm _scaled_mm _weight_int4pack_mm _weight_int8pack_mm _grouped_mm"),
    **_rows(
        rules_opaque.MATRIX_ENTRIES,
        "diag_embed diagonal_scatter as_strided_scatter block_diag take put addr addbmm linalg_cross trace",
    ),
    **_rows(rules_opaque.COMPARED, "_pdist_forward isin dist segment_reduce"),
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
