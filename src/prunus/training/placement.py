"""Where a network and its batches live while they are worked on: device, processes, train or eval mode."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, Literal, TypeAlias, cast
from weakref import WeakSet

import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, prepare_data_loader
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import broadcast, get_mixed_precision_context_manager, send_to_device
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from prunus.errors import TrainingError

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MixedPrecision: TypeAlias = Literal["auto", "no", "fp16", "bf16"]


def process_state() -> PartialState:
    """The processes that this one was launched with, set up to talk to one another.

    On machines without GPUs Accelerate takes what `torchrun` started for so many runs of their own, unless it is told.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        os.environ.setdefault(_USE_CPU, "true")
    return PartialState(cpu=os.environ.get(_USE_CPU, "").lower() in ("1", "true", "yes", "on", "y", "t"))


_USE_CPU = "ACCELERATE_USE_CPU"


def start_accelerator(mixed_precision: MixedPrecision = "auto") -> Accelerator:
    """An Accelerator for this call; the device and the processes are those that Accelerate was launched with.

    ``"auto"`` takes what Accelerate was launched with or already runs with, else bf16 on a GPU that has it, fp16 on one that
    hasn't, and none on a CPU.

    Raises:
        TrainingError: this process already runs with another mixed precision, or the device can't do it.
    """
    process_state()
    wanted: str | None = mixed_precision
    if mixed_precision == "auto":
        settled = is_initialized() or "ACCELERATE_MIXED_PRECISION" in os.environ
        wanted = None if settled else _mixed_precision_of_device()
    try:
        return Accelerator(mixed_precision=wanted)
    except ValueError as error:
        raise TrainingError(
            f"mixed_precision = {mixed_precision!r} can't be had here: {error} A process has one mixed precision for all its "
            "training: use 'auto', or start another process"
        ) from None


def _mixed_precision_of_device() -> str:
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def training_precision() -> AbstractContextManager[Any]:
    """For another network's forward passes in training: the mixed precision that the trained one has, if it has one."""
    if not is_initialized():
        return nullcontext()
    return get_mixed_precision_context_manager(AcceleratorState().mixed_precision in ("bf16", "fp16"))


def share_batches(accelerator: Accelerator, loader: Iterable[Any], *, even: bool) -> Iterable[Any]:
    """The batches of this process, on its device.

    A `DataLoader` is sharded over the processes: ``even`` repeats examples so that all take the same number of steps (training
    needs that), uneven shards hold every example exactly once (evaluation needs that). Any other iterable is taken as it is.
    """
    if is_sharded(accelerator, loader) and is_stateful(loader):
        return _Moved(_share_of_stateful(accelerator, cast("DataLoader[Any]", loader), even), accelerator.device)
    if is_sharded(accelerator, loader):
        sampler = getattr(loader, "sampler", None)
        bare = sampler if isinstance(sampler, RandomSampler) and sampler.generator is None else None
        prepared = prepare_data_loader(
            cast("DataLoader[Any]", loader),
            accelerator.device,
            accelerator.num_processes,
            accelerator.process_index,
            put_on_device=True,
            rng_types=["generator"],
            dispatch_batches=False,
            even_batches=even,
        )
        if bare is not None and bare.generator is not None:
            _COMMON.add(bare)
        return prepared
    return _Moved(loader, accelerator.device)


def is_stateful(loader: Any) -> bool:
    """Whether it is a `DataLoader` that tells its place in a pass, and can take it up again: torchdata's StatefulDataLoader."""
    return isinstance(loader, DataLoader) and hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _share_of_stateful(accelerator: Accelerator, loader: DataLoader[Any], even: bool) -> DataLoader[Any]:
    """Accelerate's own wrapper would fetch batches before the epoch is seeded, and one ahead of what was handed out."""
    if accelerator.num_processes == 1:
        return loader
    batches = BatchSamplerShard(
        cast("Any", loader.batch_sampler), accelerator.num_processes, accelerator.process_index, even_batches=even
    )
    same = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor", "generator")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_vital.*")  # see `prunus.sources.stream_loader`
        return type(loader)(loader.dataset, batch_sampler=cast("Any", batches), **{name: getattr(loader, name) for name in same})


