"""Label smoothing for Keras 3, on each of its backends: losses for `model.compile`, and a metric that is not smoothed.

A saved model that uses them is loaded by a process that has imported `labelsmooth.keras`; no `custom_objects`.
"""

try:
    import keras  # noqa: F401
except ModuleNotFoundError as _error:
    from labelsmooth.keras._missing import explained

    raise explained(_error) from None

from labelsmooth.keras.binary import SmoothedBinaryCrossentropy
from labelsmooth.keras.losses import SmoothedCrossentropy
from labelsmooth.keras.metrics import NLL
from labelsmooth.keras.models import MiniGoogLeNet, SmallNet, load_run, set_torch_weights

__all__ = [
    "NLL",
    "MiniGoogLeNet",
    "SmallNet",
    "SmoothedBinaryCrossentropy",
    "SmoothedCrossentropy",
    "load_run",
    "set_torch_weights",
]
