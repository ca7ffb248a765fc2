"""A step in parts is the step: gradients summed up over uneven parts, with mixup and penalties, in one process and in two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.config import ComputeConfig, OptimizerConfig, parse_recipe
from prunus.errors import RecipeError, TrainingError
from prunus.training import train
from prunus.training.placement import start_accelerator
from prunus.training.step import divide
from prunus.training_hooks import SparsityProgress

ROOT = Path(__file__).parents[2]
RUN = OptimizerConfig(epochs=2, lr=0.05, warmup_epochs=0.5, clip_norm=1.0)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def loader(points, dtype: torch.dtype = torch.float32, batch_size: int = 16):
    inputs, targets = points.tensors
    return DataLoader(TensorDataset(inputs.to(dtype), targets), batch_size=batch_size, shuffle=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [2, 3, 7, 16])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_weights_are_those_of_whole_batches(points, dtype, parts, mixup) -> None:
    """90 points: five steps of 16, one of 10, which seven parts divide into ones and twos."""
    settings = RUN.model_copy(update={"mixup": mixup})
    whole, divided = network(dtype), network(dtype)
    one = train(whole, loader(points, dtype), settings, seed=1)
    other = train(divided, loader(points, dtype), settings, seed=1, accumulation_steps=parts)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(divided.state_dict()[name], value, rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-13)
    assert [e.loss for e in other.epochs] == pytest.approx([e.loss for e in one.epochs], rel=1e-6)
    assert not torch.equal(whole[0].weight, network(dtype)[0].weight), "something was trained"


def test_a_part_is_all_that_the_network_sees_at_a_time(points) -> None:
    seen: list[int] = []

    def forward_fn(model, inputs):
        seen.append(len(inputs))
        return model(inputs)

    train(network(), loader(points), OptimizerConfig(epochs=1), seed=1, accumulation_steps=3, forward_fn=forward_fn)
    assert seen == [5, 5, 6] * 5 + [3, 3, 4]


def test_equal_weights_of_uneven_parts_would_be_wrong(points) -> None:
    """What the test above would miss if parts of a step all counted the same: the hand-computed mean of ten losses."""
    inputs, targets = (tensor[:10] for tensor in points.tensors)
    model = network(torch.float64)
    shares = divide((inputs.double(), targets), 10, 4)
    assert [(round(share * 10), len(part[0])) for share, part in shares] == [(2, 2), (3, 3), (2, 2), (3, 3)]
    losses = [nn.functional.cross_entropy(model(x), y) for _, (x, y) in shares]
    mean = nn.functional.cross_entropy(model(inputs.double()), targets)
    assert torch.isclose(sum(share * loss for (share, _), loss in zip(shares, losses, strict=True)), mean, rtol=1e-12)
    assert not torch.isclose(sum(losses) / 4, mean, rtol=1e-4)


def test_a_penalty_counts_once(points) -> None:
    class Shrink:
        """Only what `train` asks of a method, with a penalty that outweighs the loss."""

        def __init__(self, model: nn.Module) -> None:
            self.model, self.asked = model, 0

        def penalty(self) -> torch.Tensor:
            self.asked += 1
            return 5.0 * self.model[0].weight.square().sum()

        def parameter_options(self):
            return None

        def progress(self) -> SparsityProgress:
            return SparsityProgress(0, {}, {})

        def __getattr__(self, name: str):
            return lambda *_: {}

    results = []
    for parts in (1, 4):
        model = network()
        method = Shrink(model)
        train(model, loader(points), OptimizerConfig(epochs=1, lr=0.01), seed=1, method=method, accumulation_steps=parts)
        assert method.asked == 6
        results.append(model[0].weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_batches_of_every_kind_are_divided_by_examples() -> None:
    Pair = namedtuple("Pair", "inputs targets")
    batch = {"pixels": torch.arange(6).reshape(3, 2), "boxes": [torch.zeros(n) for n in range(3)], "name": "x", "scale": 2.0}
    (first_share, first), (second_share, second) = divide(batch, 3, 2)
    assert (first_share, second_share) == (1 / 3, 2 / 3)
    assert first["pixels"].tolist() == [[0, 1]] and second["pixels"].tolist() == [[2, 3], [4, 5]]
    assert [len(box) for box in first["boxes"]] == [0] and [len(box) for box in second["boxes"]] == [1, 2]
    assert (second["name"], second["scale"]) == ("x", 2.0)
    (_, one), (_, two) = divide(Pair(torch.arange(2), torch.arange(2)), 2, 5)
    assert type(one) is Pair and one.inputs.tolist() == [0] and two.targets.tolist() == [1]
    inputs, targets = torch.rand(2, 4), torch.tensor([0, 1])
    (_, one), _ = divide([inputs, targets], 2, 2)  # what a loader yields, and as many examples as parts of it
    assert torch.equal(one[0], inputs[:1]) and torch.equal(one[1], targets[:1])
    assert divide([inputs, targets], 2, 1)[0][1][0] is inputs
    with pytest.raises(
        TrainingError, match=r"batch of 2 examples holds a tensor of shape \(3,\): it can't be divided for gradient"
    ):
        divide((inputs, torch.zeros(3)), 2, 2)


def test_a_checkpoint_is_of_its_parts(points, tmp_path) -> None:
    path = tmp_path / "run.ckpt"
    train(network(), loader(points), RUN, seed=1, checkpoint=path, accumulation_steps=2)
    with pytest.raises(TrainingError, match=r"accumulation_steps was 2, is \"absent\""):
        train(network(), loader(points), RUN, seed=1, checkpoint=path, resume=True)
    with pytest.raises(TrainingError, match="accumulation_steps = 0 is a number of parts of a batch, at least 1"):
        train(network(), loader(points), RUN, seed=1, accumulation_steps=0)


def test_recipes_have_both_and_those_from_before_are_the_same() -> None:
    plain = ComputeConfig()
    assert plain.model_dump(mode="json") == {"threads": None, "channels_last": False, "checkpoint_steps": None}
    given = ComputeConfig(mixed_precision="bf16", accumulation_steps=4)
    assert ComputeConfig.model_validate(given.model_dump(mode="json")) == given
    assert given.model_dump(mode="json")["accumulation_steps"] == 4
    with pytest.raises(RecipeError, match=r"compute\.mixed_precision: Input should be 'auto', 'no', 'bf16' or 'fp16'"):
        parse_recipe({"model": {"source": "cifar:resnet20"}, "compute": {"mixed_precision": "fp8"}})


def test_more_parts_than_images_are_refused(tmp_path) -> None:
    from prunus.pipeline.trainer import Trainer
    from prunus.sources import load_data

    tree = {"model": {"source": "cifar:resnet20"}, "data": {"batch_size": 8}, "compute": {"accumulation_steps": 9}}
    with pytest.raises(RecipeError, match=r"compute\.accumulation_steps = 9 parts of a step can't be had of the 8 images"):
        Trainer(parse_recipe(tree), load_data("fake:3x8x8x2"), tmp_path, resume=False)


PROCESS = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from prunus.config import OptimizerConfig
from prunus.training import train
torch.set_num_threads(1)
mode, out, batch_size, parts = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
generator = torch.Generator().manual_seed(1)
inputs, targets = torch.randn(84, 4, generator=generator), torch.arange(84) % 3
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
loader = DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=True)
seen = []
def forward_fn(model, inputs):
    seen.append(str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "none")
    return model(inputs)
settings = OptimizerConfig(epochs=2, lr=0.05, warmup_epochs=0.5)
train(model, loader, settings, seed=1, accumulation_steps=parts, mixed_precision=mode, forward_fn=forward_fn)
torch.save(model.state_dict(), out)
print(",".join(sorted(set(seen))), len(seen))
"""


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    shared = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    return subprocess.Popen(command, env=shared, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    return out.strip()


def test_two_processes_in_parts_give_what_one_gives_whole(tmp_path) -> None:
    """84 points in steps of 14: seven for each of two processes, in three uneven parts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [start("no", tmp_path / f"{rank}.pt", 7, 3, RANK=rank, LOCAL_RANK=rank, **both) for rank in "01"]
    started.append(start("no", tmp_path / "one.pt", 14, 1))
    try:
        said = [outcome(process) for process in started]
    finally:
        for process in started:
            process.kill()
    assert said == ["none 36", "none 36", "none 12"]
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "one"))
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def test_mixed_precision_is_what_was_asked_for(tmp_path) -> None:
    assert outcome(start("bf16", tmp_path / "bf16.pt", 14, 2)) == "torch.bfloat16 24"
    found = torch.load(tmp_path / "bf16.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_this_process_has_none() -> None:
    """The tests' other trainings rely on it."""
    assert start_accelerator().mixed_precision == "no"
