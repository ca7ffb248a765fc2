"""Peak memory of a network's passes, in a process that does nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_PASSES = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_passes(opened: Callable[[], Callable[[], Any]], threads: int = 1) -> dict[str, int]:
    """Bytes of memory (resident set) before the network is there, and at most while it is loaded and passes run.

    Loading counts: weights are read, and some runtimes pack them. Where the system can't forget an earlier peak (all but
    Linux), a network that needs less than Python's imports did shows no growth.
    """
    torch.set_num_threads(threads)
    before = _forget_peak()
    with torch.inference_mode():
        call = opened()
        for _ in range(_PASSES):
            call()
    return {"before_bytes": before, "peak_bytes": _peak()}


def _forget_peak() -> int:
    """Bytes in use; the peak starts from here where the system can do that."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, LookupError):
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except (OSError, LookupError):
        import resource  # not on Windows, whose processes say nothing of the kind

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    """Bytes that Linux tells of this process. `KeyError` where it doesn't tell this."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[name].split()[0]) * 1024
