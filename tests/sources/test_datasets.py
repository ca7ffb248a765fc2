"""Digits, fake images, augmentation and splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from prunus.errors import DataError, UnknownName
from prunus.sources import load_data
from prunus.sources.splits import draw_share, hold_out, limit
from prunus.sources.transforms import evaluation_transform, training_transform


def stack(dataset: Any) -> tuple[Tensor, list[int]]:
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(images), list(labels)


def test_splits_are_the_same_for_every_seed() -> None:
    data, other = load_data("digits", seed=0, train_limit=100), load_data("digits", seed=5, train_limit=100)
    assert (len(data.train), len(data.test)) == (100, 500)
    assert len(data.validation) == pytest.approx(130, abs=5)
    assert data.input_shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789") and data.num_classes == 10
    for part in ("train", "validation", "test", "calibration"):
        assert torch.equal(stack(getattr(data, part))[0], stack(getattr(other, part))[0])
    assert not set(data.train.indices) & set(data.validation.indices)
    assert data.validation.indices[:6] == [12, 23, 25, 37, 43, 46]  # and with every version of Prunus


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


def test_min_area_bounds_the_crop() -> None:
    """On a ramp of columns, a crop of nearly the whole square image spans nearly the whole ramp."""
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)

    def spans(min_area: float) -> list[float]:
        crop = training_transform("resized-crop-flip", (64, 64), None, (0.0,) * 3, (1.0,) * 3, min_area)
        return [(out.max() - out.min()).item() for out in (crop(ramp) for _ in range(200))]

    # 90 % of the area, 3/4 to 4/3 as wide as high: at least sqrt(0.9 * 3 / 4) of the width.
    assert min(spans(0.9)) > (0.9 * 3 / 4) ** 0.5 - 0.05
    assert min(spans(0.08)) < 0.5
    assert sum(spans(0.08)) < sum(spans(0.5)) < sum(spans(0.9))


@pytest.mark.parametrize("source", ["fake:3x8x8x2", "digits"])
@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip", "resized-crop-flip"])
def test_colour_changes_training_images_only(source: str, augment: str) -> None:
    data = load_data(source, augment=augment, colour=0.4)
    state = torch.get_rng_state()
    assert torch.equal(data.calibration[0][0], load_data(source).calibration[0][0])
    assert torch.equal(data.validation[0][0], load_data(source).validation[0][0])
    assert torch.equal(state, torch.get_rng_state())
    first = data.train[0][0]
    assert not torch.equal(first, data.train[0][0])
    torch.set_rng_state(state)
    assert torch.equal(first, data.train[0][0])


def test_colour_scales_within_its_bounds() -> None:
    """A grey image has no saturation and no contrast to change: what is left is the brightness."""
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    jitter = training_transform("none", (4, 4), None, (0.0,) * 3, (1.0,) * 3, colour=0.3)
    values = torch.tensor([jitter(grey).mean().item() for _ in range(300)]) * 255 / 100
    assert 0.69 < values.min() < 0.75 and 1.25 < values.max() < 1.31


def test_colour_scales_saturation() -> None:
    """Brightness and contrast scale the distance of two grey pixels and of two channels alike; saturation the latter alone."""
    image = Image.new("RGB", (3, 1))
    for x, pixel in enumerate([(90, 90, 90), (130, 130, 130), (125, 105, 95)]):
        image.putpixel((x, 0), pixel)
    jitter = training_transform("none", (1, 3), None, (0.0,) * 3, (1.0,) * 3, colour=0.3)
    ratios = [
        ((out[0, 0, 2] - out[2, 0, 2]) / (out[0, 0, 1] - out[0, 0, 0])).item() for out in (jitter(image) for _ in range(200))
    ]
    assert 0.45 < min(ratios) < 0.6 and 0.9 < max(ratios) < 1.05  # 0.75 as it is, times 0.7 to 1.3, and rounding


def test_normalisation_of_bytes_is_exact_and_laid_out_channel_by_channel() -> None:
    pixels = torch.arange(2 * 5 * 3, dtype=torch.uint8).view(2, 5, 3) * 8
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result = evaluation_transform(None, mean, std)(Image.fromarray(pixels.numpy()))
    expected = (pixels.permute(2, 0, 1) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(result, expected) and result.is_contiguous()


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
    data = load_data("digits", train_limit=53)
    counts = Counter(data.train.labels)
    assert len(data.train) == 53 and set(counts.values()) == {5, 6}
    assert data.train.indices == data.calibration.indices
    assert len(data.validation) == len(load_data("digits").validation)
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


def test_draw_share_leaves_the_last_of_a_group() -> None:
    assert draw_share([7, 8, 8], 0.25, seed=0)[0][0] == 0
    rest, drawn = draw_share([7, 8, 8], 0.25, seed=0)
    assert len(drawn) == 1 and sorted(rest + drawn) == [0, 1, 2]


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
        ({"colour": -0.1}, "colour=-0.1 is the strength of random brightness, contrast and saturation, from 0 to below 1"),
        ({"colour": 1.0}, "colour=1.0 is the strength"),
        ({"min_area": 0.0, "augment": "resized-crop-flip"}, "min_area=0.0 is a share of an image's area, above 0 and at most 1"),
        ({"min_area": 1.1, "augment": "resized-crop-flip"}, "min_area=1.1 is a share"),
        ({"min_area": 0.5, "augment": "shift"}, "min_area=0.5 acts on augment='resized-crop-flip' only, and augment is 'shift'"),
        ({"download": True}, "there is nothing to download for 'digits': only cifar10:PATH can be fetched"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data("digits", **settings)


def test_colour_needs_one_or_three_channels() -> None:
    with pytest.raises(DataError, match=r"colour=0.2 needs images of 1 or 3 channels, and these have 2: set it to 0"):
        load_data("fake:2x8x8x2", colour=0.2)


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match=r"unknown data source 'digit': did you mean digits"):
        load_data("digit")
    with pytest.raises(UnknownName, match=r"unknown data source 'folder:'"):
        load_data("folder:")
    for source in ("cifar10", "elpv:", "digits:8", "mnist:", "fashion-mnist"):
        with pytest.raises(UnknownName, match=rf"unknown data source '{source}': did you mean"):
            load_data(source)
    with pytest.raises(UnknownName, match=r"unknown augmentation 'flip': did you mean crop-flip"):
        load_data("digits", augment="flip")
