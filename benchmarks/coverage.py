"""Which networks are pruned exactly: all of torchvision's and every family of timm's, one process each.

    python benchmarks/coverage.py [--only GLOB ...] [--again] [--not-exact] [--missing] [--jobs 1] [--limit 60] [--memory 10]
    python benchmarks/coverage.py --peer [--only GLOB ...] [--again] [--jobs 1] [--limit 45] [--memory 10]

Every parameter and buffer is random, half of every group is removed, and removal must equal silencing (see
`prunus.testing.check_network`). A network that is finished stays in the JSON until Prunus' graph or surgery code changes, so
that a run that was stopped goes on where it was. ``--limit`` is seconds of CPU time after the network is built, ``--memory`` GB.

``--peer`` runs torch-pruning on the networks that are in the JSON, convolutional ones first and the smallest of them first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from _coverage_networks import Network, matching
from _coverage_one import FACTS, survey, warm_up
from _coverage_page import write_page
from _peer import survey_peer

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment

RESULT = Path(__file__).parent / "results" / "coverage.json"
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
EXACT = ("exact", "exact after repair")
PEER = "torch-pruning"
WALL_FACTOR = 8
"""A process that sleeps uses no CPU time: it is stopped after this many times the limit."""


def _source() -> bytes:
    package = Path(prunus.__file__).parent
    files = [file for part in ("graph", "surgery", "testing") for file in sorted((package / part).glob("*.py"))]
    return b"".join(file.read_bytes() for file in (*files, Path(__file__).parent / "_coverage_networks.py"))


SOURCE = _source()  # as it was imported, whatever is edited while this runs


def fingerprint(network: Network) -> str:
    """Hash of the code that decides a network's row."""
    return hashlib.sha256(SOURCE + repr(network).encode()).hexdigest()[:16]


@dataclass
class Running:
    """A network's process; its facts go to a file, which outlives it."""

    network: Network
    mark: str
    process: BaseProcess
    facts: Path
    begun: float


def start(network: Network, args: argparse.Namespace, folder: Path) -> Running:
    """Fork: the libraries are imported once, and nothing that a network does reaches the next one."""
    facts = folder / hashlib.sha256(network.key.encode()).hexdigest()
    process = get_context("fork").Process(target=_child, args=(network, args, facts))
    process.start()
    return Running(network, fingerprint(network), process, facts, time.monotonic())


