"""What every row of `CRITERIA` must do, and what `score` refuses."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import CRITERIA, EvidenceError, NothingPruned, PrunusWarning, UnknownName
from prunus.importance import CriterionRow
from prunus.importance.criteria import resolve_criterion
from small_nets import NETS, batches, build, images

VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in CRITERIA]
VARIANTS += [
    (name, {option: value})
    for name, row in CRITERIA.items()
    for option, values in row.variants.items()
    for value, other in values.items()
    if (other.function, other.needs) != (row.function, row.needs)  # the row's own value is the row
    and option != "greedy"  # the oracle in every order: minutes; see tests/importance/test_ablation.py
]
VARIANTS += [
    ("l1", {"layer_adaptive": True, "members": "max"}),
    ("l2", {"greedy": 0.25, "normalisation": "rank"}),
    ("fpgm", {"norm_share": 0.25, "members": "sum"}),
    ("taylor", {"division": "released", "normalisation": "max"}),
    ("l1 + 0.5*taylor", {}),
]
SIGNED = {"obd", "oracle"}
"""Criteria whose scores may be negative."""
NEED_NORMS = {"bn_scale", "norms", "norm_scales"}
WITHOUT_LOSS = {"apoz", "activation_mean", "activation_std", "activation_max", "entropy", "feature_map_rank", "lasso"}
WITHOUT_GRADIENTS = {*WITHOUT_LOSS, "oracle", "aofp_damage", "particle_filter"}
COUNTING = {"apoz", "entropy", "feature_map_rank", "functionality", "lasso"}
"""Criteria that count, rank or select: equal scores are in order, and low precision may tip a count."""
BY_NUMBER = {"random", "first_k", "aofp_damage", "particle_filter"}
"""Criteria that draw or count by the channels' numbers."""
TRIALS = {"oracle", "aofp_damage", "particle_filter"}
"""Criteria that try many networks: one network will do, the rest is in the tests of their own files."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:criterion bn_scale. .* gammas:prunus.PrunusWarning"),
    pytest.mark.filterwarnings("ignore:APoZ counts exact zeros:prunus.PrunusWarning"),
    pytest.mark.filterwarnings("ignore:criterion feature_map_rank says nothing:prunus.PrunusWarning"),
]
every_criterion = pytest.mark.parametrize(("criterion", "options"), VARIANTS)
every_net = pytest.mark.parametrize("net", NETS)


def score(model: nn.Module, criterion: Any, dtype: torch.dtype = torch.float32, **options: Any) -> prunus.Scores:
    """Scores of every group that can be scored; data where the criterion wants them."""
    graph = prunus.trace(model, images(dtype=dtype))
    return prunus.score(model, graph, criterion, batches(2, dtype=dtype) if needs(criterion) else None, **options)


def needs(criterion: Any) -> frozenset[str]:
    return resolve_criterion(criterion, {}).needs


def has_norms(net: str) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in NETS[net]().modules())


def skip_without_norms(criterion: str, options: dict[str, Any], net: str) -> None:
    """Not a hole: `tests/importance/test_weights.py` asserts what bn_scale says about such networks."""
    if {criterion, options.get("on")} & NEED_NORMS and not has_norms(net):
        pytest.skip("needs norm layers")
    if criterion == "feature_map_rank" and net == "Flattened":
        pytest.skip("needs maps")
    if criterion in TRIALS and net != "Plain":
        pytest.skip("slow: one network will do")


def digest(model: nn.Module) -> str:
    """Hash of everything that scoring might disturb."""
    state = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        grad = None if tensor.grad is None else tensor.grad.tolist()
        state.update(f"{name} {tensor.requires_grad} {tensor.dtype} {tensor.tolist()} {grad}".encode())
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        state.update(f"{name} {module.training} {[list(h) for h in hooks]}".encode())
    state.update(torch.get_rng_state().numpy().tobytes())
    state.update(f"{random.getstate()} {np.random.get_state()[1].tolist()} {np.random.get_state()[2:]}".encode())
    state.update(str((torch.is_grad_enabled(), torch.get_default_dtype())).encode())
    return state.hexdigest()


# -- the contract


@every_net
@every_criterion
def test_a_finite_score_for_every_channel(net: str, criterion: str, options: dict[str, Any]) -> None:
    skip_without_norms(criterion, options, net)
    model = build(net)
    graph, scores = prunus.trace(model, images()), score(model, criterion, **options)
    assert scores.criterion == criterion
    expected = {g.name for g in graph.prunable}
    assert set(scores.by_group) == expected or (criterion == "feature_map_rank" and set(scores.by_group) < expected)
    for name, values in scores.by_group.items():
        assert values.shape == (graph[name].num_channels,)
        assert values.dtype == torch.float64
        assert torch.isfinite(values).all()
        assert len(values.unique()) > 1 or criterion in COUNTING
        assert float(values.min()) >= 0 or criterion in SIGNED


@every_criterion
def test_the_same_seed_gives_the_same_scores(criterion: str, options: dict[str, Any]) -> None:
    first, again = (score(build("Plain"), criterion, seed=3, **options).by_group for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@every_net
@every_criterion
def test_scores_follow_their_channels(net: str, criterion: str, options: dict[str, Any]) -> None:
    """Permuting the channels of a group permutes its scores and leaves all others."""
    skip_without_norms(criterion, options, net)
    if criterion in BY_NUMBER or "racing" in options:
        pytest.skip("goes by the channels' numbers")
    model = build(net, torch.float64)
    before = score(model, criterion, torch.float64, **options).by_group
    graph = prunus.trace(model, images(dtype=torch.float64))
    group = graph.prunable[0]
    order = torch.randperm(group.num_channels, generator=torch.Generator().manual_seed(5))
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    with torch.no_grad():
        for member in {(m.parameter_axis.parameter, m.parameter_axis.axis): m for m in group.members}.values():
            tensor, axis = tensors[member.parameter_axis.parameter], member.parameter_axis.axis
            moved = tensor.index_select(axis, member.positions[order].reshape(-1))
            tensor.index_copy_(axis, member.positions.reshape(-1), moved)
    after = score(model, criterion, torch.float64, **options).by_group
    for name in after:
        expected = before[name][order] if name == group.name else before[name]
        torch.testing.assert_close(after[name], expected, rtol=1e-8, atol=1e-12)
    assert criterion in COUNTING or not torch.allclose(after[group.name], before[group.name], atol=0)


class Busybody(nn.Module):
    """Counts its calls in a buffer, in evaluation mode too, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0 * torch.rand(())


