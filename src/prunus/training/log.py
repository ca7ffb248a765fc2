"""What a training run or an evaluation found out: plain frozen values, ready for a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a data set.

    ``accuracy`` is the share of right answers in 0..1 (or the mean of the user's metric), ``loss`` the mean per example,
    ``count`` the number of examples, ``seconds`` the wall time.

    The rest is there for plain classification only: the default metric, targets that are class indices (n,), logits (n, classes).
    ``top5`` is the share whose class is among the five highest logits (None up to five classes); ``balanced_accuracy`` the mean,
    over the classes that occur, of the share of each that was recognised; ``confusion[true][predicted]`` counts examples (None
    above 50 classes); ``most_confused`` holds up to ten ``[true, predicted, examples]`` of mistakes, the most frequent first.
    """

    accuracy: float
    loss: float
    count: int
    seconds: float
    top5: float | None = None
    balanced_accuracy: float | None = None
    confusion: list[list[int]] | None = None
    most_confused: list[list[int]] = field(default_factory=lambda: list[list[int]]())


@dataclass(frozen=True)
class EpochLog:
    """One finished epoch.

    ``epoch`` counts from 1. ``loss`` is the mean per example of what was minimised (smoothed, with auxiliary losses and
    penalty), ``lr`` the rate of the epoch's last step, ``seconds`` the wall time of its steps, ``images_per_second`` over all
    processes, ``accuracy`` in 0..1 on the evaluation data, or None where there are none. ``sparse_gradients``: zeros in the
    activation gradients and the multiply-adds they could save, see `SparseGradients.report`, or None where that is off.
    ``sparsity`` is how far a sparsity method has come: ``macs``, ``widths`` by group, and a histogram of the channels' strengths
    (``edges``, ``counts``).
    """

    epoch: int
    loss: float
    lr: float
    seconds: float
    images_per_second: float
    accuracy: float | None = None
    sparse_gradients: dict[str, Any] | None = None
    sparsity: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingLog:
    """A whole run. ``resumed_from`` is the epoch that a checkpoint had finished, or None; ``note`` says what was special.

    ``best_kept``: the network has the weights of the epoch that was best on the evaluation data, not those of the last one.
    """

    epochs: tuple[EpochLog, ...]
    seed: int
    resumed_from: int | None = None
    note: str = ""
    best_kept: bool = False

    @property
    def best(self) -> EpochLog | None:
        """The first epoch of the best accuracy on the evaluation data; None without such data."""
        judged = [epoch for epoch in self.epochs if epoch.accuracy is not None]
        return max(judged, key=lambda epoch: epoch.accuracy or 0.0) if judged else None

    @property
    def seconds(self) -> float:
        """Wall time of all steps, in seconds, those before a resume included."""
        return sum(e.seconds for e in self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return asdict(self)
