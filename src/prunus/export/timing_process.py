"""The process that times networks for `NetworkTimer`: ``python -m prunus.export.timing_process job.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from prunus.export.memory import peak_of_passes
from prunus.export.runtimes import RUNTIMES, WARMUP, time_in_turns


def main(path: Path) -> None:
    """Do the job and write its result: milliseconds of every pass, or bytes of one network."""
    job = json.loads(path.read_text(encoding="utf-8"))
    inputs = torch.load(job["inputs"], weights_only=False)
    files = {name: Path(file) for name, file in job["networks"].items()}
    runtime = RUNTIMES[job["runtime"]]

    def network(file: Path) -> Any:
        return file if runtime.write else torch.load(file, weights_only=False)

    if job["what"] == "memory":
        (file,) = files.values()
        found: Any = peak_of_passes(lambda: runtime.open(network(file), inputs, job["threads"]), job["threads"])
    else:
        networks = {name: network(file) for name, file in files.items()}
        found = time_in_turns(networks, inputs, job["runtime"], threads=job["threads"], warmup=WARMUP, seconds=job["seconds"])
    Path(job["result"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
