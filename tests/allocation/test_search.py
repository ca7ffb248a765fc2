"""What a draw of fractions means, and searches whose best plan is known; stopped, shared and wrong ones."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import prunus
from prunus import ArtifactError, Budget, BudgetNotMet, EvidenceError, InvalidBudget, PrunusWarning, UnknownName
from prunus.allocation.search import SearchSpace, search_trials
from prunus.allocation.trials import SAMPLERS, Trial, front, importances, run_trials, stored_trials
from prunus.types import PruningPlan
from small_nets import Plain, images

pytest.importorskip("optuna")
HALF = Budget(channels=0.5)


def network(widths: tuple[int, int, int] = (8, 32, 32)) -> tuple[prunus.ChannelGraph, prunus.Scores]:
    model = Plain(widths).eval()
    graph = prunus.trace(model, images(), keep=["one.*"])
    return graph, prunus.score(model, graph, "l1")


def judge(plan: PruningPlan) -> float:
    """A channel of three.0 is worth three times one of two.0."""
    counts = plan.counts()
    return (counts["two.0"] + 3 * counts["three.0"]) / 128


def space(budget: Budget = HALF, **options: Any) -> SearchSpace:
    return SearchSpace.of(*network(), budget, **options)


# -- draws


def test_a_greedy_draw_is_clipped_so_that_the_rest_fits() -> None:
    """Of 64 channels 32 stay. With the last group at a fifth, ceil(6.4) = 7, the first may have 25."""
    assert space().plan({"two.0": 1.0, "three.0": 1.0}).counts() == {"two.0": 25, "three.0": 7}
    assert space().plan({"two.0": 0.2, "three.0": 1.0}).counts() == {"two.0": 7, "three.0": 25}
    assert space(lowest=0.1).plan({"two.0": 1.0, "three.0": 0.1}).counts() == {"two.0": 28, "three.0": 4}


def test_a_modest_draw_is_scaled_up_to_the_budget() -> None:
    """Fractions of one to two: 8 and 16 channels, then ten and two thirds and 21 and a third."""
    counts = space().plan({"two.0": 0.25, "three.0": 0.5}).counts()
    assert sum(counts.values()) == 32 and counts["two.0"] in (10, 11)


def test_widths_are_rounded_up_to_multiples() -> None:
    budget = Budget(channels=0.8, multiple_of=8, tolerance=0.3)
    assert space(budget).levels({"two.0": 0.51, "three.0": 0.5}) == [1, 2]  # 24 of 32, 16 of 32


def test_a_tight_budget_goes_below_the_lowest_fraction() -> None:
    found = space(Budget(channels=0.125, tolerance=0.2))
    assert found.lowest == 0.0
    assert found.plan({"two.0": 1.0, "three.0": 1.0}).counts() == {"two.0": 6, "three.0": 2}  # floors of 5 %: two of 32


def test_without_clipping_a_plan_is_what_was_drawn() -> None:
    assert space(clipped=False).plan({"two.0": 1.0, "three.0": 0.25}).counts() == {"two.0": 32, "three.0": 8}


def test_the_uniform_plan_is_a_draw() -> None:
    graph, scores = network()
    drawn = space().uniform(graph, scores)
    assert drawn == {"two.0": 0.5, "three.0": 0.5}
    assert space().plan(drawn).counts() == prunus.allocate(graph, scores, HALF, "uniform").counts()


# -- searches


@pytest.mark.parametrize("sampler", ["tpe", "cma"])
def test_a_search_finds_the_better_group(sampler: str) -> None:
    graph, scores = network()
    plan = prunus.allocate(graph, scores, HALF, "search", evaluate=judge, trials=25, sampler=sampler)
    assert plan.counts()["three.0"] >= 20 and sum(plan.counts().values()) == 32  # at most 25 are possible
    told = plan.provenance
    assert (told["allocator"], told["sampler"], told["trials"]) == ("search", sampler, 25)
    assert told["accuracy"] == judge(plan) > judge(prunus.allocate(graph, scores, HALF, "uniform"))


def test_uniform_is_tried_first_and_kept_where_nothing_beats_it() -> None:
    graph, scores = network()
    seen: list[dict[str, int]] = []

    def evaluate(plan: PruningPlan) -> float:
        seen.append(plan.counts())
        return 0.5

    plan = prunus.allocate(graph, scores, HALF, "search", evaluate=evaluate, trials=4)
    assert seen[0] == {"two.0": 16, "three.0": 16} == plan.counts() and len(seen) == 4
    assert plan.provenance["trial"] == 0


def test_a_front_holds_the_budget_for_the_plan_it_gives() -> None:
    graph, scores = network()
    costs: list[float] = []

    def evaluate(plan: PruningPlan) -> float:
        costs.append(sum(plan.counts().values()) / 64)
        return judge(plan)

    plan = prunus.allocate(graph, scores, HALF, "search", evaluate=evaluate, trials=40, sampler="nsga2")
    assert min(costs) < 0.4 < 0.8 < max(costs)  # not clipped
    assert sum(plan.counts().values()) == 32


def outcomes(storage: str | None, trials: int, sampler: str, stop_at: int | None = None) -> tuple[Trial, ...]:
    graph, scores = network()
    tried = 0

    def evaluate(plan: PruningPlan) -> float:
        nonlocal tried
        tried += 1
        if tried == stop_at:
            raise KeyboardInterrupt
        return judge(plan)

    room = SearchSpace.of(graph, scores, HALF, clipped=sampler != "nsga2")
    found = run_trials(search_trials(room, graph, scores, sampler, 3, evaluate), storage, trials)
    return tuple(replace(trial, seconds=0.0) for trial in found)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stopped_search_goes_on_to_the_same_trials(sampler: str, tmp_path: Path) -> None:
    through = outcomes(None, 14, sampler)
    storage = str(tmp_path / "trials.journal")
    for stop_at in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            outcomes(storage, 14, sampler, stop_at)
    assert outcomes(storage, 14, sampler) == through
    assert outcomes(storage, 14, sampler, stop_at=1) == through  # nothing is tried again
    assert tuple(replace(trial, seconds=0.0) for trial in stored_trials(storage)) == through
    assert [trial.number for trial in through] == list(range(14))
    assert len(outcomes(storage, 16, sampler)) == 16  # and it can be made longer


def test_workers_share_a_database(tmp_path: Path) -> None:
    """The second joins where the first stands; what the first has under way isn't touched, and counts."""
    graph, scores = network()
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    room = SearchSpace.of(graph, scores, HALF)
    other: list[int] = []

    def second(plan: PruningPlan) -> float:
        other.append(1)
        return judge(plan)

    def first(plan: PruningPlan) -> float:
        if not other:
            work = search_trials(room, graph, scores, "random", 0, second)
            assert len(run_trials(work, storage, 6, worker=1, alone=False)) == 5
        return judge(plan)

    found = run_trials(search_trials(room, graph, scores, "random", 0, first), storage, 6)
    assert len(found) == 6 and len(other) == 5
    assert len({json.dumps(trial.fractions) for trial in found}) == 6


