"""Passes that stand still at a layer give, to the bit, what passes from the beginning give."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from nets import EXACT, NETS, random_plan
from prunus.errors import UnsupportedNetwork
from prunus.graph.labels import named_tensors
from prunus.importance.evidence import DataRun
from prunus.reconstruction import ReconstructionReport, paused_passes, reconstruct
from prunus.reconstruction.layer_sites import find_sites
from prunus.reconstruction.layer_visits import Watch
from prunus.reconstruction.original import digest
from prunus.reconstruction.paused_passes import PausedPasses
from refitting import Block, Shuffled, data, half, halved, settled


class ChangesInPlace(nn.Module):
    """What the layer in front of the sum has read is changed before the sum, so that the layer can't be computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        read = self.inner(F.relu(self.stem(x)))
        out = self.last(read)
        return self.head(F.relu(out + read.mul_(0.5)))


class LaterShortcut(nn.Module):
    """The shortcut's own layer runs behind the layer that it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second, self.shortcut = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(2)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norms[0](self.second(F.relu(self.first(x))))
        return self.head(F.relu(y + self.norms[1](self.shortcut(x))))


class Twice(nn.Module):
    """A layer that is used twice, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.both(F.relu(self.both(x)))))


class Expects(nn.Module):
    """A program that tries an operation which fails, and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        try:
            x = torch.matmul(x, torch.zeros(1, 1, 99, 1, dtype=x.dtype))
        except RuntimeError:
            x = x * 1.5
        return self.head(F.relu(self.inner(x)))


class OwnAutocast(Expects):
    """Part of it runs in bfloat16 by its own will."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        with torch.autocast("cpu", torch.bfloat16):
            x = F.relu(self.inner(x))
        return self.head(x.float())


OWN: dict[str, Callable[[], nn.Module]] = {
    found.__name__: found for found in (Block, ChangesInPlace, LaterShortcut, Twice, Expects, OwnAutocast)
}


def refitted(
    small: nn.Module, full: nn.Module, record: prunus.SurgeryRecord, batches: Iterable[Any], most: int, **options: Any
) -> tuple[dict[str, Tensor], ReconstructionReport, int]:
    """The weights behind `reconstruct` with so many bytes of standing passes, the report, and how many passes were begun."""
    small, begun = copy.deepcopy(small), list[int]()
    small.register_forward_pre_hook(lambda *_: begun.append(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paused_passes, "MOST_HELD", most)
        report = reconstruct(small, full, record, batches, points=6, **options)
    return dict(named_tensors(small)), report, len(begun)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    differing = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not differing


@pytest.mark.parametrize("behind_relu", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_it_is_the_same_to_the_bit(name: str, behind_relu: bool) -> None:
    torch.manual_seed(0)
    batches = [x.float() for x in data(3, 12)]
    full = settled(OWN[name](), [x.double() for x in batches]).float()
    small, record = half(full, batches[0])
    anew = refitted(small, full, record, batches, -1, behind_relu=behind_relu)
    paused = refitted(small, full, record, batches, 2**30, behind_relu=behind_relu)
    assert paused[1] == anew[1] and any(fit.ridge is not None for fit in paused[1].layers)
    assert_same(paused[0], anew[0])
    if name in ("Twice", "ChangesInPlace"):
        assert 1 + len(batches) < paused[2] <= anew[2]
    else:
        assert paused[2] == 1 + len(batches) < anew[2], "one pass finds the layers, then every batch has one"


class Fresh:
    """The same batches every time, in new tensors: some networks change what they are given."""

    def __init__(self, inputs: Callable[[], Any]) -> None:
        self.inputs = inputs

    def __iter__(self) -> Iterator[tuple[Any, None]]:
        for seed in range(5):
            torch.manual_seed(seed)
            yield self.inputs(), None


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if i % 12 else ()) for i, n in enumerate(EXACT)])
def test_every_difficulty_is_the_same_to_the_bit(name: str) -> None:
    net = NETS[name]
    full = net.model()
    graph = prunus.trace(full, net.inputs())
    if not graph.prunable:
        return
    small, record = prunus.remove(full, graph, random_plan(graph))
    batches = Fresh(net.inputs)
    try:
        anew = refitted(small, full, record, batches, -1)
    except prunus.errors.PrunusError as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            refitted(small, full, record, batches, 2**30)
        return
    paused = refitted(small, full, record, batches, 2**30)
    assert paused[1] == anew[1]
    assert_same(paused[0], anew[0])


