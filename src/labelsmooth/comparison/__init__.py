"""Does label smoothing help, and how much of it? Arms x seeds, paired, with statistics."""

from labelsmooth.comparison.analysis import Analysis
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.compare import Comparison, Plan, Predictions, Watcher, compare

__all__ = ["Analysis", "Arm", "Comparison", "Plan", "Predictions", "Watcher", "compare"]
