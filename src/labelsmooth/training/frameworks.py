"""Which framework trains, and what it can; none of them is imported here."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from labelsmooth import _checks
from labelsmooth._text import nearest

if TYPE_CHECKING:
    from labelsmooth.training.run import Settings

FRAMEWORKS = ("torch", "keras")
KERAS_BACKENDS = ("tensorflow", "jax", "torch")
KERAS_MODELS = ("minigooglenet", "small")
_OTHER_NAMES = {"pytorch": "torch", "tf": "keras with keras_backend tensorflow",
                "tensorflow": "keras with keras_backend tensorflow", "jax": "keras with keras_backend jax"}  # fmt: skip


def check(settings: Settings) -> None:
    """Whether a framework does what the settings ask for; nothing that it cannot do is left out in silence.

    Raises:
        ValueError: an unknown framework or backend, or an option that belongs to another framework.
    """
    name, recipe = settings.framework, settings.recipe
    if name not in FRAMEWORKS:
        other = _OTHER_NAMES.get(str(name).lower())
        hint = f"; did you mean {other}?" if other else nearest(str(name), list(FRAMEWORKS))
        raise _checks.error("framework", f"be one of {', '.join(map(repr, FRAMEWORKS))}", repr(name) + hint)
    if name != "keras":
        if settings.keras_backend is not None:
            raise _checks.error("keras_backend", "come with framework 'keras'", repr(settings.keras_backend))
        return
    if settings.keras_backend is not None:
        _checks.one_of(settings.keras_backend, "keras_backend", KERAS_BACKENDS)
    rules: list[tuple[str, Any, tuple[Any, ...], str]] = [
        ("model", recipe.model, KERAS_MODELS, f"be {' or '.join(KERAS_MODELS)}"),
        ("optimizer", recipe.optimizer, ("sgd",), "be sgd"),
        ("small_share", recipe.small_share, (0,), "be 0"),
        ("precision", recipe.precision, ("auto", "float32"), "be float32 or auto"),
        ("device", settings.device, ("auto",), "be auto (Keras' backend chooses it)"),
        ("deterministic", settings.deterministic, (False,), "be false"),
        ("devices", settings.devices, (1,), "be 1"),
        ("accumulate", settings.accumulate, (1,), "be 1"),
        ("compile", settings.compile, (None, False), "be false (Keras compiles as its backend can)"),
    ]
    for option, value, allowed, rule in rules:
        if value not in allowed:
            raise _checks.error(option, f"{rule} with framework keras", repr(value))


def use_keras(backend: str | None) -> str:
    """See to it that Keras will be imported on `backend`, and return the backend's name.

    Args:
        backend: its name; None: that of a Keras which is loaded already, else what KERAS_BACKEND says, else the first
            of TensorFlow, JAX and PyTorch that is installed.

    Raises:
        ValueError: Keras is loaded with another backend, or KERAS_BACKEND names another.
        ModuleNotFoundError: Keras, or the backend, is not installed.
    """
    if backend is not None:
        _checks.one_of(backend, "keras_backend", KERAS_BACKENDS)
    told = os.environ.get("KERAS_BACKEND") or None
    if "keras" in sys.modules:
        loaded = sys.modules["keras"].backend.backend()
        if backend not in (None, loaded):
            rule = f"be {loaded!r}, with which Keras is loaded in this process already (take another process)"
            raise _checks.error("keras_backend", rule, repr(backend))
        backend = loaded
    elif told is not None:
        if backend not in (None, told):
            rule = f"be {told!r}, as KERAS_BACKEND in the environment says (unset that, or set it to {backend})"
            raise _checks.error("keras_backend", rule, repr(backend))
        backend = told
    elif backend is None:
        backend = next(name for name in KERAS_BACKENDS if name == "torch" or importlib.util.find_spec(name))
    if backend not in KERAS_BACKENDS:
        raise _checks.error("KERAS_BACKEND", f"be one of {', '.join(map(repr, KERAS_BACKENDS))}", repr(backend))
    for package, needs, install in (
        ("keras", "framework keras needs Keras 3", "'labelsmooth[keras]'"),
        (backend, f"keras_backend {backend} needs {backend}", backend),
    ):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{needs}: pip install {install}", name=package)
    os.environ["KERAS_BACKEND"] = backend
    if backend == "tensorflow":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes about the processor, among our lines
        if "tensorflow" not in sys.modules and importlib.util.find_spec("triton"):
            importlib.import_module("triton")  # which PyTorch loads; loaded after TensorFlow, it ends the process
    return backend
