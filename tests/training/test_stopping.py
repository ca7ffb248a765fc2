"""SIGTERM waits for the end of a step and keeps it; processes of a loader that die or hang are told as that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunus.config import OptimizerConfig
from prunus.sources import make_loader
from prunus.stopping import Terminated, held_back, stop_asked, stops_on_request
from prunus.training import evaluate, train

RUN = OptimizerConfig(epochs=3, lr=0.1)  # of six steps each


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def asks_at(*calls):
    """A ``forward_fn`` in whose calls of these numbers SIGTERM comes, in the middle of a step."""
    count = []

    def forward_fn(net, inputs):
        count.append(1)
        if len(count) in calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return net(inputs)

    return forward_fn


@pytest.mark.parametrize(("call", "note"), [(8, "epoch 2 behind its step 2"), (12, "epoch 3"), (18, "all epochs were done")])
def test_the_state_behind_the_step_is_kept(network, loader, tmp_path, call, note):
    path, undisturbed, resumed = tmp_path / "run.ckpt", network(), network()
    train(undisturbed, loader, RUN, seed=2)
    with pytest.raises(Terminated), stops_on_request():
        train(network(), loader, RUN, seed=2, checkpoint=path, forward_fn=asks_at(call))
    log = train(resumed, loader, RUN, seed=2, checkpoint=path, resume=True)
    assert log.note.endswith(note)
    assert same(undisturbed, resumed)


def test_elsewhere_it_stops_at_once_and_a_second_request_everywhere(network, loader, tmp_path):
    with pytest.raises(Terminated), stops_on_request():
        evaluate(network(), loader, forward_fn=asks_at(1))
    steps = []
    with pytest.raises(Terminated), stops_on_request(), held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append(stop_asked())
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("never")
    assert steps == [True] and not stop_asked()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


FAILING = """
import os, signal, sys, time, torch
from multiprocessing import active_children, resource_sharer
from torch.utils.data import TensorDataset, get_worker_info
from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.sources import make_loader
from prunus.training import train

class Failing(TensorDataset):
    def __getitem__(self, index):
        if index == len(self) - 1 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] != "hangs" else time.sleep(60)
        return super().__getitem__(index)

def unreachable(batch):
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    raise EOFError

if sys.argv[1] == "dies sending":
    resource_sharer.DupFd.detach = unreachable
images = Failing(torch.randn(48, 4), torch.arange(48) % 3)
loader = make_loader(images, batch_size=16, shuffle=False, workers=1, worker_timeout=2)
try:
    train(torch.nn.Sequential(torch.nn.Linear(4, 3)), loader, OptimizerConfig(epochs=1, lr=0.1), seed=0)
except TrainingError as error:
    print(error)
"""
GONE = r"a decoding process is gone \(DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly).*memory ran out"
FAILURES = {
    "dies": GONE,
    "dies sending": GONE,  # its connection breaks first
    "hangs": r"no batch came from the decoding processes within data.worker_timeout \(DataLoader timed out after 2",
}


@pytest.mark.parametrize("how", FAILURES)
def test_processes_that_fail_are_told(how):
    """In a process of their own: PyTorch's handler of dead children would strike in the middle of the test runner, too."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", FAILING, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert re.match(f"train: {FAILURES[how]}", done.stdout), done.stderr


def test_other_errors_stay_what_they_are(network):
    def fails(net, inputs):
        raise RuntimeError("sizes don't match")

    points = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.raises(RuntimeError, match=r"^sizes don't match"):
        train(network(), DataLoader(points, batch_size=4), RUN, seed=0, forward_fn=fails)
    assert make_loader(points, batch_size=4, shuffle=False, worker_timeout=5).timeout == 0
