"""Arms x seeds, paired by seed: run, kept, gone on with, judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from labelsmooth.comparison.trials import FunctionTrials, Outcome, Predictions, Trials
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
            failed = f" ({len(self.failed)} trials failed)" if self.failed else ""
            return f"No seed is finished in the baseline and in another arm{failed}, so nothing can be compared yet."
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
    train_fn: Callable[..., Any] | Trials,
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
        max_time: seconds after which no trial is begun; nor is one before that would take longer, but for the first.
        out: the parent folder; the comparison makes ``NAME-compare-001`` in it, or the next free number.
        resume: a comparison's folder, to go on with; the other arguments must be as they were, but `seeds` may be more.
        watcher: told of what happens.

    Returns:
        A `Comparison`; everything in it is in its folder too.

    Raises:
        ValueError: an argument out of its range. DataError: predictions that cannot be used, a comparison that was
        begun with other settings, a cluster that does not answer. TrainingError: every trial of the first seed failed.
        Interrupted: Ctrl-C; finished trials are kept.

    Example:
        >>> import numpy as np
        >>> from labelsmooth.comparison import compare
        >>> def train(seed, smoothing):  # the same accuracy whatever ε
        ...     test, val = (np.random.default_rng(k).integers(0, 3, 3000) for k in (0, 1))
        ...     return np.eye(3)[val], val, np.eye(3)[test], test
        >>> compare(train, [0, 0.1], seeds=3, out=getfixture("tmp_path")).analysis.effects[0].verdict
        'equivalent'
    """
    began = time.perf_counter()
    if not callable(train_fn) and not hasattr(train_fn, "run"):
        raise _checks.error("train_fn", "be a function of (seed, smoothing)", repr(train_fn))
    trials: Any = FunctionTrials(train_fn) if callable(train_fn) else train_fn
    chosen = {key: [_plain(value) for value in _listed(values)] for key, values in (options or {}).items()}
    arms, added = grid(smoothing, chosen, trials.only_smoothed)
    count, checked = _checks.class_count(seeds, "seeds"), check_margins(margins)
    jobs = running.check_backend(jobs, backend, scheduler)
    if max_time is not None and not 0 < _checks.number(max_time, "max_time", "be seconds above 0") < np.inf:
        raise _checks.error("max_time", "be seconds above 0", max_time)
    if not isinstance(out, str | Path):
        raise _checks.error("out", "be a folder", repr(out))
    for arm in arms:
        trials.check(arm)
    asked = {"smoothing": [float(value) for value in _listed(smoothing)], "options": chosen}
    manifest = new_manifest(trials.describe(), name, trials.settings, asked, arms, count, checked)
    old = None
    if resume is not None:
        old = ComparisonFolder.open(resume).read_manifest()
        if words := differing(old, manifest):
            raise DataError(f"{resume} was begun otherwise: {'; '.join(words)}; go on with the same, or begin another")
        manifest["trials"], manifest["judged"] = old["trials"], old.get("judged", [])
    costs = None if old is not None and old["trials"] else _costs(trials, arms)
    folder = ComparisonFolder.create(Path(out), name) if resume is None else ComparisonFolder.open(resume)
    run = _Run(trials, arms, added, count, checked, name, folder, manifest, watcher or Watcher(), began)
    try:
        with _files.alone_in(folder.path):
            return run.run(costs, jobs, backend, scheduler, max_time)
    except KeyboardInterrupt:
        kept = f"{len(run.took)} of {len(run.every)} trials"
        raise Interrupted(str(folder.path), kept, "compare --resume") from None


