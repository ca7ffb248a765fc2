"""A budget on latency in the report and under a run's table: requested, predicted, measured."""

from __future__ import annotations

from prunus.report.summary import budget

ROW = {"target": "latency", "requested": 5.0, "full": 10.0, "achieved": 5.1, "met": True, "predicted": 4.9}


def test_the_report_says_requested_predicted_and_measured() -> None:
    text = budget({"budget": [ROW, {"target": "macs", "requested": 500, "full": 1000, "achieved": 490, "met": True}]})
    assert "10.0 ms" in text and "5.00 ms" in text
    assert "5.10 ms <small>51.0 %, 4.90 ms predicted</small>" in text
    assert "490 <small>49.0 %</small>" in text
