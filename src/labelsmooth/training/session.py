"""Runs: begun, resumed and finished in a folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.evaluation import Evaluation, evaluate
from labelsmooth.report import page, panels, plots
from labelsmooth.training import artefacts, checkpoints, frameworks, memory, recipes, tracking
from labelsmooth.training.data import NAMED, ImageData, load, source_text
from labelsmooth.training.devices import choose_device
from labelsmooth.training.loop import Reporter, Stopped, Training
from labelsmooth.training.ranks import Ranks, joined
from labelsmooth.training.recipes import Recipe
from labelsmooth.training.run import RunFolder, Settings, environment


@dataclass
class Result:
    """A finished run: its folder, what `summary.json` holds, and the figures on the test set."""

    folder: Path
    summary: dict[str, Any]
    test: Evaluation


def train(
    data: str | Path = "digits",
    recipe: str | Recipe | None = None,
    *,
    val_split: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    noise: str | Path | None = None,
    device: str = "auto",
    deterministic: bool = False,
    compile: bool | None = None,
    accumulate: int = 1,
    devices: int | None = None,
    track: str | None = None,
    framework: str = "torch",
    keras_backend: str | None = None,
    out: str | Path = "runs",
    plot: str | Path | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Result:
    """Train an image classifier with label smoothing, evaluate it on hard labels, and write a run folder.

    The same seed gives the same split, label noise, initial weights, batch order, augmentation and dropout, whatever
    the smoothing and the method.

    Args:
        data: see `labelsmooth.training.load`.
        recipe: a `Recipe`, or the name of one (``"classic"``, ``"fast"``, ``"digits"``); None chooses by the image
            size.
        val_split: the share of the training examples that validation gets, in [0, 1); None: `Recipe.val_share`. With 0
            there is no `best` checkpoint, and the last one is tested.
        seed: a whole number of at least 0.
        image_size: resize to this height and width; None: see `labelsmooth.training.load`.
        image_column: of a table; None: found by its type and name.
        label_column: of a table; None: found by its name.
        noise: other labels for training, such as ``"symmetric:0.2"``: see `labelsmooth.training.load`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        deterministic: refuse operations that are not deterministic.
        compile: put the network through `torch.compile`, with CUDA graphs on a GPU; None: on a GPU only.
        accumulate: compute each batch in so many parts and add up their gradients, for less memory: the same step, up
            to rounding, but that batch norm sees each part alone.
        devices: how many processes train together, each on a device and with a share of every batch: those of the
            command (``labelsmooth train --devices``), torchrun or ``accelerate launch``, which all call this with the
            same arguments. None: as many as there are. One of them reports and writes.
        track: hand settings and figures to this tracker of Accelerate's too, such as ``"tensorboard"``, which writes to
            ``tracking`` in the run's folder; None: to none. One that fails does not end the training.
        framework: ``"torch"``, or ``"keras"``: through `fit` of Keras 3, with the same data, order, augmentation and
            initial weights. It trains the models minigooglenet and small, in float32, and takes its backend's device.
        keras_backend: ``"tensorflow"``, ``"jax"`` or ``"torch"``; None: what KERAS_BACKEND says, else the first that is
            installed. Keras has one backend in a process.
        out: the parent folder of runs.
        plot: also write the curves to this file (.png, .svg or .pdf).
        reporter: told of what happens; None: nobody.
        **changes: fields of `Recipe` to change, such as ``smoothing=0.2, epochs=5``.

    Returns:
        A `Result`.

    Raises:
        ValueError: an argument out of its range. DataError: the data cannot be used.
        ModuleNotFoundError: a package that `track`, `framework` or `keras_backend` needs is not installed.
        TrainingError: the loss became nan or inf, or the disk is full; what was done is kept.

    Example:
        >>> from labelsmooth.training import train
        >>> result = train("digits", smoothing=0.1, epochs=1, out=getfixture("tmp_path"))
        >>> sorted(path.name for path in result.folder.iterdir())  # doctest: +NORMALIZE_WHITESPACE
        ['checkpoints', 'config.yaml', 'data.json', 'env.json', 'log.txt', 'metrics.csv', 'plots', 'predictions',
         'report.html', 'summary.json']
    """
    _check_plot(plot)
    if not isinstance(out, str | Path):
        raise _checks.error("out", "be a folder", repr(out))
    _files.check_parent(Path(out))
    with joined(devices, device) as ranks:
        reporter = (reporter if ranks.first else None) or Reporter()
        settings, images = prepare(
            data, recipe, reporter=reporter, ranks=ranks, val_split=val_split, seed=seed, image_size=image_size,
            image_column=image_column, label_column=label_column, noise=noise, device=device,
            deterministic=deterministic, compile=compile, accumulate=accumulate, track=track, framework=framework,
            keras_backend=keras_backend, **changes,
        )  # fmt: skip
        training = Training(settings, images, ranks)
        path = ranks.told(str(RunFolder.create(Path(out), images.name).path) if ranks.first else "")
        return start(training, RunFolder(Path(path), ranks.first), reporter, plot)


def prepare(
    data: str | Path = "digits",
    recipe: str | Recipe | None = None,
    *,
    reporter: Reporter | None = None,
    ranks: Ranks | None = None,
    val_split: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    noise: str | Path | None = None,
    device: str = "auto",
    deterministic: bool = False,
    compile: bool | None = None,
    accumulate: int = 1,
    track: str | None = None,
    framework: str = "torch",
    keras_backend: str | None = None,
    **changes: Any,
) -> tuple[Settings, ImageData]:
    """Check the arguments of `train`, read the data, and choose the recipe that suits them; nothing is written."""
    if not isinstance(recipe, str | Recipe | None):
        raise _checks.error("recipe", "be the name of one", repr(recipe))
    ranks = ranks or Ranks()
    named = recipes.named(recipe) if isinstance(recipe, str) else recipe
    # A wrong option is found before the data are read; which recipe suits them, only afterwards.
    source = source_text(data)
    first = (named or recipes.CLASSIC).changed(**changes)
    share = recipes.VAL_SHARE if val_split is None else val_split
    settings = Settings(source, first, share, seed, image_size, image_column, label_column, device, deterministic,
        compile, None if noise is None else str(noise), track, framework, keras_backend, accumulate,
        ranks.count,
    )  # fmt: skip
    if framework == "keras":
        settings = replace(settings, keras_backend=frameworks.use_keras(keras_backend))
    else:
        choose_device(device, None if ranks.count == 1 else ranks.local)
    if track is not None:
        tracking.check(track)
    ranks.alike(settings.flat())
    images = _load(settings, reporter or Reporter(), ranks, first.val_share if val_split is None else share)
    if val_split is None and "val" not in images.own_splits:
        share = first.val_share(len(images.train) + len(images.val), images.num_classes)
    chosen = named or recipes.suited(images.image_shape)
    if isinstance(recipe, str) or recipe is None:
        chosen = chosen.for_data(len(images.train), images.image_shape)
    return replace(settings, data=images.source, val_split=share, recipe=chosen.changed(**changes)), images


def start(
    training: Training,
    folder: RunFolder,
    reporter: Reporter | None = None,
    plot: str | Path | None = None,
    report: bool = True,
) -> Result:
    """Train from the beginning, in a new folder."""
    try:
        if folder.writes:
            folder.write_json("data.json", training.plan.data.describe())
            folder.write_json("env.json", _environment(training))
        folder.write_settings(training.plan.settings)  # last: with it the folder is a run
    except BaseException as error:
        if folder.writes:
            shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            text = f"{error.strerror or error} while writing a run folder in {folder.path.parent}; nothing was trained"
            raise TrainingError(text) from error
        raise
    with folder.locked():
        return _finish(training, folder, reporter or Reporter(), plot, training.plan.settings.track, report)


def _environment(training: Training) -> dict[str, Any]:
    engine = training.engine
    return environment(str(engine.device), engine.precision_reason, engine.versions, training.ranks.count)


def resume(
    run: str | Path,
    *,
    data: str | Path | None = None,
    epochs: float | None = None,
    devices: int | None = None,
    plot: str | Path | None = None,
    report: bool = True,
    reporter: Reporter | None = None,
) -> Result:
    """Go on with an interrupted run, bit for bit as if it had not been interrupted.

    Args:
        run: its folder.
        data: where its data lie now, if they have moved.
        epochs: more than the run has done: the rest of the schedule is planned anew for so many, and a run that is
            finished goes on too. None: as many as it was told.
        devices: as in `train`; it need not be the number that the run began with.
        plot: also write the curves to this file.
        report: draw its pictures and `report.html` when it has ended, which takes seconds.
        reporter: told of what happens.

    Returns:
        A `Result`. A tracker that is not installed here is left out, and noted.

    Raises:
        ValueError: the run is finished. DataError: it is no run, or its data have changed. TrainingError: as `train`.
    """
    _check_plot(plot)
    settings = RunFolder.open(run).read_settings()
    if data is not None:
        settings = replace(settings, data=source_text(data))
    with joined(devices, settings.device) as ranks, ExitStack() as stack:
        reporter, folder = (reporter if ranks.first else None) or Reporter(), RunFolder(Path(run), ranks.first)
        with ranks.in_turn("lock"):
            stack.enter_context(folder.locked())
        return _resumed(folder, settings, ranks, epochs, reporter, plot, report, moved=data is not None)


def _resumed(
    folder: RunFolder, began: Settings, ranks: Ranks, epochs: float | None, reporter: Reporter,
    plot: str | Path | None, report: bool, moved: bool,
) -> Result:  # fmt: skip
    run, settings = folder.path, replace(began, devices=ranks.count)
    if epochs is not None:
        settings = replace(settings, recipe=settings.recipe.changed(epochs=epochs))
    elif folder.finished:
        raise _checks.error("resume", "name a run that is not finished, or come with more --epochs", str(run))
    if settings.framework == "keras":
        frameworks.use_keras(settings.keras_backend)
    if not moved and settings.data not in NAMED and not os.path.lexists(settings.data):
        raise DataError(
            f"{settings.data}, the data of {run}, are not there any more; if they have moved, name them: "
            f"labelsmooth train DATA --resume {run}"
        )
    ranks.alike(settings.flat())
    track = _tracker(settings, reporter)
    images = _load(settings, reporter, ranks, settings.val_split)
    known, began_in = folder.read_json("data.json"), {"devices": 1} | folder.read_json("env.json")
    if images.digest != known.get("sha256"):
        told = "is not the data that {} began with" if moved else "has changed since {} began"
        raise DataError(
            f"{settings.data} {told.format(run)} (SHA-256 {images.digest[:12]}, then {str(known.get('sha256'))[:12]})"
        )
    if images.noise is not None and images.noise.digest != (known.get("noise") or {}).get("sha256"):
        raise DataError(f"the labels of --noise {settings.noise} have changed since {run} began")
    examples = {name: len(split) for name, split in images.splits.items()}
    if examples != known.get("examples", examples):
        raise DataError(
            f"{settings.data} gives other examples than when {run} began: {_counts(examples)}, then "
            f"{_counts(known['examples'])}; files that could be read then cannot be now, or the other way round"
        )
    with ranks.in_turn("restore"):
        training = _restored(folder, settings, images, reporter, ranks)
    if epochs is not None:
        planned = began.recipe.epochs
        if len(training.rows) > planned:
            raise _checks.error("resume", f"name a run of whole epochs, to add some; {run} ended inside one", planned)
        if training.plan.total_steps <= training.steps_done:
            done = training.steps_done / training.plan.steps_per_epoch
            raise _checks.error("epochs", f"be more than the {done:g} that {run} has done", f"{epochs:g}")
    if moved:
        folder.write_json("data.json", known | {"source": images.source})
    if epochs is not None or moved:
        folder.write_settings(replace(settings, data=images.source, devices=began.devices))
    if epochs is not None:
        folder.reopen()
    training.best = _best(training, folder, reporter)
    for name, now in _environment(training).items():
        told = ("device", "devices", "precision", "processor", "threads")
        if name in told and now != (before := began_in.get(name)):
            reporter.note(f"{name} is {now}, and was {before} when the run began: it will not end with the same bits")
    reporter.note(f"resuming {run} {f'after {training.saved}' if training.saved else 'from its start'}")
    return _finish(training, folder, reporter, plot, track, report)


def _counts(examples: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in examples.items())


def _check_plot(plot: object) -> None:
    if not isinstance(plot, str | Path | None):
        raise _checks.error("plot", "be a file", repr(plot))
    if plot is not None:
        plots.check_file(Path(plot))


def _tracker(settings: Settings, reporter: Reporter) -> str | None:
    """The tracker of a run that goes on, if it is installed here."""
    if settings.track is None:
        return None
    try:
        tracking.check(settings.track)
    except (ModuleNotFoundError, ValueError) as error:
        reporter.note(f"{settings.track} tracks no more ({error}); the training goes on without it")
        return None
    return settings.track


def _load(
    settings: Settings, reporter: Reporter, ranks: Ranks, val_split: float | Callable[[int, int], float]
) -> ImageData:
    """The data: decoded once, by the first process of each machine.

    Raises:
        DataError: they cannot be used, or differ between the processes.
    """
    with ranks.in_turn("data", by_machine=True):
        images = load(
            settings.data,
            val_split=val_split,
            seed=settings.seed,
            image_size=settings.image_size,
            image_column=settings.image_column,
            label_column=settings.label_column,
            noise=settings.noise,
            progress=reporter.data_progress(),
        )
    try:
        ranks.alike({"the data (SHA-256)": images.digest[:12], "the noise": images.noise and images.noise.digest[:12]})
    except ValueError as error:
        raise DataError(str(error)) from None
    return images


def _best(training: Training, folder: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """What `best.safetensors` holds: it may be an epoch further than the last checkpoint."""
    path = folder.checkpoints / "best.safetensors"
    if training.best is None and not path.exists():
        return None
    try:
        return checkpoints.load_state(path)["best"]
    except DataError as error:
        reporter.note(f"{error}; the best of the epochs to come is tested, or the last one")
        return None


def _restored(folder: RunFolder, settings: Settings, images: ImageData, reporter: Reporter, ranks: Ranks) -> Training:
    """A training where the newest checkpoint that can be used was made; at its beginning if there never was one."""
    training, problems = Training(settings, images, ranks), []
    damaged = folder.checkpoints / "damaged.safetensors"
    for name in ("last", "previous"):
        path = folder.checkpoints / f"{name}.safetensors"
        if not path.exists():
            if name == "last" and (folder.checkpoints / "previous.safetensors").exists():
                reporter.note(f"there is no {path}; looking at the checkpoint before")
            continue
        if problems:
            reporter.note(f"{problems[-1]}; looking at the checkpoint before")
        try:
            training.restore(path)
            if problems and folder.writes:  # lest it takes the place of the one that is left
                os.replace(folder.checkpoints / "last.safetensors", damaged)
            return training
        except DataError as error:
            problems.append(str(error))
            training = Training(settings, images, ranks)
    if problems:
        raise DataError(f"{folder.path} has no checkpoint that can be used: {'; '.join(problems)}")
    return training


def _finish(
    training: Training, folder: RunFolder, reporter: Reporter, plot: str | Path | None, track: str | None, report: bool
) -> Result:
    training.ranks.name_run(folder.path)
    if track is not None and folder.writes:
        reporter = tracking.Tracked(track, reporter)
    summary = None
    try:
        reporter.begin(training, folder.path)
        folder.log(f"begin after {training.saved or 'nothing'}")
        with training.engine.global_state(), training.stop, memory.kept():
            training.run(folder, reporter)
            result = _conclude(training, folder)
            summary = result.summary
            training.stop.at_once()
            if folder.writes:
                _draw_all(training, folder, reporter, plot, report)
    except (KeyboardInterrupt, Stopped):
        if summary is not None:
            folder.log("interrupted when it was tested, without its report")
            accuracy = summary["test"]["accuracy"]
            saved = f"the finished run, test accuracy {accuracy:.4f}, without its report and pictures"
            raise Interrupted(str(folder.path), saved, "report") from None
        folder.log(f"interrupted; saved after {training.saved or 'nothing'}")
        raise Interrupted(str(folder.path), training.saved) from None
    except TrainingError as error:
        folder.log(f"failed: {error}")
        raise
    except OSError as error:
        hint = "free some room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
        raise TrainingError(
            f"{error.strerror or error} while writing {error.filename or folder.path}; the checkpoint after "
            f"{training.saved or 'nothing'} is kept: {hint}, then labelsmooth train --resume {folder.path}"
        ) from error
    finally:
        reporter.end(summary)
    return result


def _draw_all(training: Training, folder: RunFolder, reporter: Reporter, plot: str | Path | None, report: bool) -> None:
    """The curves, and the report of a run that is finished, where they were asked for."""
    if plot is not None:
        path, smoothing = Path(plot), training.plan.recipe.smoothing
        _draw(lambda: panels.save(plots.curves(training.rows, smoothing), path), path, folder, reporter)
    if report:
        _draw(lambda: page.finish(folder.path), folder.path / "report.html", folder, reporter)


def _draw(draw: Callable[[], object], path: Path, folder: RunFolder, reporter: Reporter) -> None:
    """Pictures, without which a run is worth as much."""
    try:
        draw()
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        text = f"{path} could not be drawn ({reason})"
        reporter.note(text)
        folder.log(text)


def _conclude(training: Training, folder: RunFolder) -> Result:
    """Restore the best weights, predict, evaluate on hard labels, and summarise."""
    recipe, data, engine = training.plan.recipe, training.plan.data, training.engine
    tested = "best" if training.best is not None else "last"
    engine.load_weights(folder.checkpoints / f"{tested}.safetensors")
    predictions = engine.predict(data.test)
    try:
        test = evaluate(predictions.logits, predictions.labels, data.classes)
    except ValueError as error:
        raise TrainingError(
            f"the {tested} checkpoint cannot be tested ({error}); it is kept, after {training.saved}; "
            "start again with a lower --lr"
        ) from None
    others = {"val": data.val} if len(data.val) else {}
    others["train"] = artefacts.sample(data.clean_train, len(data.test))
    told = {"test": predictions} | {name: engine.predict(split) for name, split in others.items()}
    if folder.writes:
        for name, each in told.items():
            each.save(folder.predictions_file(name))
        artefacts.save_mistakes(data.test, test.rows, folder.predictions_file("mistakes"))
    summary = {
        "status": "finished",
        "data": data.name,
        "framework": training.plan.settings.framework,
        "keras_backend": training.plan.settings.keras_backend,
        "model": recipe.model,
        "parameters": engine.parameters,
        "smoothing": recipe.smoothing,
        "method": recipe.method,
        "prior": recipe.prior,
        "noise": None if data.noise is None else data.noise.describe(),
        "entropy_floor": training.plan.floor,
        "seed": training.plan.settings.seed,
        "epochs": len(training.rows),
        "tested_checkpoint": tested,
        "best": training.best,
        "test": {"accuracy": test.accuracy, "nll": test.nll, "examples": test.examples},
        "train_seconds": training.seconds,
        "images_per_second": float(np.median([row["images_per_second"] for row in training.rows])),
        "report": test.as_dict()["classes"],
    }
    folder.write_json("summary.json", summary)
    folder.log(f"finished: test accuracy {test.accuracy:.4f}, test NLL {test.nll:.4f}")
    return Result(folder.path, summary, test)
