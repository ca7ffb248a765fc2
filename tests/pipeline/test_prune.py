"""`prune` end to end: the result is proven, what can't be proven is frozen and told, what can't be done is refused."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus import (
    Budget,
    BudgetNotMet,
    EvidenceError,
    NothingPruned,
    PrunusWarning,
    UnknownName,
    UnsupportedNetwork,
    VerificationFailed,
)
from prunus.reconstruction import recalibrate
from prunus.surgery import randomise
from prunus.surgery.prove import check_plan
from prunus.types import PruningPlan
from small_nets import NETS, batches, build, conv_norm_relu, images

HALF = Budget(macs=0.5, tolerance=0.2)


def macs(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images())
    return counter.get_total_flops() // 2


# -- the main job


@pytest.mark.parametrize("criterion", ["l1", "taylor", "random"])
@pytest.mark.parametrize("allocator", ["uniform", "global"])
@pytest.mark.parametrize("net", NETS)
def test_the_result_is_smaller_exact_and_as_promised(net: str, allocator: str, criterion: str) -> None:
    model = build(net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = prunus.prune(model, images(), HALF, criterion, batches(1), allocator=allocator)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(result.model) is type(model)
    assert macs(result.model) == result.after.macs == result.plan.predicted.macs <= 0.5 * macs(model)
    assert result.before.macs == macs(model)
    assert sum(p.numel() for p in result.model.parameters()) == result.after.parameters
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.max_error < 1e-12
    assert result.notes == ()
    assert result.plan.provenance["criterion"] == result.scores.criterion == criterion
    assert result.plan.provenance["allocator"] == allocator
    with torch.no_grad():
        silent = prunus.silence(model, result.graph, result.plan)
        torch.testing.assert_close(result.model(images(4, seed=9)), silent(images(4, seed=9)), rtol=1e-3, atol=1e-4)


def test_the_five_calls_give_the_same() -> None:
    model = build("Residual")
    result = prunus.prune(model, images(), HALF)
    graph = prunus.trace(model, images())
    scores = prunus.score(model, graph, "l1")
    plan = prunus.allocate(graph, scores, HALF)
    small, record = prunus.remove(model, graph, plan)
    assert all(torch.equal(plan.keep[name], mask) for name, mask in result.plan.keep.items())
    assert record.kept.keys() == result.record.kept.keys()
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])


def test_with_data_and_nothing_else_said_taylor_decides() -> None:
    model, data = build("Residual"), batches(2)
    result = prunus.prune(model, images(), HALF, data=data)
    assert (result.scores.criterion, result.plan.provenance["allocator"]) == ("taylor", "global_per_cost")
    named = prunus.prune(model, images(), HALF, "taylor", data, allocator="global_per_cost")
    assert all(torch.equal(named.plan.keep[name], mask) for name, mask in result.plan.keep.items())
    without = prunus.prune(model, images(), HALF)
    assert (without.scores.criterion, without.plan.provenance["allocator"]) == ("l1", "uniform")


def test_options_reach_the_parts() -> None:
    model, data = build("Plain"), batches(3)
    result = prunus.prune(model, images(), HALF, "taylor", data, batches=2, per_example=True, keep="one.*", seed=4)
    expected = prunus.score(model, prunus.trace(model, images(), "one.*"), "taylor", data[:2], per_example=True)
    assert {n: s.tolist() for n, s in result.scores.by_group.items()} == {n: s.tolist() for n, s in expected.by_group.items()}
    assert set(result.scores.by_group) == {"two.0", "three.0"}
    assert result.graph["one.0"].frozen_because == "`one.*` is listed in keep"
    assert result.model.one[0].weight.shape[0] == 16
    one, other = (prunus.prune(model, images(), HALF, "random", seed=s).plan.keep["two.0"] for s in (0, 1))
    assert not torch.equal(one, other)


def test_forward_fn_and_dict_inputs() -> None:
    model = build("Plain")
    by_keyword = prunus.prune(model, {"x": images()}, HALF)
    by_function = prunus.prune(model, {"image": images()}, HALF, forward_fn=lambda m, batch: m(batch["image"]))
    assert by_keyword.plan.counts() == by_function.plan.counts() == prunus.prune(model, images(), HALF).plan.counts()


def test_without_verification_nothing_is_claimed() -> None:
    result = prunus.prune(build("Plain"), images(), HALF, verify=False)
    assert result.verification is None
    assert "removed == silenced" not in str(result)
    assert macs(result.model) == result.after.macs


def test_the_result_prints_what_was_asked_and_got() -> None:
    result = prunus.prune(build("Plain"), images(), Budget(macs=0.5, channels=60, tolerance=0.2))
    lines = str(result).splitlines()
    after = result.after
    channels = sum(result.plan.counts().values())
    assert lines[0] == f"macs: 120,128 -> {after.macs:,}, asked for <= 60,064"
    assert lines[1] == f"channels: 80 -> {channels}, asked for <= 60"
    assert lines[2] == f"MACs 120,128 -> {after.macs:,} ({after.macs / 120_128:.1%} left)"
    assert lines[3] == f"parameters 14,458 -> {after.parameters:,} ({after.parameters / 14_458:.1%} left)"
    assert re.fullmatch(r"removed == silenced: largest relative error \d\.\de-\d\d \(tolerance 1e-09\)", lines[5])
    assert lines[4] == "ranked by l1, allocated by uniform" and len(lines) == 6


def test_a_branch_behind_zeros_can_not_hide_an_error() -> None:
    """The last norm of each branch is zero, so the network's own weights show nothing: the randomised copy does."""
    model = build("Residual")
    for outer in model.outer:
        nn.init.zeros_(outer[1].weight)
        nn.init.zeros_(outer[1].bias)
    graph = prunus.trace(model, images())
    plan = PruningPlan({"inner.0.0": torch.arange(24) % 2 == 0}, graph.cost())
    assert check_plan(model, graph, plan, images()).passed
    reads = [m for m in graph["inner.0.0"].members if m.parameter_axis.role == "reads"]
    reads[0].positions.copy_(reads[0].positions.flip(0))  # removal and silencing now disagree with the writers
    report = check_plan(model, graph, plan, images())
    assert not report.passed


