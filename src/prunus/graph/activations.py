"""Which activations are alive at every step of a forward pass: the peak becomes part of the closed-form cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from prunus.graph.labels import LabelVector

if TYPE_CHECKING:
    from prunus.graph.tracer import Tracer


class LiveActivations:
    """Records storages as they are born and, at every operation, which of them live."""

    def __init__(self) -> None:
        self.storages: list[tuple[float, list[LabelVector]]] = []
        self.live_at: list[list[int]] = []
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def record(self, outs: list[Tensor], tracer: Tracer) -> None:
        """Note the results of one operation; views share their base's storage and cost nothing."""
        dead = [key for key, (ref, _) in self._live.items() if ref.expired()]
        for key in dead:
            del self._live[key]
        born = False
        for out in outs:
            storage = out.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            if key in self._live or out.numel() == 0:
                continue
            self._live[key] = (StorageWeakRef(storage), len(self.storages))
            widths = list(tracer.field(out).axes.values())
            fixed = storage.nbytes()
            for labels in widths:
                fixed /= len(labels)
            self.storages.append((fixed, widths))
            born = True
        if born:
            self.live_at.append([index for _, index in self._live.values()])
