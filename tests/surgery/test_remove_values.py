"""What removal edits and what it says, value by value and word by word: attributes, copies of tensors, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prunus
from nets import NETS, Program, conv, image, random_plan, residual
from prunus.graph import trace
from prunus.surgery import AttributeEdit, SliceEdit, SurgeryRecord, remove
from prunus.surgery.record import IndexEdit
from prunus.surgery.remove import apply_record, plan_to_record, removed_positions
from prunus.surgery.repair import attribute_edits, fits, index_edits, set_attribute
from prunus.types import ChannelGraph, Cost, HeldIndex, HeldWidth, PruningPlan

NO_COST = Cost(0, 0, 0)


def plan(**keep: list[int]) -> PruningPlan:
    """Masks of zeros and ones."""
    return PruningPlan({name: torch.tensor(mask, dtype=torch.bool) for name, mask in keep.items()}, NO_COST)


def sliced(parameter: str, axis: int, left: int, size: int) -> SliceEdit:
    return SliceEdit(parameter, axis, torch.arange(left), size)


# -- attributes of PyTorch's layers


def edits(model: nn.Module, *slices: SliceEdit, held: tuple[HeldWidth, ...] = ()) -> dict[str, object]:
    """``path.attribute`` -> value of the edits that these slices ask for."""
    return {f"{e.module}.{e.attribute}": e.value for e in attribute_edits(model, slices, held, plan(a=[1, 0]))}


LAYERS: dict[str, tuple[nn.Module, list[SliceEdit], dict[str, object]]] = {
    "convolution": (
        nn.Conv2d(4, 6, 3),
        [sliced("0.weight", 0, 5, 6), sliced("0.weight", 1, 3, 4), sliced("0.bias", 0, 5, 6)],
        {"0.in_channels": 3, "0.out_channels": 5},
    ),
    "only read": (nn.Conv1d(4, 6, 3), [sliced("0.weight", 1, 3, 4)], {"0.in_channels": 3}),
    "grouped": (
        nn.Conv2d(8, 12, 3, groups=4),
        [sliced("0.weight", 0, 8, 12), sliced("0.weight", 1, 1, 2)],
        {"0.in_channels": 4, "0.out_channels": 8},
    ),
    "depthwise": (
        nn.Conv3d(6, 12, 1, groups=6),
        [sliced("0.weight", 0, 4, 12)],
        {"0.in_channels": 2, "0.out_channels": 4, "0.groups": 2},
    ),
    "depthwise of two": (
        nn.Conv2d(2, 4, 1, groups=2),
        [sliced("0.weight", 0, 2, 4)],
        {"0.in_channels": 1, "0.out_channels": 2, "0.groups": 1},
    ),
    "transposed": (
        nn.ConvTranspose2d(8, 12, 3, groups=2),
        [sliced("0.weight", 0, 6, 8), sliced("0.weight", 1, 5, 6)],
        {"0.in_channels": 6, "0.out_channels": 10},
    ),
    "transposed depthwise": (
        nn.ConvTranspose1d(6, 12, 3, groups=6),
        [sliced("0.weight", 0, 4, 6)],
        {"0.in_channels": 4, "0.out_channels": 8, "0.groups": 4},
    ),
    "linear": (
        nn.Linear(5, 7),
        [sliced("0.weight", 0, 6, 7), sliced("0.weight", 1, 2, 5)],
        {"0.in_features": 2, "0.out_features": 6},
    ),
    "batch norm": (nn.BatchNorm2d(5), [sliced("0.weight", 0, 3, 5), sliced("0.running_var", 0, 3, 5)], {"0.num_features": 3}),
    "statistics alone": (nn.BatchNorm1d(5, affine=False), [sliced("0.running_mean", 0, 2, 5)], {"0.num_features": 2}),
    "instance norm": (nn.InstanceNorm2d(5, affine=True), [sliced("0.weight", 0, 4, 5)], {"0.num_features": 4}),
    "group norm": (nn.GroupNorm(2, 6), [sliced("0.weight", 0, 4, 6)], {"0.num_channels": 4}),
    "layer norm": (nn.LayerNorm((3, 5)), [sliced("0.weight", 1, 4, 5)], {"0.normalized_shape": (3, 4)}),
    "rms norm": (nn.RMSNorm(5), [sliced("0.weight", 0, 4, 5)], {"0.normalized_shape": (4,)}),
    "prelu": (nn.PReLU(5), [sliced("0.weight", 0, 4, 5)], {"0.num_parameters": 4}),
    "embedding": (nn.Embedding(9, 5), [sliced("0.weight", 1, 4, 5)], {"0.embedding_dim": 4}),
    "bag": (nn.EmbeddingBag(9, 5), [sliced("0.weight", 1, 4, 5)], {"0.embedding_dim": 4}),
    "bilinear": (
        nn.Bilinear(3, 4, 5),
        [sliced("0.weight", 0, 2, 5), sliced("0.weight", 2, 1, 4)],
        {"0.out_features": 2, "0.in2_features": 1},
    ),
    "recurrent": (nn.GRU(5, 3), [sliced("0.weight_ih_l0", 1, 4, 5)], {"0.input_size": 4}),
    "cell": (nn.LSTMCell(5, 3), [sliced("0.weight_ih", 1, 4, 5)], {"0.input_size": 4}),
    "nothing of its own": (nn.Linear(5, 7), [sliced("1.weight", 0, 6, 7)], {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_attributes_of_every_kind_of_layer(name: str) -> None:
    layer, slices, expected = LAYERS[name]
    model = nn.Sequential(layer, nn.PReLU(7) if name == "nothing of its own" else nn.Identity())
    found = edits(model, *slices)
    assert found == (expected or {"1.num_parameters": 6})
    assert all(type(value) in (int, tuple, torch.Size) for value in found.values())
    assert all(not e.repaired for e in attribute_edits(model, slices, (), plan(a=[1, 0])))


def test_whole_groups_of_a_convolution_go_where_the_trace_says_so() -> None:
    held = HeldWidth("0", "groups", None, {"a": torch.tensor([0, 1])}, 1, True)  # three groups, of which two may go
    model = nn.Sequential(nn.Conv2d(6, 9, 1, groups=3))
    slices = [sliced("0.weight", 0, 6, 9)]
    assert edits(model, *slices, held=(held,)) == {"0.in_channels": 4, "0.out_channels": 6, "0.groups": 2}
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3))
    assert edits(depthwise, sliced("0.weight", 0, 1, 3), held=(held,)) == {"0.in_channels": 2, "0.out_channels": 1, "0.groups": 2}


def test_a_weight_norm_is_read_at_its_originals() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 7)), nn.ReLU())
    value = "0.parametrizations.weight.original1"
    assert edits(model, sliced(value, 0, 6, 7), sliced(value, 1, 3, 5)) == {"0.in_features": 3, "0.out_features": 6}


def test_a_weight_computed_from_another_shape_tells_nothing() -> None:
    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return torch.cat([w, w])

    model = nn.Sequential(nn.Linear(5, 6))
    model[0].weight = nn.Parameter(torch.randn(3, 5))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled(), unsafe=True)
    assert edits(model, sliced("0.parametrizations.weight.original", 0, 2, 3), sliced("0.bias", 0, 4, 6)) == {}


def test_looking_at_a_model_in_training_mode_leaves_its_modes_and_its_spectral_norm() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 7)), nn.Dropout(), nn.BatchNorm1d(7)).train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    name = "0.parametrizations.weight.original"
    assert edits(model, sliced(name, 0, 6, 7)) == {"0.out_features": 6}
    assert [m.training for m in model] == [True, True, False] and model.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


# -- attributes that Python holds


def holder(**attributes: object) -> nn.Module:
    model = nn.Sequential(nn.Module(), nn.Linear(2, 2))
    for name, value in attributes.items():
        setattr(model[0], name, value)
    return model


def held(attribute: str, item: int | None, slots: list[int], fixed: int = 0, named: bool = True) -> HeldWidth:
    return HeldWidth("0", attribute, item, {"a": torch.tensor(slots)}, fixed, named)


A = plan(a=[1, 0, 0, 1])


def test_a_held_width_counts_the_channels_that_are_left() -> None:
    model = holder(width=5)
    assert attribute_edits(model, [], [held("width", None, [0, 1, 2], 2)], A) == [AttributeEdit("0", "width", 3, repaired=True)]
    assert attribute_edits(model, [], [held("width", None, [0, 3, 3], 2)], A) == []  # as wide as before


def test_one_item_of_a_list_and_the_others_as_they_were() -> None:
    model = holder(widths=[4, 7, 2])
    edit = AttributeEdit("0", "widths", (2, 7, 1), repaired=True)
    assert attribute_edits(model, [], [held("widths", 0, [0, 1, 2, 3]), held("widths", 2, [0, 1])], A) == [edit]
    assert attribute_edits(model, [], [held("widths", 1, [0, 3], 5)], A) == []
    assert attribute_edits(holder(widths=(4, 7)), [], [held("widths", 1, [0, 3], 5)], A) == []


def test_an_attribute_that_would_be_two_numbers_stays() -> None:
    two = [held("width", None, [0, 1]), held("width", None, [0, 3])]
    assert attribute_edits(holder(width=2), [], two, A) == []
    assert attribute_edits(holder(width=2, other=4), [], [*two, held("other", None, [0, 1, 2, 3])], A) == [
        AttributeEdit("0", "other", 2, repaired=True)
    ]


def test_a_named_use_is_believed_before_one_of_the_same_value() -> None:
    both = [held("width", None, [0, 3], named=False), held("width", None, [0, 1])]
    assert attribute_edits(holder(width=2), [], both, A) == [AttributeEdit("0", "width", 1, repaired=True)]
    assert attribute_edits(holder(width=2), [], both[::-1], A) == [AttributeEdit("0", "width", 1, repaired=True)]
    alone = [held("width", None, [1, 2], 1, named=False)]
    assert attribute_edits(holder(width=3), [], alone, A) == [AttributeEdit("0", "width", 1, repaired=True)]


def test_a_width_that_the_layer_itself_follows_is_edited_once() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    width = HeldWidth("0", "in_features", None, {"a": torch.arange(4)}, 0, True)
    assert attribute_edits(model, [sliced("0.weight", 1, 2, 4)], [width], A) == [AttributeEdit("0", "in_features", 2)]
    own = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    shape = HeldWidth("0", "normalized_shape", 0, {"a": torch.arange(4)}, 0, True)
    assert attribute_edits(own, [], [shape], A) == [AttributeEdit("0", "normalized_shape", (2,), repaired=False)]


@pytest.mark.parametrize(
    ("old", "value", "answer"),
    [
        (4, 2, True),
        (True, 2, False),
        (None, 2, False),
        ("4", 2, False),
        ([4], 2, False),
        ([4, 4], (2, 2), True),
        ((4, 4), (2, 2), True),
        ([4], (2, 2), False),
        (4, (2,), False),
        ("ab", (2, 2), False),
    ],
)
def test_what_may_replace_what(old: object, value: int | tuple[int, ...], answer: bool) -> None:
    assert fits(old, value) is answer


def test_a_list_stays_a_list_and_a_tuple_a_tuple() -> None:
    module = nn.Module()
    module.a, module.b, module.c = [1, 2], (1, 2), 3  # type: ignore[assignment]
    for name, value in (("a", (3, 4)), ("b", (3, 4)), ("c", 4)):
        set_attribute(module, name, value)
    assert (module.a, module.b, module.c) == ([3, 4], (3, 4), 4)
    assert type(module.a) is list and type(module.b) is tuple


# -- buffers of channel numbers


def indexed(*indices: HeldIndex) -> ChannelGraph:
    graph = trace(NETS["chain"].model(), image())
    return ChannelGraph(graph.groups[:1], graph.layers, graph.unsupported_ops, "", graph.cost_model, (), (), (), indices)


def numbers(values: list[int]) -> nn.Module:
    model = nn.Module()
    model.register_buffer("order", torch.tensor(values))
    model.register_buffer("other", torch.tensor(values))
    return model


def test_buffers_of_numbers_are_counted_anew_once() -> None:
    channels, owners = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    graph = indexed(HeldIndex("order", owners, channels), HeldIndex("order", owners, channels))
    keep = PruningPlan({graph.groups[0].name: torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)}, NO_COST)
    (edit,) = index_edits(numbers([7, 5, 2, 0]), graph, keep)
    assert isinstance(edit, IndexEdit) and edit.buffer == "order" and edit.values.tolist() == [5, 1, 0]
    assert index_edits(numbers([0, 0]), graph, keep) == []  # the same numbers as before
    nothing = PruningPlan({}, NO_COST)
    assert index_edits(numbers([7, 5, 2, 0]), graph, nothing) == []


def test_a_buffer_that_would_have_to_hold_two_things_stays() -> None:
    channels, owners = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    graph = indexed(
        HeldIndex("order", owners, channels), HeldIndex("order", owners, channels.flip(0)), HeldIndex("other", owners, channels)
    )
    keep = PruningPlan({graph.groups[0].name: torch.arange(8) > 0}, NO_COST)
    found = index_edits(numbers([7, 5, 2]), graph, keep)
    assert [(e.buffer, e.values.tolist()) for e in found] == [("other", [6, 4, 1])]


# -- positions


def test_positions_of_all_members_or_of_some_roles() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    graph = trace(model, image(2, 3, 2, 2))
    gone = PruningPlan({"0": torch.tensor([True, False, True, False])}, NO_COST)
    everything = {key: index.tolist() for key, index in removed_positions(graph, gone).items()}
    columns = [4, 5, 6, 7, 12, 13, 14, 15]
    writers = {("0.weight", 0): [1, 3], ("0.bias", 0): [1, 3]}
    assert everything.items() >= {**writers, ("3.weight", 1): columns, ("1.running_var", 0): [1, 3]}.items()
    assert {key: index.tolist() for key, index in removed_positions(graph, gone, ("reads",)).items()} == {
        ("3.weight", 1): columns
    }
    assert removed_positions(graph, PruningPlan({"0": torch.ones(4, dtype=torch.bool)}, NO_COST)) == {}
    both = PruningPlan(
        {"3": torch.ones(2, dtype=torch.bool), **gone.keep}, NO_COST
    )  # a frozen group that stays whole is no error
    assert {key: index.tolist() for key, index in removed_positions(graph, both).items()} == everything


def test_the_record_keeps_the_ascending_rest_and_the_old_size() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    graph = trace(model, image())
    record = plan_to_record(model, graph, PruningPlan({"0": torch.tensor([False, True, False, True])}, NO_COST))
    slices = [(e.parameter, e.axis, e.kept.tolist(), e.size) for e in record.edits if isinstance(e, SliceEdit)]
    assert sorted(slices) == [("0.bias", 0, [1, 3], 4), ("0.weight", 0, [1, 3], 4), ("2.weight", 1, [1, 3], 4)]
    assert record.fingerprint == graph.fingerprint and set(record.versions) == {"prunus", "torch"}


# -- copies of tensors


def small_of(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    graph = trace(model, image() if x is None else x)
    return remove(model, graph, random_plan(graph))[0]


def test_nothing_is_shared_with_the_model() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 2)).eval()
    model.register_buffer("constant", torch.arange(3.0))
    small = small_of(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in (*small.parameters(), *small.buffers()))
    assert torch.equal(small.constant, model.constant)  # type: ignore[arg-type]
    assert all(not t.requires_grad and t.grad_fn is None for t in small.buffers())
    assert all(t.requires_grad and t.is_leaf and type(t) is nn.Parameter for t in small.parameters())


def test_the_memory_format_is_each_tensors_own() -> None:
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 6, 3), nn.ReLU(), conv(6, 2, 3)).eval()
    with torch.no_grad():
        model[2].weight.data = model[2].weight.data.contiguous(memory_format=torch.channels_last)
    small = small_of(model)
    assert small[0].weight.is_contiguous() and not small[2].weight.is_contiguous()  # type: ignore[operator]
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last) and small[4].weight.is_contiguous()  # type: ignore[operator]


def test_a_buffer_that_needs_a_gradient_and_frozen_ones_of_whole_numbers() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    model.register_buffer("learned", torch.ones(2, requires_grad=True))
    model.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    small = small_of(model)
    assert small.learned.requires_grad and small.steps.tolist() == [3]  # type: ignore[union-attr, operator]
    assert not small.steps.requires_grad and small.phase.requires_grad  # type: ignore[union-attr]


# -- words


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    return str(error.value)


def test_the_words_of_refused_plans() -> None:
    model = residual()
    graph = trace(model, image())
    with pytest.raises(prunus.UnsupportedNetwork) as error:
        remove(NETS["chain"].model(), graph, random_plan(graph))
    assert message(error) == "the model's parameters don't have the names and shapes of the traced one: trace it again"
    with pytest.raises(prunus.NothingPruned) as error:
        remove(model, graph, PruningPlan({}, NO_COST))
    assert message(error) == ("the plan removes no channel: lower the budget, or see `graph.frozen` for what can't be pruned")
    with pytest.raises(prunus.UnsupportedNetwork) as error:
        remove(model, graph, PruningPlan({"stem.0": torch.zeros(6, dtype=torch.bool)}, NO_COST))
    assert message(error) == (
        "the plan for group `stem.0` must keep at least one of its 6 channels: no other way leads around it"
    )
    with pytest.raises(prunus.UnsupportedNetwork, match="must keep at least one of its 8 channels"):
        remove(model, graph, PruningPlan({"first.0": torch.tensor([False] + [True] * 8)}, NO_COST))


def test_the_words_of_refused_training_state() -> None:
    model = residual()
    graph = trace(model, image())
    with pytest.raises(prunus.UnsupportedNetwork) as error:
        remove(model, graph, random_plan(graph), torch.optim.SGD(residual().parameters(), lr=0.1))
    assert message(error) == "the optimizer holds parameters that aren't the model's: give the optimizer that trains this model"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = dict(model.named_parameters())["stem.0.weight"]
    optimizer.state[weight]["rows"] = torch.ones(2)
    with pytest.raises(prunus.UnsupportedNetwork) as error:
        remove(model, graph, random_plan(graph), optimizer)
    assert message(error) == (
        "optimizer state 'rows' of `stem.0.weight` isn't shaped like it and can't be sliced: make a new optimizer"
    )
    with pytest.raises(prunus.UnsupportedNetwork) as error:
        remove(model, graph, random_plan(graph), ema=NETS["chain"].model())
    assert message(error) == "the averaged model (ema) doesn't have the names and shapes of the model's parameters"


def test_state_of_another_shape_is_no_matter_where_nothing_is_sliced() -> None:
    model = residual()
    graph = trace(model, image())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bias = dict(model.named_parameters())["head.bias"]  # the output: never sliced
    optimizer.state[bias].update(rows=torch.ones(2), step=torch.tensor(3.0), like=torch.ones(3), note="kept")
    weight = dict(model.named_parameters())["stem.0.weight"]
    optimizer.state[weight]["step"] = torch.tensor(5.0)
    small, _ = remove(model, graph, random_plan(graph), optimizer)
    state = optimizer.state[dict(small.named_parameters())["head.bias"]]
    assert {k: v.tolist() if isinstance(v, Tensor) else v for k, v in state.items()} == {
        "rows": [1.0, 1.0],
        "step": 3.0,
        "like": [1.0, 1.0, 1.0],
        "note": "kept",
    }
    assert optimizer.state[dict(small.named_parameters())["stem.0.weight"]] == {"step": torch.tensor(5.0)}
    assert len(optimizer.state) == 2  # parameters that had no state have none now
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in small.parameters()]


def record_of(*these: SliceEdit | AttributeEdit | IndexEdit, model: nn.Module | None = None) -> SurgeryRecord:
    return SurgeryRecord(SurgeryRecord.nothing_removed(residual() if model is None else model).fingerprint, these, {})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (sliced("nowhere", 0, 1, 6), "this network has no `nowhere`"),
        (sliced("stem.0.weight", 4, 1, 6), "`stem.0.weight` should have 6 entries on axis 4, here it is (6, 3, 3, 3)"),
        (sliced("stem.0.weight", 1, 1, 6), "`stem.0.weight` should have 6 entries on axis 1, here it is (6, 3, 3, 3)"),
        (AttributeEdit("stem", "width", 3), "it sets `stem.width` to 3, here it is None"),
        (AttributeEdit("stem.0", "padding", (1, 1, 1)), "it sets `stem.0.padding` to (1, 1, 1), here it is (1, 1)"),
        (
            IndexEdit("stem.0.weight", torch.arange(2)),
            "it sets the buffer `stem.0.weight` to 2 channel numbers, here its shape is (6, 3, 3, 3)",
        ),
        (
            IndexEdit("stem.1.bias", torch.arange(7)),
            "it sets the buffer `stem.1.bias` to 7 channel numbers, here its shape is (6,)",
        ),
        (IndexEdit("nowhere", torch.arange(7)), "it sets the buffer `nowhere` to 7 channel numbers, here its shape is ()"),
    ],
)
def test_the_words_of_an_edit_that_does_not_fit(edit: SliceEdit | AttributeEdit | IndexEdit, words: str) -> None:
    with pytest.raises(prunus.ArtifactError) as error:
        apply_record(residual(), record_of(edit))
    assert message(error) == f"the record is of another architecture: {words}"


def test_a_long_value_is_cut_in_the_message() -> None:
    model = residual()
    model.note = "x" * 200  # type: ignore[assignment]
    with pytest.raises(prunus.ArtifactError) as error:
        apply_record(model, record_of(AttributeEdit("", "note", 3), model=model))
    assert message(error) == f"the record is of another architecture: it sets `.note` to 3, here it is {'x' * 80}"


def test_edits_that_fit_another_network_are_told_from_its_fingerprint() -> None:
    other = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    with pytest.raises(prunus.ArtifactError) as error:
        apply_record(other, record_of(sliced("0.weight", 0, 2, 4)))
    assert message(error) == (
        "the record is of another architecture: names or shapes of parameters differ; "
        "build the full-size network it was made from"
    )


def test_a_module_of_two_names_is_found_by_either() -> None:
    block = conv(6, 6)
    model = Program(lambda m, x: m.b(m.a(m.stem(x))), stem=conv(3, 6), a=block, b=block).eval()
    model.b.width = 4
    small = apply_record(model, record_of(AttributeEdit("b", "width", 3), model=model))
    assert small.a is small.b and small.b.width == 3 and model.b.width == 4


def test_an_index_edit_has_the_dtype_of_its_buffer() -> None:
    model = nn.Sequential(conv(3, 4))
    model.register_buffer("order", torch.tensor([3, 1, 0], dtype=torch.int32))
    small = apply_record(model, record_of(IndexEdit("order", torch.tensor([1, 0])), model=model))
    assert small.order.tolist() == [1, 0] and small.order.dtype == torch.int32


def test_an_index_edit_may_be_as_long_as_its_buffer() -> None:
    model = nn.Sequential(conv(3, 4))
    model.register_buffer("order", torch.tensor([3, 1]))
    small = apply_record(model, record_of(IndexEdit("order", torch.tensor([1, 0])), model=model))
    assert small.order.tolist() == [1, 0] and model.order.tolist() == [3, 1]
