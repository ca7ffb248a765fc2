"""Networks that are wrapped or divided among processes are refused by everything, with what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.config import OptimizerConfig
from prunus.errors import UnsupportedNetwork
from prunus.training import evaluate, train

IMAGES = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
BATCH = (IMAGES, torch.tensor([0, 1, 2, 3]))


def network() -> nn.Module:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def uses(tmp_path: Path) -> dict[str, Callable[[nn.Module], object]]:
    """Everything that is given a network."""
    plain = network()
    graph = prunus.trace(plain, IMAGES)
    plan = prunus.allocate(graph, prunus.score(plain, graph, "l1"), prunus.Budget(macs=0.6, tolerance=0.1))
    small, record = prunus.remove(plain, graph, plan)
    prunus.save(small, record, tmp_path / "small.prunus")
    return {
        "trace": lambda model: prunus.trace(model, IMAGES),
        "prune": lambda model: prunus.prune(model, IMAGES, prunus.Budget(macs=0.6, tolerance=0.1)),
        "score": lambda model: prunus.score(model, graph, "l1"),
        "remove": lambda model: prunus.remove(model, graph, plan),
        "silence": lambda model: prunus.silence(model, graph, plan),
        "save": lambda model: prunus.save(model, record, tmp_path / "other.prunus"),
        "load": lambda model: prunus.load(tmp_path / "small.prunus", model),
        "evaluate": lambda model: evaluate(model, [BATCH]),
        "train": lambda model: train(model, [BATCH], OptimizerConfig(epochs=1), seed=0),
    }


def check_refused(model: nn.Module, message: str, tmp_path: Path) -> None:
    for name, use in uses(tmp_path).items():
        with pytest.raises(UnsupportedNetwork, match=message):
            use(model)
            pytest.fail(f"{name} took it")
    assert not (tmp_path / "other.prunus").exists()


def test_plain_networks_are_taken(tmp_path: Path) -> None:
    for use in uses(tmp_path).values():
        use(network())
    assert (tmp_path / "other.prunus").exists()


@pytest.mark.parametrize("part", [False, True])
def test_networks_that_went_through_fully_shard(tmp_path: Path, group: None, part: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model[0] if part else model, mesh=init_device_mesh("cpu", (1,)))
    what = "`0`" if part else "the model"
    check_refused(
        model,
        rf"^{what} went through fully_shard \(FSDP2\): its parameters are divided among processes, and none has all the channels "
        r"that go together\. Prune before that: `small, record = prunus\.remove\(network, graph, plan\)`",
        tmp_path,
    )


def test_what_the_message_says_works(group: None) -> None:
    """Prune and then divide; and a network that exists only divided is put together, pruned and divided again."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    divided = network()
    fully_shard(divided, mesh=mesh)
    whole = network()
    nn.init.zeros_(whole[3].weight)
    whole.load_state_dict(get_model_state_dict(divided, options=StateDictOptions(full_state_dict=True)))
    assert torch.equal(whole[3].weight, network()[3].weight)
    result = prunus.prune(whole, IMAGES, prunus.Budget(macs=0.6, tolerance=0.1))
    expected = result.model(IMAGES)
    small = copy.deepcopy(result.model)
    fully_shard(small, mesh=mesh)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    torch.testing.assert_close(small(IMAGES), expected)
    small(IMAGES).square().mean().backward()
    optimizer.step()
    assert not torch.equal(small(IMAGES), expected)


def test_parameters_that_are_divided_by_hand(tmp_path: Path, group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model, mesh = network(), init_device_mesh("cpu", (1,))
    model[3].weight = nn.Parameter(distribute_tensor(model[3].weight.detach(), mesh, [Shard(0)]))
    check_refused(model, r"^`3\.weight` is a DTensor: its parameters are divided among processes", tmp_path)


def test_data_parallel_and_ddp(tmp_path: Path, group: None) -> None:
    ddp = nn.parallel.DistributedDataParallel(network())
    check_refused(
        ddp,
        r"^the model is wrapped in DistributedDataParallel: prune the network inside \(`model\.module`\), then wrap the result "
        "again$",
        tmp_path,
    )
    inside = network()
    inside[0] = nn.DataParallel(inside[0])
    check_refused(inside, r"^`0` is wrapped in DataParallel: prune the network inside \(`0\.module`\), then wrap", tmp_path)


def test_the_first_fsdp(tmp_path: Path, group: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Sharded(FullyShardedDataParallel):
        """Known by what it is, not by what it is called; made without the accelerator that the real one wants."""

        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self._fsdp_wrapped_module = module

    check_refused(
        Sharded(network()),
        r"^the model is wrapped in FullyShardedDataParallel: gather its weights first, and prune the network inside",
        tmp_path,
    )
