"""Running trials, one after another or in many processes; each finished one is kept."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.scores import score
from labelsmooth.evaluation import Predictions as SplitPredictions
from labelsmooth.evaluation import load_predictions

BACKENDS = ("loky", "dask")
_ATTEMPTS = 2
_ONE_AT_A_TIME = threading.Lock()  # in a process: frameworks' generators of random numbers belong to all its threads
_ANSWER_SECONDS = 10  # that a cluster's scheduler may take
_LOOK_SECONDS = 0.2  # between looks at whether the parent is still there


@dataclass(frozen=True)
class Predictions:
    """What a training function returns: what its model says about validation and about test.

    Attributes:
        val_logits: real ``[V, K]``, unnormalised log-probabilities.
        val_labels: class ids ``[V]``.
        test_logits: real ``[N, K]``; the same examples in the same order in every trial.
        test_labels: class ids ``[N]``.
    """

    val_logits: Any
    val_labels: Any
    test_logits: Any
    test_labels: Any


class Trials(Protocol):
    """What trains in a folder of its own; it can be sent to other processes.

    Attributes:
        settings: what all trials share, to be the same when a comparison goes on.
        classes: their names; None if not known.
        only_smoothed: options that change nothing where ε = 0.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def only_smoothed(self) -> tuple[str, ...]: ...

    def describe(self) -> str:
        """What trains, in a word that is the same when a comparison goes on."""
        ...

    def check(self, arm: Arm) -> None:
        """Raises:
        ValueError: the arm cannot be trained.
        """
        ...

    def estimate(self, arm: Arm) -> float | None:
        """The seconds of a trial; None if not known."""
        ...

    def run(self, folder: Path, arm: Arm, seed: int, reporter: Any) -> None:
        """Leave `predictions/val.npz` and `predictions/test.npz` in `folder`."""
        ...


@dataclass(frozen=True)
class FunctionTrials:
    """Trials of somebody's own training function."""

    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    only_smoothed: tuple[str, ...] = ()

    def describe(self) -> str:
        """The function's name."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"{getattr(self.function, '__module__', '?')}.{name}"

    def check(self, arm: Arm) -> None:
        """Nothing is known beforehand."""

    def estimate(self, arm: Arm) -> float | None:
        """Nothing is known beforehand."""

    def run(self, folder: Path, arm: Arm, seed: int, reporter: Any) -> None:
        """Train, check what comes back, and write it."""
        result = self.function(seed=seed, **arm.as_dict()) if arm.options else self.function(seed, arm.smoothing)
        val, test = _splits(result)
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        val.save(folder / "predictions" / "val.npz")
        test.save(folder / "predictions" / "test.npz")


def _splits(result: Any) -> tuple[SplitPredictions, SplitPredictions]:
    names = ("val_logits", "val_labels", "test_logits", "test_labels")
    if isinstance(result, tuple) and len(result) == len(names):
        result = Predictions(*result)
    if not all(hasattr(result, name) for name in names):
        raise DataError(
            f"the training function returned a {type(result).__name__}; it must return "
            f"labelsmooth.comparison.Predictions({', '.join(names)})"
        )
    arrays = [np.asarray(getattr(result, name)) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind not in "fiu":
            raise DataError(f"the training function returned {name} of dtype {array.dtype}; it must be numbers")
    return SplitPredictions(arrays[0], arrays[1]), SplitPredictions(arrays[2], arrays[3])


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `error` is None where it is finished, else what went wrong in its last attempt."""

    arm: Arm
    seed: int
    seconds: float = 0.0
    error: str | None = None
    attempts: int = 1


def run_one(trials: Trials, folder: Path, arm: Arm, seed: int, reporter: Any = None) -> Outcome:
    """One trial; one that fails is tried once more, unless it is its data that cannot be used.

    `trial.json`, written last, says that it is finished, and what it was tested on. Two processes never work on one
    trial, as a worker that a cluster did not stop would beside a comparison that goes on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(arm, seed)
    with _ONE_AT_A_TIME, ExitStack() as stack:
        try:
            stack.enter_context(_files.locked(folder.with_name(f".{folder.name}.lock")))
        except BlockingIOError:
            text = f"another process is still at work in {folder}; wait for it, or stop it, and go on"
            return replace(outcome, error=text)
        for attempt in range(1, _ATTEMPTS + 1):
            began = time.perf_counter()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                trials.run(folder, arm, seed, reporter)
                val, test = read_predictions(folder)
                score(val, test, f"{arm.label} with seed {seed}")
                outcome = Outcome(arm, seed, time.perf_counter() - began, None, attempt)
                (folder / "error.txt").unlink(missing_ok=True)
                done = {"seconds": round(outcome.seconds, 3), "tested_on": tested_on(test)}
                _files.write_text(folder / "trial.json", json.dumps(done) + "\n")
                return outcome
            except Exception as error:
                text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                text = text or type(error).__name__
                outcome = Outcome(arm, seed, time.perf_counter() - began, text, attempt)
                with suppress(OSError):  # a full disk, most likely; the error itself is told anyway
                    folder.mkdir(parents=True, exist_ok=True)
                    _files.write_text(folder / "error.txt", traceback.format_exc())
                if isinstance(error, DataError):
                    break
    return outcome


def _run_below(parent: int, trials: Trials, folder: Path, arm: Arm, seed: int) -> Outcome:
    """`run_one` in a child of the process `parent`."""
    _end_with(parent)
    return run_one(trials, folder, arm, seed)


@functools.cache
def _end_with(parent: int) -> None:
    """From now on this process ends when its parent does, lest it trains on for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_predictions(folder: Path) -> tuple[SplitPredictions, SplitPredictions]:
    """What a trial says about validation and about test.

    Raises:
        DataError: a file is missing or damaged.
    """
    val, test = (load_predictions(folder / "predictions" / f"{name}.npz", only=["index"]) for name in ("val", "test"))
    return val, test


