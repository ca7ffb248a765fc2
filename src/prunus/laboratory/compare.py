"""`compare`: every criterion on one network, against the oracle and by what is left after removal, over several seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prunus.laboratory.contenders import Contender
from prunus.laboratory.parts import SeedParts, Watch
from prunus.laboratory.settings import Settings, Subject
from prunus.laboratory.summary import summarise
from prunus.pipeline.result import environment
from prunus.pipeline.stages import Stages, write_json
from prunus.report.laboratory import write_comparison


def compare(
    subject: Subject,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    out: Path,
    settings: Settings = Settings(),  # noqa: B008  frozen
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare criteria with the oracle and by accuracy after removal; returns what ``comparison.json`` in ``out`` holds.

    Every part (seed and criterion; of a removal, the share, too) is kept in ``out`` when it is finished: the same call goes on
    where a killed one stopped, and criteria, seeds or shares can be added. A criterion that the network doesn't allow becomes a
    row that says why. Every seed draws its own images, its own sample of channels and the seeds of criteria that draw.
    ``announce`` is told what is being computed.

    Raises:
        RecipeError: ``out`` holds a comparison of something else or with other settings.
        NothingPruned: every group of the network is frozen.
        PrunusError: what tracing, the oracle, training or the images raise.
    """
    recipe = json.loads(json.dumps({"subject": dict(subject.about), "settings": settings.of_parts()}, default=str))
    watch = Watch(announce, len(seeds) * (2 + len(contenders) + (len(contenders) + 1) * bool(settings.shares)))
    stages = Stages(out, recipe, True, lambda _: None)
    begin = time.perf_counter()
    found = [SeedParts(subject, contenders, seed, settings, stages, watch).execute() for seed in seeds]
    machine = environment()
    result = {
        "prunus": machine["prunus"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "subject": recipe["subject"],
        "settings": {**recipe["settings"], "shares": list(settings.shares)},
        "seeds": list(seeds),
        "seconds": time.perf_counter() - begin,
        **summarise(contenders, found),
        "warnings": list(dict.fromkeys(note for one in found for note in one.network["notes"])),
        "environment": machine,
    }
    write_json(out / "comparison.json", result)
    write_comparison(result, out / "comparison.html")
    return result
