"""What a page is made of, and the parts that runs and comparisons share."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from labelsmooth.evaluation import Predictions
from labelsmooth.evaluation.representation import project
from labelsmooth.report.panels import Panel
from labelsmooth.report.plots import Projection, projection_panels
from labelsmooth.report.sources import MOST_MISTAKES, Source, clean, reason

_CURVE_POINTS = 300
_LONGEST_SIDE = 96  # of a picture in the page, in pixels


@dataclass
class Content:
    """A page before it is written.

    Attributes:
        template: its file.
        source: the folder, with what is left out.
        variables: of the template.
        panels: figures by the name of their PNG and of their place in the page.
        mistakes: pictures of the worst ones.
    """

    template: str
    source: Source
    variables: dict[str, Any] = field(default_factory=dict)
    panels: dict[str, list[Panel]] = field(default_factory=dict)
    mistakes: list[dict[str, Any]] = field(default_factory=list)


def class_names(source: Source, test: Predictions, known: Sequence[str] | None, file: str) -> list[str]:
    """The names that are known from `file`, or that came with the predictions; else the ids."""
    count = class_count(test)
    for names, where in ((known, file), (test.classes, "predictions/test.npz")):
        if names is not None:
            if len(names) == count:
                return clean(list(names))
            source.lacks(where, "its class names", f"names {len(names)} classes, where the logits have {count}")
    return [str(k) for k in range(count)]


def class_count(predictions: Predictions) -> int:
    return np.shape(predictions.logits)[-1] if np.ndim(predictions.logits) else 0


def thinned(coverage: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve with no more points than can be seen, its last one among them."""
    if len(coverage) <= _CURVE_POINTS:
        return coverage, risk
    some = np.unique(np.linspace(0, len(coverage) - 1, _CURVE_POINTS).round().astype(np.int64))
    return coverage[some], risk[some]


def mistake_pictures(source: Source, names: Sequence[str]) -> list[dict[str, Any]]:
    """The worst mistakes: each picture as a PNG in a data URI, and what is said of it."""
    found = source.mistakes(len(names))
    if found is None:
        return []
    order = np.argsort(-found.confidence, kind="stable")[:MOST_MISTAKES]
    return [
        {
            "picture": _data_uri(found.images[k]),
            "true": names[int(found.labels[k])],
            "predicted": names[int(found.predicted[k])],
            "confidence": float(found.confidence[k]),
            "index": int(found.index[k]),
            "pixelated": max(found.images.shape[1:3]) < _LONGEST_SIDE,
        }
        for k in order
    ]


def _data_uri(pixels: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def projected(
    source: Source, splits: Sequence[tuple[str, str, Predictions]], names: Sequence[str], confusion: np.ndarray
) -> tuple[list[Panel], str]:
    """The penultimate layer of the three classes that are confused most, all splits in one plane.

    Args:
        source: the folder of the predictions.
        splits: a panel's title, its split, and that split's predictions.
        names: of the classes.
        confusion: ``[K, K]``.

    Returns:
        The panels, and through what of the classes their plane goes.
    """
    without, shown = "the projection of the penultimate layer", []
    if len(names) < 3:
        source.lacks("the data set", without, f"has {len(names)} classes, and a projection needs three")
        return [], ""
    classes = most_confused(confusion)
    templates = next((each.templates for _, _, each in splits if each.templates is not None), None)
    plane, corner = "templates (the last layer's rows)", "its template"
    for title, split, each in splits:
        file = f"predictions/{split}.npz"
        if each.features is None:
            source.lacks(file, without, "holds no features")
            continue
        try:
            with np.errstate(all="ignore"):
                if templates is None:
                    templates = _means(each, classes)
                    plane, corner = "mean features", f"its mean over the {split} examples, as there are no templates"
                found = Projection(title, corner, *project(each.features, each.labels, templates, classes))
            if not (np.isfinite(found.points).all() and np.isfinite(found.corners).all()):
                raise ValueError("features and templates must be finite")
            shown.append(found)
        except ValueError as error:
            source.lacks(file, without, f"cannot be projected ({reason(error)})")
    return (projection_panels(shown, names, classes), plane) if shown else ([], "")


def _means(predictions: Predictions, classes: Sequence[int]) -> np.ndarray | None:
    """Mean features ``[K, D]`` of the three classes, 0 elsewhere; None where one has none, which `project` tells."""
    features, labels = np.asarray(predictions.features), np.asarray(predictions.labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not set(classes) <= set(labels.tolist()):
        return None
    means = np.zeros((max(classes) + 1, features.shape[1]))
    for k in classes:
        means[k] = features[labels == k].mean(axis=0, dtype=np.float64)
    return means


def most_confused(confusion: np.ndarray) -> tuple[int, int, int]:
    """The pair of classes confused most, and the class confused most with these two."""
    both = confusion + confusion.T
    np.fill_diagonal(both, -1)
    first, second = divmod(int(both.argmax()), len(both))
    with_these = both[first] + both[second]
    with_these[[first, second]] = -2
    return first, second, int(with_these.argmax())
