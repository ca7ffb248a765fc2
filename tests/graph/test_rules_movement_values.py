"""Operations that move data: where every label goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labels_seen import seen, x

ATEN = torch.ops.aten
MERGED = "two channel axes merge into one"
PICKED = "channels are picked by absolute index"
UNEQUAL = "split into unequal parts, and no attribute of a module holds their widths"
SINGLE = "a single channel is selected"
EMPTY = "split into parts of which one is empty"
STEP = "picked with a step that doesn't divide the channels"
JOINED = "joined with a tensor whose width is fixed"
PADDED = "padded with constant channels (a width held in Python)"
PIXELS = "channels lie on a pixel axis"


def idx(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


CASES: dict[str, tuple[Any, ...]] = {
    "transpose": (lambda a: a.transpose(1, 2), x(2, 3, 4, a1=0, a2=50), {"out": [{1: "50-53", 2: "0-2"}]}),
    "flatten": (lambda a: a.flatten(1), x(2, 3, 2, a1=0), {"out": [{1: "0 0 1 1 2 2"}]}),
    "flatten two": (
        lambda a: a.flatten(1),
        x(2, 3, 2, a1=0, a2=50),
        {"out": [{}], "frozen": {"50 51 50 51 50 51": MERGED, "0 0 1 1 2 2": MERGED}},
    ),
    "view in groups": (lambda a: a.view(2, 2, 3, 4), x(2, 6, 4, a1=0), {"out": [{2: "0-2"}], "tied": ["0 3", "1 4", "2 5"]}),
    "view open": (lambda a: a.view(2, -1, 3, 4), x(2, 6, 4, a1=0), {"out": [{1: "0 3"}], "tied": ["0-2", "3-5"]}),
    "view to an image": (lambda a: a.view(2, 3, 2, 2), x(2, 12, a1=0), {"out": [{1: "0 4 8"}], "tied": ["0-3", "4-7", "8-11"]}),
    "view to an image of two": (lambda a: a.view(2, 3, 2), x(2, 6, a1=0), {"out": [{2: "0 1"}], "tied": ["0 2 4", "1 3 5"]}),
    "view back": (
        lambda a: a.view(2, 2, 3, 4).view(2, 6, 4),
        x(2, 6, 4, a1=0),
        {"out": [{1: "0-2 0-2"}], "tied": ["0 3", "1 4", "2 5"]},
    ),
    "permuted view": (
        lambda a: a.view(2, 2, 3, 4).transpose(1, 2).reshape(2, 6, 4),
        x(2, 6, 4, a1=0),
        {"out": [{1: "0 0 1 1 2 2"}], "tied": ["0 3", "1 4", "2 5"]},
    ),
    "unsqueeze": (lambda a: a.unsqueeze(1), x(2, 3, a1=0), {"out": [{2: "0-2"}]}),
    "select": (lambda a: a[:, 1], x(2, 3, 4, a1=0), {"out": [{}], "frozen": {"0-2": PICKED}}),
    "select pixel": (lambda a: a[:, :, 1], x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "expand": (lambda a: a.expand(2, 3, 4), x(2, 3, 1, a1=0), {"out": [{1: "0-2"}], "free": [2]}),
    "expand new": (lambda a: a.expand(2, 3, 4), x(3, 1, a0=0), {"out": [{1: "0-2"}], "free": [2]}),
    "expand in front": (lambda a: a.expand(2, 3, 4), x(3, 1), {"out": [{}], "free": [2]}),
    "expand beside one": (lambda a: a.expand(2, 1, 3), x(2, 1, 1), {"out": [{}], "free": [2]}),
    "expand then transpose": (lambda a: a.expand(2, 3, 2).transpose(1, 2), x(2, 3, 1), {"out": [{}], "free": [1]}),
    "expand channel": (lambda a: a.expand(2, 3), x(2, 1), {"out": [{}], "free": [1]}),
    "repeat": (lambda a: a.repeat(1, 2), x(2, 3, a1=0), {"out": [{1: "0-2 0-2"}]}),
    "repeat one": (lambda a: a.repeat(1, 3, 1), x(2, 1, 4, a2=0), {"out": [{2: "0-3"}], "free": [1]}),
    "repeat then flatten": (lambda a: a.unsqueeze(2).expand(2, 3, 2).reshape(2, 6), x(2, 3), {"out": [{}], "free": [1]}),
    "roll pixels": (lambda a: a.roll(1, 2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "unbind": (lambda a: a.unbind(2), x(2, 3, 2, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "unbind channels": (lambda a: a.unbind(1), x(2, 3, 2, a1=0), {"out": [{}, {}, {}], "frozen": {"0-2": PICKED}}),
    "halves": (lambda a: a.chunk(2, 1), x(2, 6, a1=0), {"out": [{1: "0-2"}, {1: "3-5"}], "splits": [("0-5", 2)]}),
    "thirds": (lambda a: a.chunk(3, 1), x(2, 6, a1=0), {"out": [{1: "0 1"}, {1: "2 3"}, {1: "4 5"}], "splits": [("0-5", 3)]}),
    "unequal": (
        lambda a: a.split([1, 5], 1),
        x(2, 6, a1=0),
        {"out": [{}, {}], "frozen": {"0-5": UNEQUAL}, "fixed": {1: UNEQUAL}},
    ),
    "with a rest": (lambda a: a.split(4, 1), x(2, 6, a1=0), {"out": [{}, {}], "frozen": {"0-5": UNEQUAL}, "fixed": {1: UNEQUAL}}),
    "ones": (lambda a: a.split(1, 1), x(2, 3, a1=0), {"out": [{}, {}, {}], "frozen": {"0-2": SINGLE}}),
    "split pixels": (lambda a: a.split(2, 2), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "an empty part": (
        lambda a: a.split([0, 6], 1),
        x(2, 6, a1=0),
        {"out": [{}, {}], "frozen": {"0-5": EMPTY}, "fixed": {1: EMPTY}},
    ),
    "first half": (lambda a: a[:, :3], x(2, 6, a1=0), {"out": [{1: "0-2"}], "splits": [("0-5", 2)]}),
    "second half": (lambda a: a[:, 3:], x(2, 6, a1=0), {"out": [{1: "3-5"}], "splits": [("0-5", 2)]}),
    "from the end": (lambda a: a[:, -3:], x(2, 6, a1=0), {"out": [{1: "3-5"}], "splits": [("0-5", 2)]}),
    "first two thirds": (lambda a: a[:, :4], x(2, 6, a1=0), {"out": [{}], "frozen": {"0-5": UNEQUAL}, "fixed": {1: UNEQUAL}}),
    "middle third": (lambda a: a[:, 2:4], x(2, 6, a1=0), {"out": [{1: "2 3"}], "splits": [("0-5", 3)]}),
    "unaligned": (lambda a: a[:, 1:3], x(2, 6, a1=0), {"out": [{}], "frozen": {"0-5": UNEQUAL}, "fixed": {1: UNEQUAL}}),
    "whole slice": (lambda a: a[:, :], x(2, 6, a1=0), {"out": [{1: "0-5"}]}),
    "one of a slice": (lambda a: a[:, 2:3], x(2, 6, a1=0), {"out": [{}], "frozen": {"0-5": SINGLE}}),
    "every second": (lambda a: a[:, ::2], x(2, 6, a1=0), {"out": [{1: "0 2 4"}], "tied": ["0 1", "2 3", "4 5"]}),
    "every fourth": (lambda a: a[:, ::4], x(2, 6, a1=0), {"out": [{}], "frozen": {"0-5": STEP}, "fixed": {1: STEP}}),
    "narrow": (
        lambda a: ATEN.narrow(a, 1, 3, 3),
        x(2, 6, a1=0, a0=50),
        {"out": [{0: "50 51", 1: "3-5"}], "splits": [("0-5", 2)]},
    ),
    "narrow image": (lambda a: a.narrow(2, 0, 2), x(2, 6, 4, a1=0), {"out": [{1: "0-5"}]}),
    "glu": (lambda a: F.glu(a, 1), x(2, 6, 4, a1=0, a2=50), {"out": [{1: "0-2", 2: "50-53"}], "tied": ["0 3", "1 4", "2 5"]}),
    "glu of pixels": (lambda a: F.glu(a, 2), x(2, 6, 4, a1=0), {"out": [{1: "0-5"}]}),
    "index select": (
        lambda a: a.index_select(1, idx(0, 2)),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{2: "50-53"}], "frozen": {"0-2": PICKED}},
    ),
    "index select pixels": (lambda a: a.index_select(2, idx(0, 2)), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "gather": (lambda a: a.gather(1, idx(0, 1).view(1, 2).expand(2, 2)), x(2, 3, a1=0), {"out": [{}], "frozen": {"0-2": PICKED}}),
    "flip": (lambda a: a.flip(1), x(2, 3, a1=0, a0=50), {"out": [{0: "50 51", 1: "2 1 0"}]}),
    "flip pixels": (lambda a: a.flip(-1), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "roll channels": (lambda a: a.roll(1, 1), x(2, 3, a1=0), {"out": [{}], "frozen": {"0-2": PICKED}}),
    "roll everything": (lambda a: a.roll(1), x(2, 3, a1=0), {"out": [{}], "frozen": {"0-2": PICKED}}),
    "cat": (
        lambda a, b: torch.cat([a, b], 1),
        x(2, 3, 4, a1=0, a2=50),
        x(2, 2, 4, a1=100, a2=60),
        {"out": [{1: "0-2 100 101", 2: "50-53"}], "tied": ["50 60", "51 61", "52 62", "53 63"]},
    ),
    "cat with fixed": (lambda a, b: torch.cat([a, b], 1), x(2, 3, 4, a1=0), x(2, 2, 4), {"out": [{1: "0-2 -1 -1"}]}),
    "cat across": (
        lambda a, b: torch.cat([a, b], 2),
        x(2, 3, 4, a1=0),
        x(2, 3, 2, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "cat across fixed": (
        lambda a, b: torch.cat([a, b], -1),
        x(2, 3, 4, a1=0),
        x(2, 3, 2),
        {"out": [{}], "frozen": {"0-2": JOINED}},
    ),
    "cat of nothing": (lambda a, b: torch.cat([a, b], 1), x(2, 3), x(2, 3), {"out": [{}]}),
    "cat with empty": (lambda a: torch.cat([torch.empty(0), a], 1), x(2, 3, a1=0), {"out": [{1: "0-2"}]}),
    "cat after one number": (lambda a, b: torch.cat([b, a]), x(3, a0=0), x(1), {"out": [{0: "-1 0-2"}]}),
    "a window of one": (lambda a: a.unfold(1, 1, 5), x(2, 3, a1=0), {"out": [{}], "frozen": {"0-2": PICKED}}),
    "cat fixed first": (lambda a, b: torch.cat([b, a], 1), x(2, 3, 4, a1=0), x(2, 2, 4), {"out": [{1: "-1 -1 0-2"}]}),
    "stack": (
        lambda a, b: torch.stack([a, b], 1),
        x(2, 3, a0=70, a1=0),
        x(2, 3, a0=80, a1=100),
        {"out": [{0: "70 71", 2: "0-2"}], "tied": ["0 100", "1 101", "2 102", "70 80", "71 81"]},
    ),
    "stack last": (
        lambda a, b: torch.stack([a, b], -1),
        x(2, 3, a1=0),
        x(2, 3, a1=100),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "stack fixed": (lambda a, b: torch.stack([a, b]), x(2, 3, a1=0), x(2, 3), {"out": [{}], "frozen": {"0-2": JOINED}}),
    "pad pixels": (lambda a: F.pad(a, (1, 1)), x(2, 3, 4, a1=0), {"out": [{1: "0-2"}]}),
    "pad channels": (
        lambda a: F.pad(a, (0, 0, 1, 0)),
        x(2, 3, 4, a1=0, a0=50),
        {"out": [{0: "50 51"}], "frozen": {"0-2": PADDED}, "fixed": {1: PADDED}},
    ),
    "pad channels after": (
        lambda a: F.pad(a, (0, 0, 0, 1)),
        x(2, 3, 4, a1=0),
        {"out": [{}], "frozen": {"0-2": PADDED}, "fixed": {1: PADDED}},
    ),
    "max pool": (lambda a: F.max_pool2d(a, 2, return_indices=True), x(2, 3, 4, 4, a1=0), {"out": [{1: "0-2"}, {1: "0-2"}]}),
    "avg pool over channels": (
        lambda a: F.avg_pool1d(a, 2),
        x(2, 3, 4, a1=0, a2=50),
        {"out": [{1: "0-2"}], "frozen": {"50-53": PIXELS}},
    ),
    "avg pool three": (
        lambda a: F.avg_pool3d(a, 2),
        x(2, 3, 4, 4, 4, a0=60, a1=0, a2=50),
        {"out": [{0: "60 61", 1: "0-2"}], "frozen": {"50-53": PIXELS}},
    ),
    "unpool": (
        lambda a, b: F.max_unpool2d(a, b, 2),
        x(2, 3, 2, 2, a1=0),
        x(2, 3, 2, 2, a1=100, dtype=torch.long),
        {"out": [{1: "0-2"}], "tied": ["0 100", "1 101", "2 102"]},
    ),
    "unpool fixed": (
        lambda a, b: F.max_unpool2d(a, b, 2),
        x(2, 3, 2, 2, a1=0),
        x(2, 3, 2, 2, dtype=torch.long),
        {"out": [{1: "0-2"}], "frozen": {"0-2": "meets a width that is fixed"}},
    ),
    "interpolate": (lambda a: F.interpolate(a, scale_factor=2.0), x(2, 3, 4, 4, a1=0), {"out": [{1: "0-2"}]}),
    "pixel shuffle": (
        lambda a: F.pixel_shuffle(a, 2),
        x(2, 8, 2, 3, a0=50, a1=0),
        {"out": [{0: "50 51", 1: "0 4"}], "tied": ["0-3", "4-7"]},
    ),
    "pixel unshuffle": (
        lambda a: F.pixel_unshuffle(a, 2),
        x(2, 3, 2, 4, a0=50, a1=0),
        {"out": [{0: "50 51", 1: "0 0 0 0 1 1 1 1 2 2 2 2"}]},
    ),
    "pixel shuffle of pixels": (lambda a: F.pixel_shuffle(a, 2), x(2, 8, 2, 3, a2=0), {"out": [{}]}),
    "channel shuffle": (
        lambda a: F.channel_shuffle(a, 2),
        x(2, 6, 4, a1=0, a2=50),
        {"out": [{1: "0 0 1 1 2 2", 2: "50-53"}], "tied": ["0 3", "1 4", "2 5"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says(name: str) -> None:
    program, *given, expected = CASES[name]
    assert seen(program, *given) == expected
