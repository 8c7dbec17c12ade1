"""What the report of a run says and shows, from the files in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth.evaluation import Evaluation, Predictions, check_disjoint, evaluate
from labelsmooth.evaluation.rows import rows
from labelsmooth.evaluation.selective import risk_coverage
from labelsmooth.report import plots
from labelsmooth.report.content import Content, class_count, class_names, mistake_pictures, projected, thinned
from labelsmooth.report.panels import Panel
from labelsmooth.report.sources import MAYBE, NUMBER, Source, clean, reason
from labelsmooth.report.theme import BLUE, VERMILLION

CURVES = (
    "epoch",
    "smoothing",
    "train_loss_smoothed",
    "train_loss_floor",
    "train_nll",
    "train_accuracy",
    "val_nll",
    "val_accuracy",
)
_CONFUSIONS = 8
_TEST, _VAL = "predictions/test.npz", "predictions/val.npz"

# What the files are read for, as `sources.misfit` takes it.
_NAME = (str, None)
_DATA = {
    "name": _NAME, "source": _NAME, "sha256": _NAME, "classes": ([str], None), "examples": ({...: int}, None),
    "noise": ({"asked": str, "changed": int, "of": int}, None),
}  # fmt: skip
_SUMMARY = {
    "model": str, "data": str, "epochs": NUMBER, "seed": NUMBER, "smoothing": NUMBER, "method": _NAME,
    "test": {"accuracy": NUMBER, "examples": int}, "best": ({"epoch": NUMBER}, None),
}  # fmt: skip


def gather(folder: Path) -> Content:
    """All that can be said of a run, finished or not."""
    source = Source(folder)
    if source.has("config.yaml"):
        source.why = "" if source.has("summary.json") else "because the run has not finished"
    else:
        source.why = "because nothing but predictions was written here"
    config = source.mapping("config.yaml", "the settings", {"epochs": MAYBE})
    data = source.mapping("data.json", "what the data are", _DATA)
    env = source.mapping("env.json", "versions and hardware")
    summary = source.mapping("summary.json", "the summary", _SUMMARY) if source.has("summary.json") else {}
    curves = source.table("metrics.csv", CURVES, "the curves")
    test = source.predictions("test", "everything about the test set")
    names: list[str] = [] if test is None else class_names(source, test, data.get("classes"), "data.json")
    evaluation = None if test is None else _evaluate(source, test, names)
    content = Content("run.html.j2", source)
    counts, plane = None if evaluation is None else evaluation.confusion, ""
    if curves:
        smoothing = curves[-1]["smoothing"] or 0.0
        content.panels["curves"] = source.attempt("the curves", lambda: plots.curve_panels(curves, smoothing), [])
    if evaluation is not None and test is not None:
        content.panels |= _panels(source, evaluation)
        if counts is None:
            source.lacks("the data set", "the confusion matrix and the projection", f"has {len(names)} classes")
        else:
            content.panels["confusion"] = source.attempt(
                "the confusion matrix", lambda: [plots.confusion_panel(counts, names)], []
            )
            content.panels["projection"], plane = source.attempt(
                "the projection", lambda: _projection(source, test, names, counts), ([], "")
            )
        content.mistakes = source.attempt("the worst mistakes", lambda: mistake_pictures(source, names), [])
    content.variables = {
        "name": clean(folder.resolve().name),
        "folder": clean(shlex.quote(str(folder))),
        "finished": source.has("summary.json"),
        "config": config, "data": data, "env": env, "summary": summary,
        "last": curves[-1] if curves else None,
        "best": max((row for row in curves if None not in (row["val_accuracy"], row["val_nll"])), default=None,
                    key=lambda row: (row["val_accuracy"], -row["val_nll"])),
        "evaluation": evaluation, "class_names": names, "plane": plane,
        "scaled_ece": next((m for m in evaluation.scaled if m.key == "ece"), None) if evaluation else None,
        "metrics": [] if evaluation is None else _metrics(evaluation),
        "confusions": [] if counts is None else _confusions(counts, names),
        "log": source.log(),
    }  # fmt: skip
    return content


def _evaluate(source: Source, test: Predictions, names: list[str]) -> Evaluation | None:
    val, without = source.predictions("val", "temperature scaling"), "everything about the test set"
    if val is not None:
        try:
            if class_count(val) != class_count(test):
                raise ValueError(f"it has {class_count(val)} classes, and test has {class_count(test)}")
            rows(val.logits, val.labels)
            check_disjoint(test, val)
        except (ValueError, TypeError) as error:
            source.lacks(_VAL, "temperature scaling", f"cannot be used ({reason(error)})")
            val = None
    validation = None if val is None else (val.logits, val.labels)
    problem = None
    for features in (test.features, None):
        try:
            evaluation = evaluate(test.logits, test.labels, names, validation=validation, features=features)
        except ValueError as error:
            problem = problem or error
        else:
            if problem is not None:
                source.lacks(_TEST, "class separation", f"holds features that cannot be used ({reason(problem)})")
            return evaluation
    source.lacks(_TEST, without, f"cannot be evaluated ({reason(problem)})")
    return None


def _panels(source: Source, evaluation: Evaluation) -> dict[str, list[Panel]]:
    test = evaluation.rows

    def reliability() -> list[Panel]:
        ece, scaled = evaluation.metric("ece").value, evaluation.scaled_reliability
        panels = [plots.reliability_panel(evaluation.reliability, ece, "Before temperature scaling")]
        if scaled is not None:
            ece = next(metric.value for metric in evaluation.scaled if metric.key == "ece")
            title = f"After temperature scaling, T = {evaluation.temperature:.3g}"
            panels.append(plots.reliability_panel(scaled, ece, title))
        return panels

    def risk() -> list[Panel]:
        scores = (("by confidence", BLUE, test.confidence), ("by normalised logits", VERMILLION, test.normalised))
        return [
            plots.risk_coverage_panel(
                [(name, colour, *thinned(*risk_coverage(score, test.hits)), None) for name, colour, score in scores]
            )
        ]

    makers: dict[str, Callable[[], list[Panel]]] = {
        "reliability": reliability,
        "confidence": lambda: [plots.confidence_panel(test.confidence, test.hits)],
        "risk_coverage": risk,
    }
    return {name: source.attempt(name.replace("_", " and "), make, []) for name, make in makers.items()}


def _projection(source: Source, test: Predictions, names: list[str], confusion: np.ndarray) -> tuple[list[Panel], str]:
    train = source.predictions("train", "the projection of training examples")
    splits = [] if train is None else [("Training examples", "train", train)]
    return projected(source, [*splits, ("Test examples", "test", test)], names, confusion)


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A line per metric, with its value after temperature scaling where that changes it."""
    scaled = {metric.key: metric for metric in evaluation.scaled}
    lines = []
    for metric in evaluation.metrics:
        after = scaled.get(metric.key)
        same = after is not None and np.isclose(after.value, metric.value, rtol=1e-9, atol=1e-12)
        lines.append({"metric": metric, "after": after, "same": same})
    return lines


def _confusions(counts: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for one another most often."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [
        {"true": names[t], "predicted": names[p], "count": int(wrong[t, p]), "of": int(counts[t].sum())}
        for t, p in pairs
        if wrong[t, p]
    ]
