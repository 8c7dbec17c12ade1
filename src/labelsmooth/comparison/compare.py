"""Arms x seeds, paired by seed: run, kept, gone on with, judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.comparison import trials as running
from labelsmooth.comparison.analysis import Analysis, analyse
from labelsmooth.comparison.arms import Arm, grid
from labelsmooth.comparison.folder import ComparisonFolder, differing, new_manifest
from labelsmooth.comparison.scores import Scores, check_margins, score
from labelsmooth.comparison.trials import FunctionTrials, Outcome, Predictions, TrialFunction
from labelsmooth.report import page

SMOOTHING = (0.0, 0.05, 0.1, 0.2)
__all__ = ["SMOOTHING", "Comparison", "Predictions", "Watcher", "compare"]


class Watcher:
    """What a comparison tells while it goes on; every method does nothing, to be replaced where somebody listens."""

    def begin(self, plan: Plan) -> None:
        """Everything is ready, and no trial is begun yet."""

    def reporter(self, arm: Arm, seed: int) -> Any:
        """What a trial that runs in this process reports to, such as a `labelsmooth.training.Reporter`."""

    def trial(self, outcome: Outcome, done: int, total: int, left: float) -> None:
        """A trial has ended; `done` of `total` have, and `left` seconds are to come, it seems."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Plan:
    """What a comparison is about to do.

    Attributes:
        folder: where it writes.
        arms: the baseline first.
        added: the baseline was not asked for.
        seeds: how many.
        done: trials that are finished already.
        left: trials to do.
        seconds: that they will take, it seems; None where nothing is known yet.
        jobs: trials at once.
    """

    folder: Path
    arms: tuple[Arm, ...]
    added: bool
    seeds: int
    done: int
    left: int
    seconds: float | None
    jobs: int


@dataclass(frozen=True)
class Comparison:
    """A comparison, perhaps a partial one.

    Attributes:
        folder: where all of it lies.
        analysis: effects and verdicts over the seeds that every arm has; None where there is no such seed yet.
        failed: trials that failed twice.
        partial: not all trials that were planned are finished.
        seconds: this call took.
    """

    folder: Path
    analysis: Analysis | None
    failed: tuple[Outcome, ...]
    partial: bool
    seconds: float

    @property
    def answer(self) -> str:
        """One sentence."""
        if self.analysis is None:
            return "No seed is finished in every arm, so nothing can be compared yet."
        return ("Partial: " if self.partial else "") + self.analysis.answer

    def as_dict(self) -> dict[str, Any]:
        """What `stats.json` holds."""
        return {
            **(self.analysis.as_dict() if self.analysis is not None else {"notes": [], "arms": [], "effects": []}),
            "answer": self.answer,
            "partial": self.partial,
            "failed": [{"arm": each.arm.name, "seed": each.seed, "error": each.error} for each in self.failed],
            "seconds": self.seconds,
        }