# -- what goes along


def test_optimizer_and_average_move_to_the_small_network() -> None:
    model = build("Plain").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ema = copy.deepcopy(model)
    x, y = batches(1)[0]
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    momentum = optimizer.state[model.two[0].weight]["momentum_buffer"].clone()
    result = prunus.prune(model, images(), HALF, optimizer=optimizer, ema=ema)
    small = result.model
    assert small.training
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    kept_out, kept_in = (result.plan.keep[name].nonzero().flatten() for name in ("two.0", "one.0"))
    assert torch.equal(optimizer.state[small.two[0].weight]["momentum_buffer"], momentum[kept_out][:, kept_in])
    assert [tuple(p.shape) for p in ema.parameters()] == [tuple(p.shape) for p in small.parameters()]
    assert ema.two[0].out_channels == small.two[0].out_channels
    optimizer.zero_grad()
    nn.functional.cross_entropy(small(x), y).backward()
    optimizer.step()


# -- widths that Python holds


class FixedView(nn.Module):
    """`middle` is viewed as four times sixteen channels: numbers in the source that no surgery can change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm_relu(1, 24)
        self.middle = conv_norm_relu(24, 64)
        self.mixed = nn.Parameter(torch.randn(4))
        self.last = conv_norm_relu(64, 24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x))
        x = x.view(len(x), 4, 16, *x.shape[2:]) * self.mixed.view(4, 1, 1, 1)
        return self.classifier(self.last(x.flatten(1, 2)).mean((2, 3)))


class FixedSplit(nn.Module):
    """`middle` is split by a width that the module remembers, and by a list of widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm_relu(1, 24)
        self.middle = conv_norm_relu(24, 32)
        self.width, self.widths = 16, [10, 6]
        self.last = conv_norm_relu(32, 24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.middle(self.first(x)), self.width, dim=1)
        c, d = torch.split(b, self.widths, dim=1)
        return self.classifier(self.last(torch.cat([a.relu(), c.sigmoid(), d.tanh()], 1)).mean((2, 3)))