def _child(network: Network, args: argparse.Namespace, facts: Path) -> None:
    handle = os.open(facts, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    (survey_peer if args.peer else survey)(network, args.limit, args.memory)


def finish(running: Running, limit: int) -> dict[str, Any] | None:
    """The row of a network that has ended or ran out of time; None while it goes on."""
    late = time.monotonic() - running.begun > WALL_FACTOR * limit
    if running.process.is_alive() and not late:
        return None
    if running.process.is_alive():
        running.process.kill()
    running.process.join()
    code = running.process.exitcode
    row: dict[str, Any] = {"kind": running.network.kind, "family": running.network.family, "fingerprint": running.mark}
    said = running.facts.read_text(errors="replace") if running.facts.exists() else ""
    for line in said.splitlines():
        if line.startswith(FACTS):
            row |= json.loads(line.removeprefix(FACTS))
    if "verdict" not in row:
        stopped = late or code in (-signal.SIGKILL, -signal.SIGXCPU)  # how the limits stop a process
        row["verdict"] = "time-out" if stopped else "error"
        if not stopped:
            row["error"] = said.strip().rpartition("\n")[2][:500] or f"the process ended with code {code}"
    row["wall_seconds"] = time.monotonic() - running.begun
    return row


def run(args: argparse.Namespace) -> None:
    rows = read()
    wanted = due(rows["networks"], args)
    total, done, running = len(wanted), 0, list[Running]()
    folder = Path(tempfile.mkdtemp())
    waiting = iter(wanted)
    while True:
        while len(running) < args.jobs and (network := next(waiting, None)) is not None:
            running.append(start(network, args, folder))
        if not running:
            break
        for job in list(running):
            row = finish(job, args.limit)
            if row is None:
                continue
            running.remove(job)
            done += 1
            rows = read()  # another run may have written in the meantime
            previous = rows["networks"].get(job.network.key, {})
            if args.peer:
                rows["networks"][job.network.key] = previous | {"peer": peer_facts(row)}
            else:
                rows["networks"][job.network.key] = row | ({"peer": previous["peer"]} if "peer" in previous else {})
            write(rows, args)
            print(f"[{done}/{total}] {job.network.key}: {(peer_line if args.peer else line)(row)}", flush=True)
        time.sleep(0.2)
    found = [row.get("peer") if args.peer else row for row in rows["networks"].values()]
    print(Counter(row["verdict"] for row in found if row))


def due(known: dict[str, Any], args: argparse.Namespace) -> list[Network]:
    """What is to be run, in this order."""
    if not args.peer:
        return [n for n in matching(args.only) if _is_due(known.get(n.key), n, args)]
    wanted = [n for n in matching(args.only) if n.key in known and (args.again or "peer" not in known[n.key])]
    return sorted(wanted, key=lambda n: (n.kind != "cnn", known[n.key].get("parameters", n.parameters), n.key))


def peer_facts(row: dict[str, Any]) -> dict[str, Any]:
    """The peer's part of a row. A process that ended outside the peer's own step says nothing against the peer."""
    facts = {k: v for k, v in row.items() if k not in ("kind", "family", "fingerprint")}
    stage = facts.pop("stage", "build")
    if stage in ("build", "prunus", "judge") and facts["verdict"] in ("error", "time-out"):
        where = {"build": "building the network", "prunus": "Prunus", "judge": "the comparison"}[stage]
        facts |= {"error": f"{where}: {facts['verdict']}; {facts.get('error', '')}"[:500], "verdict": "not judged"}
    return facts


def _is_due(row: dict[str, Any] | None, network: Network, args: argparse.Namespace) -> bool:
    if row is None or args.again or args.missing:
        return row is None or args.again
    if args.not_exact:
        return row["verdict"] not in EXACT
    return row["fingerprint"] != fingerprint(network)


def peer_line(row: dict[str, Any]) -> str:
    """The peer's part of a row in a few words."""
    facts = peer_facts(row)
    times = [f"{facts[key]:.2f}" if facts.get(key) is not None else "-" for key in ("seconds", "prunus_seconds")]
    said = facts.get("error") or facts.get("detail") or ""
    return f"{facts['verdict']}, {times[0]} s against {times[1]} s, {facts['wall_seconds']:.0f} s in all | {said[:160]}"


def line(row: dict[str, Any]) -> str:
    """A row in a few words."""
    parts = [row["verdict"]]
    if "prunable_share" in row:
        parts.append(f"{row['prunable_share']:.0%} of the MACs")
    parts += [f"{k} {v:.2f}" for k, v in row.get("seconds", {}).items()]
    parts.append(f"{row['wall_seconds']:.0f} s in all")
    reason = row.get("error") or next(iter(row.get("shortcomings", {}).values()), "")
    return ", ".join(parts) + (f" | {reason[:160]}" if reason else "")


def read() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {"header": {}, "networks": {}}


def write(rows: dict[str, Any], args: argparse.Namespace) -> None:
    limits = {"limit": args.limit, "memory_gb": args.memory}
    if args.peer:
        rows["header"]["peer"] = {"name": PEER, "version": version(PEER), **limits}
    else:
        own = {"command": "python benchmarks/coverage.py", **limits, "environment": environment() | {"timm": version("timm")}}
        rows["header"] = {k: v for k, v in rows["header"].items() if k == "peer"} | own
    RESULT.parent.mkdir(exist_ok=True)
    write_atomically(RESULT, (json.dumps(rows, indent=1) + "\n").encode())
    write_page(rows, PAGE)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="GLOB", help="names, or source:name")
    parser.add_argument("--again", action="store_true", help="also what is up to date")
    parser.add_argument("--not-exact", action="store_true", help="only what isn't exact yet")
    parser.add_argument("--missing", action="store_true", help="only what was never tried")
    parser.add_argument("--peer", action="store_true", help="run torch-pruning on the networks of the JSON that it hasn't seen")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=int, help="seconds of CPU time; 60, of the peer 45")
    parser.add_argument("--memory", type=float, default=10.0)
    args = parser.parse_args()
    args.limit = args.limit or (45 if args.peer else 60)
    return args


def main() -> None:
    import timm  # noqa: F401 (before the first fork)

    args = arguments()
    if args.peer:
        os.nice(5)
        import torch_pruning  # noqa: F401
    warm_up()
    run(args)


if __name__ == "__main__":
    main()
