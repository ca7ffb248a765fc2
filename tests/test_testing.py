"""`prunus.testing`: what it tells about networks and about rules of operations."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prunus
import prunus.testing
from nets import residual
from prunus.errors import PrunusError, UnknownName, UnsupportedNetwork, VerificationFailed
from prunus.graph.op_call import OpCall
from prunus.graph.op_rules import OP_RULES, op_rule
from prunus.surgery import SurgeryRecord
from prunus.testing import check_network, check_op_rule, random_plan
from prunus.testing import network as network_check

OUTPUT = "it is the network's output"


class Two(nn.Module):
    """A convolution, something, a convolution."""

    def __init__(self, between: object = torch.relu, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(width, 4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


# -- networks


def test_an_exact_network_and_what_the_report_says() -> None:
    report = check_network(Two(), image())
    assert report.verdict == "exact"
    assert report.frozen == {"second": OUTPUT} and report.shortcomings == {}
    assert report.prunable_share == 1.0  # both convolutions touch `first`'s channels
    assert report.macs_left == 0.5  # 4 of 8 channels: half of what is written and half of what is read
    assert 0 <= report.max_error < 1e-12
    assert report.repaired == () and report.mixing == () and report.notes == ()
    assert list(report.seconds) == ["trace", "verify", "plan", "remove"] and all(s > 0 for s in report.seconds.values())
    lines = str(report).splitlines()
    assert lines[0] == "exact: 100.0% of the MACs are in prunable channels"
    assert re.fullmatch(
        r"removed and checked: 50\.0% of the MACs left, largest relative error \d\.\de-\d\d|.* 0\.0e\+00", lines[1]
    )
    assert re.fullmatch(r"trace \d+\.\d\d s, verify \d+\.\d\d s, plan \d+\.\d\d s, remove \d+\.\d\d s", lines[2])
    assert len(lines) == 3


def test_the_fraction_and_the_seed_make_the_plan() -> None:
    graph = prunus.trace(Two(width=20), image())
    plans = [random_plan(graph, 0.25, seed) for seed in (0, 0, 1)]
    assert [int(plan.keep["first"].sum()) for plan in plans] == [15, 15, 15]
    assert torch.equal(plans[0].keep["first"], plans[1].keep["first"])
    assert not torch.equal(plans[0].keep["first"], plans[2].keep["first"])
    assert plans[0].predicted == graph.cost(plans[0])
    assert int(random_plan(graph, 1.0).keep["first"].sum()) == 1  # one channel always stays
    assert int((~random_plan(graph, 0.0).keep["first"]).sum()) == 1  # and one always goes
    assert check_network(Two(width=20), image(), fraction=0.25).macs_left == 0.75


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    model = residual().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert check_network(model, torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).verdict == "exact"
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


class Split(nn.Module):
    """Splits by a width that it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.width = nn.Conv2d(3, 16, 1), nn.Conv2d(12, 4, 1), 12

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x)[:, : self.width])


def test_a_remembered_width_is_repaired_and_named() -> None:
    report = check_network(Split(), image())
    assert report.verdict == "exact after repair"
    assert report.repaired == ("width",)
    assert "widths held by the program and repaired: width" in str(report).splitlines()


