"""The picture of a learning-rate schedule."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from labelsmooth.report.panels import Panel, dress
from labelsmooth.report.theme import BLUE
from labelsmooth.schedules import Schedule

_POINTS = 1000  # at least, along a curve
_MOST_DOTS = 40  # epochs that have a dot each


def panel(schedule: Schedule, epochs: float) -> Panel:
    """The learning rate by epoch."""
    per_epoch = max(1, math.ceil(_POINTS / epochs))  # whole, so that the beginning of every epoch is drawn
    places = np.append(np.arange(math.ceil(epochs * per_epoch)) / per_epoch, epochs)
    rates = np.array([schedule(place) for place in places])

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        dress(axes)
        axes.plot(places, rates, color=BLUE, linewidth=1.7, drawstyle="steps-post")
        if epochs <= _MOST_DOTS:
            axes.plot(places[:-1:per_epoch], rates[:-1:per_epoch], "o", color=BLUE, markersize=3.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs))
        axes.set_ylim(0, 1.05 * rates.max())

    name = str(schedule)
    return Panel(
        name[0].upper() + name[1:], f"Learning rate by epoch, {name}: from {rates[0]:.4g} to {rates[-1]:.4g}.", draw,
        width=max(6.4, 0.5 + 0.094 * len(name)),
    )  # fmt: skip
