"""The ladder of recovery: what is done to a pruned network, rung by rung, cheap to dear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from prunus.config import RecoverConfig
from prunus.graph.build import fingerprint
from prunus.pipeline.trainer import Teacher, Trainer
from prunus.reconstruction import compensate_removed, recalibrate, reconstruct
from prunus.surgery import SurgeryRecord
from prunus.surgery.record import BiasEdit, SliceEdit, current_versions
from prunus.types import ChannelGraph

TITLES = {
    "compensate": "compensation",
    "reconstruct": "reconstruction",
    "recalibrate": "recalibration",
    "fine-tune": "fine-tuning",
    "distill": "distillation",
}
"""Rungs, and what the result calls them."""
_BOTH = 500  # phases between fine-tuning and distillation in the same round, so that they see other orders of images


@dataclass(frozen=True, eq=False)
class Fall:
    """What a network has lost: ``full`` before any pruning; ``before`` and its record are what the latest surgery was done to."""

    full: Callable[[], nn.Module]
    before: Callable[[], nn.Module]
    before_record: SurgeryRecord
    trace: Callable[[nn.Module], ChannelGraph]


class Ladder:
    """One recipe's way up, with a trainer's images and functions."""

    def __init__(self, trainer: Trainer, settings: RecoverConfig) -> None:
        self.trainer, self.settings = trainer, settings

    def climb(
        self, rung: str, model: nn.Module, record: SurgeryRecord, fall: Fall, name: str, phase: int
    ) -> tuple[SurgeryRecord, dict[str, Any]]:
        """Take one rung: ``model`` is changed in place. Returns its record, which may have biases more, and what is told of it.

        ``name``: of the checkpoint, ``phase``: of the order of images, where the rung trains.
        """
        if rung == "compensate":
            return self._compensate(model, record, fall)
        if rung == "reconstruct":
            return record, self._reconstruct(model, record, fall)
        if rung == "recalibrate":
            return record, self.recalibrate(model)
        teacher = self.teacher(fall.full, record, rung)
        phase += _BOTH if rung == "distill" and "fine-tune" in self.settings.rungs else 0
        return record, {"epochs": self.trainer.fit(model, self.settings, name, phase, teacher=teacher)}

    def recalibrate(self, model: nn.Module) -> dict[str, Any]:
        """New batch-norm statistics from so many batches of plain training images."""
        batches = self.settings.recalibrate_batches
        images = recalibrate(model, self.trainer.calibration(batches), forward_fn=self.trainer.forward_fn) if batches else 0
        return {"images": images}

    def teacher(self, full: Callable[[], nn.Module], record: SurgeryRecord, rung: str = "distill") -> Teacher | None:
        """The unpruned network, where the recipe wants the pruned one to learn from it on this rung."""
        wanted = self.settings.distill or self.settings.distill_features
        if not wanted or (rung == "fine-tune" and "distill" in self.settings.rungs):
            return None
        return Teacher(full(), record.kept)

    def _compensate(self, model: nn.Module, record: SurgeryRecord, fall: Fall) -> tuple[SurgeryRecord, dict[str, Any]]:
        before = fall.before()
        own = since(record, fall.before_record, fingerprint(before))
        found = compensate_removed(before, model, fall.trace(before), own, self._images(), forward_fn=self.trainer.forward_fn)
        new = found.record.biases
        both = SurgeryRecord(record.fingerprint, (*record.edits, *map(BiasEdit, new)), record.versions)
        return both, {"compensation": asdict(found.report)}

    def _reconstruct(self, model: nn.Module, record: SurgeryRecord, fall: Fall) -> dict[str, Any]:
        seed = self.trainer.recipe.seed
        report = reconstruct(model, fall.full(), record, self._images(), forward_fn=self.trainer.forward_fn, seed=seed)
        return {"reconstruction": {"layers": [asdict(fit) for fit in report.layers], "not_fitted": dict(report.not_fitted)}}

    def _images(self) -> list[Any]:
        return self.trainer.calibration(self.settings.sample_batches)


def since(record: SurgeryRecord, earlier: SurgeryRecord, fingerprint: str) -> SurgeryRecord:
    """The slices of ``record`` that came after ``earlier``, counted in the network that ``earlier`` left."""
    before = earlier.kept
    slices: list[SliceEdit] = []
    for edit in record.edits:
        if isinstance(edit, SliceEdit):
            old = before.get(edit.parameter, {}).get(edit.axis)
            if old is None:
                slices.append(edit)
            elif len(old) != len(edit.kept):
                slices.append(SliceEdit(edit.parameter, edit.axis, torch.searchsorted(old, edit.kept), len(old)))
    added = {f"{layer}.weight": f"{layer}.bias" for layer in earlier.biases}  # a composed record doesn't slice these
    slices += [SliceEdit(added[s.parameter], 0, s.kept, s.size) for s in slices if s.parameter in added and s.axis == 0]
    return SurgeryRecord(fingerprint, tuple(slices), current_versions())


def judged_title(stage: str, epochs: list[dict[str, Any]]) -> str:
    """``after fine-tuning``; where not the last epoch's weights were kept, it says whose."""
    kept = next((e["epoch"] for e in epochs if e.get("kept")), None)
    return stage if kept is None else f"{stage} (weights of epoch {kept}, best on validation)"


def rung_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ladder as the result shows it: title -> a stage with its evaluation and seconds, from the removal on.

    ``gained``: accuracy above the row before; ``seconds``: the stage's, without the evaluation behind it.
    """
    rows: list[dict[str, Any]] = []
    for title, stage in stages.items():
        judged = stage["evaluation"]
        gained = judged["accuracy"] - rows[-1]["accuracy"] if rows else None
        rows.append(
            {
                "rung": title,
                "accuracy": judged["accuracy"],
                "loss": judged["loss"],
                "split": judged["split"],
                "gained": gained,
                "seconds": max(stage["seconds"] - judged["seconds"], 0.0),
                "epochs": len(stage.get("epochs", ())),
            }
        )
    return rows