def _listed(values: Any) -> list[Any]:
    """A list of values; a string, or a single value, is left for `grid` to refuse or to take as one."""
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _costs(trials: Any, arms: Sequence[Arm]) -> dict[Arm, float] | None:
    """The seconds of a trial of each arm, as far as the trials can tell beforehand; None if they cannot."""
    seconds: dict[Any, float | None] = {}
    costs = {}
    for arm in arms:
        dear = tuple(option for option in arm.options if option[0] not in trials.only_smoothed)
        if dear not in seconds:
            seconds[dear] = trials.estimate(arm)
        costs[arm] = seconds[dear]
    return None if None in costs.values() else costs  # pyright: ignore[reportReturnType]


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

    def __post_init__(self) -> None:
        self.every = [(arm, seed) for seed in range(self.seeds) for arm in self.arms]  # whole seeds first
        self.took: dict[tuple[Arm, int], float] = {}
        self.tested_on: dict[str, str] = {}
        self.failed: list[Outcome] = []

    def run(
        self, costs: dict[Arm, float] | None, jobs: int, backend: str, scheduler: str | None, max_time: float | None
    ) -> Comparison:
        (self.folder.path / "stats.json").unlink(missing_ok=True)  # of fewer trials
        self._count_finished()
        self._write_config()
        self.folder.write_json("manifest.json", self.manifest)
        plan = [(arm, seed, self.folder.trial(arm, seed).absolute()) for arm, seed in self.every
                if (arm, seed) not in self.took]  # fmt: skip
        # Beforehand nobody shares the cores; trials that have run beside each other did.
        total = self._left(jobs) if self.took else None if costs is None else sum(costs[arm] for arm, _, _ in plan)
        self.watcher.begin(
            Plan(self.folder.path, tuple(self.arms), self.added, self.seeds, len(self.took), len(plan), total, jobs)
        )

        def go_on() -> bool:
            typical = float(np.median(list(self.took.values()))) if self.took else 0.0
            if len(self.failed) >= len(self.arms) and not self.took:
                return False
            return max_time is None or time.perf_counter() - self.began + typical <= max_time

        try:
            for outcome in running.run_all(
                self.trials, plan, jobs=jobs, backend=backend, scheduler=scheduler, go_on=go_on,
                reporter=self.watcher.reporter,
            ):  # fmt: skip
                ended = self._finished(outcome) if outcome.error is None else outcome
                if ended.error is not None:
                    self.failed.append(ended)
                    self._record(ended)
                self.folder.write_json("manifest.json", self.manifest)
                done = len(self.took) + len(self.failed)
                self.watcher.trial(ended, done, len(self.every), self._left(jobs))
        except running.WorkerDied as error:
            self.watcher.note(f"a process ended in the middle of a trial, for want of memory perhaps ({error})")
            self._count_finished()  # by the others, meanwhile
            self.folder.write_json("manifest.json", self.manifest)
        if not self.took and self.failed:
            failed, text = len(self.failed), "every trial failed"
            if failed < len(self.every):
                text = f"the first {failed} trials failed, and no other was begun"
            raise TrainingError(f"{text}; the first with: {self.failed[0].error} (in {self.folder.path})")
        return self._conclude()

    def _count_finished(self) -> None:
        for arm, seed in self.every:
            if (arm, seed) in self.took or (done := self.folder.done(arm, seed)) is None:
                continue
            try:
                running.read_predictions(self.folder.trial(arm, seed))
            except DataError as error:
                self.folder.forget(arm, seed)
                self.watcher.note(f"{error}; {arm.label} with seed {seed} is done again")
            else:
                self._finished(Outcome(arm, seed, done["seconds"]))

    def _finished(self, outcome: Outcome) -> Outcome:
        """Count a trial whose files are there, and were tested on what the others were; else it has failed."""
        done = self.folder.done(outcome.arm, outcome.seed)
        if done is None:
            text = f"its process did not write to {self.folder.path}: do the workers see that folder?"
            return replace(outcome, error=text)
        for other, tested_on in self.tested_on.items():
            if tested_on != done["tested_on"]:
                self.folder.forget(outcome.arm, outcome.seed)
                text = (
                    f"it was tested on other examples or classes than {other}; the test set must be the same, in the "
                    "same order, for all"
                )
                return replace(outcome, error=text)
        self.tested_on.setdefault(f"{outcome.arm.label} with seed {outcome.seed}", done["tested_on"])
        self.took[outcome.arm, outcome.seed] = outcome.seconds
        self._record(outcome)
        return outcome

    def _left(self, jobs: int) -> float:
        """The seconds that the rest will take, if it is like what has been."""
        if not self.took:
            return 0.0
        by_arm = {
            arm: [seconds for (other, _), seconds in self.took.items() if other.options == arm.options]
            for arm in self.arms
        }
        everything = list(self.took.values())
        ended = {*self.took, *((each.arm, each.seed) for each in self.failed)}
        return (
            sum(float(np.median(by_arm[arm] or everything)) for arm, seed in self.every if (arm, seed) not in ended)
            / jobs
        )

    def _write_config(self) -> None:
        import yaml

        manifest = self.manifest
        values = {**manifest["settings"], "smoothing": manifest["smoothing"], **manifest["options"],
                  "seeds": self.seeds, "margins": self.margins}  # fmt: skip
        text = "# What this comparison was told. `labelsmooth compare --resume THIS_FOLDER` goes on with it.\n"
        written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        _files.write_text(self.folder.path / "config.yaml", text + written)

    def _record(self, outcome: Outcome) -> None:
        self.manifest["trials"][f"{outcome.arm.name}-{outcome.seed}"] = {
            "status": "done" if outcome.error is None else "failed",
            "seconds": round(outcome.seconds, 3),
            "attempts": outcome.attempts,
            **({"error": outcome.error} if outcome.error is not None else {}),
        }

    def _conclude(self) -> Comparison:
        """Score every finished trial, judge, and write `results.csv`, `stats.json` and the report."""
        scores: dict[tuple[Arm, int], Scores] = {}
        for arm, seed in self.took:
            val, test = running.read_predictions(self.folder.trial(arm, seed))
            scores[arm, seed] = score(val, test, f"{arm.label} with seed {seed}")
        self.folder.write_results(scores, self.arms)
        hopeless = [arm for arm in self.arms if all(other != arm for other, _ in scores)
                    and any(each.arm == arm for each in self.failed)]  # fmt: skip
        judged = [arm for arm in self.arms if arm not in hopeless]
        complete = [seed for seed in range(self.seeds) if all((arm, seed) in scores for arm in judged)]
        analysis = None
        if complete and len(judged) > 1 and judged[0] == self.arms[0]:
            kept = {trial: each for trial, each in scores.items() if trial[0] in judged}
            looks = self.manifest["judged"]
            analysis = analyse(kept, judged, self.margins, self.name, self.seeds, added=self.added, looks=looks)
            without = [f"{arm.label} is left out: all its trials failed." for arm in hopeless]
            analysis = replace(analysis, notes=(*without, *analysis.notes))
            if len(analysis.seeds) == self.seeds > max([1, *looks]):
                looks.append(self.seeds)
                self.folder.write_json("manifest.json", self.manifest)
        del scores  # the report reads what it shows, one trial at a time
        result = Comparison(
            self.folder.path, analysis, tuple(self.failed), len(self.took) < len(self.every),
            time.perf_counter() - self.began,
        )  # fmt: skip
        classes = None if self.trials.classes is None else list(self.trials.classes)
        self.folder.write_json("stats.json", {**result.as_dict(), "seeds": self.seeds, "classes": classes})
        try:
            page.finish(self.folder.path)
        except Exception as error:  # the answer is worth as much without pictures
            self.watcher.note(f"{self.folder.path / 'report.html'} could not be written ({error})")
        return result
