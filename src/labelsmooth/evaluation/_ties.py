"""Equal scores, whose order must never matter."""

from __future__ import annotations

import numpy as np


def runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values start in `ordered` ``[N]``, N above 0, and how long they are."""
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return starts, np.diff(starts, append=len(ordered))
