"""Top-5, balanced accuracy and confusion: against counts by hand and scikit-learn, and absent where they mean nothing."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunus.training import evaluate

ABSENT = (None, None, None, [])


def class_fields(found):
    return found.top5, found.balanced_accuracy, found.confusion, found.most_confused


def logits_for(predicted, classes):
    return nn.functional.one_hot(torch.as_tensor(predicted), classes).float()


def test_counts_by_hand():
    true = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    predicted = [0, 0, 0, 2, 1, 0, 0, 0, 2]
    found = evaluate(nn.Identity(), DataLoader(TensorDataset(logits_for(predicted, 4), true), batch_size=4))
    assert found.confusion == [[3, 0, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2 + 1 / 3) / 3)  # class 3 doesn't occur
    assert found.accuracy == pytest.approx(5 / 9)
    assert found.most_confused == [[2, 0, 2], [0, 2, 1], [1, 0, 1]]
    assert found.top5 is None  # four classes are all among the top five
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.parametrize("classes", [5, 6, 50, 51])
def test_against_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, true = torch.randn(400, classes), torch.randint(classes, (400,))
    found = evaluate(nn.Identity(), DataLoader(TensorDataset(logits, true), batch_size=64))
    predicted = logits.argmax(1)
    assert found.balanced_accuracy == pytest.approx(
        metrics.recall_score(true, predicted, average="macro", labels=true.unique(), zero_division=0)
    )
    matrix = metrics.confusion_matrix(true, predicted, labels=range(classes))
    assert found.confusion == (matrix.tolist() if classes <= 50 else None)
    top5 = metrics.top_k_accuracy_score(true, logits, k=5, labels=range(classes)) if classes > 5 else None
    assert found.top5 == pytest.approx(top5)
    wrong = [[t, p, int(matrix[t, p])] for t in range(classes) for p in range(classes) if t != p]
    assert found.most_confused == sorted(wrong, key=lambda row: -row[2])[:10]


def test_a_network_that_says_one_thing_has_no_better_top5_than_it_earns():
    """All logits equal: argmax and topk break the tie in their own ways, and a right answer is always among the five."""
    found = evaluate(nn.Identity(), [(torch.zeros(4, 20), torch.zeros(4, dtype=torch.long))])
    assert found.accuracy == 1.0 and found.top5 == 1.0
    diverged = evaluate(nn.Identity(), [(torch.full((20, 20), torch.nan), torch.arange(20))])
    assert diverged.top5 < 0.5 and diverged.accuracy == pytest.approx(1 / 20)


def test_small_integer_targets_and_auxiliary_outputs_are_classification_too():
    logits, true = torch.eye(3), torch.tensor([0, 1, 1], dtype=torch.uint8)
    found = evaluate(
        nn.Identity(),
        [(logits, true)],
        loss_fn=lambda output, batch: output[0].sum(),
        forward_fn=lambda model, inputs: (inputs, inputs * 0),
    )
    assert found.confusion == [[1, 0, 0], [0, 1, 1], [0, 0, 0]] and found.balanced_accuracy == 0.75


def test_no_mistake_is_no_confused_pair():
    found = evaluate(nn.Identity(), [(torch.eye(3), torch.arange(3))])
    assert found.most_confused == [] and found.balanced_accuracy == 1.0


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)),  # segmentation
        (torch.eye(3), torch.eye(3)),  # probabilities
        (torch.eye(3), torch.tensor([0, -100, 2])),  # a label that cross entropy ignores
    ],
)
def test_other_tasks_have_none(logits, targets):
    assert class_fields(evaluate(nn.Identity(), [(logits, targets)])) == ABSENT


def test_a_metric_of_the_users_own_or_a_mixed_loader_has_none():
    batch = (torch.eye(3), torch.arange(3))
    own = evaluate(nn.Identity(), [batch], metric=lambda output, batch: batch[1].float())
    assert class_fields(own) == ABSENT
    other = (torch.eye(3), torch.eye(3))
    assert class_fields(evaluate(nn.Identity(), [batch, other])) == ABSENT
    wider = (torch.eye(4), torch.arange(4))
    assert class_fields(evaluate(nn.Identity(), [batch, wider])) == ABSENT
