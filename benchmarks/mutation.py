"""Mutation testing: how many seeded faults in the rules, in removal and in the cost do the tests notice?

    pip install mutmut
    nice python benchmarks/mutation.py cost remove op_rules [--mutants 200] [--seed 0] [--again survived] [--seconds 10]

The faults are mutmut's own, inside functions, drawn with the seed from all that it knows for a target's files. Every fault is
compiled in the memory of a forked process (PyTorch is imported once, the files aren't touched) that runs those of the target's
tests which execute the changed statement, up to ``--seconds`` of test time and until one fails; a first pass of all tests tells
which those are. A fault survives if all of them pass. Finished mutants stay in the JSON while the file that they change stays
as it is, so that a run that was stopped goes on where it was; ``--again survived`` tries the survivors once more.
"""

from __future__ import annotations

import argparse
import ast
import bisect
import difflib
import hashlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _mutation_fork import TestRun, first_pass, preload, verdict

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "mutation.json"
SOURCE = ROOT / "src" / "prunus"
GRAPH, SURGERY = ROOT / "tests" / "graph", ROOT / "tests" / "surgery"
LEAST_TESTS = 5


@dataclass(frozen=True)
class Target:
    """Files that are mutated together, and the tests that should notice."""

    files: tuple[Path, ...]
    tests: tuple[Path, ...]


