"""What `trace` accepts, what it refuses, and that it leaves the network as it found it."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from nets import NETS, Program, conv, image, residual
from prunus.graph import trace


def _state(model: nn.Module) -> str:
    """Hash of every bit that tracing could move: tensors, modes, gradients, attributes on tensors, hooks, the random state."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(
            name.encode() + tensor.detach().numpy().tobytes() + repr((sorted(vars(tensor)), tensor.grad is None)).encode()
        )
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        digest.update(repr((name, module.training, hooks)).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_found(training: bool) -> None:
    model = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6, momentum=0.5), nn.Dropout(0.5), nn.ReLU(), conv(6, 2)).train(training)
    model[3].eval()
    before, fast = _state(model), torch.backends.mha.get_fastpath_enabled()
    trace(model, image())
    assert _state(model) == before
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert torch.nn.modules.module._global_forward_hooks == {} and torch.nn.modules.module._global_forward_pre_hooks == {}
    assert torch.is_grad_enabled() and model[2].p == 0.5


def test_it_is_left_as_found_also_if_tracing_fails() -> None:
    model = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.Linear(5, 2)).train()
    before = _state(model)
    with pytest.raises(prunus.UnsupportedNetwork):
        trace(model, image())
    assert _state(model) == before


def test_inputs_are_left_as_found() -> None:
    x = image()
    trace(NETS["in-place on the input"].model(), x)
    assert torch.equal(x, image()) and not hasattr(x, "_prunus_labels")


def test_training_mode_is_traced_too() -> None:
    graph = trace(NETS["training head"].model(), image())
    assert {"aux_conv", "aux"} <= {g.name for g in graph}
    assert all(layer.name not in ("aux", "aux_conv") for layer in graph.layers)  # costs are those of evaluation


def test_a_training_mode_that_fails_is_noted() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if m.training:
            raise RuntimeError("give me targets")
        return m.head(m.stem(x))

    graph = trace(Program(run, stem=conv(3, 6), head=conv(6, 2)).eval(), image())
    (note,) = graph.notes
    assert note.startswith("training mode could not be traced, so parts that only training runs are unknown: ")
    assert "give me targets" in note
    assert graph["stem"].frozen_because is None


def test_train_inputs_are_used_in_training_mode() -> None:
    def run(m: Any, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        if m.training:
            assert extra is not None
            return m.head(m.stem(x) + m.other(extra))
        return m.head(m.stem(x))

    model = Program(run, stem=conv(3, 6), other=conv(1, 6), head=conv(6, 2)).eval()
    graph = trace(model, image(), train_inputs=(image(), image(2, 1, 8, 8)))
    assert {m.parameter_axis.parameter for m in graph["stem"].with_role("writes")} == {
        "stem.weight",
        "stem.bias",
        "other.weight",
        "other.bias",
    }
    assert not graph.notes


def test_one_image_is_enough_for_a_network_that_refuses_to_train_on_one() -> None:
    model = nn.Sequential(conv(3, 6), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2)).eval()
    graph = trace(model, image(1, 3, 8, 8))
    assert not graph.notes and graph["0"].frozen_because is None


def test_forward_fn_decides_the_call() -> None:
    class TwoPhase(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = conv(3, 6), conv(6, 2)

    graph = trace(TwoPhase(), image(), forward_fn=lambda m, x: m.decoder(m.encoder(x)))
    assert [g.name for g in graph.prunable] == ["encoder"]


# -- keep


@pytest.mark.parametrize(
    ("keep", "frozen"),
    [
        ("first.0", {"stem.0", "first.0"}),  # reads the stem, writes its own group: neither shape may change
        (["first.0"], {"stem.0", "first.0"}),
        ("first.1", {"first.0"}),  # the norm on first's channels
        ("head", {"stem.0"}),
        ("first.*", {"stem.0", "first.0"}),
        ("second.0.weight", {"stem.0", "first.0"}),
        (nn.Linear, {"stem.0"}),
        ([nn.Linear, "first.1"], {"stem.0", "first.0"}),
        (lambda name, module: name == "first" and isinstance(module, nn.Sequential), {"stem.0", "first.0"}),
    ],
)
def test_keep_selects_by_name_glob_type_and_predicate(keep: Any, frozen: set[str]) -> None:
    graph = trace(residual(), image(), keep=keep)
    assert {g.name for g in graph.frozen} - {"head"} == frozen
    assert all("is listed in keep" in (graph[name].frozen_because or "") for name in frozen)


def test_the_reason_names_the_selector() -> None:
    assert trace(residual(), image(), keep="first.*")["first.0"].frozen_because == "`first.*` is listed in keep"
    assert trace(residual(), image(), keep=nn.Linear)["stem.0"].frozen_because == "`Linear` is listed in keep"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("frist.0", r"unknown selector in keep 'frist\.0': did you mean .*first\.0"),
        (["head", "classifier*"], r"unknown selector in keep 'classifier\*'"),
        (nn.LSTM, "selector LSTM in keep matches no module of the network"),
        (lambda name, module: False, "selector <lambda> in keep matches no module of the network"),
    ],
)
def test_a_selector_that_names_nothing_is_an_error(keep: Any, message: str) -> None:
    with pytest.raises(prunus.UnknownName, match=message):
        trace(residual(), image(), keep=keep)


