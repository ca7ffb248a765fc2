"""Killed runs continue to the same bits; foreign, truncated and unwritable files are refused with the old one intact."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prunus.config import OptimizerConfig
from prunus.errors import ArtifactError, PrunusWarning, TrainingError
from prunus.tensor_files import read_tensors, tensor_bytes
from prunus.training import train
from prunus.training.checkpoint import Checkpoint, load_checkpoint, previous, save_checkpoint

RUN = OptimizerConfig(epochs=4, lr=0.1, warmup_epochs=1.5)


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


class Stop(Exception):
    pass


def stop_after(epoch):
    def on_epoch(log):
        if log.epoch == epoch:
            raise Stop

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("finished", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(network, loader, tmp_path, optimizer, finished):
    settings = RUN.model_copy(update={"optimizer": optimizer, "lr": 0.05})
    undisturbed = network()
    whole = train(undisturbed, loader, settings, seed=2, evaluation_loader=loader)
    path = tmp_path / "deep" / "run.ckpt"
    with pytest.raises(Stop):
        train(network(), loader, settings, seed=2, checkpoint=path, evaluation_loader=loader, on_epoch=stop_after(finished))
    resumed = network()
    with torch.no_grad():
        resumed[0].weight.zero_()  # the weights come from the checkpoint, not from the caller
    log = train(resumed, loader, settings, seed=2, checkpoint=path, resume=True, evaluation_loader=loader)
    assert same(undisturbed, resumed)
    assert log.resumed_from == finished
    assert log.note == f"resumed after epoch {finished} of 4 from {path}: continued with epoch {finished + 1}"
    columns = [[(e.epoch, e.loss, e.lr, e.accuracy) for e in one.epochs] for one in (whole, log)]
    assert columns[0] == columns[1]
    assert sorted(os.listdir(path.parent)) == ["run.ckpt", "run.ckpt.previous"]


KILLED = """
import os, signal, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from prunus.config import OptimizerConfig
from prunus.training import train
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
points = TensorDataset(torch.randn(90, 4), torch.arange(90) % 3)
def run(path, kill_at=0):
    calls = []
    def forward_fn(net, inputs):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return net(inputs)
    log = train(model, DataLoader(points, batch_size=16, shuffle=True), OptimizerConfig(epochs=4, lr=0.1), seed=2,
                checkpoint=path, resume=True, forward_fn=forward_fn)
    return log.resumed_from, len(calls), model
