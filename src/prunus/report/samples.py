"""Test images with the answers of both networks."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any

from prunus.report.wording import escape, percent

SMALL = 56  # pixels: up to here single pixels are shown as squares
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


def samples(result: Mapping[str, Any]) -> str:
    """The section; empty for a result without pictures."""
    found = result.get("samples")
    if not found or not found["rows"]:
        return ""
    cards = "".join(_card(row) for row in found["rows"])
    note = f'<p class="note">{escape(found["note"])}</p>'
    return f'<section id="pictures"><h2>Pictures</h2>{note}<ul class="samples">{cards}</ul></section>'


def _card(row: Mapping[str, Any]) -> str:
    label = str(row["label"])
    picture = row["image"] if _PICTURE.fullmatch(str(row["image"])) else "data:,"  # nothing else may be loaded
    kind = ' class="small"' if _is_small(picture) else ""
    answers = "".join(_answer(which, row[which], label) for which in ("before", "after"))
    return f'<li><img src="{escape(picture)}" alt="{escape(label)}"{kind}><p class="label">{escape(label)}</p>{answers}</li>'


def _answer(which: str, answer: Mapping[str, Any], label: str) -> str:
    right = str(answer["name"]) == label
    verdict = "✓" if right else f"✗ wrong: {escape(answer['name'])}"
    kind = "right" if right else "wrong"
    return f'<p class="{kind}">{which} <span>{verdict} {percent(answer["probability"])}</span></p>'


def _is_small(picture: str) -> bool:
    """Whether a PNG, by the size in its header, is to be enlarged without smoothing."""
    kind, _, text = picture.partition(";base64,")
    header = base64.b64decode(text[:32]) if kind == "data:image/png" and len(text) >= 32 else b""
    return len(header) == 24 and max(struct.unpack(">II", header[16:])) <= SMALL
