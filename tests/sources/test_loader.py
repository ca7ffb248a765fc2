"""Loaders: order, workers, balanced classes; and what is known of classes without loading images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from prunus.config import OptimizerConfig
from prunus.errors import DataError
from prunus.sources import DataBundle, load_data, make_loader
from prunus.sources.bundle import count_classes, known_labels
from prunus.training import train


class Counted(Dataset[Any]):
    """Items that count how often they are loaded; the classes are 0 (x 80), 1 (x 15) and 2 (x 5)."""

    def __init__(self, **attributes: Any) -> None:
        self.loads = 0
        self.classes = [0] * 80 + [1] * 15 + [2] * 5
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.loads += 1
        return torch.full((1, 2, 2), float(index)), self.classes[index]


LABELS = [0] * 80 + [1] * 15 + [2] * 5


def batches(data: DataBundle, workers: int) -> list[Tensor]:
    torch.manual_seed(4)
    loader = make_loader(data.train, batch_size=100, shuffle=True, workers=workers)
    return [images for _ in range(2) for images, _ in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_order_and_augmentation_follow_the_global_seed(workers: int) -> None:
    data = load_data("fake:1x8x8x2", augment="shift")
    first, again = batches(data, workers), batches(data, workers)
    assert [len(b) for b in first] == [100, 100, 100, 100, 100, 12] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[6])


def test_shuffling_visits_every_image_once_in_a_new_order() -> None:
    loader = make_loader(Counted(), batch_size=30, shuffle=True)
    first, second = (torch.cat([images[:, 0, 0, 0] for images, _ in loader]).tolist() for _ in range(2))
    assert first != second and sorted(first) == sorted(second) == list(range(100))
    fixed = make_loader(Counted(), batch_size=30, shuffle=False)
    assert torch.cat([images[:, 0, 0, 0] for images, _ in fixed]).tolist() == list(range(100))


def test_second_epoch_of_workers_repeats_from_its_own_seed() -> None:
    """What a resumed run needs: epoch 2 depends on the random state at its start, not on epoch 1 having been run."""
    loader = make_loader(load_data("fake:1x8x8x2", augment="shift").train, batch_size=256, shuffle=True, workers=1)
    for _ in loader:
        pass
    torch.manual_seed(9)
    second = next(iter(loader))[0]
    fresh = make_loader(load_data("fake:1x8x8x2", augment="shift").train, batch_size=256, shuffle=True, workers=1)
    torch.manual_seed(9)
    assert torch.equal(second, next(iter(fresh))[0])


def test_loader_labels_are_class_indices_and_short_batches_can_be_dropped() -> None:
    data = load_data("digits")
    loader = make_loader(data.test, batch_size=64, shuffle=False, drop_last=True)
    sizes = [(images.shape, labels.dtype) for images, labels in loader]
    assert sizes == [((64, 1, 8, 8), torch.int64)] * 7


def test_loader_that_would_yield_nothing() -> None:
    with pytest.raises(DataError, match="0 images give no batch of 4"):
        make_loader(torch.utils.data.TensorDataset(torch.zeros(0, 1)), batch_size=4, shuffle=True)
    with pytest.raises(DataError, match="500 images give no batch of 512: the last one is dropped"):
        make_loader(load_data("digits").test, batch_size=512, shuffle=True, drop_last=True)


@pytest.mark.parametrize("labels", [LABELS, torch.tensor(LABELS), np.array(LABELS)])
@pytest.mark.parametrize("name", ["targets", "labels"])
def test_labels_are_known_from_an_attribute(name: str, labels: Any) -> None:
    dataset = Counted(**{name: labels})
    assert known_labels(dataset) == LABELS
    assert known_labels(Subset(Subset(dataset, [99, 0, 85]), [2, 0])) == [1, 2]
    assert dataset.loads == 0


def test_labels_are_known_from_tensors_and_from_images_in_splits() -> None:
    assert known_labels(TensorDataset(torch.zeros(3, 1), torch.tensor([2, 0, 1]))) == [2, 0, 1]
    data = load_data("digits", train_limit=20)
    assert known_labels(data.train) == data.train.labels


@pytest.mark.parametrize("labels", [None, ["a"] * 100, torch.zeros(100), LABELS[1:], torch.zeros(100, 2).long(), [True] * 100])
def test_other_attributes_are_no_labels(labels: Any) -> None:
    assert known_labels(Counted(targets=labels)) is None
    assert known_labels(Subset(Counted(targets=labels), [1])) is None
    assert known_labels(Counted(targets=labels, labels=LABELS)) == LABELS


def bundle(train: Dataset[Any], **changes: Any) -> DataBundle:
    names = ("ant", "bee", "cow")
    return DataBundle(train, Counted(), Counted(), (1, 2, 2), names, "mine", (0.0,), (1.0,), train, **changes)


def test_classes_are_counted_and_imbalance_is_told() -> None:
    counted = count_classes(bundle(Counted(targets=LABELS), notes=("first",)))
    assert counted.class_counts == {"train": (80, 15, 5)}
    assert counted.imbalance == 16.0
    note = (
        "cow has 16.0x fewer training images than ant: look at balanced accuracy; data.balance = true draws classes equally often"
    )
    assert counted.notes == ("first", note)
    assert count_classes(counted).notes == ("first", note)
    even = count_classes(bundle(Subset(Counted(targets=LABELS), [0, 1, 2, 80, 81, 95, 96])))  # 3, 2, 2: 1.5 times, just not told
    assert (even.class_counts, even.imbalance, even.notes) == ({"train": (3, 2, 2)}, 1.5, ())
    assert (bundle(Counted()).imbalance, count_classes(bundle(Counted())).class_counts) == (1.0, {})


def test_a_class_without_training_images_is_told() -> None:
    counted = count_classes(bundle(Subset(Counted(targets=LABELS), [0, 1, 2, 80])))
    assert (counted.class_counts["train"], counted.imbalance) == ((3, 1, 0), 3.0)
    assert counted.notes == ("cow has no training images: no network can learn it",)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_without_a_class_are_refused(label: int) -> None:
    dataset = Counted(targets=[*LABELS[:-1], label])
    with pytest.raises(
        DataError, match=rf"'mine': test has the label {label}, and there are 3 classes: labels are indices from 0"
    ):
        count_classes(replace(bundle(Counted()), test=dataset))


def test_digits_are_counted() -> None:
    data = load_data("digits", train_limit=50)
    assert data.class_counts["train"] == (5,) * 10
    assert [sum(data.class_counts[split]) for split in ("train", "validation", "test")] == [50, len(data.validation), 500]
    assert data.class_counts["test"] == tuple(np.bincount(data.test.labels).tolist())
    assert (data.imbalance, data.damaged) == (1.0, {})


def test_balance_draws_classes_equally_often() -> None:
    dataset = Counted(targets=LABELS)
    loader = make_loader(dataset, batch_size=30, shuffle=True, balance=True)
    sizes = [len(labels) for _, labels in loader]
    drawn: Counter[int] = Counter()
    for _ in range(30):
        for images, labels in loader:
            assert [LABELS[int(i)] for i in images[:, 0, 0, 0]] == labels.tolist()
            drawn.update(labels.tolist())
    assert sizes == [30, 30, 30, 10]
    assert all(count == pytest.approx(1000, abs=100) for count in drawn.values()) and sum(drawn.values()) == 3000


def test_balance_goes_through_subsets_and_drops_short_batches() -> None:
    loader = make_loader(
        Subset(Counted(targets=LABELS), range(79, 100)), batch_size=8, shuffle=True, balance=True, drop_last=True
    )
    drawn = torch.cat([labels for _ in range(100) for _, labels in loader])
    assert len(drawn) == 1600
    assert torch.bincount(drawn).tolist() == pytest.approx([1600 / 3] * 3, rel=0.15)


def test_balance_has_a_generator_of_its_own() -> None:
    loader = make_loader(Counted(targets=LABELS), batch_size=100, shuffle=True, balance=True)

    def order(own: int, others: int) -> list[float]:
        loader.sampler.generator.manual_seed(own)
        torch.manual_seed(others)
        return next(iter(loader))[0][:, 0, 0, 0].tolist()

    assert order(1, 1) == order(1, 2) != order(2, 1)


def test_balance_that_cannot_be() -> None:
    with pytest.raises(DataError, match=r"balance needs the class of every image beforehand, and Counted tells none"):
        make_loader(Counted(), batch_size=4, shuffle=True, balance=True)
    with pytest.raises(DataError, match="balance draws images at random, so it can't keep their order: set shuffle"):
        make_loader(Counted(targets=LABELS), batch_size=4, shuffle=False, balance=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_balanced_classes_resumes_with_the_same_bits(tmp_path: Path, workers: int) -> None:
    data = load_data("fake:1x4x4x3", augment="shift", colour=0.3)
    uneven = Subset(data.train, [i for i, label in enumerate(data.train.labels) if label == 0 or i % 5 == 0])
    settings = OptimizerConfig(epochs=2, lr=0.1, warmup_epochs=0)

    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    def run(model: nn.Module, seen: list[int], stop: int | None = None, **checkpoint: Any) -> None:
        loader = make_loader(uneven, batch_size=64, shuffle=True, balance=True, workers=workers)

        def loss(output: Tensor, batch: Any) -> Tensor:
            if len(seen) == stop:
                raise KeyboardInterrupt
            seen.append(hash(tuple(batch[1].tolist())))
            return nn.functional.cross_entropy(output, batch[1])

        train(model, loader, settings, seed=4, loss_fn=loss, **checkpoint)

    undisturbed, first, second = network(), network(), network()
    whole: list[int] = []
    run(undisturbed, whole)
    path, parts = tmp_path / "run.ckpt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        run(first, parts, stop=len(whole) // 2 + 1, checkpoint=path)
    resumed: list[int] = []
    run(second, resumed, checkpoint=path, resume=True)
    half = len(whole) // 2
    assert parts == whole[: half + 1] and resumed == whole[half:]
    assert whole[:half] != whole[half:]  # another draw in the second epoch
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
