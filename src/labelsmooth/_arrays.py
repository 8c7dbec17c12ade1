"""Arrays of other frameworks, without importing any: an adapter per framework, found by the array's own type.

An array whose values are at hand (on the CPU, not traced, needing no gradient) goes through NumPy, so that its
result is bit for bit NumPy's. Any other is computed by its own framework with the functions of its adapter.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from labelsmooth import _checks


class _Torch:
    writes = True  # takes `out`

    @staticmethod
    def to_host(x: Any) -> np.ndarray | None:
        from labelsmooth.torch._values import at_hand

        torch = sys.modules["torch"]
        if not at_hand(x) or x.requires_grad:
            return None
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()

    @staticmethod
    def dtype(name: str) -> Any:
        return getattr(sys.modules["torch"], name)

    @staticmethod
    def from_host(x: np.ndarray, like: Any, dtype: Any) -> Any:
        result = sys.modules["torch"].as_tensor(x, device=like.device)
        return result if dtype is None else result.to(dtype)

    @staticmethod
    def asarray(x: Any, like: Any, dtype: Any) -> Any:
        return sys.modules["torch"].as_tensor(x, device=like.device).to(dtype)

    @staticmethod
    def one_hot(ids: Any, count: int, dtype: Any) -> Any:
        torch = sys.modules["torch"]
        return (ids.long().unsqueeze(-1) == torch.arange(count, device=ids.device)).to(dtype)

    @staticmethod
    def argmax(x: Any) -> Any:
        return x.to(sys.modules["torch"].uint8).argmax(-1)

    @staticmethod
    def dot(q: Any, table: Any) -> Any:
        torch = sys.modules["torch"]
        with torch.autocast(q.device.type, enabled=False):  # it would multiply in half precision
            return torch.tensordot(q, table, dims=1)

    @staticmethod
    def total(x: Any) -> Any:
        return x.sum(-1, keepdim=True)

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        return sys.modules["torch"].where(condition, yes, no)


class _Jax:
    writes = False

    @staticmethod
    def to_host(x: Any) -> np.ndarray | None:
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
            return None
        if any(device.platform != "cpu" for device in x.devices()):
            return None
        return np.asarray(x, np.float32) if x.dtype.name == "bfloat16" else np.asarray(x)

    @staticmethod
    def dtype(name: str) -> Any:
        return sys.modules["jax"].numpy.dtype(name)

    @staticmethod
    def from_host(x: np.ndarray, like: Any, dtype: Any) -> Any:
        return sys.modules["jax"].numpy.asarray(x, dtype=dtype)

    @staticmethod
    def asarray(x: Any, like: Any, dtype: Any) -> Any:
        return sys.modules["jax"].numpy.asarray(x).astype(dtype)

    @staticmethod
    def one_hot(ids: Any, count: int, dtype: Any) -> Any:
        return sys.modules["jax"].nn.one_hot(ids.astype(int), count, dtype=dtype)

    @staticmethod
    def argmax(x: Any) -> Any:
        return x.argmax(-1)

    @staticmethod
    def dot(q: Any, table: Any) -> Any:
        return sys.modules["jax"].numpy.dot(q, table, precision="highest")

    @staticmethod
    def total(x: Any) -> Any:
        return x.sum(-1, keepdims=True)

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        return sys.modules["jax"].numpy.where(condition, yes, no)


class _TensorFlow:
    writes = False

    @staticmethod
    def to_host(x: Any) -> np.ndarray | None:
        tf = sys.modules["tensorflow"]
        if not tf.executing_eagerly() or "GPU" in (x.device or ""):
            return None
        if x.dtype.is_floating and _tape_records():
            return None
        value = x.numpy()
        return value.astype(np.float32) if value.dtype.name == "bfloat16" else value

    @staticmethod
    def dtype(name: str) -> Any:
        return sys.modules["tensorflow"].as_dtype(name)

    @staticmethod
    def from_host(x: np.ndarray, like: Any, dtype: Any) -> Any:
        tf = sys.modules["tensorflow"]
        result = tf.convert_to_tensor(x)
        return result if dtype is None else tf.cast(result, dtype)

    @staticmethod
    def asarray(x: Any, like: Any, dtype: Any) -> Any:
        tf = sys.modules["tensorflow"]
        return tf.cast(tf.convert_to_tensor(x), dtype)

    @staticmethod
    def one_hot(ids: Any, count: int, dtype: Any) -> Any:
        tf = sys.modules["tensorflow"]
        return tf.one_hot(tf.cast(ids, tf.int64), count, dtype=dtype)

    @staticmethod
    def argmax(x: Any) -> Any:
        tf = sys.modules["tensorflow"]
        return tf.argmax(tf.cast(x, tf.int32), axis=-1)

    @staticmethod
    def dot(q: Any, table: Any) -> Any:
        return sys.modules["tensorflow"].tensordot(q, table, 1)

    @staticmethod
    def total(x: Any) -> Any:
        return sys.modules["tensorflow"].reduce_sum(x, axis=-1, keepdims=True)

    @staticmethod
    def where(condition: Any, yes: Any, no: Any) -> Any:
        return sys.modules["tensorflow"].where(condition, yes, no)


def _tape_records() -> bool:
    """True where a tf.GradientTape may be recording, which a tensor does not tell of itself."""
    from tensorflow.python.eager import record  # pyright: ignore

    return record.could_possibly_record()


def adapter(x: Any) -> Any:
    """The adapter for an array of another framework; None for NumPy's arrays and all that NumPy can read."""
    if x is None or isinstance(x, (np.ndarray, list)):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _Torch
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, jax.Array):
        return _Jax
    tf = sys.modules.get("tensorflow")
    if tf is not None and (isinstance(x, tf.Variable) or tf.is_tensor(x)):
        return _TensorFlow
    return None


def at_hand(*arrays: Any) -> bool:
    """True where the values of all can be read at once: on the CPU, not traced, needing no gradient."""
    frameworks = [adapter(x) for x in arrays]
    return all(f is None or f.to_host(x) is not None for f, x in zip(frameworks, arrays, strict=True))


def to_host(x: Any, name: str) -> np.ndarray:
    """`x` as a NumPy array.

    Raises:
        ValueError: its values are not at hand (traced, on a GPU, or part of a gradient).
    """
    framework = adapter(x)
    host = np.asarray(x) if framework is None else framework.to_host(x)
    if host is None:
        raise _checks.error(
            name, "have its values at hand (on the CPU, not traced, needing no gradient)", repr(type(x))
        )
    return host


def from_host(x: np.ndarray, like: Any) -> Any:
    """`x` as the kind of array that `like` is."""
    framework = adapter(like)
    return x if framework is None else framework.from_host(x, like, None)


def dtype_name(x: Any) -> str:
    """The name of the dtype of an array, or of a dtype, of any framework: ``float32`` for ``torch.float32``.

    Raises:
        TypeError: `x` is neither.
    """
    dtype = x if isinstance(x, (type, str)) else getattr(x, "dtype", x)
    if type(dtype).__module__ == "torch":
        return str(dtype).rpartition(".")[2]
    name = getattr(dtype, "name", None)  # NumPy's dtypes and TensorFlow's
    return name if isinstance(name, str) else np.dtype(dtype).name


def kind(x: Any) -> str:
    """The name of the dtype of an array of any framework, or of what NumPy makes of a list."""
    return dtype_name(x if adapter(x) is not None else np.asarray(x))


def is_integer(x: Any) -> bool:
    """True for an array (or list) of integers or booleans, of any framework."""
    return kind(x).startswith(("int", "uint", "bool"))
