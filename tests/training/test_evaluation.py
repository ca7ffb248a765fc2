"""Accuracy and loss, exact to the example, in one process and in two."""

from __future__ import annotations

import ast
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.errors import TrainingError
from prunus.training import evaluate
from prunus.training.progress import progress_bar


def test_against_one_pass_by_hand(network, points):
    model = network().eval()
    x, y = points.tensors
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
        accuracy = (model(x).argmax(1) == y).sum().item() / 90
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for size in (90, 16, 7):  # uneven last batches
        found = evaluate(model, DataLoader(points, batch_size=size))
        assert (found.count, found.accuracy) == (90, pytest.approx(accuracy, abs=1e-9))
        assert found.loss == pytest.approx(loss, rel=1e-6)
        assert found.seconds > 0
    assert model.training
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())


def test_random_state_and_modes_stay(network, points):
    model = network()
    model[1].eval()
    before = torch.get_rng_state()
    evaluate(model, DataLoader(points, batch_size=16, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())
    assert [m.training for m in model] == [True, False, True, True, True]


def test_user_callables_and_lists_of_batches(points):
    x, y = points.tensors
    layer = nn.Identity()
    found = evaluate(
        layer,
        [(x[:60], y[:60]), (x[60:], y[60:])],
        loss_fn=lambda output, batch: (output[:, 0] * 2).mean(),
        metric=lambda output, batch: batch[1].float() / 2,
        forward_fn=lambda model, inputs: model(inputs) + 1,
    )
    assert found.loss == pytest.approx(2 * (x[:, 0] + 1).mean().item(), rel=1e-5)
    assert found.accuracy == pytest.approx(0.5)


def test_segmentation_counts_the_share_of_right_pixels():
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 1] = 1.0
    targets = torch.ones(2, 4, 4, dtype=torch.long)
    targets[1, :2] = 0
    assert evaluate(nn.Identity(), [(logits, targets)]).accuracy == 0.75


def test_soft_targets_and_half_precision_logits():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.bfloat16)
    targets = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    found = evaluate(nn.Identity(), [(logits, targets)])
    assert found.accuracy == 0.5
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits.float(), targets).item(), rel=1e-6)


def test_bad_input_is_refused(points):
    x, y = points.tensors
    with pytest.raises(TrainingError, match="test split: the loader yields nothing"):
        evaluate(nn.Identity(), [], description="test split")
    with pytest.raises(TrainingError, match=r"must return a value per example, shape \(90,\), not \(\)"):
        evaluate(nn.Identity(), [(x, y)], metric=lambda output, batch: output.mean())
    with pytest.raises(TrainingError, match=r"batch is a str: yield \(inputs, targets\) or give a forward_fn"):
        evaluate(nn.Identity(), ["text"])


PROCESSES = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import evaluate, train
torch.set_num_threads(1)
torch.manual_seed(0)
points = TensorDataset(torch.randn(53, 4), torch.arange(53) % 3)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
def classes(result):
    return f"{result.top5} {result.balanced_accuracy} {result.confusion} {result.most_confused}"
def found():
    result, listed = evaluate(model, DataLoader(points, batch_size=8)), evaluate(model, [points.tensors])
    wide, few = nn.Linear(4, 60), TensorDataset(torch.ones(5, 4), torch.arange(5))  # the second process gets no batch of 5
    with torch.no_grad():
        wide.weight.copy_(torch.arange(240.0).reshape(60, 4).sin())
    many, alone = evaluate(wide, DataLoader(points, batch_size=8)), evaluate(wide, DataLoader(few, batch_size=5))
    return (f"found {result.count} {result.accuracy:.9f} {result.loss:.5f} {listed.count} {listed.loss:.5f}"
        f" {classes(result)} {classes(listed)} {classes(many)} {alone.count} {classes(alone)}")