class ScaledByWidth(nn.Module):
    """The output of `middle` is divided by the square root of its width: no label shows it, only verification."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_norm_relu(1, 24)
        self.middle = conv_norm_relu(24, 32)
        self.last = conv_norm_relu(32, 24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x))
        return self.classifier(self.last(x / x.shape[1] ** 0.5).mean((2, 3)))


def test_a_width_that_a_module_remembers_is_repaired() -> None:
    model = randomise(FixedSplit()).eval()
    result = prunus.prune(model, images(), Budget(macs=0.6, tolerance=0.05))
    assert result.verification is not None and result.verification.passed and result.notes == ()
    assert set(result.record.repaired) == {"width", "widths"}
    assert result.model.width < 16 and sum(result.model.widths) < 16
    assert result.model.width + sum(result.model.widths) == result.model.middle[0].out_channels


@pytest.mark.parametrize("network", [FixedView, ScaledByWidth])
def test_a_width_in_python_is_frozen_and_the_plan_made_again(network: type[nn.Module]) -> None:
    """However the culprit is found, by the trace or by verification, the rest is pruned to the budget, exactly."""
    model = randomise(network()).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = prunus.prune(model, images(), Budget(macs=0.6, tolerance=0.05))
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.max_error < 1e-12
    frozen = {g.name: g.frozen_because for g in result.graph.frozen}
    assert set(frozen) == {"middle.0", "classifier"}
    assert result.model.middle[0].out_channels == model.middle[0].out_channels
    assert result.model.first[0].out_channels < 24
    assert macs(result.model) == result.after.macs <= 0.6 * macs(model)
    if result.notes:  # verification found it
        assert result.notes == ("frozen after verification failed on them: middle.0",)
        assert str(result).endswith(result.notes[0])
        assert "removal differs from silencing" in frozen["middle.0"]
        assert re.search(r"the network (holds|computes with) a width that the trace doesn.t see", frozen["middle.0"])
        assert set(result.scores.by_group) == {"first.0", "last.0"}
        told = [str(w.message) for w in caught if issubclass(w.category, PrunusWarning)]
        assert told == ["frozen after verification failed on them: middle.0; the plan is made again without them"]


def test_verification_finds_what_no_label_shows() -> None:
    with pytest.warns(PrunusWarning, match=r"frozen after verification failed on them: middle\.0; the plan is made again"):
        result = prunus.prune(randomise(ScaledByWidth()).eval(), images(), Budget(macs=0.6, tolerance=0.05))
    assert result.notes == ("frozen after verification failed on them: middle.0",)


class ScaledEverywhere(nn.Module):
    """Every group is scaled by its width: nothing can be pruned exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)])
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
            x = x / x.shape[1]
        return self.classifier(x.mean((2, 3)))


def test_a_network_that_can_never_be_proven() -> None:
    model = randomise(ScaledEverywhere()).eval()
    with (
        pytest.warns(PrunusWarning, match="frozen after verification failed on them: "),
        pytest.raises(VerificationFailed, match="removal differs from silencing in every group: largest in output 0") as caught,
    ):
        prunus.prune(model, images(), Budget(macs=0.5, tolerance=0.3), allocator="uniform")
    assert caught.value.report.max_error > 1e-3
    assert not caught.value.report.passed


def test_what_is_left_after_freezing_may_be_too_little() -> None:
    """The budget needs the group that verification froze: that is told, not quietly missed."""
    with (
        pytest.warns(PrunusWarning, match=r"middle\.0"),
        pytest.raises(BudgetNotMet, match=r"`middle\.0` \(frozen, \d+%\)"),
    ):
        prunus.prune(randomise(ScaledByWidth()).eval(), images(), Budget(macs=0.05))


