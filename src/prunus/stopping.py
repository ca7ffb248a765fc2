"""A request to end (SIGTERM), as batch systems and ``docker stop`` send it some seconds before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Terminated(KeyboardInterrupt):
    """The process was asked to end. Like Ctrl-C it is no `Exception`, so that nothing takes it for an error and goes on."""


@dataclass
class _State:
    asked: bool = False
    held: int = 0


_state = _State()


@contextmanager
def stops_on_request() -> Generator[None]:
    """SIGTERM raises `Terminated` meanwhile: at once, or at the next step where training holds it back.

    A second one raises at once. Outside of the main thread, where no signal arrives, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _requested)
    _state.asked = False
    try:
        yield
    finally:
        _state.asked = False
        signal.signal(signal.SIGTERM, before)


def _requested(number: int, frame: Any) -> None:
    if _state.asked or not _state.held:
        raise Terminated
    _state.asked = True


@contextmanager
def held_back(enabled: bool = True) -> Generator[None]:
    """Work that looks for a request itself (`stop_asked`), where its state is whole."""
    _state.held += enabled
    try:
        yield
    finally:
        _state.held -= enabled


def stop_asked() -> bool:
    """Whether a request is held back."""
    return _state.asked
