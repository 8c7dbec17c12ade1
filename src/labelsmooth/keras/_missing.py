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
        chosen = "KERAS_BACKEND says" if "KERAS_BACKEND" in os.environ else "its configuration says, or by default,"
        others = " or ".join(f"KERAS_BACKEND={other}" for other in _BACKENDS if other != name)
        message = (
            f"Keras runs on {name} here, as {chosen} and {name} is not installed: pip install {name}; "
            f"or set {others} before Keras is imported"
        )
    else:
        return error
    return ModuleNotFoundError(message, name=error.name)
