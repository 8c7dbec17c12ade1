"""``labelsmooth schedule``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labelsmooth.cli.output import Json, console, print_json


def schedule(
    name: Literal["step", "polynomial", "cosine"],
    *,
    initial_lr: Annotated[float, Parameter(name=["--initial-lr", "--lr"])] = 0.01,
    factor: float | None = None,
    every: float | None = None,
    power: float | None = None,
    epochs: float = 100,
    warmup: float = 0,
    start_factor: float | None = None,
    plot: Annotated[Path | None, Parameter(name=["--plot", "-p"])] = None,
    json: Json = False,
) -> None:
    """The learning rate of each epoch under a schedule, as a table and as a picture. Epochs count from 0.

    Args:
        name: step: times --factor every --every epochs. polynomial: to 0 as (1 - epoch/epochs)^power. cosine: to 0.
        initial_lr: the rate that it decays from.
        factor: of step; 0.25 if not given.
        every: of step, in epochs; 10 if not given.
        power: of polynomial; 1, a straight line, if not given.
        epochs: of the whole training, the warm-up included.
        warmup: epochs at the beginning in which the rate rises linearly.
        start_factor: the share of the rate that the warm-up begins with; 0.1 if not given.
        plot: also draw it to this file (.png, .svg, .pdf).
    """
    import math

    from labelsmooth import _checks, schedules

    length = schedules.check_length(epochs)
    if start_factor is not None and not warmup:
        raise _checks.error("start_factor", "be left out where there is no --warmup", start_factor)
    given = {"factor": factor, "every": every, "power": power, "start_factor": start_factor}
    given = {option: value for option, value in given.items() if value is not None}
    made = schedules.make(name, initial_lr, length, warmup=warmup, **given)
    rates = [made(epoch) for epoch in range(math.ceil(length))]
    if plot is not None:
        made.plot(length, plot)
    if json:
        drawn = None if plot is None else str(plot)
        print_json({"schedule": repr(made), "epochs": length, "rates": rates, "plot": drawn})
        return
    lines = [str(made), "", *_table(rates), *([] if plot is None else ["", f"picture  {plot}"])]
    console(False).print("\n".join(lines), markup=False)


def _table(rates: Sequence[float]) -> list[str]:
    """A line for every stretch of epochs with the same rate."""
    starts = [epoch for epoch, rate in enumerate(rates) if epoch == 0 or rate != rates[epoch - 1]]
    lasts = [start - 1 for start in [*starts[1:], len(rates)]]
    spans = [f"{first}" if first == last else f"{first}-{last}" for first, last in zip(starts, lasts, strict=True)]
    width = max(len("epochs"), *map(len, spans))
    lines = [f"{span:>{width}}  {rates[start]:.6g}" for span, start in zip(spans, starts, strict=True)]
    return [f"{'epochs':>{width}}  learning rate", *lines]
