"""How criteria are written, and what scoring by one gives."""

from __future__ import annotations

import warnings

import pytest
import torch

import prunus
from laboratory.subjects import bundle, network
from prunus import CRITERIA, PrunusWarning, RecipeError, UnknownName
from prunus.laboratory.contenders import Contender, Scored, read_criteria, read_options, score_by
from prunus.laboratory.images import scoring_batches


def test_all_is_every_row_but_the_reference() -> None:
    assert [c.label for c in read_criteria("all")] == [name for name in CRITERIA if name != "oracle"]


def test_names_options_and_sums() -> None:
    found = read_criteria("l1, taylor(on=weights, per_example=False),l1 + 0.5*taylor ,l1,oracle, oracle(signed=true)")
    assert [c.label for c in found] == ["l1", "taylor(on=weights, per_example=False)", "l1 + 0.5*taylor", "oracle(signed=True)"]
    assert found[1].options == {"on": "weights", "per_example": False}
    assert [c.family for c in found] == ["weight", "gradient", "sum", "measured"]
    assert [Contender(name).family for name in ("random", "apoz", "lasso")] == ["control", "activation", "measured"]
    assert read_criteria("all,l1,taylor(on=weights)")[-1].label == "taylor(on=weights)"


def test_a_minus_leaves_one_out() -> None:
    assert [c.label for c in read_criteria("all,-obd,- taylor")] == [n for n in CRITERIA if n not in ("oracle", "obd", "taylor")]
    assert [c.label for c in read_criteria("l1,l1(members=max),-l1")] == ["l1(members=max)"]
    with pytest.raises(UnknownName, match="unknown criterion 'l7'"):
        read_criteria("all,-l7")


def test_options_are_json_or_text() -> None:
    assert read_options(["a=true", "b=0.5", "c=mean", "d = False", ""]) == {"a": True, "b": 0.5, "c": "mean", "d": False}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("l7", UnknownName, "unknown criterion 'l7': did you mean"),
        ("taylor(per_exampel=true)", UnknownName, "unknown option of criterion taylor 'per_exampel': did you mean per_example"),
        ("taylor(per_example)", RecipeError, "can't read the option 'per_example': write NAME=VALUE"),
        ("taylor(on=weights", RecipeError, "a bracket is missing"),
        (" , ", RecipeError, "no criterion is named: write all, or names by comma, e.g. taylor,l1"),
    ],
)
def test_mistakes(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        read_criteria(text)
    assert message in str(caught.value)


def scored(text: str, **options: bool) -> tuple[Scored, prunus.ChannelGraph]:
    model = network(**options)
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    (contender,) = read_criteria(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what a criterion warns of is kept, not shown
        return score_by(contender, model, graph, scoring_batches(bundle(), 16, 8, 0), seed=0), graph


def test_plain_scores_are_before_the_criterions_own_normalisation() -> None:
    found, graph = scored("taylor_2016")
    model, batches = network(), scoring_batches(bundle(), 16, 8, 0)
    plain = prunus.score(model, graph, "taylor_2016", batches, normalisation="none")
    usual = prunus.score(model, graph, "taylor_2016", batches)
    ranking = found.ranking("taylor_2016")
    for name in ("0", "3"):
        assert torch.equal(found.plain[name], plain.by_group[name])
        assert torch.allclose(ranking.by_group[name], usual.by_group[name]) and not torch.equal(
            usual.by_group[name], found.plain[name]
        )
    assert ranking.comparable and found.seconds > 0 and found.not_applicable is None


def test_a_normalisation_that_was_asked_for_stays() -> None:
    found, _ = scored("l1(normalisation=rank)")
    assert found.plain["0"].sort().values.tolist() == pytest.approx([n / 6 for n in range(1, 7)])
    assert found.ranking("l1").comparable and torch.equal(found.ranking("l1").by_group["0"], found.plain["0"])


def test_what_does_not_apply_is_told_and_not_raised() -> None:
    found, _ = scored("bn_scale", norms=False)
    assert found.not_applicable is not None and found.not_applicable.startswith(
        "criterion bn_scale can score none of the 2 groups"
    )
    assert found.plain == {}


def test_warnings_of_a_criterion_become_notes() -> None:
    model = torch.nn.Sequential(*(layer for layer in network(norms=False) if not isinstance(layer, torch.nn.ReLU)))
    graph = prunus.trace(model, torch.randn(2, 2, 6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrunusWarning)
        found = score_by(Contender("apoz"), model, graph, scoring_batches(bundle(), 16, 8, 0), seed=0)
    assert len(found.notes) == 1 and found.notes[0].startswith("APoZ counts exact zeros, and 2 of 2 groups have none")


def test_json_round_trip() -> None:
    found, _ = scored("taylor_2016")
    again = Scored.from_json(found.to_json())
    assert {n: v.tolist() for n, v in again.plain.items()} == {n: v.tolist() for n, v in found.plain.items()}
    assert (again.seconds, again.comparable, again.normalisation) == (found.seconds, True, "l2")
