"""Panels: small figures that stand one by one in a page and side by side in a PNG.

Drawn with matplotlib's object interface: no global state, no window.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text

from labelsmooth import _files
from labelsmooth.report.theme import GRID, INK, MUTED, PAPER


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: above it.
        alt: what it shows, in words, for those who do not see it.
        draw: draws it into an empty figure, without its title.
        note: below it in a page; how to read it.
        width, height: in inches.
    """

    title: str
    alt: str
    draw: Callable[[FigureBase], None]
    note: str = ""
    width: float = 4.8
    height: float = 3.3


@contextmanager
def own_look() -> Iterator[None]:
    """Matplotlib's own settings, whatever a user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@own_look()
def alone(panel: Panel) -> Figure:
    """A figure of the panel, without its title."""
    figure = _empty(panel.width, panel.height)
    panel.draw(figure)
    return figure


@own_look()
def together(panels: Sequence[Panel], columns: int = 2) -> Figure:
    """A figure of all panels with their titles, in rows of `columns`."""
    columns = min(columns, len(panels))
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) + 0.35 for row in rows]
    figure = _empty(sum(panel.width for panel in rows[0]), sum(heights))
    for bands, row in zip(figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights), rows, strict=True):
        cells = bands[0].subfigures(1, columns, squeeze=False, width_ratios=[panel.width for panel in rows[0]])
        for cell, panel in zip(cells[0], row, strict=False):  # the last row may have fewer
            cell.suptitle(panel.title, fontsize=11.5, fontweight="bold", color=INK)
            panel.draw(cell)
    return figure


@own_look()
def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with _files.replacing(path) as temporary, as_written(figure):
        figure.savefig(temporary, dpi=150, metadata={"Software": None} if path.suffix.lower() == ".png" else None)


@contextmanager
def as_written(figure: Figure) -> Iterator[None]:
    """While a figure is saved: text of users is no formula, and a box stands for a character that the font lacks."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def dress(axes: Axes, *, grid: str = "both") -> None:
    """The look of all axes: two thin spines, a faint grid, small muted numbers."""
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # pyright: ignore[reportArgumentType]
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.spines[["left", "bottom"]].set_linewidth(0.8)
    axes.tick_params(color=MUTED, labelcolor=MUTED, labelsize=9, width=0.8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9.5)


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 0.085) -> None:
    """Name lines at their right ends instead of in a legend, moved apart where they are closer than `gap`.

    Args:
        axes: with all lines drawn and the limits final.
        labels: (height of the end, name, colour) of each line.
        gap: as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    heights = [(value - low) / (high - low) for value, _, _ in ordered]
    across: Any = axes.transAxes
    for height, place, (_, name, colour) in zip(heights, _spread(heights, gap), ordered, strict=True):
        axes.plot([1.0, 1.035], [height, place], color=colour, linewidth=1.3, transform=across, clip_on=False)
        axes.text(1.05, place, name, color=INK, fontsize=9, va="center", transform=across)


def shortened(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places, moved as little as possible (least squares) to be `gap` apart: pool adjacent violators."""
    blocks: list[list[float]] = []
    for number, place in enumerate(places):
        blocks.append([place - number * gap])
        while len(blocks) > 1 and sum(blocks[-2]) / len(blocks[-2]) > sum(blocks[-1]) / len(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    means = [sum(block) / len(block) for block in blocks for _ in block]
    return [mean + number * gap for number, mean in enumerate(means)]


def _empty(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure
