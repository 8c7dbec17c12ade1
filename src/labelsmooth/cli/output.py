"""What the commands print: words for people on stdout, or with ``--json`` pure JSON there and the words on stderr."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from labelsmooth._text import counted, printable_lines

if TYPE_CHECKING:
    from pathlib import Path

    from labelsmooth.training.listing import Progress


def _whole(type_: Any, tokens: Any) -> int:
    """An int, where cyclopts would round 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"it must be a whole number; got {tokens[0].value}") from None


WholeNumber = Annotated[int, Parameter(converter=_whole)]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print pure JSON on stdout; words go to stderr.")]


class _Console(Console):
    """A console that falls silent when its reader goes away, as `| head` does, and lets the work go on.

    Control characters in what it is given to print stand as escapes.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable_lines(each) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(json_output: bool) -> Console:
    return _Console(stderr=json_output, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """`value` as JSON; an infinite number becomes null, and a byte of a file's name that is not UTF-8 an escape."""
    text = json.dumps(_finite(value), ensure_ascii=False)
    print(re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def duration(seconds: float) -> str:
    """In the units that people would use."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Bar:
    """A bar while something goes on, on a terminal only; it is gone when its block ends, however that ends."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, text: str, done: int, count: int) -> None:
        if not self.out.is_terminal:
            return
        if self.bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(
                *columns, console=self.out, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self.bar.start()
            self.task = self.bar.add_task(text)
        self.bar.update(self.task, description=text, completed=done, total=count)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class _DownloadBar:
    """tqdm's interface, as pooch wants it, over rich's bar."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self.total = 0
        self.bar = Progress(
            TextColumn("downloading CIFAR-10"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=out
        )
        self.task = self.bar.add_task("download", total=None)

    def update(self, size: int) -> None:
        self.bar.start()
        self.bar.update(self.task, advance=size, total=self.total)

    def reset(self) -> None:
        self.bar.update(self.task, completed=0)

    def close(self) -> None:
        self.bar.stop()


def data_progress(out: Console, bar: Bar) -> Progress:
    """What reading data tells, printed to `out`."""
    from labelsmooth.training.listing import Progress

    def decoded(done: int, count: int) -> None:
        bar.show("decoding images", done, count)
        if done == count:
            bar.close()

    def note(text: str) -> None:
        bar.close()
        out.print(text, markup=False)

    return Progress(decoded=decoded, note=note, download=_DownloadBar(out) if out.is_terminal else False)


def make_reporter(out: Console, bar: Bar) -> Any:
    """A `Reporter` that prints to `out`: a live bar on a terminal, a line per epoch anywhere."""
    from labelsmooth.training import Reporter

    class Printer(Reporter):
        def __init__(self) -> None:
            self.epochs = 0

        def data_progress(self) -> Progress:
            return data_progress(out, bar)

        def begin(self, training: Any, folder: Path) -> None:
            self.epochs = training.plan.epochs
            out.print(_describe(training, folder), markup=False)

        def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
            bar.show(f"epoch {epoch + 1}  loss {loss:.4f}", done, steps)

        def epoch(self, row: dict[str, Any], best: bool) -> None:
            bar.close()
            out.print(_epoch_line(row, best, self.epochs), markup=False)

        def note(self, text: str) -> None:
            bar.close()
            out.print(text, markup=False)

    return Printer()


def _describe(training: Any, folder: Path) -> str:
    """What is trained, on what, and what smoothing does to the first label."""
    from labelsmooth.targets import smooth_labels

    plan, engine = training.plan, training.engine
    data, recipe, settings = plan.data, plan.recipe, plan.settings
    height, width, channels = data.image_shape
    first = int(data.train.labels[0])
    steps = f"{counted(recipe.epochs, 'epoch')} of {counted(plan.steps_per_epoch, 'step')}"
    lines = [
        f"data        {data.name}: {data.num_classes} classes, images {height}x{width}x{channels}; "
        f"{len(data.train)} training, {len(data.val)} validation, {len(data.test)} test",
        f"model       {recipe.model}, {engine.parameters:,} trainable parameters",
        f"training    recipe {recipe.name}: {steps} of {recipe.batch_size}{_parts(settings)}, seed {settings.seed}",
        f"device      {engine.device}, {engine.precision_reason}",
    ]
    if settings.devices > 1:
        norm = "batch norm over all of them" if engine.on_gpu else "batch norm sees each one's share of a batch alone"
        lines.append(f"devices     {settings.devices} processes; {norm}")
    if settings.framework == "keras":
        lines.append(f"framework   Keras {engine.versions['keras']} on {settings.keras_backend}")
    if data.noise is not None:
        lines.append(f"noise       {data.noise}")
    if settings.track is not None:
        lines.append(f"tracking    {settings.track}")
    if recipe.smoothing:
        target = smooth_labels(first, recipe.smoothing, num_classes=data.num_classes, prior=plan.prior)
        how = "the targets are smoothed" if recipe.method == "labels" else "the loss smooths"
        if recipe.prior == "uniform":
            meaning = f"true class {target[first]:.4g}, others {target[first - 1]:.4g}"
        else:
            meaning = f"prior {recipe.prior}, from {plan.prior.min():.4g} to {plan.prior.max():.4g}"
        lines.append(f"smoothing   {recipe.smoothing:g}, method {recipe.method} ({how}): {meaning}")
        if data.num_classes <= 20:
            before = " ".join("1" if k == first else "0" for k in range(data.num_classes))
            after = " ".join(f"{share:.4g}" for share in target)
            lines += [f"            first label, {data.classes[first]}: before {before}", f"            after  {after}"]
        lines.append(
            f"            the smoothed loss cannot go below its floor {plan.floor:.4f}; validation and test "
            "are on hard labels"
        )
    else:
        lines.append("smoothing   0: hard labels")
    return "\n".join([*lines, f"run         {folder}", ""])


def _parts(settings: Any) -> str:
    return f" in {settings.accumulate} parts (batch norm sees each alone)" if settings.accumulate > 1 else ""


def _epoch_line(row: dict[str, Any], best: bool, epochs: int) -> str:
    width = len(str(epochs))
    if row["smoothing"]:
        bounds = f"(ε={row['smoothing']:g}, floor {row['train_loss_floor']:.4f})"
        loss = f"smoothed loss {row['train_loss_smoothed']:.4f} {bounds}"
    else:
        loss = f"loss {row['train_loss_smoothed']:.4f}"
    parts = [f"epoch {row['epoch']:>{width}}/{epochs}", loss, f"train acc {row['train_accuracy']:.4f}"]
    if row["val_accuracy"] is not None:
        parts += [f"val NLL {row['val_nll']:.4f}", f"val acc {row['val_accuracy']:.4f}{' *' if best else '  '}"]
    return "  ".join([*parts, f"lr {row['lr']:.2e}", f"{row['images_per_second']:.0f} images/s"])
