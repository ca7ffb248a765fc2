"""The process that reads damaged files: ``python child.py SANDBOX SEED FIRST LAST``; prints one line of JSON for every finding.

A reader may return or raise a `PrunusError`. It may not raise anything else, take longer than `SECONDS` (the process ends then,
with all threads' stacks on stderr), take more than `MEMORY` (the address space is limited to so much more than the process has
at first), write outside its sandbox, or start a program.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz import mutations
from fuzz.samples import Sample, make_samples
from prunus.errors import PrunusError

SECONDS = 5
MEMORY = 2**30
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
_forbidden: list[str] = []
_watched: list[Path] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: notes what leaves the sandbox."""
    if not _watched:
        return
    if event in _PROGRAMS:
        _forbidden.append(f"{event} {str(arguments)[:200]}")
    writes = event in _WRITES or (event == "open" and len(arguments) > 2 and int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(f"{_watched[0]}{os.sep}") and path != os.devnull:
            _forbidden.append(f"{event} {path[:200]}")


def damaged(sample: Sample, rng: random.Random) -> tuple[bytes, bool]:
    """A damaged copy, and whether it was damaged blindly."""
    damage = rng.choice((mutations.in_bytes, *sample.damages, *sample.damages))
    content = damage(sample.content, rng)
    if damage is not mutations.in_bytes and rng.random() < 0.1:
        content = mutations.in_bytes(content, rng)
    return content, damage is mutations.in_bytes


def outcome(sample: Sample, path: Path, blind: bool) -> str:
    """``read``, the name of the error, or what is wrong."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        found = sample.read(path)
        if blind and sample.same is not None and not sample.same(found):
            return "WRONG: it was read as something else than was written"
        return "read"
    except PrunusError as error:
        if len(str(error)) > 5_000:
            return f"WRONG: a message of {len(str(error))} characters"
        return type(error).__name__
    except BaseException as error:
        return f"WRONG: {type(error).__name__}: {str(error)[:200]}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    finally:
        faulthandler.cancel_dump_traceback_later()


def main(sandbox: Path, seed: int, first: int, last: int) -> None:
    """Damage and read the files with these numbers, and print what was wrong, then the counts of all outcomes."""
    warnings.simplefilter("ignore")
    inside = sandbox / "inside"
    (inside / "valid").mkdir(parents=True)
    os.chdir(inside)
    samples = make_samples(inside / "valid")
    for number, sample in enumerate(samples):  # they can be read as they are; lazy imports happen now
        assert outcome(sample, _place(inside, f"valid-{number}", sample.name, sample.content), True) == "read", sample.name
    sys.addaudithook(_watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts: Counter[str] = Counter()
    for number in range(first, last):
        sample = samples[number % len(samples)]
        rng = random.Random(f"{seed}-{number}")
        content, blind = damaged(sample, rng)
        path = _place(inside, str(number), sample.name, content)
        print(json.dumps({"at": number, "file": sample.name}), flush=True)
        _watched[:] = [inside]
        found = outcome(sample, path, blind)
        _watched.clear()
        if _forbidden:
            found = f"WRONG: {_forbidden[0]}"
            _forbidden.clear()
        if found.startswith("WRONG"):
            print(json.dumps({"file": sample.name, "number": number, "wrong": found}), flush=True)
        counts[f"{sample.name} {found.partition(':')[0]}"] += 1
        shutil.rmtree(path.parent)
    print(json.dumps({"counts": dict(sorted(counts.items()))}), flush=True)


def _place(inside: Path, folder: str, name: str, content: bytes) -> Path:
    (inside / folder).mkdir()
    path = inside / folder / name
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