"""


def test_a_run_killed_in_the_middle_of_an_epoch_continues_to_the_same_bits(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    killed_in_epoch_3 = f"{KILLED}\nrun({str(tmp_path / 'killed.ckpt')!r}, kill_at=15)"
    command = [sys.executable, "-W", "error", "-c", killed_in_epoch_3]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "", "")

    def run(path):
        namespace: dict[str, object] = {}
        exec(KILLED, namespace)
        return namespace["run"](tmp_path / path)

    *counts, undisturbed = run("whole.ckpt")
    assert counts == [None, 24]
    *counts, resumed = run("killed.ckpt")
    assert counts == [2, 12]
    assert same(undisturbed, resumed)


def test_a_finished_run_is_not_trained_again_and_a_missing_file_starts_anew(network, loader, tmp_path):
    path = tmp_path / "run.ckpt"
    first, again = network(), network()
    log = train(first, loader, RUN, seed=0, checkpoint=path, resume=True)
    assert log.resumed_from is None
    assert log.note == f"there was no checkpoint at {path} yet: started from the beginning"
    repeated = train(again, loader, RUN, seed=0, checkpoint=path, resume=True)
    assert same(first, again)
    assert repeated.epochs == log.epochs
    assert repeated.note.endswith("all epochs were done")


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(network, loader, tmp_path):
    path = tmp_path / "run.ckpt"
    train(network(), loader, RUN, seed=0, checkpoint=path)
    wider = torch.nn.Sequential(torch.nn.Linear(4, 9), *list(network())[1:])
    other_batches = torch.utils.data.DataLoader(loader.dataset, batch_size=30)
    cases = [
        ((network(), loader, RUN.model_copy(update={"lr": 0.2})), 0, "settings lr was 0.1, is 0.2."),
        ((network(), loader, RUN), 1, "seed was 0, is 1."),
        ((wider, loader, RUN), 0, r'parameter 0.weight was "\[8, 4\] torch.float32", is "\[9, 4\] torch.float32"'),
        ((network()[0], loader, RUN), 0, r'parameter 0.weight was "\[8, 4\] torch.float32", is "absent".*and \d more diff'),
        ((network(), other_batches, RUN), 0, "steps_per_epoch was 6, is 3; batch_size was 16, is 30."),
    ]
    for arguments, seed, text in cases:
        with pytest.raises(TrainingError, match=f"belongs to another run: .*{text}"):
            train(*arguments, seed=seed, checkpoint=path, resume=True)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(network, loader, tmp_path, share):
    path = tmp_path / "run.ckpt"
    train(network(), loader, RUN, seed=0, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    previous(path).unlink()
    with pytest.raises(ArtifactError, match=r"can't read the checkpoint .*run.ckpt: .* It is truncated or damaged: delete it"):
        train(network(), loader, RUN, seed=0, checkpoint=path, resume=True)


@pytest.mark.parametrize("at", [100, -1])  # in the header, in a tensor
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(network, loader, tmp_path, at):
    path, undisturbed = tmp_path / "run.ckpt", network()
    train(undisturbed, loader, RUN, seed=0)
    with pytest.raises(Stop):
        train(network(), loader, RUN, seed=0, checkpoint=path, on_epoch=stop_after(3))
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    resumed = network()
    told = r"run.ckpt: .* It is truncated or damaged: .*run.ckpt.previous, is whole and taken instead: it has 2 finished epochs"
    with pytest.warns(PrunusWarning, match=told):
        log = train(resumed, loader, RUN, seed=0, checkpoint=path, resume=True)
    assert log.resumed_from == 2 and same(undisturbed, resumed)
    for file in (path, previous(path)):
        file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"can't read the checkpoint .*run.ckpt: "):
        train(network(), loader, RUN, seed=0, checkpoint=path, resume=True)


def test_a_kill_between_two_renames_loses_nothing(network, loader, tmp_path):
    path, undisturbed, resumed = tmp_path / "run.ckpt", network(), network()
    train(undisturbed, loader, RUN, seed=0)
    with pytest.raises(Stop):
        train(network(), loader, RUN, seed=0, checkpoint=path, on_epoch=stop_after(2))
    path.unlink()
    assert train(resumed, loader, RUN, seed=0, checkpoint=path, resume=True).resumed_from == 1
    assert same(undisturbed, resumed)


def test_a_state_of_something_else_is_refused(network, loader, tmp_path):
    """Its checksum is right, as one may be that somebody made on purpose."""
    path = tmp_path / "run.ckpt"
    train(network(), loader, RUN, seed=0, checkpoint=path)
    tensors, tree = read_tensors(path, "prunus")
    assert tree is not None
    tree["state"]["dict"] = tree["state"]["dict"][1:]  # the network is the first
    path.write_bytes(tensor_bytes(tensors, "prunus", tree))
    with pytest.raises(ArtifactError, match=r"holds a state that is none of this run's: 'model'"):
        train(network(), loader, RUN, seed=0, checkpoint=path, resume=True)


def test_a_foreign_file_is_refused(network, loader, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ArtifactError, match="is no training checkpoint"):
        train(network(), loader, RUN, seed=0, checkpoint=path, resume=True)
    with pytest.raises(TrainingError, match="is a folder: give the name of a file"):
        train(network(), loader, RUN, seed=0, checkpoint=tmp_path)
    with pytest.raises(TrainingError, match="can't make the folder of the checkpoint"):
        train(network(), loader, RUN, seed=0, checkpoint=path / "below-a-file" / "run.ckpt")


def test_a_full_disk_leaves_the_old_checkpoint_intact(network, loader, tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    undisturbed = network()
    train(undisturbed, loader, RUN, seed=0)
    flushes = []

    def full(descriptor):
        flushes.append(descriptor)
        if len(flushes) == 5:  # file and folder of epochs 1 and 2, then the file of epoch 3
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError) as caught:
        train(network(), loader, RUN, seed=0, checkpoint=path)
    assert str(caught.value) == (
        f"can't write the checkpoint of epoch 3 to {path}: No space left on device; the checkpoint that was there before "
        f"({path}) is intact. Make room or choose another place, then resume"
    )
    assert sorted(os.listdir(tmp_path)) == ["run.ckpt", "run.ckpt.previous"]
    monkeypatch.undo()
    resumed = network()
    assert train(resumed, loader, RUN, seed=0, checkpoint=path, resume=True).resumed_from == 2
    assert same(undisturbed, resumed)


def test_every_kind_of_state_comes_back(tmp_path):
    tied = torch.arange(3.0)
    state = {
        "a": [1, 2.5, None, True, "text", (1, (2,))],
        3: {"t": torch.tensor(7, dtype=torch.int64), "nan": float("inf")},
        "3": torch.ones(2, 2, dtype=torch.bfloat16),
        "tied": [tied, tied],
        "view": torch.arange(6).reshape(2, 3).T,
        "empty": {},
    }
    save_checkpoint(tmp_path / "c", Checkpoint((), {"k": (1, 2)}, state))
    back = load_checkpoint(tmp_path / "c", {"k": (1, 2)}).state
    assert back["a"] == state["a"]
    assert back[3]["nan"] == float("inf")
    assert back["empty"] == {}
    assert back[3]["t"].item() == 7
    assert back["3"].dtype == torch.bfloat16
    assert torch.equal(back["view"], state["view"])
    assert all(torch.equal(t, tied) for t in back["tied"])
    with pytest.raises(TrainingError, match=r"the state 'sparsity\.chosen' is a set: a checkpoint holds tensors"):
        save_checkpoint(tmp_path / "c", Checkpoint((), {}, {"sparsity": {"chosen": {1}}}))