class Unpredictable(nn.Module):
    """Random in evaluation mode, but the same after the same seed: verification must seed both networks alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x))).mean((2, 3)) + torch.rand(10)


def test_randomness_of_the_network_is_no_error() -> None:
    result = prunus.prune(randomise(Unpredictable()), images(), HALF)
    assert result.verification is not None
    assert result.verification.passed


# -- what is refused


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)


def not_finite(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.two[0].weight[0, 0, 0, 0] = float("nan")
    return model


def wrapped(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (compiled, r"the model is compiled: prune the original \(`model\._orig_mod`\)"),
        (not_finite, r"`two\.0\.weight` holds NaN or infinite values"),
        (wrapped, r"the model is wrapped in DataParallel: prune the network inside \(`model\.module`\)"),
    ],
)
def test_networks_that_are_refused(change: Any, text: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=text):
        prunus.prune(change(build("Plain")), images(), HALF)


def test_a_model_wrapped_for_distributed_training(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(build("Plain"))
        with pytest.raises(UnsupportedNetwork, match="the model is wrapped in DistributedDataParallel: prune the network inside"):
            prunus.prune(parallel, images(), HALF)
        assert macs(prunus.prune(parallel.module, images(), HALF).model) < macs(parallel.module)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"criterion": "l7"}, UnknownName, "unknown criterion 'l7': did you mean l"),
        ({"allocator": "globbal"}, UnknownName, "unknown allocator 'globbal': did you mean global"),
        ({"keep": "nothing.*"}, UnknownName, r"unknown selector in keep 'nothing\.\*'"),
        ({"keep": "*"}, NothingPruned, r"all 4 groups are frozen, so nothing can be pruned\. `one\.0`: `\*` is listed in keep"),
        ({"mixing": "perhaps"}, UnknownName, "unknown value of mixing 'perhaps'"),
        ({"criterion": "taylor"}, EvidenceError, "criterion taylor needs data"),
        ({"criterion": "taylor", "data": []}, EvidenceError, "the data loader yields nothing"),
        ({"per_example": True}, UnknownName, "unknown option of criterion l1"),
        ({"budget": Budget(macs=0.001)}, BudgetNotMet, "can't be reached: the smallest allowed network has"),
        ({"budget": Budget(macs=1.0)}, NothingPruned, "the network already meets the budget"),
    ],
)
def test_requests_that_are_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"budget": HALF} | arguments
    with pytest.raises(error, match=text):
        prunus.prune(build("Plain"), images(), **arguments)


class Reshaped(nn.Module):
    """A width that only training code holds."""

    def __init__(self, trained: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
        self.trained = trained

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.training and self.trained == "view":
            x = x.view(len(x), 16, *x.shape[2:])
        if self.training and self.trained == "scale":
            x = x / x.shape[1] ** 0.5
        return self.head(torch.relu(self.second(x)))


@pytest.mark.parametrize("trained", ["view", "scale"])
def test_a_width_that_only_training_holds_is_found(trained: str) -> None:
    inputs = torch.randn(2, 3, 16, 16)
    with pytest.warns(PrunusWarning, match="frozen after verification failed on them: first"):
        result = prunus.prune(Reshaped(trained), inputs, Budget(macs=0.8, tolerance=0.3))
    small = result.model.train()
    assert small.get_submodule("first").out_channels == 16 and small.get_submodule("second").out_channels < 16
    assert small(inputs).shape == (2, 5)
    assert "in training mode" in (result.graph["first"].frozen_because or "")


def test_random_training_code_is_no_reason_to_freeze() -> None:
    class Noisy(Reshaped):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            x = torch.nn.functional.dropout(x, 0.5, self.training)
            return self.head(torch.relu(self.second(x)))

    result = prunus.prune(Noisy("none"), torch.randn(2, 3, 16, 16), Budget(macs=0.6, tolerance=0.1))
    assert not result.graph.freeze({}).frozen[:-1] and result.notes == ()


# -- recalibration


def test_recalibration_comes_after_the_proof_and_is_told() -> None:
    model = build("Plain")
    data = batches(3)
    plain = prunus.prune(model, images(), HALF, "l1")
    result = prunus.prune(model, images(), HALF, "l1", data, recalibrate=True, batches=2)
    assert plain.recalibrated is None and "estimated anew" not in str(plain)
    assert result.recalibrated == sum(len(targets) for _, targets in data[:2])
    assert f"batch-norm statistics estimated anew on {result.recalibrated} images, after the proof" in str(result).splitlines()
    assert result.verification is not None and result.verification.passed
    expected = copy.deepcopy(plain.model)
    recalibrate(expected, data[:2])
    for name, tensor in expected.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)
    norm = next(m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.equal(
        norm.running_mean, next(m for m in plain.model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
    )


def test_recalibration_without_batch_norms_says_so() -> None:
    result = prunus.prune(build("Flattened"), images(), HALF, "l1", batches(1), recalibrate=True)
    assert result.recalibrated == 0 and "batch-norm statistics estimated anew nowhere: the network has none" in str(result)


@pytest.mark.parametrize(("data", "why"), [(None, "there are none"), (iter(()), "a tuple_iterator gives them only once")])
def test_recalibration_wants_data_that_come_again(data: Any, why: str) -> None:
    with pytest.raises(EvidenceError, match=rf"recalibrate=True goes through the data once more, after pruning, and {why}: give"):
        prunus.prune(build("Plain"), images(), HALF, "l1", data, recalibrate=True)
