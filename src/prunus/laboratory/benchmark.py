"""Claims of the literature tried again: the checkout's scripts are run, and what is up to date is left as it is.

Claims and scripts lie in ``benchmarks/`` of the repository, which isn't part of the installed package.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.claims import Claim, load_claims
from prunus.errors import ProcessError, RecipeError, UnknownName
from prunus.files import write_atomically
from prunus.laboratory.verdicts import record_of, record_path
from prunus.recipe_text import read_toml

_LAST_LINES = 2
_OPTIONS = {"seeds": "number of seeds", "device": "device (they run on the CPU)"}


@dataclass(frozen=True)
class Given:
    """What the command line gives to scripts: a number of seeds, a device, and where data lie. None: the claim's own."""

    seeds: int | None = None
    device: str | None = None
    data: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Checkout:
    """A clone of the repository, with its claims."""

    root: Path
    claims: Mapping[str, Claim]
    data: Mapping[str, str]

    @property
    def results(self) -> Path:
        """Folder of the figures."""
        return self.root / "benchmarks" / "results"


def open_checkout(folder: Path | None) -> Checkout:
    """The clone in ``folder``, or the one that the current directory lies in.

    Raises:
        RecipeError: there are no claims; or one of them can't be read.
    """
    start = (folder or Path.cwd()).resolve()
    for root in (start,) if folder is not None else (start, *start.parents):
        if (root / "benchmarks" / "claims").is_dir():
            data = {name: str(what) for name, what in read_toml(root / "benchmarks" / "data.toml").items()}
            return Checkout(root, load_claims(root / "benchmarks" / "claims"), data)
    raise RecipeError(
        f"there are no claims at {start / 'benchmarks' / 'claims'}: they come with the repository, not with the installed "
        "package; clone it and run this command there, or name its folder with --folder"
    )


def refuse_unknown(checkout: Checkout, claims: list[Claim], given: Given) -> None:
    """Raise for what was given and no script would take: `RecipeError`, or `UnknownName` for data that no claim knows."""
    for name in given.data or {}:
        if name not in checkout.data:
            raise UnknownName.among("data", name, checkout.data)
        if not any(name in claim.needs for claim in claims):
            raise RecipeError(f"--data {name}=...: no script of what was chosen takes it")
    for option, what in _OPTIONS.items():
        runnable = [claim for claim in claims if claim.runnable]
        if getattr(given, option) is not None and not any(option in claim.places for claim in runnable):
            names = ", ".join(claim.name for claim in runnable)
            raise RecipeError(f"--{option}: what was chosen ({names}) takes no {what}: leave it out, or choose other claims")


def left_as_they_are(claims: list[Claim], given: Given) -> list[str]:
    """A sentence for every option that was given and that some of these claims' scripts don't take; the others do."""
    told: list[str] = []
    for option, what in _OPTIONS.items():
        scripts = {shlex.split(claim.command or "")[1] for claim in claims if claim.runnable and option not in claim.places}
        if getattr(given, option) is not None and scripts:
            names = ", ".join(Path(script).name for script in sorted(scripts))
            told.append(f"without --{option}, as their claims say: {names} (no {what})")
    return told


def missing(claim: Claim, given: Given) -> list[str]:
    """Data that the claim needs and that weren't given."""
    return [name for name in claim.needs if name not in (given.data or {})]


def command_of(claim: Claim, given: Given) -> list[str]:
    """The words of the claim's command, with everything filled in that was given; what wasn't stands in capitals."""
    filled: dict[str, Any] = {name: str(Path(path).resolve()) for name, path in (given.data or {}).items()}
    filled |= {"seeds": claim.seeds if given.seeds is None else given.seeds, "device": given.device or "cpu"}
    filled |= {name: name.upper() for name in missing(claim, given)}
    return [word.format_map(filled) for word in shlex.split(claim.command or "")]