def test_storages_of_other_searches(tmp_path: Path) -> None:
    storage = str(tmp_path / "trials.journal")
    outcomes(storage, 1, "tpe")
    with pytest.raises(ArtifactError, match=r"holds another search \(other sampler\): choose another one"):
        outcomes(storage, 1, "random")
    with pytest.raises(ArtifactError, match=r"can't open the storage sqlite:////no/such/folder/x\.db"):
        outcomes("sqlite:////no/such/folder/x.db", 1, "tpe")


# -- what trials tell


def trial(number: int, accuracy: float, cost: float, **kept: int) -> Trial:
    return Trial(number, {}, kept, accuracy, cost, 1.0)


def test_the_front_by_hand() -> None:
    trials = [
        trial(0, 0.5, 0.5),
        trial(1, 0.6, 0.5),
        trial(2, 0.55, 0.7),
        trial(3, 0.9, 1.0),
        trial(4, 0.9, 1.2),
        trial(5, 0.1, 0.1),
    ]
    assert [t.number for t in front(trials)] == [5, 1, 3]
    assert front([]) == []


def test_importances_find_the_group_that_matters() -> None:
    trials = [trial(n, (n % 5) / 10, 1.0, a=n % 5 + 1, b=n % 7 + 1) for n in range(35)]
    found = importances(trials, {"a": 5, "b": 7})
    assert found["a"] > 0.9 and sum(found.values()) == pytest.approx(1)
    assert importances(trials[:3], {"a": 5, "b": 7}) == {}
    assert importances([trial(n, 0.5, 1.0, a=n, b=1) for n in range(9)], {"a": 9, "b": 7}) == {}


