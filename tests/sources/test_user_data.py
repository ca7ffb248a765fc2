"""Images from a function of the user's own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch

from prunus.errors import DataError, PrunusError, RecipeError, UnknownName
from prunus.sources import load_data

FILE = """
import torch
from torch.utils.data import TensorDataset
from prunus.sources import DataBundle

def tensors(n, offset=0):
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 2, 2) + offset
    return TensorDataset(images, torch.arange(n) % 3)

def minimal():
    return {"train": tensors(30), "test": tensors(6)}

def named():
    return {"train": tensors(30), "test": tensors(6), "validation": tensors(9, 100), "class_names": ["a", "b", "c"]}

def bundle():
    train, plain = tensors(30), tensors(30, 0.5)
    return DataBundle(train, tensors(9), tensors(6), (1, 2, 2), ("a", "b", "c"), "?", (0.0,), (1.0,), plain)

def no_test(): return {"train": tensors(30)}
def spare(): return {**minimal(), "tset": 1}
def a_list(): return [1, 2]
def empty(): return {"train": tensors(30), "test": tensors(0)}
def whole_numbers(): return {"train": tensors(30), "test": [(torch.zeros(1, 2, 2, dtype=torch.int64), 0)]}
def share(): return {"train": tensors(30), "test": [(torch.zeros(1, 2, 2), torch.tensor(0.5))]}
def flat(): return {"train": TensorDataset(torch.zeros(6, 4), torch.arange(6) % 3), "test": tensors(6)}
def wide(): return {"train": tensors(30), "test": TensorDataset(torch.zeros(4, 1, 2, 3), torch.zeros(4, dtype=torch.int64))}
def foreign_label(): return {"train": tensors(30), "test": TensorDataset(torch.zeros(4, 1, 2, 2), torch.tensor([7, 0, 0, 0]))}
def three(): return {"train": tensors(30), "test": TensorDataset(*[torch.zeros(4, 1, 2, 2)] * 3)}
def later_label(): return {"train": tensors(30), "test": TensorDataset(torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 7, 0]))}
def uneven(): return {"train": TensorDataset(torch.zeros(9, 1, 2, 2), torch.tensor([0] * 6 + [1] * 3)), "test": tensors(2)}
def iterator(): return {"train": tensors(30), "test": iter([1])}
def text_label(): return {"train": tensors(30), "test": [(torch.zeros(1, 2, 2), "cat")]}
def fails(): raise ValueError("out of cheese")
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my_data.py"
    path.write_text(dedent(FILE))
    return str(path)


def values(dataset: object) -> list[float]:
    return [dataset[i][0].flatten()[0].item() for i in range(len(dataset))]  # type: ignore[index, arg-type]


def test_dict_of_data_sets(file: str) -> None:
    data = load_data(f"{file}:named")
    assert values(data.train) == list(range(30)) == values(data.calibration)
    assert values(data.validation) == [100.0 + i for i in range(9)]
    assert values(data.test) == list(range(6))
    assert data.input_shape == (1, 2, 2) and data.class_names == ("a", "b", "c")
    assert (data.mean, data.std, data.source, data.notes) == ((0.0,), (1.0,), f"{file}:named", ())


def test_validation_and_class_names_are_made_where_they_are_missing(file: str) -> None:
    data = load_data(f"{file}:minimal", validation_fraction=0.2)
    assert sorted(values(data.train) + values(data.validation)) == list(range(30))
    assert sorted(int(data.validation[i][1]) for i in range(6)) == [0, 0, 1, 1, 2, 2]
    assert data.class_names == ("0", "1", "2")
    assert data.notes == ("class names were not given: the classes are those of the training labels",)


def test_bundle_is_taken_as_it_is_and_limited(file: str) -> None:
    whole, some = load_data(f"{file}:bundle"), load_data(f"{file}:bundle", train_limit=6)
    assert whole.source == f"{file}:bundle" and len(whole.train) == 30
    assert len(some.train) == 6
    assert values(some.calibration) == [value + 0.5 for value in values(some.train)]
    assert sorted(int(label) for _, label in (some.train[i] for i in range(6))) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("nimimal", UnknownName, r"unknown function in .*my_data.py 'nimimal': did you mean minimal"),
        ("fails", RecipeError, r"fails\(\) raised ValueError: out of cheese \(line \d+ of .*my_data.py\)"),
        ("no_test", DataError, r"returned a dict with no 'test': it has train and test, and may have validation and class_names"),
        ("spare", DataError, r"returned a dict with an unknown key 'tset'"),
        ("a_list", DataError, r"returned a list: a data function returns a DataBundle or a dict with train and test"),
        ("empty", DataError, r"test is empty"),
        ("whole_numbers", DataError, r"an item of test holds a torch.int64 tensor of shape \(1, 2, 2\)"),
        ("share", DataError, r"the first label of test is tensor\(0.5000\): it must be a class index"),
        (
            "flat",
            DataError,
            r"an item of train holds a torch.float32 tensor of shape \(4,\): items are \(float tensor of channels",
        ),
        ("wide", DataError, r"images of test have shape \(1, 2, 3\), and the input is \(1, 2, 2\)"),
        ("foreign_label", DataError, r"the first label of test is 7, and there are 3 classes"),
        ("later_label", DataError, r"test has the label 7, and there are 3 classes: labels are indices from 0 to 2"),
        ("three", DataError, r"an item of test holds a tuple: items are \(float tensor"),
        ("iterator", DataError, r"test is a list_iterator: it must be a data set with a length and items"),
        ("text_label", DataError, r"the first label of test is 'cat': it must be a class index"),
    ],
)
def test_what_does_not_fit_is_told(file: str, function: str, error: type[PrunusError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(f"{file}:{function}")


@pytest.mark.parametrize(
    "setting", [{"image_size": 8}, {"mean": (0.0,)}, {"std": (1.0,)}, {"augment": "shift"}, {"min_area": 0.5}, {"colour": 0.1}]
)
def test_settings_that_the_function_decides_are_refused(file: str, setting: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"makes its own tensors: set image_size, augment, min_area, colour, mean, std there"):
        load_data(f"{file}:minimal", **setting)  # type: ignore[arg-type]


def test_labels_are_read_from_targets_where_there_are_any(file: str) -> None:
    class Counted(torch.utils.data.Dataset):  # type: ignore[type-arg]
        reads = 0
        targets = torch.arange(8) % 2

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            self.reads += 1
            return torch.zeros(1, 2, 2), int(self.targets[index])

    from prunus.sources.user_data import _labels

    dataset = Counted()
    assert _labels(dataset) == [0, 1] * 4 and dataset.reads == 0


def test_classes_are_counted_where_labels_are_cheap(file: str) -> None:
    data = load_data(f"{file}:named", train_limit=7)
    assert data.class_counts == {"train": (3, 2, 2), "validation": (3, 3, 3), "test": (2, 2, 2)}
    uneven = load_data(f"{file}:uneven", validation_fraction=0.3)
    assert uneven.class_counts == {"train": (4, 2), "validation": (2, 1), "test": (1, 1)}
    assert uneven.imbalance == 2.0
    assert uneven.notes[1].startswith("1 has 2.0x fewer training images than 0: look at balanced accuracy")


def test_splits_are_the_same_for_every_seed(file: str) -> None:
    data, other = (load_data(f"{file}:minimal", train_limit=12, seed=seed) for seed in (0, 1))
    assert values(data.train) == values(other.train) and values(data.validation) == values(other.validation)
