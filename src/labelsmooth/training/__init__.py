"""Training image classifiers with label smoothing: recipes, data, the loop, and the run folder that it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelsmooth.training.data import ImageData, load
    from labelsmooth.training.loop import Reporter
    from labelsmooth.training.predict import Predictor
    from labelsmooth.training.recipes import CLASSIC, DIGITS, FAST, Recipe
    from labelsmooth.training.session import Result, resume, train

_HOMES = {
    "ImageData": "data", "load": "data", "Reporter": "loop",
    "Result": "session", "resume": "session", "train": "session",
    "Predictor": "predict", "CLASSIC": "recipes", "DIGITS": "recipes", "FAST": "recipes", "Recipe": "recipes",
}  # fmt: skip

__all__ = [
    "CLASSIC",
    "DIGITS",
    "FAST",
    "ImageData",
    "Predictor",
    "Recipe",
    "Reporter",
    "Result",
    "load",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Public names load when they are used: looking at data needs no PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
