"""What to install where Keras, or the backend that it was told to use, is not there."""

from __future__ import annotations

import os

_BACKENDS = ("tensorflow", "jax", "torch")


def explained(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """`error`, of ``import keras``, with the line that mends it."""
    name = (error.name or "").partition(".")[0]
    if name == "keras":
        message = "labelsmooth.keras needs Keras 3: pip install 'labelsmooth[keras]'"
    elif name in _BACKENDS:
        others = " or ".join(f"KERAS_BACKEND={other}" for other in _BACKENDS if other != name)
        told = os.environ.get("KERAS_BACKEND") == name
        chosen = f"KERAS_BACKEND is {name}" if told else f"without KERAS_BACKEND, Keras' backend is {name}"
        advice = f"pip install {name}; or set {others} before Keras is imported"
        message = f"{chosen}, and {name} is not installed: {advice}"
    else:
        return error
    return ModuleNotFoundError(message, name=error.name)
