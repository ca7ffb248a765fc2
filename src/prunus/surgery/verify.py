"""Verification: the small network must give the outputs of the silenced one, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import raise_if_out_of_memory
from prunus.graph.labels import named_tensors
from prunus.graph.trace import tensors_in, twice
from prunus.types import ExampleInputs, ForwardFn, VerificationReport, call_model, map_tensors

TOLERANCE = 1e-9


def verify(
    silent: nn.Module,
    small: nn.Module,
    example_inputs: ExampleInputs,
    *,
    forward_fn: ForwardFn | None = None,
    tolerance: float = TOLERANCE,
) -> VerificationReport:
    """Compare two networks on the same inputs in evaluation mode and float64; neither is changed.

    Returns:
        The largest output difference relative to the largest magnitude of that output. A network that can't run in float64
        is compared in float32 against a tolerance of 1e-4, and ``detail`` says so. A forward pass that fails is a failed report.
    """
    try:
        with _default_dtype(torch.float64):
            reference = _reference(silent, example_inputs, forward_fn)
            return compare(reference, _outputs(small, example_inputs, torch.float64, forward_fn), tolerance)
    except _ReferenceFailed:
        pass  # constants in float32 inside the network: compare in float32
    except Exception as error:
        raise_if_out_of_memory(error)
        return _failed(small, error, tolerance)
    try:
        reference, own = (_outputs(m, example_inputs, torch.float32, forward_fn) for m in (silent, small))
    except Exception as error:
        raise_if_out_of_memory(error)
        return _failed(small, error, 1e-4)
    report = compare(reference, own, 1e-4)
    return VerificationReport(
        report.max_error, 1e-4, report.passed, f"compared in float32: this network can't run in float64. {report.detail}".strip()
    )


class _ReferenceFailed(Exception):
    """The silenced network itself can't run in float64."""