def fingerprint(claim: Claim, root: Path, given: Given) -> str:
    """A hash of what decides about the figures: the script, what it imports from its folder, and its arguments.

    Where data lie is no part of it, nor is the text of the claim: the verdict is read anew from the figures every time.
    """
    placeless = Given(given.seeds, given.device, None)
    words = command_of(claim, placeless)
    found = hashlib.sha256(repr(words[1:]).encode())
    for path in sorted(_imported(root / words[1])):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _imported(script: Path, seen: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """The script and the files of its folder that it imports, and those that they import."""
    seen |= {script}
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            path = script.parent / f"{name}.py"
            if path.exists() and path not in seen:
                seen |= _imported(path, seen)
    return seen


def state(claim: Claim, checkout: Checkout, given: Given) -> str:
    """Whether the result is what the script would make today, in words that a narrow column holds.

    "unrecorded": the script was called by itself, so that nothing tells which of its versions made the result.
    """
    if not claim.runnable or claim.result is None:
        return "for other machines" if claim.command else ""
    record = record_of(claim, checkout.results)
    if not (checkout.results / claim.result).exists():
        return "no result"
    if not record:
        return "unrecorded"
    if not record["finished"]:
        return "stopped half-way"
    return "up to date" if record["fingerprint"] == fingerprint(claim, checkout.root, given) else "out of date"


def carry_out(claim: Claim, checkout: Checkout, given: Given, again: bool, told: Callable[[str], None]) -> bool:
    """Run the claim's script, unless its result is up to date (``again``: also then); True if it was run.

    ``told`` gets every line that the script prints; all of them go to ``runs/benchmark/NAME.log``.

    Raises:
        RecipeError: the claim has no script, or data are missing.
        ProcessError: the script failed; the message has its last lines.
    """
    assert claim.result is not None
    if absent := missing(claim, given):
        wanted = ", ".join(f"--data {name}=PATH ({checkout.data[name]})" for name in absent)
        raise RecipeError(f"{claim.name} needs data that weren't given: {wanted}")
    wanted = fingerprint(claim, checkout.root, given)
    if not again and state(claim, checkout, given) == "up to date":
        return False
    before = record_of(claim, checkout.results)
    goes_on = before.get("fingerprint") == wanted and not before["finished"]
    record: dict[str, Any] = {
        "fingerprint": wanted,
        "command": claim.command,
        "seconds": before["seconds"] if goes_on else 0.0,
        "finished": False,
    }
    path = record_path(claim, checkout.results)
    write_atomically(path, _encoded(record))
    begin = time.perf_counter()
    try:
        _run(claim, checkout.root, command_of(claim, given), told)
        record["finished"] = (checkout.results / claim.result).exists()
    finally:
        record["seconds"] += time.perf_counter() - begin
        write_atomically(path, _encoded(record))
    if not record["finished"]:
        raise ProcessError(f"{claim.name}: its script ended without writing {checkout.results / claim.result}; see {_log(claim)}")
    return True


def _run(claim: Claim, root: Path, words: list[str], told: Callable[[str], None]) -> None:
    log = root / _log(claim)
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    called = [sys.executable, *words[1:]]
    with (
        log.open("w", buffering=1, encoding="utf-8") as file,
        subprocess.Popen(called, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines = [*lines, line.rstrip()][-_LAST_LINES:]
                told(line.rstrip())
        except BaseException:  # stopped: the script mustn't go on alone
            process.terminate()
            raise
    if process.returncode:
        said = " / ".join(line for line in lines if line) or "nothing"
        raise ProcessError(
            f"{claim.name}: its script ended with code {process.returncode}; it said last: {said}. All it said is in {log}; the "
            "same command starts it again, and scripts that keep their parts go on"
        )


def _encoded(record: Mapping[str, Any]) -> bytes:
    return (json.dumps({**record, "seconds": round(record["seconds"], 3)}, indent=1) + "\n").encode()


def _log(claim: Claim) -> Path:
    return Path("runs") / "benchmark" / f"{claim.name}.log"
