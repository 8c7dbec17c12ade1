"""labelsmooth: label smoothing, exact in every framework, and the answer to whether it helps.

Public names are loaded when they are first used, and need NumPy alone: `labelsmooth --help` does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("losses", "priors", "schedules")
_HOMES = {
    "convert_smoothing": "targets",
    "explain": "targets",
    "one_hot": "targets",
    "sample_labels": "labels",
    "smooth_labels": "targets",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"labelsmooth.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'labelsmooth' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"labelsmooth.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
