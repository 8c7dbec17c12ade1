"""What the report of a run says and shows, from the files in its folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth.evaluation import Evaluation, Predictions, evaluate
from labelsmooth.evaluation.rows import rows
from labelsmooth.evaluation.selective import risk_coverage
from labelsmooth.report import plots
from labelsmooth.report.content import Content, class_names, mistake_pictures, projected, thinned
from labelsmooth.report.panels import Panel
from labelsmooth.report.sources import Source, clean
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


def gather(folder: Path) -> Content:
    """All that can be said of a run, finished or not."""
    source = Source(folder)
    if source.has("config.yaml"):
        source.why = "" if source.has("summary.json") else "because the run has not finished"
    else:
        source.why = "because nothing but predictions was written here"
    config = source.mapping("config.yaml", "the settings")
    data = source.mapping("data.json", "what the data are")
    env = source.mapping("env.json", "versions and hardware")
    summary = source.mapping("summary.json", "the summary") if source.has("summary.json") else {}
    curves = source.table("metrics.csv", CURVES, "the curves")
    test = source.predictions("test", "everything about the test set")
    names: list[str] = [] if test is None else class_names(test, data.get("classes"))
    evaluation = None if test is None else _evaluate(source, test, names)
    content = Content("run.html.j2", source)
    if curves:
        content.panels["curves"] = plots.curve_panels(curves, curves[-1]["smoothing"] or 0.0)
    if evaluation is not None and test is not None:
        content.panels |= _panels(evaluation, names)
        content.panels["projection"] = _projection(source, test, names, evaluation.confusion)
        content.mistakes = mistake_pictures(source, names)
    content.variables = {
        "name": clean(folder.resolve().name),
        "folder": clean(shlex.quote(str(folder))),
        "finished": bool(summary),
        "config": config, "data": data, "env": env, "summary": summary,
        "last": curves[-1] if curves else None,
        "best": max((row for row in curves if row["val_accuracy"] is not None), default=None,
                    key=lambda row: (row["val_accuracy"], -row["val_nll"])),
        "evaluation": evaluation, "class_names": names,
        "scaled_ece": next((m.value for m in evaluation.scaled if m.key == "ece"), None) if evaluation else None,
        "metrics": [] if evaluation is None else _metrics(evaluation),
        "confusions": [] if evaluation is None else _confusions(evaluation.confusion, names),
        "log": source.log(),
    }  # fmt: skip
    return content


def _evaluate(source: Source, test: Predictions, names: list[str]) -> Evaluation | None:
    val = source.predictions("val", "temperature scaling")
    if val is not None:
        try:
            rows(val.logits, val.labels)
        except ValueError as error:
            source.lacks("predictions/val.npz", "temperature scaling", f"cannot be evaluated ({error})")
            val = None
    validation = None if val is None else (val.logits, val.labels)
    try:
        return evaluate(test.logits, test.labels, names, validation=validation, features=test.features)
    except ValueError as error:
        source.lacks("predictions/test.npz", "everything about the test set", f"cannot be evaluated ({error})")
        return None


def _panels(evaluation: Evaluation, names: list[str]) -> dict[str, list[Panel]]:
    test, scaled = evaluation.rows, evaluation.scaled_reliability
    reliability = [
        plots.reliability_panel(evaluation.reliability, evaluation.metric("ece").value, "Before temperature scaling")
    ]
    if scaled is not None:
        ece = next(metric.value for metric in evaluation.scaled if metric.key == "ece")
        title = f"After temperature scaling, T = {evaluation.temperature:.3g}"
        reliability.append(plots.reliability_panel(scaled, ece, title))
    lines = [
        (name, colour, *thinned(*risk_coverage(score, test.hits)), None)
        for name, colour, score in (
            ("by confidence", BLUE, test.confidence), ("by normalised logits", VERMILLION, test.normalised)
        )
    ]  # fmt: skip
    return {
        "reliability": reliability,
        "confidence": [plots.confidence_panel(test.confidence, test.hits)],
        "risk_coverage": [plots.risk_coverage_panel(lines)],
        "confusion": [plots.confusion_panel(evaluation.confusion, names)],
    }


def _projection(source: Source, test: Predictions, names: list[str], confusion: np.ndarray) -> list[Panel]:
    train = source.predictions("train", "the projection of training examples")
    splits = [] if train is None else [("Training examples", "train", train)]
    return projected(source, [*splits, ("Test examples", "test", test)], names, confusion)


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A line per metric, with its value after temperature scaling where that changes it."""
    scaled = {metric.key: metric.value for metric in evaluation.scaled}
    lines = []
    for metric in evaluation.metrics:
        after = scaled.get(metric.key)
        same = after is not None and np.isclose(after, metric.value, rtol=1e-9, atol=1e-12)
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
