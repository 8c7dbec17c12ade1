"""``labelsmooth train``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from labelsmooth.cli.output import Bar, Json, WholeNumber, console, make_reporter, print_json

if TYPE_CHECKING:
    from labelsmooth.training import Result


def train(
    data: str | None = None,
    *,
    smoothing: Annotated[float | None, Parameter(name=["--smoothing", "-s"])] = None,
    method: Literal["labels", "loss"] | None = None,
    prior: Literal["uniform", "class_frequency"] | None = None,
    model: Literal["minigooglenet", "fast", "small"] | None = None,
    recipe: Literal["classic", "fast", "digits"] | None = None,
    epochs: float | None = None,
    batch_size: WholeNumber | None = None,
    lr: float | None = None,
    schedule: str | None = None,
    weight_decay: float | None = None,
    dropout: float | None = None,
    image_size: WholeNumber | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    noise: str | None = None,
    val_split: float | None = None,
    checkpoint: Literal["best", "last"] | None = None,
    seed: WholeNumber | None = None,
    device: str | None = None,
    precision: Literal["auto", "float64", "float32", "bfloat16"] | None = None,
    deterministic: bool | None = None,
    compile: bool | None = None,
    accumulate: WholeNumber | None = None,
    devices: WholeNumber | None = None,
    track: str | None = None,
    framework: str | None = None,
    keras_backend: Literal["tensorflow", "jax", "torch"] | None = None,
    config: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    plot: Annotated[Path | None, Parameter(name=["--plot", "-p"])] = None,
    json: Json = False,
) -> int:
    """Train an image classifier with label smoothing, test it on hard labels, and write a run folder.

    Args:
        data: digits (the default), cifar10, a folder with a sub-folder per class (with or without train, val and test
            above them), a folder of train.parquet (or .csv) and test.parquet, a .parquet, .csv or .npz file.
        smoothing: ε, from 0 up to but not including 1; 0.1 if not given.
        method: labels: the targets are smoothed before training. loss (the default): the loss smooths.
        prior: what labels are smoothed towards: uniform (the default), or class_frequency, that of the training labels.
        model: the network; the recipe's own if not given.
        recipe: classic: MiniGoogLeNet as on CIFAR-10. fast: a small residual network, trained in minutes. digits: a
            smaller one. If not given, classic, or digits for images below 16 pixels.
        epochs: passes over the training set; may be fractional. With --resume: go on up to so many.
        batch_size: examples per step.
        lr: the first learning rate.
        schedule: polynomial[:power=P], step[:factor=F,every=E] or cosine, each with warmup=EPOCHS if wanted.
        weight_decay: on kernels, not on biases and batch norm.
        dropout: the share of features dropped before the last layer.
        image_size: resize images to this height and width; by the data if not given.
        image_column: the column of images in a table; found by its type and name if not given.
        label_column: the column of labels in a table; found by its name if not given.
        noise: other labels for training, not for validation and test: symmetric:P (with probability P any other class),
            asymmetric:P (the next class), column:NAME of a table, or a file (.npy, .npz, .csv, .tsv or .txt) of names
            or ids, one for each example of the data's own training split, or for each of all.
        val_split: the share of training examples kept for validation; if not given, 0.1, and with the recipe fast not
            more than 1,000 images (or 10 of each class). 0: the last epoch is tested.
        checkpoint: the epoch that is tested and used: best (the default), that is best on validation, or last.
        seed: of split, noise, weights, order, augmentation and dropout; 0 if not given.
        device: auto, cpu, cuda or cuda:N.
        precision: of convolutions; auto takes what the device is fast in.
        deterministic: refuse operations that are not deterministic.
        compile: put the network through torch.compile; on a GPU, with CUDA graphs, that is the default.
        accumulate: compute each batch in so many parts, for less memory; the same step, but for batch norm; 1 if not
            given.
        devices: train in so many processes on this machine, each on a GPU (or some of the processor's cores) and with a
            share of every batch; 1 if not given. Over several machines: torchrun -m labelsmooth train.
        track: also hand the run to this tracker: tensorboard (which writes to RUN/tracking), wandb, mlflow or another
            that Accelerate knows; pip install 'labelsmooth[track]'.
        framework: torch (the default), or keras: through Keras' fit, with the models minigooglenet and small; pip
            install 'labelsmooth[keras]'.
        keras_backend: what Keras computes with; if not given, what KERAS_BACKEND says, else the first of tensorflow,
            jax and torch that is installed.
        config: a YAML file with any of these options; what the command line says goes before it.
        out: the parent folder of runs; runs if not given.
        resume: a run's folder; go on with it where it stopped, on its number of devices or another (--devices). DATA
            is left out, or says where the same data lie now.
        plot: also write the curves to this file (.png, .svg, .pdf).
    """
    options = {
        "data": data, "smoothing": smoothing, "method": method, "prior": prior, "model": model, "recipe": recipe,
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "weight_decay": weight_decay,
        "dropout": dropout, "image_size": image_size, "image_column": image_column, "label_column": label_column,
        "noise": noise, "val_split": val_split, "checkpoint": checkpoint, "seed": seed, "device": device,
        "precision": precision, "deterministic": deterministic, "compile": compile, "accumulate": accumulate,
        "devices": devices, "track": track, "framework": framework, "keras_backend": keras_backend, "out": out,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    from labelsmooth import training
    from labelsmooth.cli import launch
    from labelsmooth.training import ranks

    screen = console(json)
    here = ranks.found()
    if here is not None:
        launch.end_with_parent()
    if resume is not None:
        given.pop("epochs", None)
        given.pop("devices", None)
        given.pop("data", None)
        if given or config is not None:
            told = ", ".join("--" + name.replace("_", "-") for name in [*given, *(["config"] if config else [])])
            raise ValueError(
                f"--resume goes on with the run's own settings, but for --epochs and --devices; leave out {told}"
            )
        if here is None:
            from labelsmooth.training.run import RunFolder

            began = RunFolder.open(resume).read_settings()
            count = _count(began.devices if devices is None else devices, began.device)
            if count > 1:
                return launch.launch(
                    count, _words(data=data, resume=resume, epochs=epochs, devices=count, plot=plot, json=json)
                )
            devices = 1
        with Bar(screen) as bar:
            result = training.resume(
                resume, data=data, epochs=epochs, devices=devices, plot=plot, reporter=make_reporter(screen, bar)
            )
    else:
        settings = (_from_config(config, set(options)) if config is not None else {}) | given
        if here is None and (count := _count(settings.get("devices", 1), settings.get("device", "auto"))) > 1:
            return launch.launch(count, _words(**given, config=config, plot=plot, json=json))
        configured = settings.pop("plot", None)
        plot = plot or configured
        source, parent = settings.pop("data", "digits"), settings.pop("out", "runs")
        with Bar(screen) as bar:
            reporter = make_reporter(screen, bar)
            result = training.train(source, out=parent, plot=plot, reporter=reporter, **settings)
    if here is not None and here[0]:
        return 0  # the first process tells
    screen.print(_closing(result, plot), markup=False)
    if json:
        print_json({"run": str(result.folder), **result.summary})
    return 0


def _count(devices: int, device: str) -> int:
    """How many processes to start.

    Raises:
        ValueError: no number, or more than this machine has devices.
    """
    from labelsmooth import _checks

    count = _checks.class_count(devices, "devices")
    if count > 1:
        from labelsmooth.training.devices import check_count

        check_count(count, device)
    return count


def _words(**options: Any) -> list[str]:
    """The command's words for options, those that are None or False by default left out."""
    words = ["--debug"] if "--debug" in sys.argv else []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True or (value is False and name != "json"):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and value is not False:
            words.append(f"--{flag}={value}")
    return words


def _from_config(path: Path, known: set[str]) -> dict[str, Any]:
    from labelsmooth._errors import DataError
    from labelsmooth._text import nearest
    from labelsmooth.training.recipes import RECIPES, Recipe
    from labelsmooth.training.run import read_config

    values = read_config(path)
    fields = set(Recipe.__dataclass_fields__) - {"name"}
    known = known | fields | {"plot"}
    for name in values:
        if name not in known:
            hint = nearest(name, sorted(known)) or f"; options are {', '.join(sorted(known))}"
            raise DataError(f"{path} has an unknown option {name}{hint}")
    told = fields & set(values)
    # One made in Python, told in full; older files know no prior, cutout and checkpoint.
    if values.get("recipe") not in (None, *RECIPES) and fields - told <= {"prior", "cutout", "checkpoint"}:
        values["recipe"] = Recipe(name=str(values["recipe"]), **{name: values.pop(name) for name in sorted(told)})
    return {name: value for name, value in values.items() if value is not None}


def _closing(result: Result, plot: Path | None) -> str:
    summary, test = result.summary, result.test
    which = (
        f"checkpoint of epoch {summary['best']['epoch']}, best on validation" if summary["best"] else "last checkpoint"
    )
    lines = [
        "",
        f"test set ({which})",
        "",
        test.report(),
        "",
        f"test accuracy {test.accuracy:.4f}, NLL {test.nll:.4f} on hard labels; "
        f"trained in {summary['train_seconds']:.1f} s at {summary['images_per_second']:.0f} images/s",
        f"run       {result.folder}",
    ]
    report = result.folder / "report.html"
    lines += [f"report    {report}"] if report.is_file() else []  # it may have failed, as each picture may
    drawn = [result.folder / "plots" / "curves.png", result.folder / "plots" / "confusion.png", plot]
    pictures = [path for path in drawn if path is not None and Path(path).is_file()]
    return "\n".join([*lines, *(f"{'' if number else 'pictures':<10}{path}" for number, path in enumerate(pictures))])
