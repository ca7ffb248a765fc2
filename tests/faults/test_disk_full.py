"""The disk is full at every write of a run, one after another: old files stay, the error says so, and the run goes on."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from faults.small_run import contents, recipe
from prunus.errors import PrunusError
from prunus.pipeline.run import run


class Disk:
    """Room for so many files more; files reach the disk by ``os.fsync``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.really = 10**6, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        self.really(descriptor)


def test_a_full_disk_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(train={"epochs": 1, "lr": 0.05}, recover={"epochs": 1, "lr": 0.02, "recalibrate_batches": 2})
    undisturbed = run(asked, tmp_path / "whole")
    disk, out, failures, room = Disk(monkeypatch), tmp_path / "cut", 0, 0
    out.mkdir()
    while failures < 60:
        before, disk.room = contents(out), room
        try:
            result = run(asked, out, resume=True)
            break
        except PrunusError as error:
            assert "No space left on device" in str(error)
            failures += 1
        after = contents(out)
        changed = {name for name in after if after[name] != before.get(name)}
        assert before.keys() <= after.keys() and not [name for name in after if name.endswith(".partial")]
        assert len({name for name in changed if not name.endswith(".previous")}) <= room, changed
        # One file more than the last run could write again: so every write is at some time the one that fails.
        room = 0 if after.keys() > before.keys() else room + 1
    assert 12 < failures < 60
    assert result["hash"] == undisturbed["hash"]
    assert (out / "small.prunus").read_bytes() == (tmp_path / "whole" / "small.prunus").read_bytes()
