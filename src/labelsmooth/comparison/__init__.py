"""Does label smoothing help, and how much of it? Arms x seeds, paired, with statistics."""

from labelsmooth.comparison.analysis import Analysis
from labelsmooth.comparison.compare import Comparison, Predictions, Watcher, compare

__all__ = ["Analysis", "Comparison", "Predictions", "Watcher", "compare"]
