"""``labelsmooth compare``"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from labelsmooth.cli.output import Bar, Json, WholeNumber, console, duration, make_reporter, print_json

if TYPE_CHECKING:
    from labelsmooth.comparison import Comparison

_Several = Parameter(consume_multiple=True)
_FREE = ("seeds", "jobs", "backend", "scheduler", "max_time")  # that may differ when a comparison goes on


def compare(
    data: str | None = None,
    *,
    smoothing: Annotated[list[float] | None, Parameter(name=["--smoothing", "-s"], consume_multiple=True)] = None,
    method: Annotated[list[Literal["labels", "loss"]] | None, _Several] = None,
    prior: Annotated[list[Literal["uniform", "class_frequency"]] | None, _Several] = None,
    vary: Annotated[list[str] | None, _Several] = None,
    seeds: WholeNumber | None = None,
    margin: Annotated[list[str] | None, _Several] = None,
    noise: str | None = None,
    recipe: Literal["classic", "fast", "digits"] | None = None,
    model: Literal["minigooglenet", "fast", "small"] | None = None,
    epochs: float | None = None,
    batch_size: WholeNumber | None = None,
    lr: float | None = None,
    image_size: WholeNumber | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    val_split: float | None = None,
    checkpoint: Literal["best", "last"] | None = None,
    device: str | None = None,
    framework: str | None = None,
    keras_backend: Literal["tensorflow", "jax", "torch"] | None = None,
    jobs: WholeNumber = 1,
    backend: Literal["loky", "dask"] = "loky",
    scheduler: str | None = None,
    max_time: float | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    json: Json = False,
) -> int:
    """Does label smoothing help on these data, and how much of it? Train with several factors and seeds, and judge.

    Args:
        data: as for train; digits if not given.
        smoothing: factors to compare; 0 .05 .1 .2 if not given. 0 is the baseline, added if missing.
        method: one for all, or both: labels, loss.
        prior: one for all, or both: uniform, class_frequency.
        vary: another option of training and its values, such as dropout=0,0.5; every combination is an arm.
        seeds: trainings per arm; 5 if not given. The same seed means the same split, weights, order and augmentation
            in every arm. One seed cannot answer.
        margin: differences below it do not matter, such as accuracy=.005 (the default) nll=.01 ece=.01.
        noise: as for train: symmetric:P, asymmetric:P, column:NAME or a file; of training labels only.
        recipe: as for train.
        model: as for train.
        epochs: as for train.
        batch_size: as for train.
        lr: as for train.
        image_size: as for train.
        image_column: as for train.
        label_column: as for train.
        val_split: as for train, but above 0, and 0.1 with every recipe if not given: the factor is chosen on
            validation, and the temperature fitted.
        checkpoint: as for train. Stopping early keeps a network from learning wrong labels by heart, as smoothing does:
            with best, one sees what smoothing adds to that; with last, as in most papers, what it does alone.
        device: as for train.
        framework: as for train.
        keras_backend: as for train; the same in every process.
        jobs: trainings at once.
        backend: loky: processes on this machine. dask: a cluster.
        scheduler: the address of a Dask scheduler whose workers see the same files; one is started here if not given.
        max_time: seconds after which no training is begun; what is done is judged, and marked as partial.
        out: the parent folder of comparisons; runs if not given.
        resume: a comparison's folder; go on with it. --seeds may be raised.
    """
    from labelsmooth import _checks, _files, comparison
    from labelsmooth.comparison.arms import grid
    from labelsmooth.comparison.compare import SMOOTHING
    from labelsmooth.comparison.images import ImageTrials
    from labelsmooth.comparison.scores import check_margins
    from labelsmooth.comparison.trials import check_backend

    screen = console(json)
    fixed: dict[str, Any] = {
        "recipe": recipe, "model": model, "epochs": epochs, "batch_size": batch_size, "lr": lr, "noise": noise,
        "image_size": image_size, "image_column": image_column, "label_column": label_column, "val_split": val_split,
        "checkpoint": checkpoint, "device": device, "framework": framework, "keras_backend": keras_backend,
    }  # fmt: skip
    fixed = {name: value for name, value in fixed.items() if value is not None}
    varied = _varied(vary or [])
    for name, values in (("method", method), ("prior", prior)):
        if values and name in varied:
            raise ValueError(f"--vary {name} and --{name} both say what it is; leave out one")
        if values is not None and len(values) == 1:
            fixed[name] = values[0]
        elif values:
            varied[name] = values
    clash = [name for name in varied if name in fixed or name == "smoothing"]
    if clash:
        raise ValueError(f"--vary {clash[0]} and --{clash[0].replace('_', '-')} both say what it is; leave out one")
    asked: dict[str, Any] = {"data": data, "fixed": fixed, "smoothing": smoothing, "options": varied}
    asked |= {"margins": _margins(margin or []), "seeds": seeds}
    if resume is not None:
        asked = _resumed(resume, asked, out)
    asked["smoothing"] = SMOOTHING if asked["smoothing"] is None else asked["smoothing"]
    asked["seeds"] = 5 if asked["seeds"] is None else asked["seeds"]
    if asked["fixed"].get("val_split") == 0:
        raise ValueError("val_split must be above 0 in a comparison: the factor is chosen on validation; got 0")
    # What can be wrong is found before the data are read.
    grid(asked["smoothing"], asked["options"])
    check_margins(asked["margins"], "--margin")
    _checks.class_count(asked["seeds"], "seeds")
    check_backend(jobs, backend, scheduler)
    _files.check_parent(out or Path("runs"))
    with Bar(screen) as bar:
        reporter = make_reporter(screen, bar)
        trials = ImageTrials.of(asked["data"] or "digits", asked["fixed"], reporter)
        result = comparison.compare(
            trials, asked["smoothing"], asked["seeds"], options=asked["options"], margins=asked["margins"],
            name=trials.name, jobs=jobs, backend=backend, scheduler=scheduler, max_time=max_time, out=out or "runs",
            resume=resume, watcher=_watcher(screen, bar),
        )  # fmt: skip
    screen.print(_closing(result), markup=False)
    if json:
        print_json({"comparison": str(result.folder), **result.as_dict()})
    return 5 if result.partial else 0


def _varied(words: list[str]) -> dict[str, list[Any]]:
    """``dropout=0,0.5`` or ``schedule=[cosine, "step:factor=.5,every=10"]``, the values as YAML reads them."""
    import yaml

    from labelsmooth.training.run import number

    varied: dict[str, list[Any]] = {}
    for word in words:
        name, _, text = word.partition("=")
        name = name.replace("-", "_")
        if name in varied:
            raise ValueError(f"vary must name an option once; got {name} twice")
        try:
            values = yaml.safe_load(text if text.startswith("[") else f"[{text}]")
        except yaml.YAMLError:
            values = []
        if not name or not values:
            raise ValueError(f"vary must be NAME=VALUE,VALUE,... such as dropout=0,0.5; got {word}")
        varied[name] = [number(value) for value in values]
    return varied


def _margins(words: list[str]) -> dict[str, float]:
    margins: dict[str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        name = name or "accuracy"
        if name in margins:
            raise ValueError(f"margin must name a metric once; got {name} twice")
        try:
            margins[name] = float(value)
        except ValueError:
            raise ValueError(f"margin must be METRIC=NUMBER, such as accuracy=.005; got {word}") from None
    return margins


def _resumed(folder: Path, asked: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """What the comparison was told, and more seeds if those are asked for.

    Raises:
        ValueError: something else was asked for too.
    """
    from labelsmooth._errors import DataError
    from labelsmooth.comparison.folder import ComparisonFolder
    from labelsmooth.comparison.images import asked as kwargs_of

    told = [
        *asked["fixed"],
        *(["vary"] if asked["options"] else []),
        *(name for name in ("data", "smoothing", "margins") if asked[name]),
    ]
    if told or out is not None:
        names = ", ".join(
            "--" + name.replace("_", "-").replace("margins", "margin")
            for name in [*told, *(["out"] if out is not None else [])]
        )
        free = ", ".join("--" + name.replace("_", "-") for name in _FREE)
        raise ValueError(f"--resume goes on with the comparison's own settings, but for {free}; leave out {names}")
    manifest = ComparisonFolder.open(folder).read_manifest()
    fixed = kwargs_of(manifest["settings"])
    if "data" not in fixed:
        raise DataError(f"{folder} compares a training function; go on with it in Python: compare(..., resume=folder)")
    return {
        "data": fixed.pop("data"),
        "fixed": fixed,
        "smoothing": manifest["smoothing"],
        "options": manifest["options"],
        "margins": manifest["margins"],
        "seeds": asked["seeds"] if asked["seeds"] is not None else manifest["seeds"],
    }


def _watcher(screen: Any, bar: Bar) -> Any:
    """A `Watcher` that prints to `screen`: a line per trial, and the running epoch on a terminal."""
    from labelsmooth.comparison import Watcher
    from labelsmooth.training import Reporter

    class InTrial(Reporter):
        def __init__(self, name: str) -> None:
            self.name, self.epochs = name, 0

        def begin(self, training: Any, folder: Path) -> None:
            self.epochs = training.plan.epochs

        def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
            bar.show(f"{self.name}  epoch {epoch + 1}/{self.epochs}", done, steps)

        def note(self, text: str) -> None:
            bar.close()
            screen.print(f"{self.name}: {text}", markup=False)

    class Printer(Watcher):
        def begin(self, plan: Any) -> None:
            bar.close()
            arms = "; ".join(arm.label for arm in plan.arms)
            added = " (ε = 0, the baseline, is added)" if plan.added else ""
            done = f", {plan.done} of them done" if plan.done else ""
            cost = f", about {duration(plan.seconds)}" if plan.seconds else ""
            screen.print(
                f"arms        {arms}{added}\n"
                f"trials      {len(plan.arms)} arms x {plan.seeds} seeds{done}; {plan.left} to train, "
                f"{plan.jobs} at a time{cost}\n"
                f"comparison  {plan.folder}",
                markup=False,
            )
            if plan.seeds == 1:
                screen.print("note        one seed cannot answer: there will be figures, and no verdict", markup=False)

        def reporter(self, arm: Any, seed: int) -> Any:
            return InTrial(f"{arm.label}, seed {seed}")

        def trial(self, outcome: Any, done: int, total: int, left: float) -> None:
            bar.close()
            told = f"failed: {outcome.error}" if outcome.error is not None else f"{duration(outcome.seconds)}"
            rest = f"; about {duration(left)} left" if left else ""
            screen.print(f"{done:>4}/{total}  {outcome.arm.label}, seed {outcome.seed}: {told}{rest}", markup=False)

        def note(self, text: str) -> None:
            bar.close()
            screen.print(text, markup=False)

    return Printer()


def _closing(result: Comparison) -> str:
    lines = [""]
    if result.analysis is not None:
        lines += [result.analysis.table(), ""]
    lines += [result.answer, ""]
    if result.analysis is not None:
        lines += [*result.analysis.notes, ""]
    for each in result.failed:
        lines.append(f"failed: {each.arm.label}, seed {each.seed}: {each.error}")
    if result.partial:
        lines.append(f"go on with   labelsmooth compare --resume {shlex.quote(str(result.folder))}")
    if (report := result.folder / "report.html").is_file():  # it may have failed
        lines.append(f"report       {report}")
    return "\n".join(lines)