def tested_on(test: SplitPredictions) -> str:
    """The test labels and K, in short: the same for all trials that can be compared."""
    labels = np.asarray(test.labels).astype("<i8")
    return f"{test.logits.shape[1]} classes, labels {hashlib.sha256(labels.tobytes()).hexdigest()[:16]}"


def run_all(
    trials: Trials,
    plan: Sequence[tuple[Arm, int, Path]],
    *,
    jobs: int,
    backend: str,
    scheduler: str | None,
    go_on: Callable[[], bool],
    reporter: Callable[[Arm, int], Any],
) -> Iterator[Outcome]:
    """The outcomes of the planned trials, as they come.

    Args:
        trials: how to train.
        plan: arm, seed and folder of each.
        jobs: how many at once.
        backend: joblib's, where there is more than one.
        scheduler: the address of a Dask cluster; None: one is started here.
        go_on: asked before each trial; once it says no, no more are begun.
        reporter: makes that of a trial which runs in this process.

    Raises:
        WorkerDied: a process ended in the middle of a trial. DataError: the cluster does not answer.
    """  # fmt: skip
    if jobs == 1 and backend == "loky":
        for arm, seed, folder in plan:
            if not go_on():
                return
            yield run_one(trials, folder, arm, seed, reporter(arm, seed))
        return
    import joblib

    # Dask's workers end by themselves when their nanny does.
    run = functools.partial(_run_below, os.getpid()) if backend == "loky" else run_one

    def tasks() -> Iterator[Any]:
        for arm, seed, folder in plan:
            if not go_on():
                return
            yield joblib.delayed(run)(trials, folder, arm, seed)

    with _backend(jobs, backend, scheduler):
        parallel = joblib.Parallel(
            n_jobs=jobs,
            return_as="generator_unordered",
            pre_dispatch="n_jobs",
            batch_size=1,  # pyright: ignore[reportArgumentType]
            max_nbytes=None,  # no read-only arrays in the function's closure
        )
        try:
            yield from parallel(tasks())  # pyright: ignore[reportReturnType]
        except Exception as error:
            if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":  # Dask's
                raise WorkerDied(str(error).splitlines()[0]) from None
            raise


class WorkerDied(RuntimeError):
    """A process ended in the middle of a trial."""


def check_backend(jobs: Any, backend: Any, scheduler: Any) -> int:
    """The number of jobs.

    Raises:
        ValueError: an option out of its range. ModuleNotFoundError: Dask is asked for and not there.
    """
    _checks.one_of(backend, "backend", BACKENDS)
    if scheduler is not None and backend != "dask":
        raise _checks.error("scheduler", "come with the dask backend", repr(scheduler))
    if backend == "dask":
        import distributed  # noqa: F401
    count = _checks.class_count(jobs, "jobs")
    if scheduler is not None and count != 1:
        raise _checks.error("jobs", "be left out with a scheduler, whose cluster decides", jobs)
    return count


def _backend(jobs: int, backend: str, scheduler: str | None) -> Any:
    """joblib's context for `backend`; a Dask cluster of one's own listens on this machine only."""
    import joblib

    @contextmanager
    def dask() -> Iterator[None]:
        import dask.config
        from distributed import Client, LocalCluster

        with ExitStack() as stack:
            of_workers = (*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED")
            stack.enter_context(_environment_kept(of_workers))
            if scheduler is None:
                address: Any = stack.enter_context(LocalCluster(
                    n_workers=jobs, threads_per_worker=1, host="127.0.0.1",
                    dashboard_address=None,  # pyright: ignore[reportArgumentType]
                ))  # fmt: skip
            else:
                address = scheduler
            try:
                client = stack.enter_context(Client(address, timeout=_ANSWER_SECONDS))
            except (OSError, ValueError, TimeoutError) as error:
                raise DataError(
                    f"the Dask cluster at {address} does not answer ({error}); see that its scheduler runs, and "
                    "that the address is the one that it prints"
                ) from None
            stack.enter_context(joblib.parallel_config(backend="dask", client=client))
            yield

    if backend == "dask":
        return dask()
    return joblib.parallel_config(backend="loky")


@contextmanager
def _environment_kept(names: Iterable[str]) -> Iterator[None]:
    """Dask leaves what is meant for its workers, as OMP_NUM_THREADS=1, in the environment of who starts them."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
