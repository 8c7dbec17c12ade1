"""labelsmooth: label smoothing, exact in every framework, and the answer to whether it helps. Imports NumPy alone."""

from labelsmooth import losses, priors, schedules
from labelsmooth.labels import sample_labels
from labelsmooth.targets import convert_smoothing, explain, one_hot, smooth_labels

__version__ = "0.1.0"

__all__ = [
    "convert_smoothing",
    "explain",
    "losses",
    "one_hot",
    "priors",
    "sample_labels",
    "schedules",
    "smooth_labels",
]