class Scaled(nn.Module):
    """Divides by the number of channels: nothing shows it but the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[1]


def test_a_group_that_fails_is_frozen_and_the_rest_goes_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), Scaled(), nn.Conv2d(8, 4, 1))
    report = check_network(model, image())
    assert report.verdict == "partly frozen"
    assert list(report.shortcomings) == ["2"]
    assert report.shortcomings["2"].startswith("removal differs from silencing (largest in output 0 of 1, relative error ")
    assert report.macs_left < 1
    assert 0 < report.prunable_share < 1
    lines = str(report).splitlines()
    assert lines[2].startswith("`2` stays whole: removal differs from silencing")
    assert lines[3].startswith("what to do next: an operation without a rule can be given one with `prunus.op_rule`; ")


@pytest.mark.parametrize("why", ["lazy", "output", "unproven"])
def test_a_refused_network_is_a_report_not_an_error(why: str) -> None:
    model = {
        "lazy": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.LazyConv2d(4, 1)),
        "output": lambda: nn.Conv2d(3, 8, 1),
        "unproven": lambda: Two(Scaled()),
    }[why]()
    report = check_network(model, image())
    assert report.verdict == "refused"
    assert report.prunable_share == 0 and report.macs_left == 1 and report.repaired == ()
    expected = {
        "lazy": {"": "`1.weight` is lazy and has no shape yet: run the model once on real input before tracing"},
        "output": {"weight": OUTPUT},
        "unproven": {"first": "removal differs from silencing in every group: largest in output 0 of 1", "second": OUTPUT},
    }[why]
    assert report.frozen == expected
    assert str(report).startswith("refused: 0.0% of the MACs are in prunable channels")


def test_mixing_groups_are_named_or_frozen() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(self.first(x)))

    report = check_network(Normed(), torch.randn(4, 5))
    assert report.verdict == "exact" and report.mixing == ("first",)
    assert "1 of 2 groups pass through statistics over channels, which are taken over the kept ones; " in str(report)
    frozen = check_network(Normed(), torch.randn(4, 5), mixing="freeze")
    assert frozen.verdict == "refused" and "mixing='freeze' was asked for" in frozen.shortcomings["first"]


def test_what_is_kept_on_purpose_is_no_shortcoming() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    report = check_network(model, image(), keep="0")
    assert report.verdict == "exact" and report.shortcomings == {}
    assert report.frozen == {"0": "`0` is listed in keep", "2": OUTPUT}
    with pytest.raises(UnknownName, match="'nothing'"):
        check_network(model, image(), keep="nothing")


def test_training_inputs_and_a_forward_function() -> None:
    class Detector(nn.Module):
        """Takes a target in training, as detectors do, where it runs a head of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.aux = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
            x = self.body(x)
            if not self.training:
                return {"boxes": self.head(x)}
            assert target is not None
            return {"loss": (self.head(x) - target).pow(2).mean() + self.aux(x).abs().mean()}

    def call(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return next(iter(model(**inputs).values()))

    report = check_network(
        Detector(), {"x": image()}, forward_fn=call, train_inputs={"x": image(), "target": torch.randn(2, 4, 8, 8)}
    )
    assert report.verdict == "exact" and report.notes == ()
    assert report.macs_left == 0.5


class _FixedBackward(torch.autograd.Function):
    """Its derivative holds a width: only a training step shows it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.reshape(len(grad), 8, 6, 6) * 2


def test_a_training_step_that_breaks_freezes_the_group() -> None:
    report = check_network(_Doubling(), image())
    assert list(report.shortcomings) == ["second"]
    assert "a training step fails: RuntimeError: shape '[2, 8, 6, 6]' is invalid" in report.shortcomings["second"]


class _Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(_FixedBackward.apply(self.second(self.first(x))))


def test_a_record_that_does_not_rebuild_the_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SurgeryRecord.to_json

    def without_the_last_edit(self: SurgeryRecord) -> str:
        return whole(SurgeryRecord(self.fingerprint, self.edits[:-1], self.versions))

    monkeypatch.setattr(SurgeryRecord, "to_json", without_the_last_edit)
    with pytest.raises(VerificationFailed, match=r"the surgery record doesn't rebuild the small network: \w+ differ"):
        check_network(Two(), image())


def test_a_breakdown_of_prunus_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such row")

    monkeypatch.setattr(network_check, "trace", broken)
    with pytest.raises(VerificationFailed, match=r"Prunus broke down on this network, .* report .*: IndexError: no such row"):
        check_network(Two(), image())


def test_macs_that_the_referee_counts_otherwise_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([2 * 8 * 36 * 27 + 2 * 4 * 16 * 72, 7])
    monkeypatch.setattr(network_check, "_count", lambda *_: next(counted))
    model = Two()
    report = check_network(model, image())
    assert report.notes == ("the plan predicts 12,384 MACs, 7 are counted in the small network",)


# -- rules of operations


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    """Operations of a library of one's own; their rules go when the test ends."""
    library = torch.library.Library("prunus_test", "DEF")
    for name, function in (("double", lambda x: x * 2), ("turned", lambda x: x.flip(1))):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, function, "CompositeExplicitAutograd")
    before = dict(OP_RULES)
    yield library
    for name in set(OP_RULES) - set(before):
        del OP_RULES[name]
    op_rule()(lambda _: None)  # forgets what was looked up
    library._destroy()


def double(x: Tensor) -> Tensor:
    return torch.ops.prunus_test.double(x)


def test_an_operation_without_a_rule_freezes(library: torch.library.Library) -> None:
    report = check_op_rule(double, torch.randn(2, 8, 6, 6))
    assert report.verdict == "frozen"
    assert report.reason.startswith(
        "no rule for this operation (register one with `prunus.op_rule`) in `prunus_test.double.default`"
    )
    assert str(report) == f"the rule freezes the channels: {report.reason}"
    assert report.network.verdict == "refused"


@pytest.mark.parametrize("shape", [(4, 8), (2, 8, 6), (2, 8, 6, 6), (1, 8, 3, 4, 4)])
def test_a_right_rule_is_exact_for_every_rank(library: torch.library.Library, shape: tuple[int, ...]) -> None:
    @op_rule("prunus_test::double")
    def rule(op: OpCall) -> None:
        op.follow(op.args[0])

    report = check_op_rule(double, torch.randn(shape))
    assert (report.verdict, report.reason) == ("exact", "")
    assert str(report).startswith("the rule is exact: a quarter, half and three quarters of the channels")


def test_a_wrong_rule_is_called_wrong(library: torch.library.Library) -> None:
    @op_rule("prunus_test::turned")
    def rule(op: OpCall) -> None:
        op.follow(op.args[0])

    report = check_op_rule(torch.ops.prunus_test.turned, torch.randn(2, 8, 6, 6))
    assert report.verdict == "wrong"
    assert report.reason.startswith("removal differs from silencing")
    assert str(report) == f"the rule is wrong: {report.reason}"


def test_rules_of_modules_of_several_arguments_and_channels_last() -> None:
    norm = nn.BatchNorm2d(8)
    assert check_op_rule(norm, torch.randn(2, 8, 6, 6)).verdict == "exact"
    assert check_op_rule(lambda a, b: a * b, torch.randn(2, 8, 6, 6), torch.randn(2, 8, 1, 1)).verdict == "exact"
    last = check_op_rule(torch.tanh, torch.randn(2, 6, 8), channel_axis=-1)
    assert last.verdict == "exact" and last.network.macs_left < 1
    both = check_op_rule(lambda x: torch.chunk(x, 2, 1), torch.randn(2, 8, 6, 6))
    assert both.verdict == "exact"


def test_what_has_no_channels_is_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="check_op_rule needs an example with channels"):
        check_op_rule(torch.relu, torch.randn(8))
    assert issubclass(UnsupportedNetwork, PrunusError)