TARGETS = {
    "cost": Target(
        (SOURCE / "graph" / "cost.py",),
        (GRAPH / "test_cost_values.py", GRAPH / "test_cost.py", ROOT / "tests" / "contracts" / "test_allocators.py"),
    ),
    "remove": Target(
        (SOURCE / "surgery" / "remove.py", SOURCE / "surgery" / "repair.py"),
        tuple(
            SURGERY / f"test_{name}.py"
            for name in ("remove_values", "remove", "repair", "record", "training_state", "artifact", "emptied", "exactness")
        ),
    ),
    "op_rules": Target(
        (SOURCE / "graph" / "op_rules.py", *sorted((SOURCE / "graph").glob("rules_*.py"))),
        (
            *sorted(GRAPH.glob("test_rules_*_values.py")),
            *(GRAPH / f"test_{name}.py" for name in ("groups", "operations", "units", "trace")),
            SURGERY / "test_exactness.py",
        ),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """A fault: the mutated text of ``file``, and which of its lines belong to the statement that changed."""

    file: Path
    line: int
    statement: range
    text: str
    change: str

    @property
    def key(self) -> str:
        """Hash of the file and of the fault."""
        return hashlib.sha256(f"{self.file.name}\n{self.text}".encode()).hexdigest()[:16]


def faults_of(file: Path) -> list[Callable[[], str]]:
    """For every fault that mutmut would put into a function of this file: what makes the file's text with it."""
    from mutmut.mutation.file_mutation import create_mutations

    module, mutations, *_ = create_mutations(str(file), file.read_text(encoding="utf-8"))

    def text(original: Any, mutated: Any) -> str:
        return str(module.deep_replace(original, mutated).code)

    inside = [m for m in mutations if m.contained_by_top_level_function is not None]
    return [partial(text, m.original_node, m.mutated_node) for m in inside]


def mutant(file: Path, text: str) -> Mutant:
    """What ``text`` changes in ``file``."""
    source = file.read_text(encoding="utf-8")
    changes = [line for line in difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm="")][2:]
    line = int(changes[0].split()[1].lstrip("-").partition(",")[0])
    around = min((s for s in _statements(source) if line in s), key=len, default=range(line, line + 1))
    return Mutant(file, line, around, text, "\n".join(c for c in changes if not c.startswith("@@")))


def _statements(source: str) -> list[range]:
    """Lines of every statement; of a compound one those of its head."""
    found: list[range] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body: list[ast.stmt] = getattr(node, "body", [])
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            found.append(range(node.lineno, max(end, node.lineno) + 1))
    return found


def chosen(target: Target, count: int, seed: int) -> list[Mutant]:
    """``count`` different faults drawn from all files of the target together (all, if there are fewer)."""
    faults = [(file, fault) for file in target.files for fault in faults_of(file)]
    random.Random(seed).shuffle(faults)
    sources = {file: file.read_text(encoding="utf-8") for file in target.files}
    found: dict[str, Mutant] = {}
    for file, fault in faults:
        if len(found) < count and (text := fault()) != sources[file]:
            found.setdefault(text, mutant(file, text))
    return list(found.values())


def tests_for(fault: Mutant, tests: Mapping[str, TestRun], seconds: float) -> list[str]:
    """The tests that run the statement, the quickest first: quick ones for half of ``seconds``, others by chance for the rest."""
    lines = {(fault.file.name, line) for line in fault.statement}
    covering = sorted((name for name, run in tests.items() if lines & run.lines), key=lambda name: tests[name].seconds)
    spent = list(itertools.accumulate(tests[name].seconds for name in covering))
    quick = max(bisect.bisect_right(spent, seconds / 2), LEAST_TESTS)
    picked, others = covering[:quick], covering[quick:]
    left = seconds - sum(tests[name].seconds for name in picked)
    random.Random(fault.key).shuffle(others)
    for name in others:
        if tests[name].seconds <= left:
            picked.append(name)
            left -= tests[name].seconds
    return sorted(picked, key=lambda name: tests[name].seconds)


def try_out(name: str, args: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Run the target's mutants that have no verdict yet; returns the target's part of the JSON."""
    target = TARGETS[name]
    sample = chosen(target, args.mutants, args.seed)
    rows = {m.key: known[m.key] for m in sample if m.key in known and known[m.key]["verdict"] != args.again}
    todo = [m for m in sample if m.key not in rows]
    files = [test for test in target.tests if test.exists()]
    tests = first_pass(ROOT, files, target.files) if todo else {}
    print(f"{name}: {len(sample)} mutants, {len(todo)} to try against {len(tests)} tests", flush=True)
    for i, fault in enumerate(todo):
        begin = time.monotonic()
        names = tests_for(fault, tests, args.seconds)
        told, by = verdict(ROOT, files, fault.file, fault.text, names) if names else ("survived", "no test runs it")
        rows[fault.key] = {
            "file": str(fault.file.relative_to(ROOT)),
            "line": fault.line,
            "change": fault.change,
            "verdict": told,
            "by": by,
            "tests": len(names),
            "seconds": round(time.monotonic() - begin, 2),
        }
        print(f"{i + 1}/{len(todo)} {told:9} {fault.file.name}:{fault.line} {by}", flush=True)
        if told == "survived":
            print(fault.change, flush=True)
        save(name, summary(sample, rows), args)
    result = summary(sample, rows)
    save(name, result, args)
    return {"name": name, **result}


def summary(sample: Sequence[Mutant], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Counts and rows, survivors first."""
    counts = Counter(row["verdict"] for row in rows.values())
    tried = sum(counts.values())
    by_verdict = sorted(rows.items(), key=lambda item: (item[1]["verdict"] != "survived", item[1]["file"], item[1]["line"]))
    return {
        "mutants": len(sample),
        "tried": tried,
        "killed": counts["killed"],
        "timed out": counts["timeout"],
        "survived": counts["survived"],
        "share killed": round((tried - counts["survived"]) / max(tried, 1), 4),
        "rows": dict(by_verdict),
    }


def save(name: str, result: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Put the target's part into the JSON; a temporary file takes its place, so that a run that is stopped spoils nothing."""
    document = load()
    document["header"] = {"command": "python benchmarks/mutation.py", "operators": f"mutmut {_version()}", "seed": args.seed}
    document["targets"][name] = dict(result)
    RESULT.parent.mkdir(exist_ok=True)
    part = RESULT.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(RESULT)


def load() -> dict[str, Any]:
    """The JSON as it is, or an empty one."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"header": {}, "targets": {}}


def _version() -> str:
    import mutmut

    return str(mutmut.__version__)


def show(results: Iterable[Mapping[str, Any]]) -> None:
    for result in results:
        dead = result["killed"] + result["timed out"]
        print(f"{result['name']}: {dead} of {result['tried']} die ({result['share killed']:.1%}), {result['survived']} survive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=sorted(TARGETS))
    parser.add_argument("--mutants", type=int, default=200, help="a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", choices=("survived", "killed", "timeout"), help="mutants of this verdict are tried once more")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of the tests that a mutant meets at most")
    args = parser.parse_args()
    preload()
    known = load()["targets"]
    show([try_out(name, args, known.get(name, {}).get("rows", {})) for name in args.targets])


if __name__ == "__main__":
    main()
