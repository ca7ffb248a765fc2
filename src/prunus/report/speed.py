"""How fast training was, and with which settings of the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.report.wording import count, escape, is_number, size, table, tag


def speed(result: Mapping[str, Any]) -> str:
    """Images per second of every phase, the settings, and the measurement that chose them; empty where nothing was recorded."""
    found = result.get("compute")
    if not found:
        return ""
    phases = [[escape(phase), _rate(rate)] for phase, rate in (found.get("training_images_per_second") or {}).items()]
    peak = f" At its peak the process held {size(found['peak_memory_bytes'])}." if found.get("peak_memory_bytes") else ""
    text = f"<h3>Speed of training</h3><p>{_settings(found)} in memory.{peak}</p>"
    parts = table("Training speed", ["phase", "images/s"], phases, (1,)) if phases else ""
    parts += _measured(found)
    return text + (f'<div class="columns">{parts}</div>' if parts else "")


def _measured(found: Mapping[str, Any]) -> str:
    rows = [
        [_settings(row), _rate(row["images_per_second"]), tag("used", "plain") if _settings(row) == _settings(found) else ""]
        for row in found.get("measured") or ()
    ]
    return table("Measured beforehand, to choose the settings", ["setting", "images/s", "use"], rows, (1,)) if rows else ""


def _settings(found: Mapping[str, Any]) -> str:
    threads = found.get("threads")
    number = "PyTorch's number of threads" if threads is None else "1 thread" if threads == 1 else f"{count(threads)} threads"
    return f"{number}, channels {'last' if found.get('channels_last') else 'first'}"


def _rate(value: Any) -> str:
    return f"{value:,.1f}" if is_number(value) and value < 100 else count(round(value)) if is_number(value) else count(None)
