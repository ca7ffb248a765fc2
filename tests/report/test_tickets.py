"""The page of a laboratory of tickets says what its result says, whatever is in it, and loads nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from prunus import ExportError
from prunus.report import laboratory
from prunus.report.tickets import render_tickets, write_tickets
from prunus.report.tickets_plots import lottery_figure, rethinking_figure, shown_rounds, ticket_figures
from report.test_page import HOSTILE, Reader

pytest.importorskip("plotly")


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laboratory, "plotly", lambda: "/* plotly */")


def figure(mean: float, std: float | None = 0.01) -> dict[str, Any]:
    return {"values": [mean, mean], "mean": mean, "std": std}


def arm(early: float, final: float) -> dict[str, Any]:
    curve = [{"step": 0, **figure(0.1)}, {"step": 10, **figure(early)}, {"step": 100, **figure(final)}]
    return {"early": figure(early), "accuracy": figure(final), "curve": curve}


def one_round(number: int, density: float) -> dict[str, Any]:
    controls = {"reinit": arm(0.3, 0.8), "random_mask": arm(0.2, 0.7)} if number else {}
    return {
        "round": number,
        "kept": int(1000 * density),
        "total": 1000,
        "density": density,
        "layers": {"0.weight": figure(density), "2.weight": figure(density)},
        "arms": {"ticket": arm(0.5, 0.95 - number / 100), **controls},
        "sign_agreement": figure(0.9),
        "overlap_one_shot": figure(0.8),
        "overlap_random": figure(0.3),
    }


def judged(untrained: float, trained: float) -> dict[str, Any]:
    return {"untrained": figure(untrained), "early": figure(0.5), "accuracy": figure(trained)}


def small(lr: float, gap: float) -> dict[str, Any]:
    return {
        "network": "conv", "model": "conv:4", "data": "digits", "lr": lr, "channels": 0.5, "criterion": "l1",
        "macs": 4000, "small_macs": 1000, "parameters": 100, "small_parameters": 30, "ratio": 4.0,
        "full": {"accuracy": figure(0.98)}, "pruned": figure(0.2),
        "arms": {
            "fine-tuned": {"epochs": 5, "lr": lr / 10, "accuracy": figure(0.9)},
            "scratch-B": {"epochs": 48, "lr": lr, "accuracy": figure(0.9 + gap)},
        },
    }  # fmt: skip


def sample() -> dict[str, Any]:
    lottery = {"network": "dense", "scope": "global", "schedule": "iterative", "rewind_step": 0, "early": 0.1}
    return {
        "prunus": "0.1",
        "created": "2026-11-22T21:00:00+00:00",
        "name": "trial",
        "recipe": {
            "seeds": [0, 1],
            "networks": {"dense": {"model": "mlp:300-100", "data": "digits", "lr": 0.001}},
            "lottery": {"networks": ["dense"], "rounds": 2},
        },
        "seconds": 60.0,
        "core_seconds": 100.0,
        "processes": 2,
        "lottery": [{**lottery, "rounds": [one_round(0, 1.0), one_round(1, 0.4), one_round(2, 0.16)]}],
        "deconstruction": [
            {
                "network": "dense",
                "kept": 0.2,
                "schedule": "iterative",
                "rate": 0.25,
                "classes": 10,
                "whole": judged(0.1, 0.97),
                "criteria": {"large_final": judged(0.31, 0.96), "random": judged(0.1, 0.85)},
                "kept_actions": {"reinit": judged(0.1, 0.88)},
                "pruned_actions": {},
            }
        ],
        "supermasks": [
            {
                "network": "dense", "rescale": True, "signed_constant": False,
                **judged(0.09, 0.913), "sampled": figure(0.852), "density": figure(0.47),
            }
        ],
        "rethinking": [small(0.2, 0.05), small(0.01, -0.1)],
        "claims": [
            {
                "claim": "tickets win", "paper": "Frankle and Carbin 2019", "where": "dense", "note": "early +20.0 points",
                "difference": figure(0.031), "verdict": "yes",
            }
        ],
        "environment": {"torch": "2", "cores": 2},
    }  # fmt: skip


def test_the_page_says_what_the_result_says() -> None:
    text = render_tickets(sample())
    for told in (
        "tickets win", "+3.1 points ± 1.0", "✓ yes", "early +20.0 points", "95.0 % ± 1.0", "16.0 %", "31.0 % ± 1.0",
        "rescaled", "91.3 % ± 1.0", "85.2 % ± 1.0", "47.0 % ± 1.0", "4,000 multiply-adds become 1,000, a ratio of 4.00",
        "scratch-B (48 epochs)", "ranked globally", "rewound to the start", "1 min 40 s of one core",
        "masks made in rounds of about 25.0 %",
    ):  # fmt: skip
        assert told in text, told
    loading = [(name, found) for name, found in Reader(text).elements if {"src", "href"} & set(found) and name != "a"]
    assert loading == []


def test_every_figure_has_its_place() -> None:
    drawn = ticket_figures(sample())
    text = render_tickets(sample())
    assert {name for name in drawn if f'id="{name}"' not in text} == set()
    assert sorted(drawn) == [
        "plot-criteria-0", "plot-curves-0-1", "plot-curves-0-2", "plot-densities-0", "plot-kept_actions-0",
        "plot-lottery-0-accuracy", "plot-lottery-0-early", "plot-rethinking-conv", "plot-signs-0",
    ]  # fmt: skip


def test_lines_and_bands() -> None:
    found = lottery_figure(sample()["lottery"][0], "accuracy")
    low, high, ticket = found["data"][:3]
    assert ticket["x"] == pytest.approx([100, 40, 16]) and ticket["y"] == pytest.approx([95, 94, 93])
    assert low["y"] == pytest.approx([94, 93, 92]) and high["y"] == pytest.approx([96, 95, 94])
    assert high["fill"] == "tonexty" and low["legendgroup"] == ticket["legendgroup"]
    reinit = found["data"][5]
    assert reinit["y"] == pytest.approx([95, 80, 80])  # from the whole network on
    assert [one["round"] for one in shown_rounds(sample()["lottery"][0])] == [1, 2]
    lines = [trace for trace in rethinking_figure(sample()["rethinking"])["data"] if trace.get("name")]
    assert [(trace["name"], trace["x"]) for trace in lines] == [
        (name, [0.01, 0.2]) for name in ("full network", "fine-tuned", "scratch-B")
    ]
    assert lines[2]["y"] == pytest.approx([80, 95])


def test_names_are_escaped_and_a_single_seed_has_no_spread() -> None:
    result = sample()
    result["name"] = result["lottery"][0]["network"] = result["claims"][0]["where"] = HOSTILE
    result["supermasks"][0]["accuracy"]["std"] = None
    text = render_tickets(result)
    assert "<script>alert" not in text and "<td" in text
    assert ">91.3 %<" in text


def test_results_of_another_version_are_told(tmp_path: Path) -> None:
    result = copy.deepcopy(sample())
    del result["lottery"][0]["rounds"][1]["layers"]
    with pytest.raises(ExportError, match="the laboratory can't be shown: KeyError 'layers'; was it written by this version"):
        write_tickets(result, tmp_path / "page.html")
    write_tickets(sample(), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
