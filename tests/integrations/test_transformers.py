"""The callback for Hugging Face's Trainer in trainings of a few steps: what goes on, what checkpoints hold, what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import prunus
from prunus.errors import UnsupportedNetwork

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments

    from prunus.integrations.transformers import PruningCallback, _problem

pytestmark = pytest.mark.filterwarnings("ignore")
HALF = prunus.Budget(macs=0.5, tolerance=0.05)


class Pictures(Dataset[dict[str, Any]]):
    """Rows, columns, checks or nothing, in noise."""

    def __init__(self, count: int = 64) -> None:
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        patterns = torch.stack([rows // 2 % 2, columns // 2 % 2, (rows + columns) // 2 % 2, torch.zeros_like(rows)]).float()
        noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        self.labels = torch.arange(count) % 4
        self.images = 0.3 * noise + patterns[self.labels][:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def network() -> nn.Module:
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=4
    )
    return ResNetForImageClassification(config)


def trainer(model: nn.Module, folder: Path, **settings: Any) -> Trainer:
    options: dict[str, Any] = {
        "max_steps": 24,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "seed": 3,
        "use_cpu": True,
    }
    options |= {"logging_steps": 4, "save_steps": 8, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), **{**options, **settings})
    return Trainer(model, arguments, train_dataset=Pictures())


def macs(model: nn.Module) -> int:
    return prunus.trace(model, {"pixel_values": torch.zeros(1, 3, 16, 16)}).cost().macs


class Watch(TrainerCallback):
    """What the optimizer holds behind every step."""

    def __init__(self) -> None:
        self.faults: list[int] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        groups = held["optimizer"].param_groups
        self.rates.append(groups[0]["lr"])
        if {id(p) for group in groups for p in group["params"]} != {id(p) for p in held["model"].parameters()}:
            self.faults.append(state.global_step)


def test_training_goes_on_with_the_small_network(tmp_path: Path) -> None:
    """Pruned behind step 12 of 48 by a criterion that sees the network's own loss: the optimizer holds exactly the parameters
    there are, its state goes on counting, the schedule goes on, the loss goes down; costs are in the trainer's log."""
    model = network()
    full = macs(model)
    run = trainer(model, tmp_path, max_steps=48, save_strategy="no")
    pruning, watch = PruningCallback(run, HALF, steps=(12,), criterion="taylor", batches=2), Watch()
    run.add_callback(pruning)
    run.add_callback(watch)
    run.train()
    assert run.model is model and 0.45 * full < macs(model) <= 0.5 * full
    assert pruning.history[0].verification is not None and pruning.history[0].verification.max_error < 1e-9
    assert watch.faults == [] and watch.rates == pytest.approx([5e-3 * (1 - step / 48) for step in range(1, 49)])
    state = run.optimizer.state  # type: ignore[union-attr]
    assert {id(p) for p in state} == {id(p) for p in model.parameters()}
    assert all(state[p]["exp_avg"].shape == p.shape and int(state[p]["step"]) == 48 for p in model.parameters())
    losses = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3]) and sum(losses[-3:]) < sum(losses[3:6]), losses
    (log,) = (log for log in run.state.log_history if "prunus/macs" in log)
    assert log["step"] == 12 and log["prunus/macs_before"] == full and log["prunus/macs"] == macs(model)


def test_a_checkpoint_goes_on_by_the_route_that_the_docs_name(tmp_path: Path) -> None:
    """Rounds behind steps 6 and 18; resumed from step 16, the second one is taken, and the result is bit for bit that of the
    training that wasn't stopped."""
    whole = network()
    through = trainer(whole, tmp_path / "through")
    pruning = PruningCallback(through, HALF, steps=(6, 18))
    through.add_callback(pruning)
    through.train()
    folder = tmp_path / "through" / "checkpoint-16"
    assert json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["prunus"]["rounds"] == 1

    subject = prunus.load(folder / "small.prunus", network())
    run = trainer(subject, tmp_path / "again")
    again = PruningCallback(run, HALF, steps=(6, 18))
    run.add_callback(again)
    run.train(resume_from_checkpoint=str(folder))
    assert again.rounds == 2 and [r.at for r in again.history] == [18]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), subject.parameters(), strict=True))
    assert again.record is not None and pruning.record is not None and again.record.to_json() == pruning.record.to_json()
    loaded = prunus.load(tmp_path / "again" / "checkpoint-24" / "small.prunus", network()).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images).logits, subject.eval()(images).logits)


class Own(nn.Module):
    """Not one of the library's: a dict with the loss, where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(pixel_values).mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_network_of_ones_own_pruned_before_the_first_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own()
    full = macs(model)
    run = trainer(model, tmp_path, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2, save_strategy="no")
    run.add_callback(pruning := PruningCallback(run, HALF, epochs=(0, 1)))
    run.train()
    assert [r.at for r in pruning.history] == [0, 1] and macs(model) <= 0.5 * full and run.state.global_step == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": "full_shard"}, "under FSDP: the network's parameters are divided among processes"),
        ({"deepspeed": "ds.json"}, "under DeepSpeed"),
        ({"world_size": 2}, "under DistributedDataParallel on 2 devices"),
        ({"n_gpu": 3}, "under DataParallel on 3 devices"),
        ({"torch_compile": True}, "a compiled network"),
        ({"load_best_model_at_end": True}, "with load_best_model_at_end"),
    ],
)
def test_what_is_refused_is_named(settings: dict[str, Any], message: str) -> None:
    class Arguments:
        deepspeed, fsdp, world_size, n_gpu, torch_compile, load_best_model_at_end = None, "", 1, 1, False, False

    arguments: Any = Arguments()
    assert _problem(arguments) is None
    for name, value in settings.items():
        setattr(arguments, name, value)
    found = _problem(arguments)
    assert found is not None and found.startswith(message)


def test_the_refusal_comes_when_training_starts(tmp_path: Path) -> None:
    run = trainer(network(), tmp_path, torch_compile=False)
    run.add_callback(PruningCallback(run, HALF, steps=(2,)))
    run.args.torch_compile = True
    with pytest.raises(UnsupportedNetwork, match=r"PruningCallback can't prune a compiled network, .*set torch_compile=False"):
        run.train()