def _reference(silent: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> list[Tensor]:
    try:
        return _outputs(silent, inputs, torch.float64, forward_fn)
    except Exception as error:
        raise_if_out_of_memory(error)
        raise _ReferenceFailed from error


def _failed(small: nn.Module, error: Exception, tolerance: float, mode: str = "") -> VerificationReport:
    return VerificationReport(
        math.inf, tolerance, False, f"the forward pass {mode}after removal fails: {type(error).__name__}: {error}"
    )


def verify_training(
    silent: nn.Module, small: nn.Module, inputs: ExampleInputs, *, forward_fn: ForwardFn | None = None, tolerance: float = 1e-6
) -> VerificationReport:
    """The comparison of `verify` in training mode, dropout off: code that only training runs may hold a width, too.

    Where the original doesn't train on these inputs, nor on them doubled, or its outputs are random, there is nothing to compare
    with: then the small network must only run.
    """
    for candidate in (inputs, twice(inputs)):
        try:
            with _default_dtype(torch.float64):
                reference = _outputs(silent, candidate, torch.float64, forward_fn, training=True)
        except Exception as error:
            raise_if_out_of_memory(error)
            continue
        try:
            with _default_dtype(torch.float64):
                own = _outputs(small, candidate, torch.float64, forward_fn, training=True)
        except Exception as error:
            raise_if_out_of_memory(error)
            return _failed(small, error, tolerance, "in training mode ")
        report = compare(reference, own, tolerance)
        if report.passed:
            return report
        with _default_dtype(torch.float64):
            again = _outputs(silent, candidate, torch.float64, forward_fn, seed=1, training=True)
        if not compare(reference, again, tolerance).passed:
            return VerificationReport(report.max_error, tolerance, True, "random in training mode")
        return replace(report, detail=f"in training mode, {report.detail}")
    return VerificationReport(0.0, tolerance, True, "the original doesn't run in training mode")


def _outputs(
    model: nn.Module, inputs: Any, dtype: torch.dtype, forward_fn: ForwardFn | None, *, seed: int = 0, training: bool = False
) -> list[Tensor]:
    return _after_forward(model, inputs, dtype, forward_fn, seed=seed, training=training)[1]


def _after_forward(
    model: nn.Module, inputs: Any, dtype: torch.dtype, forward_fn: ForwardFn | None, *, seed: int = 0, training: bool = False
) -> tuple[nn.Module, list[Tensor]]:
    """A copy of ``model`` in ``dtype`` behind one forward pass without dropout, and its outputs."""

    def cast(tensor: Tensor) -> Tensor:  # copies: a network that works in place must not change what the next one gets
        return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    twin = copy.deepcopy(model).to(dtype).train(training)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            module.p = 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return twin, tensors_in(call_model(twin, map_tensors(cast, inputs), forward_fn))


def compare(reference: list[Tensor], own: list[Tensor], tolerance: float) -> VerificationReport:
    """Compare two lists of outputs; see `verify`."""
    if [t.shape for t in reference] != [t.shape for t in own]:
        shapes = [tuple(t.shape) for t in reference], [tuple(t.shape) for t in own]
        return VerificationReport(math.inf, tolerance, False, f"outputs have other shapes: {shapes[0]} against {shapes[1]}")
    if not reference:
        return VerificationReport(
            math.inf,
            tolerance,
            False,
            "the network returns no tensor, so there is nothing to compare: give a forward_fn that does",
        )
    worst, detail = 0.0, ""
    for i, (a, b) in enumerate(zip(reference, own, strict=True)):
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            error = 0.0 if torch.equal(a, b) else 1.0
        else:
            difference, scale = float((a - b).abs().max()), float(a.abs().max())
            if not math.isfinite(scale):
                return VerificationReport(
                    math.nan, tolerance, False, f"output {i} is not finite: nothing can be concluded from it"
                )
            error = 0.0 if difference == 0 else difference / scale if scale > 0 and math.isfinite(difference) else math.inf
        if error > worst:
            worst, detail = error, f"largest in output {i} of {len(reference)}"
    return VerificationReport(worst, tolerance, worst <= tolerance, detail)


def amplification(model: nn.Module, inputs: ExampleInputs, forward_fn: ForwardFn | None = None) -> float:
    """How many times larger a relative change by one rounding step of float64 is in the outputs than it was in ``inputs``.

    Well-conditioned networks stay below a hundred; from 1e4 on, another order of summation may cost more than `TOLERANCE`.
    nan where the outputs aren't finite, or the network doesn't run in float64.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        up = torch.rand(tensor.shape, generator=generator).to(tensor.device) < 0.5
        return torch.nextafter(tensor.double(), torch.where(up, torch.inf, -torch.inf).double())

    try:
        with _default_dtype(torch.float64):
            reference, own = (_outputs(model, x, torch.float64, forward_fn) for x in (inputs, map_tensors(moved, inputs)))
    except Exception as error:
        raise_if_out_of_memory(error)
        return math.nan
    return compare(reference, own, 0.0).max_error / torch.finfo(torch.float64).eps


def settled(model: nn.Module, inputs: ExampleInputs, forward_fn: ForwardFn | None = None) -> nn.Module:
    """A copy whose batch norms carry the statistics of ``inputs``: activations don't grow from layer to layer any more, nor,
    as a rule, does what rounding did to them. It is an unchanged copy where the network doesn't train on ``inputs``."""
    twin = copy.deepcopy(model)
    trained = copy.deepcopy(model)
    for norm in _batch_norms(trained):
        norm.momentum = 1.0
    try:
        with _default_dtype(torch.float64):
            trained = _after_forward(trained, inputs, torch.float64, forward_fn, training=True)[0]
    except Exception as error:
        raise_if_out_of_memory(error)
        return twin
    for norm, source in zip(_batch_norms(twin), _batch_norms(trained), strict=True):
        for name, buffer in norm.named_buffers():
            buffer.copy_(source.get_buffer(name))
    return twin


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:  # pyright: ignore[reportPrivateUsage]
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore[reportPrivateUsage]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with all float parameters and buffers away from zero, for checks that must not be blind.

    A branch that starts at zero (a last norm initialised so) hides what surgery did behind it: a check on such weights proves
    nothing.
    So do channels that a ReLU has closed for good. Filters therefore have as many negative weights as positive ones (the
    common offset of their inputs can't close a channel), those of nine weights or fewer are averages, vectors and buffers lie in
    [0.5, 1.5], and running means in [-1.5, -0.5], which pushes channels open.
    """
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(p) for p in twin.parameters()}
    with torch.no_grad():
        for name, tensor in named_tensors(twin):
            if not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 0
            if id(tensor) in parameters and fan_in > 9:
                values *= _balanced_signs(tensor, generator) / math.sqrt(fan_in)
            elif id(tensor) in parameters and fan_in:
                values /= fan_in
            elif name.endswith("running_mean"):
                values = -values
            tensor.copy_(values)
    return twin


def _balanced_signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """As many -1 as +1 in every filter: windows, each at a random place, of one random row of signs (a sort of each is slow)."""
    fan_in = tensor[0].numel()
    row = torch.randperm(fan_in, generator=generator) % 2 * 2.0 - 1
    starts = torch.randint(fan_in, (len(tensor),), generator=generator)
    return torch.cat([row, row]).unfold(0, fan_in, 1)[starts].view(tensor.shape)
