"""What one trial, an arm under a seed, scores on validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._errors import DataError
from labelsmooth.comparison.jackknife import aurc_pseudovalues, ece_pseudovalues
from labelsmooth.evaluation import Predictions as SplitPredictions
from labelsmooth.evaluation.calibration import equal_width
from labelsmooth.evaluation.rows import Rows, rows
from labelsmooth.evaluation.selective import aurc
from labelsmooth.evaluation.temperature import fit_temperature

BINS = 15


@dataclass(frozen=True)
class MetricKind:
    """A metric that arms are compared by.

    Attributes:
        label: in tables.
        better: ``"higher"`` or ``"lower"``.
        margin: a difference below it does not matter, unless the user says otherwise.
        binary: it is the share of examples that are right.
    """

    label: str
    better: str
    margin: float
    binary: bool = False


PRIMARY = "accuracy"
METRICS = {
    "accuracy": MetricKind("accuracy", "higher", 0.005, binary=True),
    "nll": MetricKind("NLL", "lower", 0.01),
    "brier": MetricKind("Brier score", "lower", 0.01),
    "ece": MetricKind(f"ECE, {BINS} bins", "lower", 0.01),
    "aurc": MetricKind("AURC", "lower", 0.005),
    "nll_scaled": MetricKind("NLL after temperature scaling", "lower", 0.01),
    "brier_scaled": MetricKind("Brier score after temperature scaling", "lower", 0.01),
    "ece_scaled": MetricKind(f"ECE, {BINS} bins, after temperature scaling", "lower", 0.01),
}


@dataclass(frozen=True)
class Scores:
    """The figures of a trial.

    Attributes:
        hits, confidence, scaled_confidence: ``[N]``, on test, the last after temperature scaling.
        means: per-example values of the metrics that are means over examples, bool or float32 ``[N]`` each.
        values: the value of every metric.
        temperature: by the NLL of validation.
        val_accuracy, val_nll: on validation.
        expected_ece, expected_ece_scaled: of the two ECEs, under perfect calibration.
    """

    hits: np.ndarray
    confidence: np.ndarray
    scaled_confidence: np.ndarray
    means: Mapping[str, np.ndarray]
    values: Mapping[str, float]
    temperature: float
    val_accuracy: float
    val_nll: float
    expected_ece: float
    expected_ece_scaled: float

    def pseudovalues(self, metric: str) -> np.ndarray:
        """For each test example, float64 ``[N]``; their mean is the metric, or nearly."""
        if metric in self.means:
            return np.asarray(self.means[metric], np.float64)
        if metric == "aurc":
            return aurc_pseudovalues(self.confidence, self.hits)
        confidence = self.scaled_confidence if metric == "ece_scaled" else self.confidence
        return ece_pseudovalues(confidence, self.hits, BINS)


def score(val: SplitPredictions, test: SplitPredictions, where: str) -> Scores:
    """The scores of a trial.

    Args:
        val, test: its predictions.
        where: the trial, for messages.

    Raises:
        DataError: nan, shapes that do not fit, validation and test that overlap.
    """
    if val.logits.ndim == 2 and test.logits.ndim == 2 and val.logits.shape[1] != test.logits.shape[1]:
        raise DataError(
            f"{where}: the logits have {val.logits.shape[1]} classes on validation and {test.logits.shape[1]} on test"
        )
    if val.index is not None and test.index is not None:
        shared = np.intersect1d(val.index, test.index)
        if len(shared):
            raise DataError(f"{where}: {len(shared)} examples are both in validation and in test, such as {shared[0]}")
    elif np.array_equal(val.logits, test.logits) and np.array_equal(val.labels, test.labels):
        raise DataError(
            f"{where}: validation and test have the same logits and labels; ε is chosen on validation, so test others"
        )
    if len(test.labels) < 2:
        raise DataError(f"{where}: the test set has one example; a comparison needs two, and many to tell anything")
    on_val = _rows(val, f"{where}, validation")
    plain = _rows(test, f"{where}, test")
    if not np.isfinite(plain.nll).all():
        raise DataError(
            f"{where}, test: the label's logit is -inf in row {int(np.argmax(np.isinf(plain.nll)))}, so the NLL is "
            "infinite; clip probabilities before their logarithm is taken, such as at 1e-7"
        )
    temperature = fit_temperature(val.logits, val.labels)
    scaled = rows(test.logits, test.labels, temperature=temperature, bins=BINS)
    losses = {"nll": plain.nll, "brier": plain.brier, "nll_scaled": scaled.nll, "brier_scaled": scaled.brier}
    values = {name: float(each.mean()) for name, each in {"accuracy": plain.hits, **losses}.items()}
    cells, scaled_cells = (equal_width(each.confidence, plain.hits, BINS) for each in (plain, scaled))
    values |= {"ece": cells.ece(), "ece_scaled": scaled_cells.ece(), "aurc": aurc(plain.confidence, plain.hits)}
    # All trials of a comparison are in memory at once. Confidences keep float64, so that no two become equal.
    means = {"accuracy": plain.hits, **{name: each.astype(np.float32) for name, each in losses.items()}}
    return Scores(
        plain.hits, plain.confidence, scaled.confidence, means, values, temperature, float(on_val.hits.mean()),
        float(on_val.nll.mean()), cells.expected_ece(), scaled_cells.expected_ece(),
    )  # fmt: skip


def _rows(split: SplitPredictions, where: str) -> Rows:
    try:
        return rows(split.logits, split.labels, bins=BINS)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def check_margins(margins: Mapping[str, Any] | None, name: str = "margins") -> dict[str, float]:
    """The margin of every metric, those given in place of the defaults.

    Args:
        margins: by metric.
        name: of the option, for messages.

    Raises:
        ValueError: an unknown metric, or a margin that is no finite number of at least 0.
    """
    checked = {metric: kind.margin for metric, kind in METRICS.items()}
    for metric, value in (margins or {}).items():
        if metric not in METRICS:
            raise _checks.error(name, f"name metrics among {', '.join(METRICS)}", repr(metric))
        margin = _checks.number(value, f"{name} of {metric}", "be a number of at least 0")
        if not 0 <= margin < np.inf:
            raise _checks.error(f"{name} of {metric}", "be a number of at least 0", value)
        checked[metric] = margin
    return checked
