"""The pictures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator, PercentFormatter

from labelsmooth.report.panels import Panel, dress, end_labels, shortened
from labelsmooth.report.theme import ARMS, BLUE, GREEN, GRID, INK, MUTED, VERMILLION

VERDICTS = {"helps": GREEN, "hurts": VERMILLION, "equivalent": BLUE, "inconclusive": MUTED}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # once the colours are used up


def style(number: int) -> tuple[str, Any]:
    """Colour and dashes of an arm; the baseline is number 0."""
    return ARMS[number % len(ARMS)], _DASHES[number // len(ARMS) % len(_DASHES)]


def band_panel(
    arms: Sequence[tuple[str, Sequence[Mapping[int, float]]]], title: str, ylabel: str, *, percent: bool = False
) -> Panel | None:
    """A figure by epoch: each arm's mean over seeds, and a standard deviation to both sides.

    An arm is left out where its seeds have no epoch in common; without any arm there is no figure.

    Args:
        arms: label, and for each seed its values by epoch.
        title: of the panel.
        ylabel: of the values.
        percent: they are shares.
    """
    bands = []
    for number, (label, seeds) in enumerate(arms):
        epochs = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
        if epochs:
            values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
            spread = values.std(axis=0, ddof=1 if len(seeds) > 1 else 0)
            bands.append((number, label, epochs, values.mean(axis=0), spread))
    if not bands:
        return None

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes)
        ends = []
        for number, label, epochs, mean, spread in bands:
            colour, dashes = style(number)
            axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.14, linewidth=0)
            marker = "o" if len(epochs) < 16 else None
            axes.plot(epochs, mean, color=colour, linestyle=dashes, linewidth=1.7, marker=marker, markersize=3.2)
            ends.append((float(mean[-1]), shortened(label), colour))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.margins(x=0.02)
        _focus(axes, [(mean - spread, mean + spread) for *_, mean, spread in bands])
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        end_labels(axes, ends)

    form = "{:.2%}" if percent else "{:.4f}"
    told = [f"{label} {form.format(mean[-1])}" for _, label, _, mean, _ in bands]
    return Panel(title, f"{title} by epoch, mean over seeds. At the end: {', '.join(told)}.", draw)


def _focus(axes: Axes, ends: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Show the heights of all but the first quarter of the epochs: where arms differ, and not where all begin."""
    low = min(float(below[len(below) // 4 :].min()) for below, _ in ends)
    high = max(float(above[len(above) // 4 :].max()) for _, above in ends)
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def effect_panel(effects: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Panel:
    """One metric's differences to the baseline, with the interval that decides and the margin of equivalence.

    Args:
        effects: of this metric, as `stats.json` holds them.
        labels: of arms, by name.
    """
    first = effects[0]
    scale, digits, unit = (100, 2, "points") if first["unit"] == "points" else (1, 4, "")
    names = [
        "\n".join(shortened(part, 16) for part in labels.get(effect["arm"], effect["arm"]).split(", "))
        for effect in effects
    ]

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes, grid="x")
        margin = first["margin"] * scale
        axes.axvspan(-margin, margin, color=GRID, alpha=0.6, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, effect in enumerate(effects):
            low, middle, high = (effect[key] * scale for key in ("low", "estimate", "high"))
            colour = VERDICTS.get(effect["verdict"], MUTED)
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot(middle, place, "o", color=colour, markersize=7)
            text = f"{signed(middle, digits)} {effect['verdict']}"
            axes.text(1.03, place, text, color=INK, fontsize=9, va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(effects)), names)
        axes.set_ylim(len(effects) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        better = "right of zero is better" if first["better"] == "higher" else "left of zero is better"
        axes.set_xlabel(f"difference{', ' + unit if unit else ''} ({better})")

    told = []
    for effect in effects:
        low, middle, high = (signed(effect[key] * scale, digits) for key in ("low", "estimate", "high"))
        interval = f"{effect['level'] * 100:.3g} % interval {low} to {high}"
        name = labels.get(effect["arm"], effect["arm"])
        told.append(f"{name} {middle}{' ' * bool(unit)}{unit}, {interval}: {effect['verdict']}")
    title = first["label"][:1].upper() + first["label"][1:]
    return Panel(
        title, f"{title}, differences to the baseline. {'; '.join(told)}.", draw, height=1.0 + 0.45 * len(effects)
    )


def signed(value: float, digits: int) -> str:
    """A difference, which is never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
