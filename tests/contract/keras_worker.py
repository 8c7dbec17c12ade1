"""The Keras loss in a process of its own, which has one backend: names of cases on stdin, their outcomes to an .npz.

KERAS_BACKEND=jax python -m tests.contract.keras_worker outcomes.npz < names
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

import numpy as np

from tests.contract.cases import BY_NAME, Case


def run(case: Case) -> dict[str, np.ndarray | str]:
    import keras
    from keras.src.backend import set_keras_mask  # what Keras' own layers call; it has no public name

    from labelsmooth.keras import SmoothedCrossentropy

    arrays = dict(case.arrays)
    mask, target = arrays.pop("mask", None), tensor(case.target)
    settings = {name: value for name, value in case.settings.items() if name != "normalizer"}
    loss = SmoothedCrossentropy(from_logits=True, axis=case.axis, **settings, **arrays)

    def call(logits: Any) -> Any:
        if mask is not None:
            set_keras_mask(logits, tensor(mask))
        return loss(target, logits)

    value, gradient = value_and_gradient(call, tensor(case.logits))
    return {
        "loss_dtype": keras.backend.standardize_dtype(value.dtype),
        "gradient_dtype": keras.backend.standardize_dtype(gradient.dtype),
        "loss": keras.ops.convert_to_numpy(keras.ops.cast(value, "float64")),
        "gradient": keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float64")),
    }


def tensor(x: np.ndarray) -> Any:
    import keras

    if x.dtype.name == "bfloat16":  # PyTorch takes none of NumPy's
        return keras.ops.cast(keras.ops.convert_to_tensor(x.astype(np.float32)), "bfloat16")
    return keras.ops.convert_to_tensor(x)


def value_and_gradient(call: Any, logits: Any) -> tuple[Any, Any]:
    """The loss, and the gradient of its sum, by the backend's own differentiation."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = call(logits)
        return value, tape.gradient(value, logits)
    if keras.backend.backend() == "jax":
        import jax

        def total(logits: Any) -> Any:
            value = call(logits)
            return value.sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        return value, gradient
    import torch

    logits = logits.detach().requires_grad_()
    value = call(logits)
    return value.detach(), torch.autograd.grad(value, logits, torch.ones_like(value))[0]


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["JAX_ENABLE_X64"] = "1"
    import keras

    outcomes = {}
    warnings.filterwarnings("ignore", "y_pred has one class")
    for name in sys.stdin.read().splitlines():
        try:
            outcome = run(BY_NAME[name])
        except Exception:
            outcome = {"error": traceback.format_exc()}
        outcomes |= {f"{name}: {key}": np.asarray(value) for key, value in outcome.items()}
    np.savez(sys.argv[1], backend=keras.backend.backend(), **outcomes)


if __name__ == "__main__":
    main()
