"""Runs that are killed at random instants and resumed: ``python killed_runs.py FOLDER SEED COUNT``; a line of JSON for each.

Every run is a fork of this process, which has done one run and so imported everything: a kill costs no new start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.small_run import recipe
from prunus.pipeline.run import run


def forked(work: Callable[[], Any], kill_after: float | None = None) -> bool:
    """Whether ``work`` came to its end in a process of its own, which is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WIFEXITED(status)


def main(folder: Path, seed: int, count: int) -> None:
    """An undisturbed run, then ``count`` runs that are killed once or twice and resumed."""
    torch.set_num_threads(1)
    rng, asked = random.Random(seed), recipe()
    run(asked, folder / "first")
    begin = time.monotonic()
    forked(lambda: run(asked, folder / "whole"))
    whole = time.monotonic() - begin
    for number in range(count):
        out = folder / str(number)
        instants = [rng.uniform(0.02, 0.9) * whole for _ in range(rng.choice((1, 1, 2)))]
        ended = [forked(lambda out=out: run(asked, out, resume=True), instant) for instant in instants]
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        forked(lambda out=out: run(asked, out, resume=True))
        same = [_read(folder / "whole", name) == _read(out, name) for name in ("result.json", "small.prunus")]
        told = {"instants": instants, "ended": ended, "files": len(found), "last": found[-1:], "same": same}
        print(json.dumps(told), flush=True)


def _read(out: Path, name: str) -> Any:
    content = (out / name).read_bytes()
    return json.loads(content)["hash"] if name.endswith(".json") else content


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
