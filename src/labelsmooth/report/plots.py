"""Figures, drawn with matplotlib's object interface: no global state, no window."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from labelsmooth import _checks, _files
from labelsmooth.evaluation import Evaluation

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, told apart by colour-blind readers too.
_TRAIN, _VAL, _SMOOTHED, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def check_file(path: Path) -> None:
    """Whether a picture can be written to `path`, found out before hours of training.

    Raises:
        ValueError: an unknown format, or no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise _checks.error("plot", f"end in one of {', '.join(FORMATS)}", str(path))
    if not path.parent.is_dir():
        raise _checks.error("plot", "lie in a folder that exists", str(path))
    if path.is_dir():
        raise _checks.error("plot", "be a file", str(path))
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _checks.error("plot", "lie in a folder that can be written to", f"{path} ({error.strerror})") from None


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with _files.replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a class name's; a box is drawn
        figure.savefig(temporary, dpi=150, metadata={"Software": None} if path.suffix.lower() == ".png" else None)


def curves(rows: list[dict[str, Any]], smoothing: float) -> Figure:
    """Loss and accuracy by epoch, of training and of validation.

    Args:
        rows: the lines of `metrics.csv`.
        smoothing: ε, which names the smoothed loss.
    """
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 16 else None
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)

    def line(axes: Any, key: str, colour: str, label: str, style: str = "-") -> None:
        values = [row[key] for row in rows]
        if any(value is not None for value in values):
            axes.plot(epochs, values, style, color=colour, label=label, marker=marker, markersize=3.5, linewidth=1.6)

    if smoothing > 0:
        line(loss, "train_loss_smoothed", _SMOOTHED, f"training loss, smoothed (ε = {smoothing:g})")
        floor = rows[-1]["train_loss_floor"]
        loss.axhline(floor, color=_SMOOTHED, linestyle=":", linewidth=1.2, label=f"its floor H(q′) = {floor:.3f}")
    line(loss, "train_nll", _TRAIN, "training NLL, hard labels", "--")
    line(loss, "val_nll", _VAL, "validation NLL, hard labels")
    loss.set(title="Loss", xlabel="epoch", ylabel="nats")
    loss.set_ylim(bottom=0)
    line(accuracy, "train_accuracy", _TRAIN, "training (augmented)", "--")
    line(accuracy, "val_accuracy", _VAL, "validation")
    accuracy.set(title="Accuracy", xlabel="epoch")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5)
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix: each true class's row as shares, with counts where there is room."""
    counts = evaluation.confusion
    count = len(counts)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(14.0, max(5.0, 0.55 * count + 2.2))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0))
    bar.set_label("share of the true class")
    axes.set(title=f"Confusion on {evaluation.examples} test examples", xlabel="predicted", ylabel="true")
    if count <= 40:
        names = [row.name if len(row.name) <= 20 else row.name[:19] + "…" for row in evaluation.classes]
        names = [name.replace("$", r"\$") for name in names]
        axes.set_xticks(
            range(count),
            names,
            rotation=45 if max(map(len, names)) > 2 else 0,
            ha="right" if max(map(len, names)) > 2 else "center",
        )
        axes.set_yticks(range(count), names)
    if count <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure
