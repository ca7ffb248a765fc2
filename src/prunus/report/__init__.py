"""The report: one HTML file, readable offline, made of nothing but `result.json`."""

from __future__ import annotations

from prunus.report.page import write_report

__all__ = ["write_report"]
