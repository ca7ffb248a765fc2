"""Masks that are made in rounds: exact counts, nested, each round trained from the start, nothing repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunus.laboratory.tickets.deconstruction import Deconstruction, densities
from prunus.laboratory.tickets.jobs import Parts, jobs_of
from prunus.laboratory.tickets.training import Course
from prunus.ticket_recipe import parse_ticket_recipe
from prunus.tickets import load_masks

LAYERS = (20 * 64, 10 * 20)


def deconstruction(folder: Path, **more: Any) -> Deconstruction:
    asked = {"networks": ["dense"], "kept": [0.25], "schedules": ["iterative"], "rate": 0.5}
    asked |= {"criteria": ["large_final", "snip"], "kept_actions": ["reshuffle"], "pruned_actions": [], **more}
    network = {"model": "mlp:20", "epochs": 2, "train_limit": 200, "lr": 0.01}
    recipe = parse_ticket_recipe({"seeds": [3], "networks": {"dense": network}, "deconstruction": asked})
    (job,) = jobs_of(recipe)
    return Deconstruction(job, Parts(folder / job.stem))


def test_equal_steps_end_at_the_share_that_was_asked() -> None:
    assert densities(0.25, 0.5) == [0.5, 0.25]
    found = densities(0.1, 0.2)  # ln 0.1 / ln 0.8 = 10.3
    assert len(found) == 10 and found[-1] == pytest.approx(0.1) and found[0] == pytest.approx(0.1**0.1)
    assert densities(0.9, 0.5) == [0.9]


def test_rounds_are_nested_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    real = Course.execute

    def counted(self: Course, model: Any, *args: Any, **more: Any) -> Any:
        trainings.append(1)
        return real(self, model, *args, **more)

    monkeypatch.setattr(Course, "execute", counted)
    whole = deconstruction(tmp_path)
    found = whole.execute()
    # the whole network, then for both criteria the second round's and the final training, and one action with the same masks
    assert len(trainings) == 1 + 2 * 2 + 1
    for criterion in ("large_final", "snip"):
        rounds = [load_masks(whole.parts.file(f"masks-{criterion}-{n:02d}.safetensors")) for n in (1, 2)]
        assert [[int(mask.sum()) for mask in one.by_name.values()] for one in rounds] == [
            [size // 2 for size in LAYERS],
            [size // 4 for size in LAYERS],
        ]
        assert rounds[1].within(rounds[0])
        assert found["criteria"][criterion]["density"] == 0.25
    deconstruction(tmp_path).execute()
    assert len(trainings) == 6


def test_a_second_round_sees_what_is_left_trained_alone(tmp_path: Path) -> None:
    """The masks differ from those made at once, as soon as training without the first pruned half ends elsewhere."""
    rounds, once = deconstruction(tmp_path), deconstruction(tmp_path, schedules=["one-shot"])
    rounds.execute()
    once.execute()
    made, direct = rounds._masks("large_final"), once._masks("large_final")
    assert made.kept == direct.kept == sum(size // 4 for size in LAYERS)
    assert 0.3 < made.overlap(direct) < 1.0
