"""Tests in forked processes: PyTorch is imported once, Prunus anew in each, with the mutated text in place of the file."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy.sparse.csgraph", "safetensors.torch", "torch.utils.flop_counter")
LIBRARIES += ("torch.nn.utils.parametrize", "torch.optim.swa_utils", "torchvision.models.detection", "onnx")
MEMORY = 8 * 2**30
_Trace = Any


@dataclass
class TestRun:
    """What the first pass saw of a test: its seconds and the (file name, line) pairs that it executed."""

    __test__ = False
    seconds: float = 0.0
    lines: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])


def preload() -> None:
    """Import what no mutant changes; one thread, so that processes can be forked."""
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # what is imported here is looked through by no collection in a fork


class _Watch:
    """A pytest plugin: times every test and notes which lines of the watched files it executes."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = {str(file): file.name for file in files}
        self.tests: dict[str, TestRun] = {}
        self.failed: list[str] = []
        self._now = TestRun()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._now = self.tests[item.nodeid] = TestRun()
        begin = time.process_time()
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self._now.seconds = time.process_time() - begin

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed and not report.skipped:
            self.failed.append(report.nodeid)

    def _enter(self, frame: FrameType, event: str, _: Any) -> _Trace:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: FrameType, event: str, _: Any) -> _Trace:
        self._now.lines.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self._line


class _Chosen:
    """A pytest plugin: runs the chosen tests in their order, and remembers the first that fails."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = f"import of {report.nodeid}"


def first_pass(root: Path, tests: Sequence[Path], watched: Sequence[Path]) -> dict[str, TestRun]:
    """Run all tests on the code as it is; they must pass. Test name -> what it did."""

    def work() -> tuple[dict[str, TestRun], list[str]]:
        watch = _Watch(watched)
        _pytest(root, tests, watch)
        return watch.tests, watch.failed

    told = _forked(work, 1800.0)
    if told is None or not isinstance(told[0], dict) or not told[0]:
        raise SystemExit(f"the tests don't run on the code as it is: {told}")
    runs, failed = told
    if failed:
        print(f"left out, because they fail without a mutant: {', '.join(sorted(set(failed)))}", flush=True)
    return {name: run for name, run in runs.items() if name not in failed}


def verdict(root: Path, tests: Sequence[Path], file: Path, text: str, names: Sequence[str]) -> tuple[str, str]:
    """``killed`` (by which test), ``timeout`` or ``survived``: the named tests, file by file, with ``text`` for ``file``."""
    files = [test for test in tests if any(name.startswith(f"{test.relative_to(root)}::") for name in names)]

    def work() -> tuple[str, str]:
        _put_in_place(file, text)
        for test in files:
            chosen = _Chosen(names)
            status = _pytest(root, [test], chosen, "-x")
            if chosen.failed or status:
                return "killed", chosen.failed or f"pytest ended with {status}"
        return "survived", ""

    told = _forked(work, 180.0)
    return ("timeout", "") if told is None else told


def _put_in_place(file: Path, text: str) -> None:
    """From now on, whoever imports ``file`` gets ``text``."""
    compiled = compile(text, str(file), "exec", dont_inherit=True)
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        return compiled if self.path == str(file) else original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _pytest(root: Path, tests: Sequence[Path], plugin: object, *options: str) -> int:
    os.chdir(root)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    common = ("-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*common, *options, *map(str, tests)], plugins=[plugin]))


def _forked(work: Callable[[], Any], limit: float) -> Any:
    """What ``work`` returns in a process of its own that prints nothing; None if it takes longer than ``limit`` seconds."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _be_quiet()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        try:
            answer = work()
        except BaseException as error:
            answer = ("killed", f"{type(error).__name__} outside any test: {error}"[:300])
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(int(limit * 6))  # on a busy machine, CPU seconds are longer
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    signal.alarm(0)
    os.waitpid(child, 0)
    return pickle.loads(data) if data else None


def _be_quiet() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
