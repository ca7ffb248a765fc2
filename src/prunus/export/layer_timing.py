"""Time of single layers at any widths: convolutions and matrix products built for the purpose, in a runtime."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunus.budgets import EXPORTED, Timing
from prunus.export.onnx import require_onnx
from prunus.export.runtimes import no_garbage_collection
from prunus.export.sessions import session_of
from prunus.export.signature import FlatInputs
from prunus.types import Layer

SECONDS = 0.4
"""About so long the widths of one layer are timed in all, each at least `FEWEST` times."""
FEWEST = 5


@dataclass(frozen=True)
class LayerShape:
    """What the time of a layer depends on, besides its widths: ``reads`` and ``writes`` are those of the full network.

    A convolution has ``pixels`` of input, its window and ``groups``; anything else is timed as the matrix product of as many
    ``rows`` that has its widths.
    """

    kind: str
    reads: int
    writes: int
    batch: int
    rows: int = 0
    pixels: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, layer: Layer, traced_batch: int, batch: int) -> LayerShape:
        """The shape of a layer of a graph that was traced on ``traced_batch`` inputs, for ``batch`` of them."""
        reads, writes, window = len(layer.reads), len(layer.writes), layer.window
        if window is None or len(window.input_size) < 3:
            rows = max(1, math.prod(layer.output_size) * batch // (writes * max(traced_batch, 1)))
            return cls("product", reads, writes, batch, rows=rows)
        return cls(
            layer.kind,
            reads,
            writes,
            batch,
            pixels=window.input_size[2:],
            kernel=layer.kernel_size,
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            output_padding=window.output_padding,
            groups=layer.groups,
        )

    @property
    def depthwise(self) -> bool:
        """Whether every channel is filtered by itself, so that only ``writes`` is a width."""
        return self.groups > 1 and self.reads == 1

    def key(self) -> str:
        """The shape as text, for the cache."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value not in ((), 0))

    def groups_at(self, writes: int) -> int:
        """Groups left at this width: all where every group lost the same slots, else in proportion (whole groups went)."""
        if not self.depthwise and writes % self.groups == 0:
            return self.groups
        return max(1, round(self.groups * writes / self.writes))

    def work(self, reads: int, writes: int) -> tuple[int, int]:
        """Multiply-adds, and numbers read and written once (input, weight, output)."""
        x, weight, _ = self.operands(reads, writes)
        with torch.device("meta"):
            out = self._call(torch.empty(x), torch.empty(weight), self.groups_at(writes))
        per_output = math.prod(weight[2:]) * weight[0 if self.kind.startswith("transposed") else 1] if self.pixels else reads
        positions = math.prod(x) // x[1] * weight[0] if self.kind.startswith("transposed") else out.numel()
        macs = positions * (math.prod(weight[1:]) if self.kind.startswith("transposed") else per_output)
        return macs, math.prod(x) + math.prod(weight) + out.numel()

    def operands(self, reads: int, writes: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sizes of input and weight at these widths, and the groups."""
        if not self.pixels:
            return (self.rows, reads), (writes, reads), 1
        groups = self.groups_at(writes)
        if self.kind.startswith("transposed"):
            return (self.batch, reads, *self.pixels), (reads, max(1, writes), *self.kernel), groups
        writes = max(1, writes // groups) * groups
        return (self.batch, reads * groups, *self.pixels), (writes, reads, *self.kernel), groups

    def _call(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        if not self.pixels:
            return functional.linear(x, weight)
        transposed = self.kind.startswith("transposed")
        arguments: tuple[Any, ...] = (self.stride, self.padding, self.dilation, transposed, self.output_padding, groups)
        return torch.convolution(x, weight, None, *arguments)

    def eager(self, reads: int, writes: int, timing: Timing) -> Callable[[], Any]:
        """A call of the layer in PyTorch on random values."""
        (x_size, weight_size, groups), dtype = self.operands(reads, writes), getattr(torch, timing.dtype)
        x, weight = torch.randn(x_size).to(dtype), torch.randn(weight_size).to(dtype)
        if timing.channels_last and x.ndim == 4:
            x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))

        def call() -> Tensor:
            return self._call(x, weight, groups)

        return call

    def onnx(self, reads: int, writes: int, timing: Timing, runtime: str = "onnxruntime") -> Callable[[], Any]:
        """A call of the layer in a runtime of files on random values, its weight a constant of the graph."""
        from onnx import TensorProto, helper, numpy_helper

        x_size, weight_size, groups = self.operands(reads, writes)
        weight = numpy_helper.from_array(torch.randn(weight_size).numpy(), "weight")
        attributes: dict[str, Any] = {}
        if self.pixels:
            attributes = {
                "strides": self.stride,
                "pads": (*self.padding, *self.padding),
                "dilations": self.dilation,
                "group": groups,
                "kernel_shape": self.kernel,
            }
            if self.kind.startswith("transposed"):
                attributes["output_padding"] = self.output_padding
        name = "Gemm" if not self.pixels else "ConvTranspose" if self.kind.startswith("transposed") else "Conv"
        attributes = attributes or {"transB": 1}
        node = helper.make_node(name, ["x", "weight"], ["y"], **attributes)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, x_size)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return session_of(model.SerializeToString(), timing.threads, runtime).bind(FlatInputs.of(torch.randn(x_size)))


def time_layer(
    shape: LayerShape, widths: Sequence[tuple[int, int]], runtime: str, timing: Timing, *, seconds: float = SECONDS
) -> list[float]:
    """Milliseconds of one call at each of these (reads, writes), in turns of changing order, so that a slow spell hits all alike.

    The lower quartile of the turns: calls are so short that whatever disturbs one only adds to it.
    Under ``compile`` layers are timed in eager PyTorch: the compiler calls the same convolutions and matrix products and fuses
    what is around them, which whole networks show.
    """
    if runtime in EXPORTED:
        require_onnx()
    build = functools.partial(shape.onnx, runtime=runtime) if runtime in EXPORTED else shape.eager
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(timing.threads)
        with torch.inference_mode(), no_garbage_collection():
            calls = [build(reads, writes, timing) for reads, writes in widths]
            once = 0.0
            for _ in range(2):  # the first one sets things up
                once = sum(_elapsed(call) for call in calls)
            times = _in_turns(calls, max(FEWEST, min(60, int(seconds / max(once, 1e-9)))))
    finally:
        torch.set_num_threads(threads)
    return [float(np.quantile(each, 0.25)) * 1e3 for each in times]


def _in_turns(calls: Sequence[Callable[[], Any]], turns: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    order, generator = list(range(len(calls))), random.Random(0)
    for _ in range(turns):
        generator.shuffle(order)
        for index in order:
            times[index].append(_elapsed(calls[index]))
    return times


def _elapsed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