if len(sys.argv) > 1 and __name__ == "__main__":
    print(found())
    settings = OptimizerConfig(epochs=3, lr=0.05)
    epochs = []
    loader = DataLoader(points, batch_size=8, shuffle=True)
    whole = train(model, loader, settings, seed=0, checkpoint=sys.argv[1] + "whole", evaluation_loader=loader)
    class Stop(Exception): pass
    torch.manual_seed(0); torch.randn(53, 4)
    def build(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    again = build()
    calls = 0
    def forward_fn(net, inputs):
        global calls
        calls += 1
        if calls > 8 + 3: raise Stop
        return net(inputs)
    try:
        train(again, loader, settings, seed=0, checkpoint=sys.argv[1] + "cut", forward_fn=forward_fn)
    except Stop:
        pass
    loader = DataLoader(points, batch_size=8, shuffle=True)
    again = build()
    log = train(again, loader, settings, seed=0, checkpoint=sys.argv[1] + "cut", resume=True)
    same = all(torch.equal(a, again.state_dict()[n]) for n, a in model.state_dict().items())
    counts = round(whole.epochs[0].images_per_second * whole.epochs[0].seconds)
    try:
        train(again, [points.tensors], settings, seed=0)
    except TrainingError as error:
        refused = "needs a DataLoader" in str(error)
    total = sum(t.double().abs().sum().item() for t in model.state_dict().values())
    print("trained", same, log.resumed_from, counts, refused, f"{total:.10f}")
    torch.distributed.destroy_process_group()
"""


def _run(code, *arguments, **environment):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")} | environment
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _two_processes(code, *arguments):
    """What the code prints in each of two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [_run(code, *arguments, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs[0][1] + outputs[1][1]
    return [out for out, _ in outputs]


def test_two_processes_find_what_one_finds_and_train_alike(tmp_path):
    """53 examples in batches of 8 over two processes: uneven shards and an uneven last batch."""
    outputs = _two_processes(PROCESSES, f"{tmp_path}/")
    alone: dict[str, object] = {"__name__": "alone"}
    exec(PROCESSES, alone)
    (first, trained), (second, also_trained) = (out.splitlines() for out in outputs)
    assert first == second == alone["found"]()
    assert first.startswith("found 53 ")
    confusion = ast.literal_eval(first[first.index("[[") : first.index("]]") + 2])
    assert [sum(row) for row in confusion] == [18, 18, 17] and " 5 0." in first
    assert trained == also_trained
    # 4 steps of 2 x 8 examples: DDP repeats 11 of the 53 so that both processes take the same number of steps
    assert trained.startswith("trained True 2 64 True ")


SPARSE = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from prunus.config import OptimizerConfig
from prunus.training import train
torch.set_num_threads(1)
torch.manual_seed(0)
images = TensorDataset(torch.randn(96, 2, 6, 6), torch.arange(96) % 3)
settings = OptimizerConfig(epochs=3, lr=0.05, sparse_gradients=0.9)
def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 4), nn.Flatten())
def fit(model, name, resume=False, stop=None):
    calls = 0
    class Stop(Exception): pass
    def forward_fn(net, inputs):
        nonlocal calls
        calls += 1
        if calls == stop: raise Stop
        return net(inputs)
    loader = DataLoader(images, batch_size=6, shuffle=True)
    try:
        log = train(model, loader, settings, seed=0, checkpoint=sys.argv[1] + name, checkpoint_steps=3, resume=resume,
            forward_fn=forward_fn)
        return [epoch.sparse_gradients["saved"] for epoch in log.epochs]
    except Stop:
        return None
whole = build()
saved = fit(whole, "whole")
for stop in (9, 14):  # behind the end of an epoch of eight steps; behind step 3 of the second
    fit(build(), f"cut{stop}", stop=stop)
    again = build()
    same_report = fit(again, f"cut{stop}", resume=True)[1:] == saved[1:]  # earlier epochs are as the first process saw them
    print(stop, same_report, all(torch.equal(a, again.state_dict()[n]) for n, a in whole.state_dict().items()), saved[2] > 0.5)
"""


def test_sparse_gradients_of_two_processes_resume_to_the_same_bits(tmp_path):
    """Each process has its own thresholds, which a checkpoint must hold."""
    for output in _two_processes(SPARSE, f"{tmp_path}/"):
        assert output.splitlines() == ["9 True True True", "14 True True True"]


MIXED = """
import torch
from torch import nn
from prunus.config import OptimizerConfig
from prunus.errors import TrainingError
from prunus.training import evaluate, train
dtypes = []
def forward_fn(model, inputs):
    output = model(inputs)
    dtypes.append(str(output.dtype).removeprefix("torch."))
    return output
model = nn.Sequential(nn.Linear(4, 3))
keys = set(vars(model))
batch = (torch.randn(8, 4), torch.arange(8) % 3)
settings = OptimizerConfig(epochs=1)
train(model, [batch], settings, seed=0, forward_fn=forward_fn, evaluation_loader=[batch], mixed_precision="bf16")
evaluate(model, [batch], forward_fn=forward_fn)
print(*dtypes, model(batch[0]).dtype, set(vars(model)) == keys)
try:
    train(model, [batch], settings, seed=0, mixed_precision="no")
except TrainingError as error:
    print(error)
"""


def test_mixed_precision_is_for_training_only_and_one_a_process():
    run = _run(MIXED, ACCELERATE_USE_CPU="true")
    out, err = run.communicate(timeout=120)
    assert err == ""
    dtypes, refusal = out.splitlines()
    assert dtypes == "bfloat16 float32 float32 torch.float32 True"
    assert refusal.startswith("mixed_precision = 'no' can't be had here: ")
    assert refusal.endswith("A process has one mixed precision for all its training: use 'auto', or start another process")


def test_progress_is_drawn_on_a_terminal_only():
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=120)
        with progress_bar("train", 4, console=console) as report:
            for step in range(1, 5):
                report(f"train 1/2, step {step}", step, 0.25)
        drawn = stream.getvalue()
        assert ("train 1/2, step 4" in drawn and "loss 0.2500" in drawn and "4/4" in drawn) == terminal
        assert bool(drawn) == terminal


def test_a_run_without_a_terminal_prints_nothing(capsys):
    points = TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    evaluate(nn.Identity(), DataLoader(points, batch_size=4))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
