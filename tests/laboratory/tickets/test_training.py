"""Training of small networks in memory: seeds, rewinding in the middle, learning rates, networks by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import RecipeError, TrainingError
from prunus.laboratory.tickets.training import Course, Images, accuracy, build_network, load_images, set_weights, weights_of
from prunus.ticket_recipe import TicketNetwork
from prunus.tickets import Masks, apply_masks, dense_masks

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(40) % 4
IMAGES = Images(
    torch.randn(40, 1, 8, 8, generator=GENERATOR) + LABELS[:, None, None, None],
    LABELS,
    torch.randn(40, 1, 8, 8, generator=GENERATOR) + LABELS[:, None, None, None],
    LABELS,
    4,
)
SGD = TicketNetwork(model="conv:4-6", epochs=4, batch_size=10, optimizer="sgd", lr=0.05, weight_decay=0.01)


def course(network: TicketNetwork = SGD, seed: int = 0) -> Course:
    return Course(network, IMAGES, seed, network.epochs, network.lr)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_networks_by_name() -> None:
    dense = build_network("mlp:30-10", IMAGES, 0)
    assert [tuple(p.shape) for p in dense.parameters() if p.ndim == 2] == [(30, 64), (10, 30), (4, 10)]
    conv = build_network("conv:4-6-5", IMAGES, 0)
    assert [tuple(p.shape) for p in conv.parameters() if p.ndim > 1] == [(4, 1, 3, 3), (6, 4, 3, 3), (5, 6, 3, 3), (4, 5)]
    assert sum(isinstance(module, nn.MaxPool2d) for module in conv) == 2
    again, other = (build_network("mlp:30-10", IMAGES, seed) for seed in (0, 1))
    assert torch.equal(again[1].weight, dense[1].weight) and not torch.equal(other[1].weight, dense[1].weight)
    assert build_network("cifar:resnet8", IMAGES, 0)(IMAGES.test).shape == (40, 4)
    with pytest.raises(RecipeError, match="can't read the network 'mlp:300x100': write the widths of its layers"):
        build_network("mlp:300x100", IMAGES, 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_that_goes_on_from_a_snapshot_is_the_same_training(optimizer: str) -> None:
    """Also with masks on, under which parameters have other names and another order."""
    network = SGD.model_copy(update={"optimizer": optimizer, "schedule": "steps"})
    straight = build_network(network.model, IMAGES, 0)
    curve, nothing = course(network).execute(straight)
    part = build_network(network.model, IMAGES, 0)
    _, snapshot = course(network).execute(part, until=6)
    assert nothing is None and snapshot is not None and snapshot.step == 6
    for masked in (False, True):
        model = build_network(network.model, IMAGES, 5)
        snapshot.rewind(model)
        if masked:
            apply_masks(model, dense_masks(model))
        found, _ = course(network).execute(model, snapshot)
        assert found.final == curve.final
        last = dict(straight.named_parameters())
        for module, path in ((model[0], "0.weight"), (model[-1], f"{len(model) - 1}.weight")):
            torch.testing.assert_close(module.weight, last[path], rtol=0, atol=0)


def test_seeds_give_the_order_of_the_images() -> None:
    orders = [[chosen.tolist() for _, chosen in course(seed=seed).batches(0)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [step for step, _ in course().batches(0)] == list(range(16))
    assert [chosen.tolist() for _, chosen in course().batches(6)] == orders[0][6:]
    assert sorted(i for batch in orders[0][:4] for i in batch) == list(range(40)) and orders[0][:4] != orders[0][4:8]


def test_learning_rates() -> None:
    stepped = course(SGD.model_copy(update={"schedule": "steps"}))
    assert [stepped.rate(step) / 0.05 for step in (0, 7, 8, 11, 12, 15)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert {course().rate(step) for step in range(16)} == {0.05}


def test_curves_have_an_early_and_a_final_point() -> None:
    model = build_network(SGD.model, IMAGES, 0)
    before = accuracy(model, IMAGES)
    curve, _ = Course(SGD, IMAGES, 0, 4, 0.05, early=0.25).execute(model)
    assert curve.points[0] == (0, before) and curve.points[-1] == (16, accuracy(model, IMAGES))
    assert dict(curve.points)[4] == curve.early and curve.final == curve.points[-1][1] > 0.5


def test_training_draws_from_its_own_seed_only() -> None:
    state_before = torch.get_rng_state()
    course().execute(build_network(SGD.model, IMAGES, 0))
    assert torch.equal(torch.get_rng_state(), state_before)


def test_masked_weights_stay_where_they_are_held() -> None:
    model = build_network(SGD.model, IMAGES, 0)
    masks = Masks({name: torch.rand(mask.shape) < 0.4 for name, mask in dense_masks(model).by_name.items()})
    held = weights_of(model, masks.by_name)
    apply_masks(model, masks, held)
    course().execute(model)
    mask = masks.by_name["0.weight"]
    assert torch.equal(model[0].weight[~mask], held["0.weight"][~mask])
    assert not torch.equal(model[0].weight[mask], held["0.weight"][mask])


def test_weights_are_set_and_a_loss_that_is_no_number_stops() -> None:
    model = build_network(SGD.model, IMAGES, 0)
    set_weights(model, {"0.weight": torch.full((4, 1, 3, 3), torch.nan)})
    with pytest.raises(TrainingError, match=r"the loss became nan in step 1 of 16: lower lr \(now 0\.05\)"):
        course().execute(model)


def test_images_are_held_as_tensors() -> None:
    images = load_images(TicketNetwork(model="mlp:5", train_limit=200))
    assert images.train.shape == (200, 1, 8, 8) and images.test.shape == (500, 1, 8, 8) and images.classes == 10
    assert images.train_labels.bincount().tolist() == [20] * 10
