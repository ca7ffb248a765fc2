"""Training on streamed images that is cut within an epoch goes on to the same bits, and decodes nothing twice."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from prunus.config import OptimizerConfig
from prunus.sources import load_data, make_loader
from prunus.sources.tar_shards import TarImages
from prunus.training import train
from prunus.training.placement import share_batches, start_accelerator
from prunus.training.randomness import seed_epoch
from shards import write_shards

RUN = OptimizerConfig(epochs=3, lr=0.05, warmup_epochs=0.5)


class Stop(Exception):
    pass


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 3)
    )


def stopping_at(step: int):
    calls: list[int] = []

    def forward_fn(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > step:
            raise Stop
        return model(inputs)

    return forward_fn


class Log:
    """Which images were decoded, in whichever process: one character in a file for each."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        load = TarImages.load

        def counted(images: TarImages, index: int):
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, f"{images.name(index)}\n".encode())
            os.close(file)
            return load(images, index)

        monkeypatch.setattr(TarImages, "load", counted)

    def take(self) -> Counter[str]:
        found = Counter(self.path.read_text().split())
        self.path.write_text("")
        return found


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_cut_at_a_step_goes_on_to_the_same_bits_and_decodes_nothing_twice(tmp_path, monkeypatch, workers, balance) -> None:
    """44 images in batches of 4: 11 steps an epoch; cut in the second one, behind its step 7, where a checkpoint is due."""
    if balance and workers:
        pytest.skip("the order doesn't depend on workers")
    write_shards(tmp_path / "shards", {"train": (5, 20, 1, 18), "val": (6,)})
    data = load_data(f"wds:{tmp_path / 'shards'}", augment="crop-flip", shuffle_buffer=9)
    log = Log(tmp_path / "decoded", monkeypatch)

    def loader():
        torch.manual_seed(1)
        return make_loader(data.train, batch_size=4, shuffle=True, workers=workers, balance=balance)

    path = tmp_path / "run.ckpt"
    whole, cut = network(), network()
    train(whole, loader(), RUN, seed=4)
    every = log.take()
    assert sum(every.values()) == 3 * 44 and (balance or set(every.values()) == {3})
    with pytest.raises(Stop):
        train(cut, loader(), RUN, seed=4, checkpoint=path, checkpoint_steps=7, forward_fn=stopping_at(18))
    before = log.take()
    # The cut comes with the batch behind four more steps than the checkpoint has; processes fetch two batches each ahead.
    ahead = 4 + 4 * 2 * workers
    assert 44 + 28 <= sum(before.values()) <= 44 + 28 + ahead
    resumed = network()
    train(resumed, loader(), RUN, seed=4, checkpoint=path, checkpoint_steps=7, resume=True)
    after = log.take()
    assert sum(after.values()) == 44 - 28 + 44, "what the checkpoint had behind it isn't decoded again"
    if not balance:
        assert all(before[name] + after[name] >= 3 for name in every)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_what_one_process_sees_divided_among_them(tmp_path, ranks) -> None:
    """44 images in shards of 5, 20, 1 and 18, in steps of 12 images; 10 validation images in steps of 4."""
    write_shards(tmp_path, {"train": (5, 20, 1, 18), "validation": (1, 9)})
    data = load_data(f"wds:{tmp_path}", augment="crop-flip", shuffle_buffer=9)
    accelerator = start_accelerator()
    device = torch.device("cpu")

    def steps(dataset, batch_size: int, shuffle: bool, even: bool, rank: int | None) -> list[list[bytes]]:
        loader = make_loader(dataset, batch_size=batch_size // (1 if rank is None else ranks), shuffle=shuffle)
        one = SimpleNamespace(num_processes=1 if rank is None else ranks, process_index=rank or 0, device=device)
        batches = share_batches(cast(Accelerator, one), loader, even=even)
        seed_epoch(3, 1, loader, rank or 0)
        return [[image.numpy().tobytes() for image in batch[0]] for batch in batches]

    assert accelerator.num_processes == 1
    whole = steps(data.train, 12, True, True, None)
    parts = [steps(data.train, 12, True, True, rank) for rank in range(ranks)]
    for number, images in enumerate(whole[:3]):
        assert sorted(images) == sorted(image for part in parts for image in part[number]), "a step has the same images"
    assert len({len(part) for part in parts}) == 1, "all take the same number of steps"
    assert {image for part in parts for step in part for image in step} == {image for step in whole for image in step}
    uneven = [steps(data.train, 12, True, False, rank) for rank in range(ranks)]
    seen = [image for part in uneven for step in part for image in step]
    assert len(seen) == 44 and sorted(seen) == sorted(image for step in whole for image in step), "disjoint and complete"
    judged = [steps(data.validation, 4 * ranks, False, False, rank) for rank in range(ranks)]
    assert len({image for part in judged for step in part for image in step}) == 10
    assert sum(len(step) for part in judged for step in part) == 10


class Noisy(Dataset):
    """Draws from the global generators, as a data set of the user's own may."""

    def __init__(self, points) -> None:
        self.points, self.fetched = points, 0

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index):
        self.fetched += 1
        x, y = self.points[index]
        return x + 0.1 * torch.randn(4), y


class Numbers(IterableDataset):
    """A stream that tells its place itself."""

    def __init__(self, points) -> None:
        self.points, self.place, self.fetched = points, 0, 0

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self):
        start, self.place = self.place, 0
        for index in range(start, len(self.points)):
            self.fetched += 1
            self.place = (index + 1) % len(self.points)
            yield self.points[index]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state) -> None:
        self.place = state["place"]


@pytest.mark.filterwarnings("ignore:.*set_vital.*")
@pytest.mark.parametrize("kind", [Noisy, Numbers])
def test_any_stateful_loader_is_taken_up_where_it_was(tmp_path, kind) -> None:
    """90 points in batches of 16: six steps an epoch, cut in the second one behind its step 4."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(90) % 3
    points = torch.utils.data.TensorDataset(torch.randn(90, 4, generator=generator), targets)

    def small() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))

    def loader():
        return stateful(kind(points), batch_size=16, shuffle=kind is Noisy)

    path = tmp_path / "run.ckpt"
    whole, cut, resumed = small(), small(), small()
    train(whole, loader(), RUN, seed=4)
    with pytest.raises(Stop):
        train(cut, loader(), RUN, seed=4, checkpoint=path, checkpoint_steps=2, forward_fn=stopping_at(11))
    last = loader()
    train(resumed, last, RUN, seed=4, checkpoint=path, checkpoint_steps=2, resume=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert last.dataset.fetched == 90 - 4 * 16 + 90
