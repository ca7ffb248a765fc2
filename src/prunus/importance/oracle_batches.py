"""Losses of a network with channels silenced, batch by batch: by re-entering it where it can be, else by running all of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import EvidenceError, PrunusWarning
from prunus.graph.as_found import as_found
from prunus.graph.gates import Gates
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun, for_gradients, to_device, without
from prunus.importance.oracle_replay import Lanes, NotReplayable, Recording, record, replay, tensors_in
from prunus.importance.processes import as_the_first, in_step, several_processes, split
from prunus.importance.readers import DirectReaders, Reading, reading_members, readings
from prunus.types import ChannelGraph, first_tensor, map_tensors

SAME_DATA = 1e-9
"""Batches of two processes are the same if their magnitudes differ by no more than this, relative."""


class Ablation:
    """Losses of a network with channels silenced, batch by batch; enter it first: it leaves the model as found.

    ``fast=False`` runs the whole network for every channel. Otherwise the network is re-entered behind the reading layers
    (`prunus.importance.oracle_replay`); each group is checked once against the plain loop, and where a network can't be
    re-entered exactly, the plain loop takes over and ``notes`` says why.

    With ``shared`` the processes of a process group, if there is one, split the channels of `changes` among them: all of them
    must go through the same calls with the same data, which is checked at every batch.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, run: DataRun, *, fast: bool = True, shared: bool = False) -> None:
        members = reading_members(model, graph)
        self.model, self.graph, self.run, self.fast = model, graph, run, fast
        self._shared = shared and several_processes()
        self.readings = {name: readings(model, parts) for name, parts in members.items()}
        self.sizes = {g.name: g.num_channels for g in graph.prunable if g.name in members}
        self.notes: list[str] = []
        self.evaluations = 0
        self._checked: set[str] = set()

    @contextmanager
    def __call__(self) -> Generator[Iterator[Batch]]:
        """Evaluation mode without gradients; yields the batches."""
        with as_found(self.model):
            self.model.eval()
            yield self._in_step() if self._shared else self._batches()
        if self.notes:
            reasons = "; ".join(dict.fromkeys(self.notes))
            text = f"the oracle ran the whole network for every channel, which is exact but slow, because: {reasons}"
            warnings.warn(text, PrunusWarning, stacklevel=4)

    def _in_step(self) -> Iterator[Batch]:
        """The batches, while every process is at the same one."""
        latest: list[Batch] = []

        def described() -> Iterator[Tensor]:
            for batch in self._batches():
                latest[:] = [batch]
                yield batch.figures()

        # Only the loss is computed in the network's precision: the data must be the same to the last digits.
        tolerances = torch.tensor([self._rounding, SAME_DATA, SAME_DATA], dtype=torch.float64)
        for _ in in_step(described(), self._device, tolerances):
            yield latest[0]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def _rounding(self) -> float:
        """Relative difference that rounding may make to a loss."""
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.finfo(dtype).eps ** 0.5

    def _batches(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.run):
            batch = to_device(batch, self.model)
            if index == 0:
                self._leave_out_indirect(batch)
            yield Batch(self, batch)

    def _leave_out_indirect(self, batch: Any) -> None:
        """Groups that a computed weight or an opaque operation reads have no gate, so nothing can be said of them."""
        members, tensors = reading_members(self.model, self.graph), dict(named_tensors(self.model))
        weights = {m.parameter_axis.parameter: tensors[m.parameter_axis.parameter] for parts in members.values() for m in parts}
        with for_gradients(self.model, list(weights.values())):
            with DirectReaders() as seen:
                outputs = tensors_in(self.run.output(self.model, batch))
            floats = [out.sum() for out in outputs if out.requires_grad]
            if not floats:
                raise EvidenceError("the network's output doesn't depend on its weights through autograd: give forward_fn")
            indirect = seen.indirect(torch.stack(floats).sum(), weights.values())
        direct = without(members, {name for name, weight in weights.items() if id(weight) in indirect})
        self.readings = {name: self.readings[name] for name in direct}
        self.sizes = {name: self.sizes[name] for name in direct}

    def changes(self, batch: Batch, name: str, channels: Tensor) -> Tensor:
        """Loss change of the batch for each of these channels (int64) of a group, each silenced alone: float64 (n,), CPU.

        Where processes share the work, each evaluates a part of the channels and gets the changes of all.
        """
        self.evaluations += len(channels)

        def evaluate(part: Tensor) -> Tensor:
            return self._losses(batch, name, part) - batch.base

        return split(evaluate, channels, self._device) if self._shared else evaluate(channels)

    def agreed(self, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, float64 on the CPU; where processes share the work, as the first of them found it."""
        return as_the_first(compute, self._device) if self._shared else compute()

    def _losses(self, batch: Batch, name: str, channels: Tensor) -> Tensor:
        while batch.recording is not None and len(channels):
            try:
                losses = batch.replayed(name, channels)
                if name not in self._checked:
                    self._check(batch, name, channels, losses)
                return losses
            except NotReplayable as error:
                batch.record(str(error))
        return batch.one_by_one(name, channels)

    def _check(self, batch: Batch, name: str, channels: Tensor, losses: Tensor) -> None:
        """Compare the channel that moves the loss most with the plain loop."""
        strongest = int((losses - batch.base).abs().argmax())
        expected = float(batch.one_by_one(name, channels[strongest : strongest + 1]))
        if abs(expected - float(losses[strongest])) > self._rounding * max(1.0, abs(expected)):
            raise NotReplayable(f"the loss without channel {int(channels[strongest])} of `{name}` came out differently")
        self._checked.add(name)


class Batch:
    """One batch on a network in which ``gates`` (group name -> (num_channels,), zeros silence) may already silence channels."""

    def __init__(self, ablation: Ablation, batch: Any, gates: Mapping[str, Tensor] | None = None) -> None:
        self._ablation, self.batch, self._gates = ablation, batch, dict(gates or {})
        example = first_tensor(batch)
        self.examples = len(example) if example is not None and example.ndim else 1
        self.recording: Recording | None = None
        self.output: Any = None
        self.forward: Callable[[], Any] = lambda: None
        self._formats = [torch.channels_last, torch.contiguous_format] if _has_images_on_cpu(batch) else [torch.contiguous_format]
        if ablation.fast:
            self.record()
        else:
            self.base = self._loss(self._output(self._gates))

    def figures(self) -> Tensor:
        """What tells this batch from others: its loss, its size, the sum of the magnitudes in it; float64 (3,)."""
        magnitude = sum(float(tensor.abs().sum(dtype=torch.float64)) for tensor in tensors_in(self.batch))
        return torch.tensor([self.base, self.examples, magnitude], dtype=torch.float64)

    def record(self, reason: str = "") -> None:
        """Record a forward pass in the next memory format; if there is none, the plain loop takes over for the ``reason``.

        Channels-last comes first: in that layout convolutions on a CPU are up to three times as fast.
        """
        self.recording = None
        while self._formats:
            inputs, gated = _in_format(self.batch, self._formats.pop(0)), self._gated(self._gates)

            def forward(inputs: Any = inputs, gated: Any = gated) -> Any:
                with gated:
                    return self._ablation.run.output(self._ablation.model, inputs)

            try:
                self.recording, self.output = record(forward)
                self.base, self.forward = self._loss(self.output), forward
                return
            except (NotReplayable, RuntimeError) as error:
                reason = str(error)
        self.base = self._loss(self._output(self._gates))
        self._ablation.fast = False
        self._ablation.notes.append(reason)

    def replayed(self, name: str, channels: Tensor) -> Tensor:
        """Losses with each channel silenced alone: float64 (n,). There must be a recording."""
        assert self.recording is not None
        found = self._ablation.readings[name]
        losses: list[float] = []
        for chunk in channels.split(self.recording.lanes_at_once(found)):
            outputs = replay(self.recording, self.forward, _lanes(self._ablation.model, found, chunk), len(chunk))
            losses += [self._loss(output) for output in outputs]
        return torch.tensor(losses, dtype=torch.float64)

    def one_by_one(self, name: str, channels: Tensor) -> Tensor:
        """The same by running the whole network for every channel."""
        losses: list[float] = []
        for channel in channels.tolist():
            gate = self._gates.get(name, torch.ones(self._ablation.sizes[name])).clone()
            gate[channel] = 0
            losses.append(self._loss(self._output({**self._gates, name: gate})))
        return torch.tensor(losses, dtype=torch.float64)

    def loss_with(self, gates: Mapping[str, Tensor]) -> float:
        """The batch's loss with these gates: group name -> (num_channels,)."""
        return self._loss(self._output(gates))

    def _gated(self, gates: Mapping[str, Tensor]) -> Any:
        model = self._ablation.model
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        placed = {name: gate.to(like) if like is not None else gate for name, gate in gates.items()}
        return Gates(model, self._ablation.graph, placed) if placed else nullcontext()

    def _output(self, gates: Mapping[str, Tensor]) -> Any:
        with self._gated(gates):
            return self._ablation.run.output(self._ablation.model, self.batch)

    def _loss(self, output: Any) -> float:
        return float(self._ablation.run.loss_of(output, self.batch))


def _lanes(model: nn.Module, found: Mapping[int, Reading], channels: Tensor) -> Lanes:
    """One channel of the group silenced in every lane."""
    lanes: Lanes = {}
    for weight in model.parameters():
        if id(weight) in found:
            positions = found[id(weight)].positions[channels]
            gate = torch.ones(len(channels), found[id(weight)].length, dtype=weight.dtype).scatter_(1, positions, 0)
            lanes[id(weight)] = {"gate": gate.to(weight.device), "positions": positions.to(weight.device)}
    return lanes


def _has_images_on_cpu(batch: Any) -> bool:
    leaves = tensors_in(batch)
    return any(leaf.ndim == 4 and leaf.device.type == "cpu" for leaf in leaves)


def _in_format(batch: Any, memory_format: torch.memory_format) -> Any:
    if memory_format is torch.contiguous_format:
        return batch
    return map_tensors(lambda tensor: tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor, batch)
