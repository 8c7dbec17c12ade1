"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from labelsmooth import _checks, _files
from labelsmooth.evaluation.calibration import Reliability
from labelsmooth.evaluation.intervals import wilson
from labelsmooth.report.panels import Panel, dress, end_labels, shortened, together
from labelsmooth.report.theme import BLUE, GREEN, INK, MUTED, PAPER, VERMILLION

FORMATS = (".png", ".svg", ".pdf")
_POINTS = 150  # of a class, in a projection
_MOST_CLASSES, _MOST_CELLS = 200, 300  # of a confusion matrix as it is; of the side of one that is summed up
_THREE = ((BLUE, "o"), (VERMILLION, "^"), (GREEN, "s"))  # the classes of a projection
_SHARES = LinearSegmentedColormap.from_list("shares", [to_rgba(BLUE, 0.0), to_rgba(BLUE, 1.0)])  # on any background


@dataclass(frozen=True)
class Projection:
    """Examples of three classes in a plane.

    Attributes:
        title: of the panel.
        corner: what the three corners of the plane are, each to its class.
        points: ``[n, 2]``.
        labels: ``[n]``.
        corners: ``[3, 2]``.
    """

    title: str
    corner: str
    points: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


def check_file(path: Path) -> None:
    """Whether a picture can be written to `path`, found out before hours of training.

    Raises:
        ValueError: an unknown format, or no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise _checks.error("plot", f"end in one of {', '.join(FORMATS)}", str(path))
    _files.check_file(path, "plot")


def curves(rows: list[dict[str, Any]], smoothing: float) -> Figure:
    """Loss and accuracy by epoch, of training and of validation.

    Args:
        rows: the lines of `metrics.csv`.
        smoothing: ε, which names the smoothed loss.
    """
    return together(curve_panels(rows, smoothing))


def curve_panels(rows: Sequence[Mapping[str, Any]], smoothing: float) -> list[Panel]:
    """Loss and accuracy by epoch."""
    loss = {"train_nll": ("training", BLUE, "--"), "val_nll": ("validation", VERMILLION, "-")}
    if smoothing > 0:
        loss = {"train_loss_smoothed": (f"training, ε = {smoothing:g}", GREEN, "-")} | loss
    accuracy = {"train_accuracy": ("training", BLUE, "--"), "val_accuracy": ("validation", VERMILLION, "-")}
    floor = rows[-1]["train_loss_floor"] if smoothing > 0 else None

    def draw_loss(figure: FigureBase) -> None:
        axes = figure.subplots()
        ends = _lines(axes, rows, loss)
        if floor is not None:
            axes.axhline(floor, color=GREEN, linestyle=":", linewidth=1.2)
            ends.append((floor, f"its floor {floor:.3f}", GREEN))
        axes.set(xlabel="epoch", ylabel="loss, nats")
        axes.set_ylim(bottom=0)
        end_labels(axes, ends)

    def draw_accuracy(figure: FigureBase) -> None:
        axes = figure.subplots()
        ends = _lines(axes, rows, accuracy)
        axes.set(xlabel="epoch", ylabel="accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        end_labels(axes, ends)

    return [
        Panel(
            "Loss", f"Loss by epoch. {_last(rows, loss, '{:.4f}')}", draw_loss,
            "NLL on hard labels; the training's on augmented images"
            + (", and what it minimises: the smoothed loss, which cannot go below its floor." if smoothing else "."),
        ),
        Panel(
            "Accuracy", f"Accuracy by epoch. {_last(rows, accuracy, '{:.2%}')}", draw_accuracy,
            "Training is counted on augmented images while the weights change, so it may lie below validation.",
        ),
    ]  # fmt: skip


def _lines(
    axes: Axes, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, tuple[str, str, str]]
) -> list[tuple[float, str, str]]:
    """Draw columns of `metrics.csv` by epoch, and say where their ends are."""
    dress(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = []
    for key, (name, colour, style) in lines.items():
        known = [(row["epoch"], row[key]) for row in rows if row[key] is not None]
        if known:
            marker = "o" if len(known) < 16 else None
            axes.plot(*zip(*known, strict=True), style, color=colour, marker=marker, markersize=3.2, linewidth=1.7)
            ends.append((known[-1][1], name, colour))
    axes.margins(x=0.02)
    return ends


def _last(rows: Sequence[Mapping[str, Any]], lines: Mapping[str, tuple[str, str, str]], form: str) -> str:
    told = [f"{name} {form.format(rows[-1][key])}" for key, (name, *_) in lines.items() if rows[-1][key] is not None]
    return f"After epoch {rows[-1]['epoch']:g}: {', '.join(told)}."


def confusion_panel(counts: np.ndarray, names: Sequence[str], title: str = "Confusion on test") -> Panel:
    """The confusion matrix, rows are true classes."""
    count = len(counts)
    block = -(-count // _MOST_CELLS) if count > _MOST_CLASSES else 1
    cells = _summed(counts, block)
    shares = cells / np.maximum(1, cells.sum(axis=1, keepdims=True))
    ends = (-0.5, len(cells) * block - 0.5, len(cells) * block - 0.5, -0.5)
    short = [shortened(name, 20) for name in names]
    longest = max(map(len, short)) if count <= 40 else 0

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes, grid="")
        axes.spines[["left", "bottom"]].set_visible(False)
        darkest = 1.45 if count <= 20 else 1.0  # with counts in it: pale enough for ink
        axes.imshow(np.sqrt(shares), cmap=_SHARES, vmin=0, vmax=darkest, interpolation="none", extent=ends)
        axes.set(xlabel="predicted", ylabel="true", xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        if longest:
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 2 else {}
            axes.set_xticks(range(count), short, **turned)
            axes.set_yticks(range(count), short)
            axes.tick_params(length=0, labelcolor=INK)
        if count <= 20:
            for row, column in np.argwhere(counts > 0):
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=INK, fontsize=8.5)

    right = int(np.trace(counts))
    side = min(12.0, max(3.6, 0.42 * count + 0.075 * longest + 0.8))
    return Panel(
        title, f"Confusion matrix of {count} classes: {right} of {counts.sum()} examples are on its diagonal.", draw,
        "Rows are true classes, columns predictions; the darker, the larger the share of the true class."
            + (f" A cell stands for {block} × {block} neighbouring classes." if block > 1 else ""),
        width=side, height=side,
    )  # fmt: skip


def _summed(counts: np.ndarray, block: int) -> np.ndarray:
    """Sums over squares of `block` x `block` cells."""
    size = -(-len(counts) // block)
    padded = np.pad(counts, (0, size * block - len(counts)))
    return padded.reshape(size, block, size, block).sum(axis=(1, 3))


def reliability_panel(cells: Reliability, ece: float | None, title: str) -> Panel:
    """Accuracy by confidence, with the count of each bin below."""
    filled = cells.counts > 0
    edges, counts = cells.edges[:-1], cells.counts
    width = cells.edges[1] - cells.edges[0]
    confidence, accuracy = cells.confidence[filled], cells.accuracy[filled]
    low, high = wilson(accuracy, counts[filled])

    def draw(figure: FigureBase) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        dress(above)
        above.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1)
        above.bar(edges[filled], accuracy, width, align="edge", color=BLUE, alpha=0.22, edgecolor=PAPER, linewidth=1)
        above.vlines(confidence, low, high, color=BLUE, linewidth=1.3)
        above.plot(confidence, accuracy, "o", color=BLUE, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.8)
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        above.yaxis.set_major_formatter(PercentFormatter(1.0))
        dress(below, grid="")
        below.bar(edges, counts, width, align="edge", color=MUTED, alpha=0.45, edgecolor=PAPER, linewidth=1)
        for edge, number in zip(edges[filled], counts[filled], strict=True):
            text = str(number) if number < 10_000 else f"{number / 1000:.0f}k"
            below.text(edge + width / 2, number, text, ha="center", va="bottom", fontsize=7.5, color=INK)
        below.set(xlabel="confidence", ylabel="count", ylim=(0, 1.3 * counts.max()), yticks=[])
        below.spines["left"].set_visible(False)
        below.xaxis.set_major_formatter(PercentFormatter(1.0))

    told_ece = "ECE unknown" if ece is None else f"ECE {ece:.4f}, {len(counts)} bins"
    told = "; ".join(
        f"{int(n)} at confidence {c:.0%}: {a:.0%}" for n, c, a in zip(counts[filled], confidence, accuracy, strict=True)
    )
    return Panel(
        f"{title}: {told_ece}",
        f"Reliability diagram, {title}. {told_ece}. Accuracy by bin: {told}.",
        draw, height=4.0,
    )  # fmt: skip


def confidence_panel(confidence: np.ndarray, hits: np.ndarray, title: str = "Confidence") -> Panel:
    """Histograms of the confidence, of right predictions above and of wrong ones below."""
    parts = (("right", confidence[hits], BLUE), ("wrong", confidence[~hits], VERMILLION))

    def draw(figure: FigureBase) -> None:
        edges = np.linspace(0, 1, 26)
        both = figure.subplots(2, 1, sharex=True)
        for axes, (name, values, colour) in zip(both, parts, strict=True):
            dress(axes, grid="y")
            axes.hist(values, edges, color=colour, alpha=0.85, edgecolor=PAPER, linewidth=0.8)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.set(ylabel="count", xlim=(0, 1))
            if not len(values):
                axes.set_yticks([0])
            axes.text(
                0.02, 0.94, f"{name}: {len(values):,}", transform=axes.transAxes, va="top", color=INK, fontsize=10
            )
        both[1].set(xlabel="confidence")
        both[1].xaxis.set_major_formatter(PercentFormatter(1.0))

    told = [f"{len(values)} {name}, median {np.median(values):.1%}" for name, values, _ in parts if len(values)]
    return Panel(
        title, f"Histograms of the confidence: {'; '.join(told)}.", draw,
        "Right predictions above, wrong ones below, each on its own scale. Wrong ones far to the right cost trust.",
        height=3.6,
    )  # fmt: skip


def risk_coverage_panel(
    lines: Sequence[tuple[str, str, np.ndarray, np.ndarray, np.ndarray | None]],
) -> Panel:
    """The error rate among the most confident, by how many of them are kept.

    Args:
        lines: name, colour, coverage, risk, and perhaps the risk's standard deviation over seeds.
    """

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes)
        ends = []
        for name, colour, coverage, risk, spread in lines:
            axes.plot(coverage, risk, color=colour, linewidth=1.7)
            if spread is not None:
                axes.fill_between(coverage, risk - spread, risk + spread, color=colour, alpha=0.15, linewidth=0)
            ends.append((float(risk[-1]), name, colour))
        axes.set(xlabel="coverage", ylabel="risk (error rate)", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        end_labels(axes, ends)

    told = [
        f"{name}: risk {np.interp(0.5, coverage, risk):.2%} at half coverage, {risk[-1]:.2%} at full coverage"
        for name, _, coverage, risk, _ in lines
    ]
    return Panel(
        "Risk and coverage", f"Risk-coverage curve. {'; '.join(told)}.", draw,
        "Keep only the most confident predictions (coverage): how many of those are wrong (risk)? Lower is better.",
    )  # fmt: skip


def projection_panels(splits: Sequence[Projection], names: Sequence[str], classes: Sequence[int]) -> list[Panel]:
    """The penultimate layer of three classes in the plane through its corners, all splits on one scale.

    Args:
        splits: what to show.
        names: of all classes.
        classes: the three.
    """
    corners = np.concatenate([part for each in splits for part in (each.points, each.corners)])
    middle, reach = (corners.max(axis=0) + corners.min(axis=0)) / 2, 0.58 * np.ptp(corners, axis=0).max()
    return [_projection_panel(each, names, classes, middle, reach) for each in splits]


def _projection_panel(
    split: Projection, names: Sequence[str], classes: Sequence[int], middle: np.ndarray, reach: float
) -> Panel:
    short = [shortened(name, 20) for name in names]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes, grid="")
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set(xlim=middle[0] + [-reach, reach], ylim=middle[1] + [-reach, reach])
        generator = np.random.default_rng(0)
        for label, (colour, marker), corner in zip(classes, _THREE, split.corners, strict=True):
            own = split.points[split.labels == label]
            own = own[np.sort(generator.permutation(len(own))[:_POINTS])]
            axes.plot(*own.T, marker, color=colour, alpha=0.5, markersize=4.5, markeredgewidth=0)
            axes.plot(*corner, marker, color=colour, markersize=9, markeredgecolor=INK, markeredgewidth=1.2)
            outwards = 13 * _direction(corner - split.corners.mean(axis=0))
            axes.annotate(short[label], corner, tuple(outwards), textcoords="offset points", fontsize=9.5, color=INK,
                          weight="bold", va="center", ha="left" if outwards[0] >= 0 else "right",
                          bbox={"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 1.5})  # fmt: skip

    counts = ", ".join(f"{int((split.labels == label).sum())} of {names[label]}" for label in classes)
    alt = f"Projection of the penultimate layer, {split.title}: {counts}, outlined for each: {split.corner}."
    return Panel(
        split.title, alt, draw, f"At most {_POINTS} of each class; outlined: {split.corner}.", width=4.4, height=4.2
    )


def _direction(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
