"""The Lightning callback in trainings of a few steps: what goes on, what checkpoints hold, what is refused."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.errors import UnknownName, UnsupportedNetwork
from small_nets import Plain

pytest.importorskip("lightning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
    from lightning.pytorch.loggers import CSVLogger

    from prunus.integrations.lightning import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, logging intervals and its own imports
HALF = prunus.Budget(macs=0.5, tolerance=0.05)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    yield


def data(count: int = 96) -> TensorDataset:
    """Rows, columns, checks or nothing, in noise."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([rows % 2, columns % 2, (rows + columns) % 2, torch.zeros_like(rows)]).float()
    noise, labels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 4
    return TensorDataset(0.3 * noise + patterns[labels][:, None], labels)


class Module(pl.LightningModule):
    """A network, a scale that the loss learns, and a schedule for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Plain((8, 16, 16), classes=4)
        self.scale = nn.Parameter(torch.ones(()))
        self.losses: list[float] = []
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.scale * self.network(images), labels)
        self.losses.append(float(loss.detach()))
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def module() -> Module:
    torch.manual_seed(0)
    return Module()


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> pl.Trainer:
    options: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu", "devices": 1, "logger": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return pl.Trainer(callbacks=list(callbacks), **{**options, **settings})


def loader() -> DataLoader[Any]:
    return DataLoader(data(), 16, shuffle=True, generator=torch.Generator().manual_seed(3))


def macs(network: nn.Module) -> int:
    return prunus.trace(network, torch.zeros(1, 1, 8, 8)).cost().macs


def held(run: pl.Trainer) -> list[int]:
    return [id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]


class Watch(Callback):
    """What the optimizer holds at the end of every batch."""

    def __init__(self) -> None:
        self.faults: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if sorted(held(trainer)) != sorted(id(p) for p in pl_module.parameters()):
            self.faults.append(trainer.global_step)


def test_training_goes_on_with_the_small_network(tmp_path: Path) -> None:
    """24 steps, pruned behind the twelfth by a criterion that looks at data: the optimizer holds exactly the parameters there
    are, its state has their shapes and goes on counting, the schedule goes on, the loss goes down."""
    subject, watch = module(), Watch()
    network, full = subject.network, macs(subject.network)
    pruning = PruningCallback(HALF, network="network", steps=(12,), criterion="taylor", batches=2)
    logger = CSVLogger(tmp_path, name="log", version="")
    run = trainer(tmp_path, watch, pruning, logger=logger, enable_checkpointing=False)
    run.fit(subject, loader())
    assert subject.network is network and 0.45 * full < macs(network) <= 0.5 * full
    assert pruning.rounds == 1 and pruning.history[0].at == 12 and pruning.history[0].verification.passed  # type: ignore[union-attr]
    assert watch.faults == [] and run.global_step == 24
    state = run.optimizers[0].state
    assert {id(p) for p in state} == {id(p) for p in subject.parameters()}
    assert all(state[p]["exp_avg"].shape == p.shape and int(state[p]["step"]) == 24 for p in subject.parameters())
    assert subject.rates == pytest.approx([1e-2 * (1 - 0.9 * step / 24) for step in range(24)])
    late = mean(subject.losses[-6:])
    assert late < 0.6 * mean(subject.losses[:6]) and late < mean(subject.losses[12:15]), subject.losses
    lines = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    (row,) = (row for row in rows if row["prunus/macs"])
    assert int(row["step"]) == 12 and float(row["prunus/macs_before"]) == full and float(row["prunus/macs"]) == macs(network)


def test_no_round_while_gradients_are_summed_up(tmp_path: Path) -> None:
    """Two batches make a step: the round behind step 3 is behind six batches."""
    subject = module()
    seen: list[tuple[int, int]] = []

    class Batches(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append((batch_idx, sum(p.numel() for p in pl_module.parameters())))

    pruning = PruningCallback(HALF, network="network", steps=(2,))
    run = trainer(tmp_path, pruning, Batches(), accumulate_grad_batches=2, max_epochs=1, enable_checkpointing=False)
    run.fit(subject, loader())
    sizes = [size for _, size in seen]
    assert sizes[0] == sizes[1] == sizes[2] and sizes[3] < sizes[2] and sizes[5] == sizes[3]


def test_a_checkpoint_goes_on_by_the_route_that_the_docs_name(tmp_path: Path) -> None:
    """Rounds in front of epochs 1 and 3; resumed from the checkpoint of epoch 2, the second one is taken, and the result is bit
    for bit that of the training that wasn't stopped."""

    def pruning() -> PruningCallback:
        return PruningCallback(HALF, network="network", epochs=(1, 3))

    def checkpoints(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)

    whole, through = module(), pruning()
    trainer(tmp_path, through, checkpoints("through")).fit(whole, loader_by_epoch())
    assert through.rounds == 2 and {p.name for p in (tmp_path / "through").glob("*.prunus")} == {
        "small-1.prunus",
        "small-2.prunus",
    }

    stopped = module()
    trainer(tmp_path, pruning(), checkpoints("stopped"), max_epochs=3).fit(stopped, loader_by_epoch())
    subject = module()
    subject.network = prunus.load(tmp_path / "stopped" / "small-1.prunus", subject.network)  # type: ignore[assignment]
    again = pruning()
    trainer(tmp_path, again, checkpoints("again")).fit(
        subject, loader_by_epoch(), ckpt_path=tmp_path / "stopped" / "epoch=2.ckpt"
    )
    assert again.rounds == 2 and [r.at for r in again.history] == [3]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), subject.parameters(), strict=True))
    assert again.record is not None and through.record is not None and again.record.to_json() == through.record.to_json()
    loaded = prunus.load(tmp_path / "again" / "small-2.prunus", module().network)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.eval()(images), subject.network.eval()(images))


class EveryEpochAlike(torch.utils.data.Sampler[int]):
    """An order that doesn't depend on how many epochs went before, so that a resumed training sees the same."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(96, generator=torch.Generator().manual_seed(7)).tolist())

    def __len__(self) -> int:
        return 96


def loader_by_epoch() -> DataLoader[Any]:
    return DataLoader(data(), 16, sampler=EveryEpochAlike())


def test_the_whole_module_can_be_the_network(tmp_path: Path) -> None:
    """Its own forward and its example_input_array; an averaged copy goes along."""

    class Whole(Module):
        def __init__(self) -> None:
            super().__init__()
            del self.scale
            self.example_input_array = torch.zeros(2, 1, 8, 8)
            self.averaged = torch.optim.swa_utils.AveragedModel(self.network)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)

        def on_train_batch_end(self, *args: Any) -> None:
            self.averaged.update_parameters(self.network)

    torch.manual_seed(0)
    subject = Whole()
    full = macs(subject.network)
    pruning = PruningCallback(HALF, network="network", epochs=(0,), ema=subject.averaged)
    trainer(tmp_path, pruning, max_epochs=1, enable_checkpointing=False).fit(subject, loader())
    assert macs(subject.averaged.module) == macs(subject.network) <= 0.5 * full
    torch.manual_seed(0)
    subject = Whole()
    del subject.averaged
    subject.on_train_batch_end = lambda *args: None  # type: ignore[method-assign]
    trainer(tmp_path, PruningCallback(HALF, epochs=(0,)), max_epochs=1, enable_checkpointing=False).fit(subject, loader())
    assert macs(subject.network) <= 0.5 * full


def test_what_holds_parameters_elsewhere_is_refused(tmp_path: Path) -> None:
    pruning = PruningCallback(HALF, network="network", epochs=(1,))
    with pytest.raises(
        UnsupportedNetwork, match=r"PruningCallback and StochasticWeightAveraging can't be in one training.*ema=\.\.\."
    ):
        trainer(tmp_path, pruning, StochasticWeightAveraging(1e-2), enable_checkpointing=False).fit(module(), loader())
    with pytest.raises(UnknownName, match="unknown part of Module 'netwrk': did you mean network"):
        trainer(tmp_path, PruningCallback(HALF, network="netwrk", epochs=(1,)), enable_checkpointing=False).fit(
            module(), loader()
        )


def test_strategies_of_several_processes_are_refused_by_name(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    class Run:
        strategy, callbacks = DDPStrategy(), ()

    with pytest.raises(UnsupportedNetwork, match=r"can't prune under DDPStrategy: several devices.*devices=1.*prunus\.prune"):
        PruningCallback(HALF, network="network", epochs=(1,)).setup(Run(), module(), "fit")  # type: ignore[arg-type]


def test_checkpoints_elsewhere_are_told() -> None:
    """No folder of the name of an address is made."""

    class Run:
        checkpoint_callback = type("Checkpoints", (), {"dirpath": "s3://bucket/runs"})()

    with pytest.warns(prunus.PrunusWarning, match=r"checkpoints go to s3://bucket/runs, .*small-0\.prunus isn't written"):
        PruningCallback(HALF, network="network", epochs=(1,)).on_save_checkpoint(Run(), module(), {})  # type: ignore[arg-type]