def compare(
    train_fn: Callable[..., Any] | TrialFunction,
    smoothing: Sequence[float] = SMOOTHING,
    seeds: int = 5,
    *,
    options: Mapping[str, Sequence[Any]] | None = None,
    margins: Mapping[str, float] | None = None,
    name: str = "data",
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
    max_time: float | None = None,
    out: str | Path = "runs",
    resume: str | Path | None = None,
    watcher: Watcher | None = None,
) -> Comparison:
    """Does label smoothing help, and how much of it? Train every arm under every seed, and judge the differences.

    The factor is chosen on validation; the figures come from test. What is estimated is the difference on new test
    examples and new seeds: see `statistics.mean_difference` for its variance and `statistics.judge` for the verdicts.

    Args:
        train_fn: ``train_fn(seed, smoothing)`` trains with any framework and returns `Predictions`, or a tuple of
            (val_logits, val_labels, test_logits, test_labels). Pairing is its duty: everything random must follow from
            the seed alone, and the test examples must always be the same. With `options` it is called as
            ``train_fn(seed=..., smoothing=..., name=value, ...)``.
        smoothing: factors, each in [0, 1); 0, the baseline, is added if it is missing.
        seeds: how many, at least 1; one seed gives figures and no verdict.
        options: values of further keyword arguments, every combination of which is an arm.
        margins: by metric (``accuracy``, ``nll``, ``brier``, ``ece``, ``aurc``, ...): differences below them do not
            matter. By default .005 for accuracy and AURC, .01 for the others.
        name: of the data, for the folder and the answer.
        jobs: trials at once.
        backend: ``"loky"`` (processes on this machine) or ``"dask"``; with more than one job `train_fn` must be
            importable or picklable by cloudpickle.
        scheduler: the address of a Dask cluster that sees the same files; None: one is started on this machine.
        max_time: seconds after which no trial is begun; nor is one before that would take longer.
        out: the parent folder; the comparison makes ``NAME-compare-001`` in it, or the next free number.
        resume: a comparison's folder, to go on with; the other arguments must be as they were, but `seeds` may be more.
        watcher: told of what happens.

    Returns:
        A `Comparison`; everything in it is in its folder too.

    Raises:
        ValueError: an argument out of its range. DataError: predictions that cannot be used, a comparison that was
        begun with other settings, a cluster that does not answer. TrainingError: every trial failed.

    Example:
        >>> import numpy as np
        >>> from labelsmooth.comparison import compare
        >>> def train(seed, smoothing):  # the same accuracy whatever ε
        ...     test, val = (np.random.default_rng(k).integers(0, 3, 300) for k in (0, 1))
        ...     return np.eye(3)[val], val, np.eye(3)[test], test
        >>> compare(train, [0, 0.1], seeds=3, out=getfixture("tmp_path")).analysis.effects[0].verdict
        'equivalent'
    """
    began = time.perf_counter()
    watcher = watcher or Watcher()
    arms, added = grid(smoothing, options or {})
    count, checked = _checks.class_count(seeds, "seeds"), check_margins(margins)
    jobs = running.check_backend(jobs, backend, scheduler)
    if max_time is not None and not 0 < _checks.number(max_time, "max_time", "be seconds above 0") < np.inf:
        raise _checks.error("max_time", "be seconds above 0", max_time)
    if not isinstance(out, str | Path):
        raise _checks.error("out", "be a folder", repr(out))
    if not callable(train_fn) and not hasattr(train_fn, "run"):
        raise _checks.error("train_fn", "be a function of (seed, smoothing)", repr(train_fn))
    trials: Any = train_fn if hasattr(train_fn, "run") else FunctionTrials(train_fn)  # pyright: ignore[reportArgumentType]
    if hasattr(trials, "check"):
        for arm in arms:
            trials.check(arm)
    manifest = new_manifest(
        _name_of(train_fn), name, getattr(train_fn, "settings", {}), arms, count, checked
    )  # fmt: skip
    folder = _folder(manifest, Path(out), name, resume)
    _write_config(folder, manifest, options or {})
    return _Run(trials, arms, added, count, checked, name, folder, manifest, watcher, began).run(
        jobs, backend, scheduler, max_time
    )


def _name_of(train_fn: Any) -> str:
    return f"{getattr(train_fn, '__module__', '?')}.{getattr(train_fn, '__qualname__', type(train_fn).__qualname__)}"


def _folder(manifest: dict[str, Any], out: Path, name: str, resume: str | Path | None) -> ComparisonFolder:
    if resume is None:
        return ComparisonFolder.create(out, name)
    folder = ComparisonFolder.open(resume)
    old = folder.read_manifest()
    if words := differing(old, manifest):
        raise DataError(f"{resume} was begun otherwise: {'; '.join(words)}; go on with the same, or begin another")
    manifest["trials"] = old["trials"]
    return folder