def test_a_batch_that_is_another_begins_anew() -> None:
    small, record, full, batches = halved(Block)
    anew = refitted(small, full, record, Shuffled(batches), -1)
    paused = refitted(small, full, record, Shuffled(batches), 2**30)
    assert_same(paused[0], anew[0])
    assert paused[2] == anew[2]


@pytest.mark.parametrize("limit", ["MOST_HELD", "MOST_PASSES"])
def test_what_has_no_room_passes_anew(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three batches stand still; feature maps of 12 images of 7 by 7 in float64, 8 and 10 channels halved."""
    small, record, full, batches = halved(Block)
    expected = refitted(small, full, record, batches, 2**30)
    one = 12 * 49 * 8  # bytes of a channel of a batch
    monkeypatch.setattr(paused_passes, "MOST_PASSES", 2 if limit == "MOST_PASSES" else 256)
    found = refitted(small, full, record, batches, 2**30 if limit == "MOST_PASSES" else 2 * one * (3 + 4 + 4 + 5))
    assert_same(found[0], expected[0])
    layers = len(expected[1].layers)
    assert expected[2] == 1 + 3 < found[2] <= 1 + 2 + layers


@pytest.mark.parametrize("listed", [True, False])
def test_feature_maps_that_stand_still_are_counted(listed: bool) -> None:
    """Behind the first of two convolutions stands its output, and the images, which a list holds anyway."""
    full = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)).double()
    batch = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    sites = find_sites(full, batch)
    run = DataRun([batch] if listed else iter([batch]))
    with PausedPasses(full) as passes:
        counted = []
        for name, site in sites.items():
            watch = Watch(dict(named_tensors(full))[name], site, lambda *_: torch.arange(3), lambda *_: torch.zeros(1))
            passes.visit(0, batch, digest(batch), run, watch)
            counted.append(passes._bytes[0])
    images, first, second = (8 * 4 * channels * size**2 for channels, size in ((1, 8), (3, 6), (2, 4)))
    assert counted == [(0 if listed else images) + first, (0 if listed else images) + first + second]
    assert not passes._bytes and not passes._standing


def test_threads_end_with_the_work_and_with_an_error() -> None:
    small, record, full, batches = halved(Block)
    before = threading.active_count()
    refitted(small, full, record, batches, 2**30)
    assert threading.active_count() == before
    seen: list[int] = []

    def failing(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(1)
        if len(seen) == 7:
            raise ZeroDivisionError("of the user's own")
        return model(x)

    with pytest.raises(ZeroDivisionError, match="of the user's own"):
        refitted(small, full, record, batches, 2**30, forward_fn=failing)
    assert threading.active_count() == before

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refitted(small, full, record, batches, 2**30, on_layer=stop)
    assert threading.active_count() == before


class Unwinds(Block):
    """A program that cleans up behind itself with an operation, and catches what it can."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            try:
                return super().forward(x)
            except Exception:
                return x
        finally:
            x.clone()


def test_a_program_may_clean_up() -> None:
    small, record, full, batches = halved(Unwinds)
    before = threading.active_count()
    found = refitted(small, full, record, batches, 2**30)
    assert_same(found[0], refitted(small, full, record, batches, -1)[0])
    assert threading.active_count() == before


def test_a_layer_that_one_batch_leaves_out_is_named() -> None:
    class Picky(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x) if len(x) == 6 else super().forward(x)

    small, record, full, batches = halved(Picky)
    original = settled(Block(), batches)
    original.load_state_dict(full.state_dict())
    with pytest.raises(UnsupportedNetwork, match=r"on one of the batches `middle.weight` isn't used as on the first"):
        refitted(small, original, record, [*batches, batches[0][:6]], 2**30)


def test_autocast_of_the_caller_holds() -> None:
    small, record, full, batches = halved(Block)
    with torch.autocast("cpu", torch.bfloat16):
        anew = refitted(small.float(), full.float(), record, [x.float() for x in batches], -1)
        paused = refitted(small.float(), full.float(), record, [x.float() for x in batches], 2**30)
    assert_same(paused[0], anew[0])
    assert paused[2] == anew[2]