_COMMON: WeakSet[RandomSampler] = WeakSet()
"""Samplers that draw from the global generator in one process, and got one of their own for several."""


def common_order(loader: Any) -> torch.Generator | None:
    """What the processes shuffle by, where Accelerate made it so that all draw the same order."""
    sampler = getattr(loader, "sampler", None)
    return sampler.generator if isinstance(sampler, RandomSampler) and sampler in _COMMON else None


def is_sharded(accelerator: Accelerator, loader: Iterable[Any]) -> bool:
    """Whether `share_batches` gives every process other examples."""
    if isinstance(loader, DataLoaderShard):
        if accelerator.num_processes > 1:
            raise TrainingError("this loader was prepared by Accelerate already: give the DataLoader it was made from")
        return False
    if not isinstance(loader, DataLoader):
        return False
    return accelerator.num_processes == 1 or not isinstance(loader.dataset, IterableDataset)  # pyright: ignore[reportUnknownMemberType]


class _Moved:
    """Any iterable of batches, each moved to the device."""

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)  # now, not with the first batch: it may draw random numbers
        return (send_to_device(batch, self.device) for batch in batches)

    def set_epoch(self, epoch: int) -> None:
        """Tell a loader's sampler and data set, if they ask for it, which pass comes."""
        for part in (getattr(self.loader, "sampler", None), getattr(self.loader, "dataset", None)):
            if hasattr(part, "set_epoch"):
                cast("Any", part).set_epoch(epoch)

    def place(self) -> dict[str, Any] | None:
        """The place of the loader in its pass; None where it can't tell."""
        return cast("Any", self.loader).state_dict() if is_stateful(self.loader) else None

    def begin_at(self, state: dict[str, Any]) -> None:
        """Have the next pass begin at a place that `place` told."""
        cast("Any", self.loader).load_state_dict(state)


def count_batches(batches: Any) -> int | None:
    """``len(batches)``, or None where there is none."""
    try:
        return len(cast("Any", batches.loader if isinstance(batches, _Moved) else batches))
    except TypeError:
        return None


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the first one's buffers: each has seen other images, so their BN statistics differ."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def train_mode(model: nn.Module, freeze_batch_norm: bool) -> None:
    """Train mode, except for parts whose parameters are all frozen: they must not learn, by batch norm's statistics either."""
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_batch_norm and isinstance(part, BatchNorm)):
            part.eval()


@contextmanager
def frozen_batch_norm(model: nn.Module, enabled: bool) -> Generator[None, None, None]:
    """No parameter of a batch norm requires gradients meanwhile, if ``enabled``."""
    found = [p for part in model.modules() if isinstance(part, BatchNorm) for p in part.parameters() if p.requires_grad]
    try:
        for parameter in found if enabled else []:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in found:
            parameter.requires_grad_(True)


@contextmanager
def placed(model: nn.Module, device: torch.device, channels_last: bool = False) -> Generator[None, None, None]:
    """Move ``model`` to ``device``; afterwards move it back and put every module's train or eval mode back as found.

    ``channels_last``: see `memory_format`.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    if len(devices) > 1:
        raise TrainingError(f"the network is spread over {', '.join(sorted(map(str, devices)))}: put it on one device first")
    try:
        model.to(device)
        with memory_format(model, channels_last):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for found in devices:
            model.to(found)


@contextmanager
def memory_format(model: nn.Module, channels_last: bool) -> Generator[None, None, None]:
    """Keep the weights channels-last meanwhile, if asked for: convolutions then compute, and hand on, channels-last tensors."""
    if not channels_last:
        yield
        return
    try:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