# -- networks that can't be traced


def _refused(model: nn.Module, inputs: Any = None) -> str:
    with pytest.raises(prunus.UnsupportedNetwork) as caught:
        trace(model, image() if inputs is None else inputs)
    return str(caught.value)


def test_data_parallel_is_refused() -> None:
    assert _refused(nn.DataParallel(residual())) == (
        "the model is wrapped in DataParallel: prune the network inside (`model.module`), then wrap the result again"
    )


def test_distributed_data_parallel_is_refused(tmp_path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert "wrapped in DistributedDataParallel: prune the network inside" in _refused(
            nn.parallel.DistributedDataParallel(residual())
        )
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_and_scripted_models_are_refused() -> None:
    assert _refused(torch.compile(residual())) == (  # type: ignore[arg-type]
        "the model is compiled: prune the original (`model._orig_mod`), then compile the result"
    )


def test_a_weight_that_cannot_be_copied_is_refused() -> None:
    model = nn.Sequential(conv(3, 6), conv(6, 2))
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model[1])
    assert _refused(model) == (
        "`1.weight` is a tensor with a gradient graph, which can't be copied with the network: detach it; "
        "for `torch.nn.utils.weight_norm` and masks of `torch.nn.utils.prune` run the network once under `torch.no_grad()`, "
        "or use `torch.nn.utils.parametrizations.weight_norm`"
    )


def test_a_lazy_model_is_refused() -> None:
    assert _refused(nn.Sequential(nn.LazyConv2d(4, 3))) == (
        "`0.weight` is lazy and has no shape yet: run the model once on real input before tracing"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["stem.0.weight", "second.1.running_var"])
def test_non_finite_weights_are_refused(value: float, where: str) -> None:
    model = residual()
    model.state_dict()[where].view(-1)[3] = value
    assert _refused(model).startswith(f"`{where}` holds NaN or infinite values")


def test_large_finite_weights_are_fine() -> None:
    model = residual()
    with torch.no_grad():
        model.stem[0].weight.fill_(3e38)  # type: ignore[union-attr, index]
    assert trace(model, image()).prunable


def test_inputs_that_do_not_fit_are_explained() -> None:
    message = _refused(residual(), image(2, 5, 8, 8))
    assert message.startswith("the forward pass in evaluation mode fails in `stem.0`: RuntimeError: ")
    assert message.endswith("check example_inputs (or give forward_fn / train_inputs) by calling the model with them")


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    silent = Program(lambda m, x: m.stem(x).sum().item(), stem=conv(3, 6))
    assert _refused(silent) == (
        "the network returns no tensor but float, so nothing can be followed or checked: "
        "give a forward_fn that returns the tensors of the output"
    )


def test_tracing_twice_gives_the_same_graph() -> None:
    model = NETS["c2f"].model()
    first, second = trace(model, image()), trace(copy.deepcopy(model), image())
    assert str(first) == str(second) and first.fingerprint == second.fingerprint
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(m.positions, n.positions) for m, n in zip(a.members, b.members, strict=True))


class KeepsTensors(nn.Module):
    """Assigns activations to itself, averages into a buffer, and writes to a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1)
        self.codes = nn.Embedding(4, 16, max_norm=0.1)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        self.last = y
        self.mean = 0.9 * self.mean + 0.1 * y.mean((0, 2, 3))
        return self.head(y + self.codes(torch.zeros(1, dtype=torch.long)).view(1, 16, 1, 1)).mean((2, 3))


def test_what_modules_keep_is_left_as_found() -> None:
    model = KeepsTensors()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffer = model.mean
    prunus.trace(model, torch.randn(2, 3, 8, 8))
    assert model.mean is buffer
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(hasattr(t, "_prunus_labels") for t in (*model.parameters(), *model.buffers(), model.last))
    copied = copy.deepcopy(model)
    assert torch.equal(copied.last, model.last)


def test_looking_at_a_spectral_norm_does_not_change_it() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 16, 3)), nn.Conv2d(16, 4, 1)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prunus.prune(model, torch.randn(2, 3, 12, 12), prunus.Budget(macs=0.9, tolerance=0.5), verify=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_rule_that_fails_freezes_what_it_touches() -> None:
    @torch.library.custom_op("prunus_test::halve", mutates_args=())
    def halve(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @halve.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    @prunus.op_rule("prunus_test::halve")
    def _(op: Any) -> None:
        raise IndexError("out of range")

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(halve(self.stem(x)))

    with pytest.warns(prunus.PrunusWarning, match=r"the rule for this operation fails \(IndexError: out of range\) at"):
        graph = prunus.trace(Halved(), torch.randn(1, 3, 4, 4))
    assert "the rule for this operation fails (IndexError: out of range)" in (graph["stem"].frozen_because or "")
