"""Digits, fake images, augmentation, splits and loaders."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.errors import DataError, UnknownName
from prunus.sources import DataBundle, load_data, make_loader
from prunus.sources.bundle import hold_out, limit


def stack(dataset: Any) -> tuple[Tensor, list[int]]:
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(images), list(labels)


def test_digits_are_split_once_and_for_all() -> None:
    data, other = load_data("digits", seed=0), load_data("digits", seed=5)
    assert (len(data.train) + len(data.validation), len(data.test)) == (1297, 500)
    assert len(data.validation) == pytest.approx(130, abs=5)
    assert data.input_shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789") and data.num_classes == 10
    assert torch.equal(stack(data.test)[0], stack(other.test)[0])
    assert stack(data.validation)[1] != stack(other.validation)[1] or not torch.equal(
        stack(data.validation)[0], stack(other.validation)[0]
    )
    assert not set(data.train.indices) & set(data.validation.indices)


def test_digits_keep_their_pixels_and_are_normalised() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")
    images = torch.cat([stack(part)[0] for part in (data.train, data.validation, data.test)])
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-3) and images.std().item() == pytest.approx(1, abs=1e-3)
    pixels = (images * data.std[0] + data.mean[0]) * 16
    stored = torch.from_numpy(load_digits().images).float().unsqueeze(1)
    as_rows = sorted(tuple(row) for row in pixels.round().flatten(1).tolist())
    assert as_rows == sorted(tuple(row) for row in stored.flatten(1).tolist())


def test_fake_images_have_the_shape_asked_for_and_can_be_learned() -> None:
    data = load_data("fake:2x12x16x5", seed=3)
    images, labels = stack(data.train)
    held, held_labels = stack(data.test)
    assert images.shape == (512, 2, 12, 16) and (len(data.validation), len(data.test)) == (128, 256)
    assert data.input_shape == (2, 12, 16) and data.num_classes == 5
    means = torch.stack([images[torch.tensor(labels) == c].mean(0) for c in range(5)])
    nearest = torch.cdist(held.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == torch.tensor(held_labels)).float().mean() > 0.9


def test_fake_images_follow_the_seed_and_splits_differ() -> None:
    same, again, other = load_data("fake:1x8x8x2"), load_data("fake:1x8x8x2"), load_data("fake:1x8x8x2", seed=1)
    assert torch.equal(same.train[7][0], again.train[7][0])
    assert not torch.equal(same.train[7][0], other.train[7][0])
    assert not torch.equal(same.train[7][0], same.test[7][0])


@pytest.mark.parametrize("text", ["3x32x32", "3x32x32x1", "0x8x8x3", "3x32x32x10x2", "3,32,32,10", "3x8x8x129"])
def test_fake_shape_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DataError, match=rf"can't read fake:{text}: write channels, height, width and 2 to 128 classes"):
        load_data(f"fake:{text}")


def test_shift_moves_by_one_pixel_at_most() -> None:
    data = load_data("digits", augment="shift", mean=(0.0,), std=(1.0,))
    plain, _ = data.calibration[0]
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1))
    shifted = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    results = [data.train[0][0] for _ in range(200)]
    assert {next(n for n, s in enumerate(shifted) if torch.equal(s, result)) for result in results} == set(range(9))


def test_crop_flip_moves_by_four_pixels_and_mirrors() -> None:
    data = load_data("fake:1x6x6x2", augment="crop-flip", mean=(0.0,), std=(1.0,))
    plain, _ = data.calibration[0]
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4))
    windows = [padded[:, y : y + 6, x : x + 6] for y in range(9) for x in range(9)]
    results = [data.train[0][0] for _ in range(60)]
    straight = [any(torch.equal(w, r) for w in windows) for r in results]
    mirrored = [any(torch.equal(w.flip(2), r) for w in windows) for r in results]
    assert all(s or m for s, m in zip(straight, mirrored, strict=True))
    assert 10 < sum(straight) < 50


def test_resized_crop_flip_keeps_the_shape_and_varies() -> None:
    data = load_data("fake:3x16x16x2", augment="resized-crop-flip", image_size=12)
    first, second = data.train[0][0], data.train[0][0]
    assert first.shape == second.shape == (3, 12, 12) == data.input_shape
    assert not torch.equal(first, second)


def test_augmentation_follows_the_global_seed_and_leaves_other_splits_alone() -> None:
    data = load_data("fake:3x16x16x2", augment="crop-flip")
    torch.manual_seed(1)
    first = data.train[0][0]
    torch.manual_seed(1)
    assert torch.equal(first, data.train[0][0])
    state = torch.get_rng_state()
    for dataset in (data.validation, data.test, data.calibration):
        assert torch.equal(dataset[0][0], dataset[0][0])
    assert torch.equal(state, torch.get_rng_state())


def test_image_size_resizes_the_shorter_side_and_crops_the_centre() -> None:
    data = load_data("fake:1x8x16x2", image_size=8, mean=(0.0,), std=(1.0,))
    stored = load_data("fake:1x8x16x2", mean=(0.0,), std=(1.0,))
    assert data.input_shape == (1, 8, 8)
    assert torch.equal(data.test[3][0], stored.test[3][0][:, :, 4:12])
    assert load_data("digits", image_size=16).test[0][0].shape == (1, 16, 16)


def test_mean_and_std_are_applied() -> None:
    plain = load_data("fake:2x8x8x2", mean=(0.0, 0.0), std=(1.0, 1.0)).test[0][0]
    scaled = load_data("fake:2x8x8x2", mean=(0.1, 0.2), std=(0.5, 4.0)).test[0][0]
    assert torch.allclose(scaled[0], (plain[0] - 0.1) / 0.5)
    assert torch.allclose(scaled[1], (plain[1] - 0.2) / 4.0)


def test_train_limit_balances_classes_and_calibration_follows() -> None:
    data = load_data("digits", train_limit=53, seed=2)
    counts = Counter(data.train.labels)
    assert len(data.train) == 53 and set(counts.values()) == {5, 6}
    assert data.train.indices == data.calibration.indices
    assert len(data.validation) == len(load_data("digits", seed=2).validation)
    assert len(load_data("digits", train_limit=10**6).train) == len(load_data("digits").train)


def test_limit_takes_what_small_classes_have() -> None:
    assert Counter([0, 0, 0, 0, 0, 0, 1, 1][i] for i in limit([0, 0, 0, 0, 0, 0, 1, 1], 6, seed=0)) == {0: 4, 1: 2}


def test_hold_out_takes_the_same_share_of_every_class() -> None:
    labels = [0] * 40 + [1] * 20 + [2] * 3
    rest, held = hold_out(labels, 0.1, seed=0)
    assert Counter(labels[i] for i in held) == {0: 4, 1: 2, 2: 1}
    assert sorted(rest + held) == list(range(63))
    assert held != hold_out(labels, 0.1, seed=1)[1]
    assert Counter(labels[i] for i in hold_out(labels, 0.99, seed=0)[0]) == {0: 1, 1: 1, 2: 1}
    with pytest.raises(DataError, match="class 1 has a single training image, so none can be held out"):
        hold_out([0, 0, 1], 0.1, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean has 3 values and the images have 1 channels: give one per channel"),
        ({"mean": ()}, "mean has 0 values and the images have 1 channels"),
        ({"std": (0.0,)}, r"std=\(0.0,\): a standard deviation is above zero"),
        ({"train_limit": 5}, "train_limit=5 leaves some of the 10 classes without an image"),
        ({"train_limit": 0}, "train_limit=0 leaves no training image"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 is a share of the training images, between 0 and 1"),
        ({"image_size": 0}, "image_size=0 is a number of pixels"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data("digits", **settings)


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match=r"unknown data source 'digit': did you mean digits"):
        load_data("digit")
    with pytest.raises(UnknownName, match=r"unknown data source 'folder:'"):
        load_data("folder:")
    with pytest.raises(UnknownName, match=r"unknown augmentation 'flip': did you mean crop-flip"):
        load_data("digits", augment="flip")


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