@pytest.mark.parametrize("training", [False, True])
@every_criterion
def test_the_model_is_left_as_found(criterion: str, options: dict[str, Any], training: bool) -> None:
    model = nn.Sequential(Busybody(), build("Residual"), nn.Dropout(0.5)).train(training)
    model[1].stem.eval()  # a part in another mode than the rest
    model[1].classifier.weight.requires_grad_(False)
    model[1].classifier.bias.grad = torch.ones(10)
    model.register_forward_hook(lambda *_: None)
    before = digest(model)
    score(model, criterion, **options)
    assert digest(model) == before


@every_criterion
def test_the_model_is_left_as_found_when_the_data_fail(criterion: str, options: dict[str, Any]) -> None:
    if not needs(criterion):
        pytest.skip("needs no data")
    model = build("Plain").train()
    model.classifier.weight.requires_grad_(False)
    graph, before = prunus.trace(model, images()), digest(model)

    def failing() -> Iterator[Any]:
        yield batches(1)[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        prunus.score(model, graph, criterion, failing(), **options)
    assert digest(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_criterion
def test_scores_in_lower_precision_are_close(criterion: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    if criterion in COUNTING | TRIALS and dtype == torch.bfloat16:
        pytest.skip("counts and differences of losses aren't continuous, or too fine")
    exact = score(build("Plain", torch.float64), criterion, torch.float64, **options).by_group
    found = score(build("Plain", dtype), criterion, dtype, **options).by_group
    for name in exact:
        error = float((found[name] - exact[name]).norm() / exact[name].norm())
        assert error < (1e-4 if dtype == torch.float32 else 0.1)


@every_criterion
def test_scores_in_half_precision_are_finite(criterion: str, options: dict[str, Any]) -> None:
    found = score(build("Plain", torch.bfloat16), criterion, torch.bfloat16, **options)
    assert set(found.by_group) <= {"one.0", "two.0", "three.0"}
    for values in found.by_group.values():
        assert values.dtype == torch.float64
        assert torch.isfinite(values).all()


@every_criterion
def test_a_row_says_what_it_is(criterion: str, options: dict[str, Any]) -> None:
    row = resolve_criterion(criterion, options)
    assert isinstance(row, CriterionRow)
    assert row.name == criterion
    assert len(row.summary) > 30
    assert len(row.paper) > 10


# -- evidence


def data_driven() -> list[tuple[str, dict[str, Any]]]:
    return [(name, options) for name, options in VARIANTS if needs(name)]


@pytest.fixture(scope="module")
def plain() -> tuple[nn.Module, prunus.ChannelGraph]:
    model = build("Plain")
    return model, prunus.trace(model, images())


def detached(output: Tensor, batch: Any) -> Tensor:
    return output.detach().sum()


@pytest.mark.parametrize(("criterion", "options"), data_driven())
@pytest.mark.parametrize(
    ("data", "loss_fn", "text"),
    [
        (None, None, r"criterion .+ needs data: pass data=loader, which yields \(inputs, targets\)"),
        ([], None, "the data loader yields nothing"),
        ([(images(2), torch.tensor([1, 2]))], lambda out, _: out.sum() * float("nan"), "the loss is nan on a scoring batch"),
        ([(images(2), torch.tensor([1, 2]))], lambda out, _: out.sum() * float("inf"), "the loss is -?inf on a scoring batch"),
        ([(images(2) * float("nan"), torch.tensor([1, 2]))], None, "the loss is nan on a scoring batch"),
        ([(images(2), torch.tensor([1, 2]))], detached, "doesn't depend on the network's weights through autograd"),
        ([(images(2), torch.tensor([1, 2]))], lambda out, _: out.sum(1), r"must return the batch's mean.*not \(2,\)"),
        ([(images(2), torch.tensor([1, 2]))], lambda out, _: 3.0, "must return the batch's mean.*not float"),
        ([images(2)], None, r"the loader yields a Tensor: yield \(inputs, targets\)"),
        ([{"image": images(2)}], None, r"the loader yields a dict: yield \(inputs, targets\)"),
        ([(images(2), "cat")], None, "cross entropy needs a tensor of logits and one of targets, not Tensor and str"),
    ],
)
def test_bad_evidence(
    plain: tuple[nn.Module, prunus.ChannelGraph], criterion: str, options: dict[str, Any], data: Any, loss_fn: Any, text: str
) -> None:
    if criterion in WITHOUT_LOSS and data:
        pytest.skip("no loss is taken")
    if criterion in WITHOUT_GRADIENTS and loss_fn is detached:
        pytest.skip("no gradient is taken")
    with pytest.raises(EvidenceError, match=text):
        prunus.score(*plain, criterion, data, loss_fn, **options)


@pytest.mark.parametrize("criterion", sorted(WITHOUT_LOSS))
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_activations_that_are_not_finite(plain: tuple[nn.Module, prunus.ChannelGraph], criterion: str, value: str) -> None:
    with pytest.raises(EvidenceError, match="aren't finite on a scoring batch: check the data and"):
        prunus.score(*plain, criterion, [images(2) * float(value)])


@pytest.mark.parametrize(("criterion", "options"), data_driven())
def test_batches_limits_what_is_read(
    plain: tuple[nn.Module, prunus.ChannelGraph], criterion: str, options: dict[str, Any]
) -> None:
    data = batches(3)
    two = prunus.score(*plain, criterion, data[:2], **options).by_group
    limited = prunus.score(*plain, criterion, data, batches=2, **options).by_group
    every = prunus.score(*plain, criterion, iter(data), **options).by_group
    assert all(torch.equal(two[name], limited[name]) for name in two)
    assert criterion in COUNTING or not torch.equal(two["two.0"], every["two.0"])


@pytest.mark.parametrize(("criterion", "options"), data_driven())
def test_forward_fn_and_loss_fn_may_read_batches_of_their_own(
    plain: tuple[nn.Module, prunus.ChannelGraph], criterion: str, options: dict[str, Any]
) -> None:
    expected = prunus.score(*plain, criterion, batches(1), **options).by_group
    found = prunus.score(
        *plain,
        criterion,
        [{"image": x, "label": y} for x, y in batches(1)],
        lambda output, batch: nn.functional.cross_entropy(output, batch["label"]),
        forward_fn=lambda model, batch: model(batch["image"]),
        **options,
    ).by_group
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# -- names


@pytest.mark.parametrize(
    ("criterion", "options", "text"),
    [
        ("l3", {}, r"unknown criterion 'l3': did you mean l\d or l\d\?"),
        ("tailor", {}, "unknown criterion 'tailor': did you mean taylor?"),
        ("zzz", {}, f"unknown criterion 'zzz': known are: {', '.join(sorted(CRITERIA))}"),
        ("taylor", {"per_exampel": True}, "unknown option of criterion taylor 'per_exampel': did you mean per_example?"),
        ("taylor", {"per_example": "maybe"}, r"unknown value of taylor\.per_example 'maybe': known are: False, True"),
        ("taylor", {"per_example": [1]}, r"unknown value of taylor\.per_example"),
        (
            "l1",
            {"p": 2},
            "unknown option of criterion l1 'p': known are: greedy, layer_adaptive, macs_penalty, members, normalis",
        ),
        ("l1", {"members": "avg"}, r"unknown value of l1\.members 'avg': known are: l2, max, mean, sum"),
        ("l1", {"layer_adaptive": 1}, r"unknown value of l1\.layer_adaptive '1': known are: False, True"),
        ("l1", {"greedy": 1.5}, r"l1\.greedy=1\.5 is not False, or True, or a number from 0 up and below 1"),
        ("l1", {"macs_penalty": -1}, r"l1\.macs_penalty=-1 is not a number from 0 up"),
        ("fpgm", {"layer_adaptive": True}, "unknown option of criterion fpgm 'layer_adaptive': known are"),
        ("taylor", {"per_example": True, "on": "weights"}, "can't have on='weights' together with per_example=True: choose one"),
        ("taylor", {"on": "weights", "division": "mean"}, "unknown option of criterion taylor 'division': known are: "),
        ("l1 + tailor", {}, "unknown criterion 'tailor': did you mean taylor?"),
        (
            "l1 + -1*taylor",
            {},
            r"can't read the weight '-1' in the sum of criteria 'l1 \+ -1\*taylor': write names with positive",
        ),
        ("l1 + taylor", {"greedy": 0.5}, "unknown option of a sum of criteria 'greedy'"),
    ],
)
def test_unknown_names(plain: tuple[nn.Module, prunus.ChannelGraph], criterion: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UnknownName, match=text):
        prunus.score(*plain, criterion, batches(1), **options)


# -- criteria of the user's own


class Own:
    name, paper, comparable = "own", "mine", False

    def __init__(self, values: Any, needs: frozenset[str] = frozenset()) -> None:
        self.values, self.needs = values, needs

    def score(self, view: Any, evidence: Any) -> Any:
        return self.values(view) if callable(self.values) else self.values


def test_an_own_criterion_sees_matrices(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    scores = prunus.score(*plain, Own(lambda view: view.matrices("writes")[0].abs().amax(1)))
    assert scores.criterion == "own"
    torch.testing.assert_close(scores.by_group["two.0"].float(), plain[0].two[0].weight.detach().abs().amax((1, 2, 3)))


def test_an_own_criterion_that_writes_into_its_matrices_does_no_harm() -> None:
    model = build("Plain")
    graph, before = prunus.trace(model, images()), digest(model)
    prunus.score(model, graph, Own(lambda view: view.matrices("writes")[0].zero_().sum(1)))
    assert digest(model) == before


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            lambda view: torch.full((view.group.num_channels,), float("nan")),
            "criterion own gave a non-finite score in group `one.0`",
        ),
        (
            lambda view: torch.full((view.group.num_channels,), float("inf")),
            "criterion own gave a non-finite score in group `one.0`",
        ),
        (torch.ones(3), r"criterion own gave \(3,\) scores for group `one.0`, which has 16 channels"),
        (torch.tensor(1.0), r"criterion own gave \(\) scores"),
    ],
)
def test_wrong_scores_are_refused(plain: tuple[nn.Module, prunus.ChannelGraph], values: Any, text: str) -> None:
    with pytest.raises(EvidenceError, match=text):
        prunus.score(*plain, Own(values))


def test_unscored_groups_are_told(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    only_two = Own(lambda view: torch.ones(32) if view.group.name == "two.0" else None)
    with pytest.warns(PrunusWarning, match=r"criterion own says nothing about 2 of 3 groups, kept whole: one\.0, three\.0"):
        assert set(prunus.score(*plain, only_two).by_group) == {"two.0"}


def test_no_score_at_all(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    with pytest.raises(NothingPruned, match="criterion own can score none of the 3 groups"):
        prunus.score(*plain, Own(None))


def test_own_criteria_take_no_options_and_know_their_evidence(plain: tuple[nn.Module, prunus.ChannelGraph]) -> None:
    with pytest.raises(UnknownName, match=r"options \['power'\] are for criteria that are given by name"):
        prunus.score(*plain, Own(None), power=2)
    with pytest.raises(
        UnknownName, match="5 is no criterion, it has no name and no needs and no paper and no score: give a name"
    ):
        prunus.score(*plain, 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="unknown kind of evidence 'gate_gradient': did you mean gate_gradients"):
        prunus.score(*plain, Own(None, frozenset({"gate_gradient"})), batches(1))


def test_the_table_is_sound() -> None:
    assert {name: row.name for name, row in CRITERIA.items()} == {name: name for name in CRITERIA}
    assert all(isinstance(row, CriterionRow) for row in CRITERIA.values())
    not_comparable = {"l1", "max_response", "l2", "fpgm", "next_layer_weight", "gradient_mean"}
    comparable = {"random", "first_k", "bn_scale", "taylor", "taylor_2016", "taylor_second_order", "obd"}
    assert all(CRITERIA[name].comparable for name in comparable)
    assert not any(CRITERIA[name].comparable for name in not_comparable)
    assert CRITERIA["l1"].with_options({"normalisation": "max"}).comparable
    assert CRITERIA["l1"].with_options({"layer_adaptive": True}).comparable
    assert not CRITERIA["l1"].with_options({"normalisation": "none", "layer_adaptive": False}).comparable
