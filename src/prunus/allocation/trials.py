"""Trials of a search, drawn by Optuna: by one process, reproducibly, or by several through its storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from prunus.errors import ArtifactError, EvidenceError, PrunusError

SAMPLERS = ("tpe", "cma", "random", "nsga2")
STUDY = "prunus search"
_LEAST_STALE = timedelta(minutes=10)


@dataclass(frozen=True)
class Outcome:
    """What came of a draw: ``kept`` channels by group, ``accuracy``, and ``cost`` as a share of the limit that is tightest."""

    kept: Mapping[str, int]
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Trial:
    """A finished trial: what was drawn, what it came to, and how long that took."""

    number: int
    fractions: Mapping[str, float]
    kept: Mapping[str, int]
    accuracy: float
    cost: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All fields, as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Trial:
        """Read what `to_json` made; `ValueError`, `KeyError` or `TypeError` where it is malformed."""
        fractions = {str(name): _finite(value) for name, value in dict(tree["fractions"]).items()}
        kept = {str(name): _count(value) for name, value in dict(tree["kept"]).items()}
        figures = (_finite(tree[name]) for name in ("accuracy", "cost", "seconds"))
        return cls(_count(tree["number"]), fractions, kept, *figures)


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300 or value != value:  # json writes nan, and integers without end
        raise ValueError(f"{str(value)[:40]!r} is no finite number")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


@dataclass(frozen=True)
class Trials:
    """What is searched: fractions by ``names`` within ``bounds``, the first trial's (``start``), and ``try_out`` (fractions ->
    outcome). ``sampler``: one of `SAMPLERS`; nsga2 searches accuracy against cost, the others accuracy."""

    names: Sequence[str]
    bounds: tuple[float, float]
    sampler: str
    seed: int
    start: Mapping[str, float]
    try_out: Callable[[Mapping[str, float]], Outcome]


def run_trials(work: Trials, storage: str | None, trials: int, *, worker: int = 0, alone: bool = True) -> tuple[Trial, ...]:
    """Try out until there are ``trials`` in the storage; returns all that are finished then, by number.

    A single process draws the same trials however often it is stopped: each is drawn from the seed, its number and the trials
    before it, and what it was stopped in is done first. Several processes (on one machine or many) may work on one storage; each
    has a ``worker`` number of its own.

    Args:
        storage: path of a journal file, or URL of a database (``sqlite:///...``, ``postgresql://...``); None: in memory.
        alone: no other process is at work on the storage, so that a trial under way is one that was stopped.

    Raises:
        EvidenceError: Optuna isn't installed, or an accuracy is no finite number.
        ArtifactError: the storage can't be opened, or holds the search of other groups.
    """
    optuna = _optuna()
    with _quietly(optuna):
        study = _open(optuna, work, storage)
        _take_up(optuna, study, work, alone)
        space = {name: optuna.distributions.FloatDistribution(*work.bounds) for name in work.names}
        while _counting(optuna, study) < trials:
            number = len(study.get_trials(deepcopy=False))
            study.sampler = _sampler(optuna, work, number, worker)
            trial = study.ask(space)
            earlier = sum(t.number < trial.number for t in _valid(optuna, study))
            if earlier >= trials:  # another process drew the last one at the same moment
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                break
            _carry_out(optuna, study, trial, work)
        return _finished(optuna, study)


def stored_trials(storage: str) -> tuple[Trial, ...]:
    """The finished trials of a storage, by number."""
    optuna = _optuna()
    opened = _storage(optuna, storage)
    with _quietly(optuna), _readable(storage):
        return _finished(optuna, optuna.load_study(study_name=STUDY, storage=opened))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: trials than which none is at least as accurate for less, nor more accurate for as much; by cost."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.cost, -t.accuracy, t.number)):
        if not found or trial.accuracy > found[-1].accuracy:
            found.append(trial)
    return found


def importances(trials: Sequence[Trial], widths: Mapping[str, int], seed: int = 0) -> dict[str, float]:
    """Which groups' kept shares the accuracies differ by: group -> share of their variance, highest first (fANOVA).

    Empty for fewer than four trials, or where all are equally accurate.
    """
    if len(trials) < 4 or len({trial.accuracy for trial in trials}) == 1:
        return {}
    optuna = _optuna()
    shares = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in widths}
    with _quietly(optuna):
        study = optuna.create_study(direction="maximize")
        for trial in trials:
            params = {name: trial.kept[name] / width for name, width in widths.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=shares, value=trial.accuracy))
        judge = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        found = optuna.importance.get_param_importances(study, evaluator=judge)
    return {name: float(value) for name, value in found.items()}


# -- Optuna


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise EvidenceError("a search needs Optuna: pip install 'prunus[search]'") from error
    return optuna


@contextmanager
def _quietly(optuna: Any) -> Generator[None, None, None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _readable(storage: str | None) -> Generator[None, None, None]:
    """`ArtifactError` for whatever a storage makes Optuna raise."""
    try:
        yield
    except PrunusError:
        raise
    except Exception as error:  # SQLAlchemy's, the database driver's, the file system's, or damaged lines of a journal
        raise ArtifactError(
            f"can't open the storage {storage} of the search: {type(error).__name__}: {error}. Take a copy that is whole, or "
            "search anew in another folder"
        ) from error


def _storage(optuna: Any, storage: str) -> Any:
    with _readable(storage):
        if "://" in storage:
            return optuna.storages.get_storage(storage)
        backend = optuna.storages.journal.JournalFileBackend(storage)
        return optuna.storages.JournalStorage(backend)


def _open(optuna: Any, work: Trials, storage: str | None) -> Any:
    directions = ["maximize", "minimize"] if work.sampler == "nsga2" else ["maximize"]
    opened = None if storage is None else _storage(optuna, storage)
    with _readable(storage):
        study = optuna.create_study(study_name=STUDY, storage=opened, directions=directions, load_if_exists=True)
    about = {"names": list(work.names), "bounds": list(work.bounds), "sampler": work.sampler}
    stored = study.user_attrs.get("about")
    if stored is None:
        study.set_user_attr("about", about)
    elif stored != about:
        changed = ", ".join(key for key in about if stored.get(key) != about[key])
        raise ArtifactError(f"the storage {storage} holds another search (other {changed}): choose another one")
    study.enqueue_trial(dict(work.start), skip_if_exists=True)
    return study


def _sampler(optuna: Any, work: Trials, number: int, worker: int) -> Any:
    """A fresh sampler for every trial: what it draws depends on the trials before and on its number, on nothing in memory."""
    seed = int(np.random.SeedSequence((work.seed, SAMPLERS.index(work.sampler), worker, number)).generate_state(1)[0])
    if work.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if work.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
    if work.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    try:
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    except ImportError as error:
        raise EvidenceError("the sampler cma needs the package cmaes: pip install 'prunus[search]'") from error


def _valid(optuna: Any, study: Any) -> list[Any]:
    """Trials that are finished or under way; the one that waits is drawn next."""
    states = optuna.trial.TrialState
    return [t for t in study.get_trials(deepcopy=False) if t.state in (states.COMPLETE, states.RUNNING)]


def _counting(optuna: Any, study: Any) -> int:
    return len(_valid(optuna, study))


def _take_up(optuna: Any, study: Any, work: Trials, alone: bool) -> None:
    """Finish what a stopped process left. Where others may be at work, what is much older than any trial took is given up."""
    trials, states = study.get_trials(deepcopy=False), optuna.trial.TrialState
    under_way = [trial for trial in trials if trial.state == states.RUNNING]
    longest = max((trial.duration for trial in trials if trial.state == states.COMPLETE), default=timedelta())
    for trial in under_way:
        if alone and len(trial.params) == len(work.names):
            _carry_out(optuna, study, optuna.trial.Trial(study, trial._trial_id), work)
        elif alone or datetime.now() - trial.datetime_start > max(_LEAST_STALE, 10 * longest):
            study.tell(trial.number, state=states.FAIL, skip_if_finished=True)


def _carry_out(optuna: Any, study: Any, trial: Any, work: Trials) -> None:
    outcome = work.try_out(trial.params)
    if not math.isfinite(outcome.accuracy):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise EvidenceError(
            f"evaluate gave {outcome.accuracy} for trial {trial.number}: it must return a finite number, higher = better"
        )
    for name, value in asdict(outcome).items():
        trial.set_user_attr(name, value)
    study.tell(trial, [outcome.accuracy, outcome.cost] if work.sampler == "nsga2" else outcome.accuracy)


def _finished(optuna: Any, study: Any) -> tuple[Trial, ...]:
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return tuple(
        Trial.from_json({**t.user_attrs, "number": t.number, "fractions": t.params, "seconds": t.duration.total_seconds()})
        for t in sorted(complete, key=lambda t: t.number)
    )