def _write_config(folder: ComparisonFolder, manifest: dict[str, Any], options: Mapping[str, Sequence[Any]]) -> None:
    import yaml

    factors = sorted({float(arm["smoothing"]) for arm in manifest["arms"]})
    values = {
        **manifest["settings"], "smoothing": factors, **{key: list(each) for key, each in options.items()},
        "seeds": manifest["seeds"], "margins": manifest["margins"],
    }  # fmt: skip
    text = f"# What this comparison was told. `labelsmooth compare --resume {folder.path.name}` goes on with it.\n"
    _files.write_text(folder.path / "config.yaml", text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@dataclass
class _Run:
    """A comparison under way."""

    trials: Any
    arms: list[Arm]
    added: bool
    seeds: int
    margins: dict[str, float]
    name: str
    folder: ComparisonFolder
    manifest: dict[str, Any]
    watcher: Watcher
    began: float

    def run(self, jobs: int, backend: str, scheduler: str | None, max_time: float | None) -> Comparison:
        every = [(arm, seed) for seed in range(self.seeds) for arm in self.arms]  # whole seeds first
        seconds = {trial: self.folder.done(*trial) for trial in every}
        plan = [(arm, seed, self.folder.trial(arm, seed)) for arm, seed in every if seconds[arm, seed] is None]
        took = [each for each in seconds.values() if each is not None]
        costs = self._costs(plan, took)
        total = None if costs is None else sum(costs[arm] for arm, _, _ in plan) / jobs
        self.watcher.begin(
            Plan(self.folder.path, tuple(self.arms), self.added, self.seeds, len(took), len(plan), total, jobs)
        )
        self.folder.write_json("manifest.json", self.manifest)

        def go_on() -> bool:
            typical = float(np.median(took)) if took else 0.0
            return max_time is None or time.perf_counter() - self.began + typical <= max_time

        failed: list[Outcome] = []
        ended = len(took)
        try:
            for outcome in running.run_all(
                self.trials, plan, jobs=jobs, backend=backend, scheduler=scheduler, go_on=go_on,
                reporter=self.watcher.reporter,
            ):  # fmt: skip
                ended += 1
                (failed.append(outcome) if outcome.error else took.append(outcome.seconds))
                self._record(outcome)
                left = float(np.median(took)) * (len(every) - ended) / jobs if took else 0.0
                self.watcher.trial(outcome, ended, len(every), left)
        except KeyboardInterrupt:
            kept = f"{len(took)} of {len(every)} trials"
            raise Interrupted(str(self.folder.path), kept, "compare") from None
        if not took and failed:
            raise TrainingError(f"every trial failed; the first with: {failed[0].error} (in {self.folder.path})")
        return self._conclude(failed, len(took) < len(every))

    def _costs(self, plan: Sequence[tuple[Arm, int, Path]], took: list[float]) -> dict[Arm, float] | None:
        """The seconds of a trial of each arm, from those done or as the trials tell beforehand; None if unknown."""
        if took or not plan:
            return dict.fromkeys(self.arms, float(np.median(took)) if took else 0.0)
        if not hasattr(self.trials, "estimate"):
            return None
        costs: dict[tuple[Any, ...], float] = {}
        for arm in self.arms:
            if arm.dearness not in costs:
                costs[arm.dearness] = self.trials.estimate(arm)
        return {arm: costs[arm.dearness] for arm in self.arms}

    def _record(self, outcome: Outcome) -> None:
        self.manifest["trials"][f"{outcome.arm.name}-{outcome.seed}"] = {
            "status": "failed" if outcome.error else "done",
            "seconds": round(outcome.seconds, 3),
            "attempts": outcome.attempts,
            **({"error": outcome.error} if outcome.error else {}),
        }
        self.folder.write_json("manifest.json", self.manifest)

    def _conclude(self, failed: list[Outcome], partial: bool) -> Comparison:
        """Score every finished trial, judge, and write `results.csv`, `stats.json` and the report."""
        scores: dict[tuple[Arm, int], Scores] = {}
        for seed in range(self.seeds):
            for arm in self.arms:
                if self.folder.done(arm, seed) is not None:
                    val, test = self.folder.predictions(arm, seed)
                    scores[arm, seed] = score(val, test, f"{arm.label} with seed {seed}")
        complete = [seed for seed in range(self.seeds) if all((arm, seed) in scores for arm in self.arms)]
        analysis = analyse(scores, self.arms, self.margins, self.name, added=self.added) if complete else None
        result = Comparison(
            self.folder.path, analysis, tuple(failed), partial, time.perf_counter() - self.began
        )  # fmt: skip
        self.folder.write_results(scores, self.arms)
        self.folder.write_json("stats.json", {**result.as_dict(), "seeds": self.seeds, "classes": self._classes()})
        try:
            page.finish(self.folder.path)
        except Exception as error:  # the answer is worth as much without pictures
            self.watcher.note(f"{self.folder.path / 'report.html'} could not be written ({error})")
        return result

    def _classes(self) -> list[str] | None:
        return getattr(self.trials, "classes", None)
