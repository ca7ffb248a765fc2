"""`trace`: from a network and example inputs to its `ChannelGraph`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from prunus.errors import UnknownName, UnsupportedNetwork, raise_if_out_of_memory
from prunus.graph.as_found import as_found
from prunus.graph.branches import OUTPUT
from prunus.graph.build import build_graph
from prunus.graph.dry_run import ValuesNeeded
from prunus.graph.labels import LabelSpace
from prunus.graph.tracer import Tracer
from prunus.types import ChannelGraph, ExampleInputs, ForwardFn, Units, call_model, first_tensor, map_tensors
from prunus.wrapping import refuse_wrapped

Keep: TypeAlias = "str | type | Callable[[str, nn.Module], bool] | Sequence[str | type]"


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    keep: Keep = (),
    mixing: Literal["allow", "freeze"] = "allow",
    forward_fn: ForwardFn | None = None,
    train_inputs: ExampleInputs | None = None,
    *,
    whole_groups: bool = False,
) -> ChannelGraph:
    """Find the channel groups of ``model``: which channels must be removed together, which can't be and why, and what they cost.

    Both modes are traced, so that parts which only training runs (auxiliary heads) are pruned along. The model, its statistics,
    modes and the random state are left as found.

    Args:
        model: any `nn.Module` that runs on ``example_inputs``, neither wrapped or divided (DDP, FSDP) nor compiled.
        example_inputs: a tensor, a tuple (positional) or a dict (keyword); costs are per input, at batch 1.
        keep: module or parameter names, globs over them, module types, or ``predicate(name, module)``: their shapes never change.
        mixing: ``"allow"`` or ``"freeze"`` groups over which an operation computes statistics (layer norm, softmax, ...).
        forward_fn: ``forward_fn(model, example_inputs)`` where the call isn't ``model(*inputs)``.
        train_inputs: where training takes other inputs than evaluation.
        whole_groups: grouped convolutions and group norms lose whole groups (their number is lowered; exact for group norms, too)
            instead of the same slots of every group.

    Raises:
        UnsupportedNetwork: wrapped, compiled, lazy or non-finite, or its forward pass fails.
        UnknownName: a selector in ``keep`` names nothing, or ``mixing`` is unknown.
    """
    if mixing not in ("allow", "freeze"):
        raise UnknownName.among("value of mixing", mixing, ("allow", "freeze"))
    _check_traceable(model)
    kept = _selector(model, keep)
    units = Units(groups=whole_groups, norm_groups=whole_groups or mixing == "freeze")
    train_on = example_inputs if train_inputs is None else train_inputs
    while True:
        space = LabelSpace(model)
        notes: list[str] = []
        with as_found(model):
            tracers = _trace_both(model, space, example_inputs, train_on, forward_fn, units, notes)
        heads = units.heads.union(*(tracer.heads for tracer in tracers))
        if heads == units.heads:
            break
        units = replace(units, heads=heads)
        del tracers  # before new ones are made: what a trace keeps is most of its memory
    graph = build_graph(model, space, tracers, kept, mixing, _batch_size(example_inputs), notes)
    return replace(graph, units=units)


def _trace_both(
    model: nn.Module,
    space: LabelSpace,
    inputs: Any,
    train_inputs: Any,
    forward_fn: ForwardFn | None,
    units: Units,
    notes: list[str],
) -> list[Tracer]:
    """Traces of evaluation and, if it runs, of training."""
    model.eval()
    tracers = [_trace_mode(model, [inputs], space, forward_fn, units)]
    model.train()
    try:
        tracers.append(_trace_mode(model, [train_inputs, twice(train_inputs)], space, forward_fn, units))
    except UnsupportedNetwork as error:
        notes.append(f"training mode could not be traced, so parts that only training runs are unknown: {error}")
    return tracers


def _check_traceable(model: nn.Module) -> None:
    refuse_wrapped(model)
    if hasattr(model, "_orig_mod") or type(model).__name__ == "OptimizedModule":
        raise UnsupportedNetwork("the model is compiled: prune the original (`model._orig_mod`), then compile the result")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedNetwork(
            "the model is a TorchScript module, whose code can't be traced: prune the Python module it was made from"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedNetwork(f"`{name}` is lazy and has no shape yet: run the model once on real input before tracing")
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise UnsupportedNetwork(
                f"`{name}` holds NaN or infinite values: no score or check on this network would mean anything"
            )
    _check_copyable(model)


def _check_copyable(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise UnsupportedNetwork(
                    f"`{path}.{attribute}` is a tensor with a gradient graph, which can't be copied with the network: detach it; "
                    "for `torch.nn.utils.weight_norm` and masks of `torch.nn.utils.prune` run the network once under "
                    "`torch.no_grad()`, or use `torch.nn.utils.parametrizations.weight_norm`"
                )


def _is_finite(tensor: Tensor) -> bool:
    """A finite sum proves finite entries, at a fraction of the cost; an overflowing sum proves nothing."""
    return bool(torch.isfinite(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


def _selector(model: nn.Module, keep: Keep) -> Callable[[str], str | None]:
    """A function from parameter name to the reason why it is kept, or None."""
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    selectors = [keep] if isinstance(keep, (str, type)) or callable(keep) else list(keep)
    reasons: dict[str, str] = {}
    for selector in selectors:
        if isinstance(selector, str):
            hits = {n for n in (*modules, *parameters) if n == selector or fnmatchcase(n, selector)}
        elif isinstance(selector, type):
            hits = {n for n, m in modules.items() if isinstance(m, selector)}
        else:
            hits = {n for n, m in modules.items() if selector(n, m)}
        if not hits:
            shown = selector if isinstance(selector, str) else getattr(selector, "__name__", repr(selector))
            if isinstance(selector, str):
                raise UnknownName.among("selector in keep", shown, {*modules, *parameters})
            raise UnknownName(f"selector {shown} in keep matches no module of the network")
        reasons |= dict.fromkeys(
            hits, f"`{selector if isinstance(selector, str) else getattr(selector, '__name__', selector)}` is listed in keep"
        )

    def reason(parameter: str) -> str | None:
        parts = parameter.split(".")
        prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
        return next((reasons[p] for p in prefixes if p in reasons), None)

    return reason


def _trace_mode(
    model: nn.Module, candidates: Sequence[Any], space: LabelSpace, forward_fn: ForwardFn | None, units: Units
) -> Tracer:
    """One traced pass in the mode the model is in: dry on the first inputs that run, else with real values.

    Zeros may lead a network astray, so an error counts only if real values raise it, too.
    """
    failure: UnsupportedNetwork | None = None
    for dry in (True, False):
        for inputs in candidates:
            try:
                return _run(model, inputs, space, forward_fn, dry, units)
            except ValuesNeeded:
                break
            except UnsupportedNetwork as error:
                failure = error if failure is None or inputs is candidates[0] else failure  # of the inputs that were given
    assert failure is not None, "a run on real values never asks for values"
    raise failure


def _run(model: nn.Module, inputs: Any, space: LabelSpace, forward_fn: ForwardFn | None, dry: bool, units: Units) -> Tracer:
    """One traced forward pass; raises `UnsupportedNetwork` if it fails or returns no tensor."""
    tracer = Tracer(model, space, dry, units)
    own = cloned(inputs)  # a network that works in place must not change the caller's tensors
    tracer.add_inputs(tensors_in(own))
    try:
        with tracer.watching_modules(), tracer:
            output = call_model(model, own, forward_fn)
    except ValuesNeeded:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        mode = "training" if model.training else "evaluation"
        where = tracer.last_entered or "the network"
        raise UnsupportedNetwork(
            f"the forward pass in {mode} mode fails in `{where}`: {type(error).__name__}: {error}; "
            "check example_inputs (or give forward_fn / train_inputs) by calling the model with them"
        ) from error
    finally:
        tracer.undo_writes()
    leaves = tensors_in(output)
    if not leaves:
        raise UnsupportedNetwork(
            f"the network returns no tensor but {type(output).__name__}, so nothing can be followed or checked: "
            "give a forward_fn that returns the tensors of the output"
        )
    tracer.freeze_numbered(leaves, "the number of a channel is the network's output")
    for leaf in leaves:
        for labels in tracer.field(leaf).axes.values():
            tracer.frozen.append((labels, OUTPUT))
    return tracer


def twice(inputs: Any) -> Any:
    """The inputs doubled along their first axis: batch norm over one value per channel refuses to train."""
    return map_tensors(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor, inputs)


def cloned(inputs: Any) -> Any:
    """The same nest of inputs, its tensors copied."""
    return map_tensors(torch.clone, inputs)


def tensors_in(value: Any, depth: int = 0) -> list[Tensor]:
    """Every tensor in a nest of tuples, lists, dicts and plain objects (dataclass outputs)."""
    if isinstance(value, Tensor):
        return [value]
    if depth > 8 or value is None or isinstance(value, (str, bytes, int, float, nn.Module)):
        return []
    if isinstance(value, Mapping):
        parts = list(cast("Mapping[Any, Any]", value).values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(cast("list[Any]", value))
    else:
        slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
        parts = [*slots, *getattr(value, "__dict__", {}).values()]
    return [tensor for part in parts for tensor in tensors_in(part, depth + 1)]


def _batch_size(inputs: Any) -> int:
    """Examples in the inputs: entries of the first tensor's first axis, or of the list that holds one image each (detection)."""
    if isinstance(inputs, (tuple, list)) and inputs and isinstance(inputs[0], list):
        return max(len(cast("list[Any]", inputs[0])), 1)
    tensor = first_tensor(inputs)
    return int(tensor.shape[0]) if tensor is not None and tensor.ndim >= 2 and not isinstance(inputs, list) else 1
