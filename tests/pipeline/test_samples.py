"""Which test images the report shows, and that pictures and answers are those of the images."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from prunus.pipeline.samples import show_samples
from prunus.sources import DataBundle, load_data

Image = pytest.importorskip("PIL.Image")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Painted(Dataset):
    """Flat images: red is the class / 10, green tells which image it is."""

    def __init__(self, labels, side=8, channels=3):
        self.labels, self.side, self.channels = list(labels), side, channels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        colour = torch.tensor([self.labels[index] / 10, index / 255, 0.5])[: self.channels].view(-1, 1, 1)
        mean, std = (torch.tensor(v[: self.channels]).view(-1, 1, 1) for v in (MEAN, STD))
        return ((colour - mean) / std).expand(self.channels, self.side, self.side).clone(), self.labels[index]


def bundle(test, classes=4, channels=3, side=8, mean=MEAN, std=STD):
    names = tuple(f"class {n}" for n in range(classes))
    return DataBundle(test, test, test, (channels, side, side), names, "test", mean[:channels], std[:channels], test)


class Reads(nn.Module):
    """Says the class that red tells (logit 3, the others 0); the images that ``wrong`` names by green get the next class."""

    def __init__(self, classes=4, wrong=()):
        super().__init__()
        self.classes, self.wrong, self.sizes, self.modes = classes, torch.tensor(list(wrong)), [], []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.sizes.append(len(images))
        self.modes.append(self.training)
        label = ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 10).round().long()
        index = ((images[:, 1, 0, 0] * STD[1] + MEAN[1]) * 255).round().long()
        return 3.0 * nn.functional.one_hot((label + torch.isin(index, self.wrong)) % self.classes, self.classes).float()


def decoded(uri):
    kind, _, text = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert kind == f"data:image/{picture.format.lower()}"
    return picture


def test_disagreements_come_first_and_are_at_most_half():
    wrong = range(0, 200, 4)  # the first class of four: 32 of the 128 images that are looked at
    test = Painted([n % 4 for n in range(200)])
    found = show_samples(Reads(), Reads(wrong=wrong), bundle(test), forward_fn=None)
    assert found["note"] == (
        "12 of 128 test images drawn at random; those on which the networks disagree (32 of the 128) come first"
    )
    rows = found["rows"]
    assert [row["before"]["name"] != row["after"]["name"] for row in rows] == [True] * 6 + [False] * 6
    assert {row["label"] for row in rows[:6]} == {"class 0"} and {row["after"]["name"] for row in rows[:6]} == {"class 1"}
    assert Counter(row["label"] for row in rows[6:]) == {"class 1": 2, "class 2": 2, "class 3": 2}
    sure = float(torch.tensor([3.0, 0, 0, 0]).softmax(0)[0])
    assert all(row[which]["probability"] == pytest.approx(sure) for row in rows for which in ("before", "after"))
    assert json.loads(json.dumps(found)) == found


def test_picture_label_and_answer_belong_together():
    found = show_samples(Reads(), Reads(), bundle(Painted([n % 4 for n in range(40)])), forward_fn=None, count=8)
    assert found["note"] == "8 of 40 test images drawn at random; both networks give each of the 40 the same class"
    indices = []
    for row in found["rows"]:
        pixel = np.asarray(decoded(row["image"]))[0, 0]
        label = int(row["label"][-1])
        assert abs(int(pixel[0]) - label * 25.5) <= 0.5 and pixel[1] % 4 == label and abs(int(pixel[2]) - 127.5) <= 0.5
        assert row["before"]["name"] == row["after"]["name"] == row["label"]
        indices.append(pixel[1])
    assert len(set(indices)) == 8
    assert Counter(row["label"] for row in found["rows"]) == {f"class {n}": 2 for n in range(4)}


def test_rare_classes_are_looked_at():
    labels = [0] * 300 + [1, 2]
    found = show_samples(Reads(3), Reads(3), bundle(Painted(labels), 3), forward_fn=None, count=6)
    assert Counter(row["label"] for row in found["rows"]) == {"class 0": 4, "class 1": 1, "class 2": 1}


def test_where_networks_disagree_on_everything_everything_is_shown():
    found = show_samples(Reads(), Reads(wrong=range(20)), bundle(Painted([n % 4 for n in range(20)])), forward_fn=None)
    assert len(found["rows"]) == 12


def test_the_choice_is_the_same_whatever_the_random_state_and_nothing_is_moved():
    test, model = Painted([n % 4 for n in range(200)]), Reads()
    model.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = show_samples(model, Reads(), bundle(test), forward_fn=None)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert model.modes == [False] * 4 and model.sizes == [32] * 4
    torch.manual_seed(2)
    np.random.seed(5)
    assert show_samples(Reads(), Reads(), bundle(test), forward_fn=None) == first


def test_forward_fn_is_used():
    def turned(model, images):
        return model(images).roll(1, dims=1)

    found = show_samples(Reads(), Reads(), bundle(Painted([2] * 4)), forward_fn=turned)
    assert {row["before"]["name"] for row in found["rows"]} == {"class 3"}


def test_large_photos_shrink_and_take_the_smaller_format():
    class Noise(Painted):
        def __getitem__(self, index):
            return torch.randn(3, 160, 120, generator=torch.Generator().manual_seed(index)), self.labels[index]

    data = bundle(Noise([0, 1]))
    data = replace(data, input_shape=(3, 160, 120))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 160 * 120, 4))
    noisy = show_samples(model, model, data, forward_fn=None)
    for row in noisy["rows"]:
        picture = decoded(row["image"])
        assert picture.size == (84, 112) and picture.format == "JPEG"
    flat = show_samples(Reads(), Reads(), bundle(Painted([0, 1], side=160), side=160), forward_fn=None)
    assert {(decoded(row["image"]).format, decoded(row["image"]).size) for row in flat["rows"]} == {("PNG", (112, 112))}


def test_digits_stay_as_they_are():
    data = load_data("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = show_samples(model, model, data, forward_fn=None, count=10)
    assert {row["label"] for row in found["rows"]} == {str(n) for n in range(10)}
    stored = [
        ((image * data.std[0] + data.mean[0]) * 255).round()[0].numpy()
        for image, _ in (data.test[i] for i in range(len(data.test)))
    ]
    for row in found["rows"]:
        picture = decoded(row["image"])
        assert (picture.mode, picture.size) == ("L", (8, 8))
        assert any(np.array_equal(np.asarray(picture), image) for image in stored)


def test_values_that_the_users_code_normalised_show_their_range():
    found = show_samples(Reads(), Reads(), bundle(Painted([0, 1]), mean=(0.0,) * 3, std=(1.0,) * 3), forward_fn=None)
    pixels = np.asarray(decoded(found["rows"][0]["image"]))
    assert pixels.min() == 0 and pixels.max() == 255


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(len(images))


@pytest.mark.parametrize(
    "output",
    [
        lambda n: torch.zeros(n, 5),  # another number of classes
        lambda n: torch.zeros(n, 4, 8, 8),  # segmentation
        lambda n: (torch.zeros(n, 4),),
        lambda n: torch.zeros(n, 4, dtype=torch.long),
    ],
)
def test_other_outputs_show_nothing(output):
    data = bundle(Painted([0, 1, 2, 3]))
    assert show_samples(Reads(), Fixed(output), data, forward_fn=None) is None
    assert show_samples(Fixed(output), Reads(), data, forward_fn=None) is None


def test_other_images_and_labels_show_nothing():
    class Boxes(Painted):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], torch.zeros(4)

    assert show_samples(Reads(), Reads(), bundle(Boxes([0, 1])), forward_fn=None) is None
    two = bundle(Painted([0, 1], channels=2), channels=2)
    assert show_samples(Reads(), Reads(), two, forward_fn=None) is None