# -- results


def result(path: Path, criterion: str = "l1", **changes: Any) -> str:
    trials = [asdict(t) for t in outcomes(None, 8, "random")]
    tree = {"criterion": criterion, "widths": {"two.0": 32, "three.0": 32}, "trials": trials, **changes}
    path.write_text(json.dumps(tree))
    return str(path)


def test_the_plan_of_a_result(tmp_path: Path) -> None:
    graph, scores = network()
    path = result(tmp_path / "search.json")
    plan = prunus.allocate(graph, scores, HALF, "search", result=path)
    trials = json.loads(Path(path).read_text())["trials"]
    best = max(trials, key=lambda t: t["accuracy"])
    assert plan.counts() == best["kept"] and plan.provenance["accuracy"] == best["accuracy"]
    held = Budget(channels=0.5, limits={"three.0": 16})
    assert prunus.allocate(graph, scores, held, "search", result=path).counts()["three.0"] >= 16
    with pytest.raises(BudgetNotMet, match=r"no trial of .*search.json meets the budget and its limits.*: none is within it"):
        prunus.allocate(graph, scores, Budget(channels=0.3), "search", result=path)
    with pytest.raises(BudgetNotMet, match=r"tolerance of 1\.0%: the nearest stays 37\.3% below it"):
        prunus.allocate(graph, scores, Budget(channels=0.8), "search", result=path)


def test_results_that_do_not_fit(tmp_path: Path) -> None:
    graph, scores = network()
    with pytest.raises(EvidenceError, match="is a search of another network"):
        prunus.allocate(*network((8, 16, 32)), HALF, "search", result=result(tmp_path / "a.json"))
    frozen = graph.freeze({"two.0": "asked for"})
    of_three = prunus.Scores({"three.0": scores.by_group["three.0"]}, "l1")
    with pytest.raises(BudgetNotMet, match="none is within it"):  # its trials all narrow two.0
        prunus.allocate(frozen, of_three, Budget(channels=0.5, tolerance=0.5), "search", result=result(tmp_path / "a.json"))
    with pytest.warns(PrunusWarning, match="the search kept channels by taylor, and l1 keeps others"):
        prunus.allocate(graph, scores, HALF, "search", result=result(tmp_path / "b.json", "taylor"))
    (tmp_path / "c.json").write_text('{"trials": 3}')
    with pytest.raises(ArtifactError, match=r"can't read the result of a search from .*c\.json \(KeyError"):
        prunus.allocate(graph, scores, HALF, "search", result=tmp_path / "c.json")


def test_what_is_refused() -> None:
    graph, scores = network()

    def asked(error: type[Exception], text: str, **options: Any) -> None:
        with pytest.raises(error, match=text):
            prunus.allocate(graph, scores, HALF, "search", **{"evaluate": judge, **options})

    asked(EvidenceError, "allocator search tries plans out: hand in evaluate", evaluate=None)
    asked(EvidenceError, "evaluate gave nan for trial 0", evaluate=lambda _: float("nan"))
    asked(UnknownName, "unknown sampler 'tpee': did you mean tpe", sampler="tpee")
    asked(InvalidBudget, "trials=0", trials=0)
    asked(InvalidBudget, "lowest=1.0", lowest=1.0)
