"""Metrics of a classifier on hard labels; nothing here is ever smoothed."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._text import counted, printable
from labelsmooth.evaluation import _blocks, selective
from labelsmooth.evaluation.calibration import Cells, Reliability, bin_count, diagram, equal_mass, equal_width, gap
from labelsmooth.evaluation.intervals import bootstrap_mean, wilson
from labelsmooth.evaluation.representation import class_separation
from labelsmooth.evaluation.rows import Rows, rows_at
from labelsmooth.evaluation.temperature import fit_checked

MOST_CONFUSED = 5000  # classes; the matrix of more would take more than 200 MB


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of a class (0 where undefined), and its support, the number of its examples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metric:
    """One figure, and how far to trust it.

    Attributes:
        key: its name in JSON.
        label: its name in words.
        value: the figure.
        interval: the 95 % bootstrap interval of a mean over examples, None for other figures and where it is infinite;
            of a share of 0 or 1, where the bootstrap has no width, Wilson's.
        expected: of an ECE, its expectation under perfect calibration (the same confidences, the labels redrawn); a
            bootstrap interval of an ECE would be biased.
        bins: of an ECE or the MCE.
    """

    key: str
    label: str
    value: float
    interval: tuple[float, float] | None = None
    expected: float | None = None
    bins: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on hard labels.

    Attributes:
        examples: N.
        accuracy: the share of examples whose largest logit is the label's; of equal ones the first counts.
        nll: the mean of -log p of the label, in nats.
        classes: a `ClassMetrics` for each class.
        confusion: int64 ``[K, K]``, rows are true classes, columns predictions; None for more than 5000 classes.
        metrics: all figures.
        reliability: the diagram behind the ECE.
        rows: the figures of each example.
        temperature: T, fitted on the validation logits; None where there were none.
        scaled: the figures of softmax(logits / T); empty without a temperature.
        scaled_reliability: the diagram of softmax(logits / T); None without a temperature.
    """

    examples: int
    accuracy: float
    nll: float
    classes: tuple[ClassMetrics, ...]
    confusion: np.ndarray | None
    metrics: tuple[Metric, ...]
    reliability: Reliability
    rows: Rows
    temperature: float | None = None
    scaled: tuple[Metric, ...] = ()
    scaled_reliability: Reliability | None = None

    def metric(self, key: str) -> Metric:
        """The figure called `key`, before temperature scaling."""
        found = {metric.key: metric for metric in self.metrics}
        _checks.one_of(key, "key", tuple(found))
        return found[key]

    def averages(self) -> tuple[ClassMetrics, ClassMetrics]:
        """The mean over classes, plain and weighted by support."""
        values = np.array([[c.precision, c.recall, c.f1] for c in self.classes])
        support = np.array([c.support for c in self.classes])
        macro, weighted = values.mean(axis=0).tolist(), (support @ values / max(1, support.sum())).tolist()
        return (
            ClassMetrics("macro avg", macro[0], macro[1], macro[2], self.examples),
            ClassMetrics("weighted avg", weighted[0], weighted[1], weighted[2], self.examples),
        )

    def report(self) -> str:
        """The classification report as text: precision, recall, F1 and support per class, accuracy, averages."""
        rows = [replace(row, name=printable(row.name)) for row in (*self.classes, *self.averages())]
        width = max(len(row.name) for row in rows)
        lines = [f"{'':>{width}}  precision    recall  f1-score   support", ""]
        for row in rows:
            if row.name == "macro avg":
                lines += ["", f"{'accuracy':>{width}}  {'':>9} {'':>9} {self.accuracy:>9.4f} {self.examples:>9}"]
            lines.append(
                f"{row.name:>{width}}  {row.precision:>9.4f} {row.recall:>9.4f} {row.f1:>9.4f} {row.support:>9}"
            )
        return "\n".join(lines)

    def table(self) -> str:
        """A line per figure: its value, its interval or expectation, and its value after temperature scaling."""
        width = max(len(_titled(metric)) for metric in self.metrics)
        notes = [_note(metric) for metric in self.metrics]
        beside = max(map(len, notes))
        after = "" if self.temperature is None else f"  after temperature scaling, T = {self.temperature:.4f}"
        lines = [f"{counted(self.examples, 'example'):<{width}}  {'':>9}  {'':<{beside}}{after}".rstrip()]
        scaled = {metric.key: f"  {metric.value:.4f}  {_expected(metric)}" for metric in self.scaled}
        for metric, note in zip(self.metrics, notes, strict=True):
            line = f"{_titled(metric):<{width}}  {metric.value:>9.4f}  {note:<{beside}}{scaled.get(metric.key, '')}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """JSON's view of it."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "nll": self.nll,
            "classes": [asdict(row) for row in self.classes],
            "averages": [asdict(row) for row in self.averages()],
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "metrics": _by_key(self.metrics),
            "temperature": self.temperature,
            "scaled": _by_key(self.scaled),
        }


def evaluate(
    logits: Any,
    labels: Any,
    class_names: Any = None,
    *,
    validation: tuple[Any, Any] | None = None,
    features: Any = None,
    bins: int = 15,
) -> Evaluation:
    """All figures of a classifier on hard labels, before temperature scaling and after it.

    Args:
        logits: real array ``[N, K]``, perhaps memory-mapped; -inf is a probability of 0.
        labels: class ids ``[N]`` in ``0..K-1``.
        class_names: K names; the ids if None.
        validation: logits ``[M, K]`` and labels ``[M]`` of other examples, which the temperature is fitted on; without
            them there is no temperature.
        features: ``[N, D]``, the penultimate layer, for the class separation.
        bins: of the ECEs, the MCE and the reliability diagram, at most 1000.

    Returns:
        An `Evaluation`. The keys of its figures: accuracy, top5 (K above 5), nll, brier, ece, adaptive_ece,
        classwise_ece, mce, gap, aurc, augrc, coverage_at_5, the last three again with "_normalised" (scored after logit
        normalisation), margin, class_separation (with features).

    Raises:
        ValueError: shapes that do not match, no example, nan or +inf in the logits, labels out of range, names or
            validation logits of another K, bins out of range.

    Example:
        >>> from labelsmooth.evaluation import evaluate
        >>> result = evaluate([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1])
        >>> round(result.accuracy, 4), round(result.nll, 4), round(result.metric("ece").value, 4)
        (0.6667, 1.1629, 0.4469)
    """
    logits, labels = _blocks.checked(logits, labels)
    (n, count), bins = logits.shape, bin_count(bins)
    names = [str(k) for k in range(count)] if class_names is None else [str(name) for name in class_names]
    if len(names) != count:
        raise _checks.error("class_names", f"have {count} names, one per class of the logits", len(names))
    separation = () if features is None else (_separation(features, labels),)
    temperature = None
    if validation is not None:
        held_out = _blocks.checked(*validation, name="validation ")
        if held_out[0].shape[1] != count:
            rule = f"have the {count} classes of the logits"
            raise _checks.error("validation logits", rule, held_out[0].shape[1])
        temperature = fit_checked(*held_out, name="validation ")

    rows = rows_at(logits, labels, (1.0,) if temperature is None else (1.0, temperature), bins)
    cells = [equal_width(one.confidence, one.hits, bins) for one in rows]
    accuracies = _accuracies(rows[0], count)
    normalised = _selective(rows[0].normalised, rows[0].hits, "_normalised", ", logits normalised")

    def figures(one: Rows, own: Cells) -> tuple[Metric, ...]:
        proper, calibrated = _proper_scores(one), _calibration(one, own)
        selected = _selective(one.confidence, one.hits)
        return (*accuracies, *proper, *calibrated, *selected, *normalised, _margin(one), *separation)

    with ThreadPoolExecutor(len(rows)) as pool:
        metrics, *scaled = pool.map(figures, rows, cells)
    predicted, confusion = rows[0].predicted, None
    if count <= MOST_CONFUSED:
        confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    return Evaluation(
        examples=n,
        accuracy=accuracies[0].value,
        nll=metrics[len(accuracies)].value,
        classes=_per_class(labels, predicted, names),
        confusion=confusion,
        metrics=metrics,
        reliability=diagram(cells[0]),
        rows=rows[0],
        temperature=temperature,
        scaled=scaled[0] if scaled else (),
        scaled_reliability=diagram(cells[1]) if scaled else None,
    )


def nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of the label for each row, float64 ``[N]``; p = softmax(logits), no row all -inf."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]


def _accuracies(rows: Rows, count: int) -> list[Metric]:
    accuracy = _share("accuracy", "accuracy", rows.hits)
    return [accuracy, _share("top5", "top-5 accuracy", rows.top5)] if count > 5 else [accuracy]


def _proper_scores(rows: Rows) -> list[Metric]:
    return [_mean("nll", "NLL", rows.nll), _mean("brier", "Brier score, 0 to 2", rows.brier)]


def _mean(key: str, label: str, values: np.ndarray) -> Metric:
    with np.errstate(over="ignore"):
        value = float(values.mean())
    return Metric(key, label, value, bootstrap_mean(values) if math.isfinite(value) else None)


def _share(key: str, label: str, hits: np.ndarray) -> Metric:
    metric = _mean(key, label, hits)
    if 0 < metric.value < 1:
        return metric
    low, high = wilson(metric.value, len(hits))
    return replace(metric, interval=(float(low), float(high)))


def _calibration(rows: Rows, cells: Cells) -> list[Metric]:
    bins = len(cells.counts)
    adaptive, classwise = equal_mass(rows.confidence, rows.hits, bins), rows.classwise
    return [
        Metric("ece", "ECE", cells.ece(), expected=cells.expected_ece(), bins=bins),
        Metric("adaptive_ece", "adaptive ECE", adaptive.ece(), expected=adaptive.expected_ece(), bins=bins),
        Metric("classwise_ece", "classwise ECE", classwise.ece(), expected=classwise.expected_ece(), bins=bins),
        Metric("mce", "MCE", cells.mce(), bins=bins),
        Metric("gap", "confidence - accuracy", gap(rows.confidence, rows.hits)),
    ]


def _selective(score: np.ndarray, hits: np.ndarray, suffix: str = "", words: str = "") -> list[Metric]:
    aurc, augrc, coverage = selective.summary(score, hits)
    return [
        Metric(f"aurc{suffix}", f"AURC{words}", aurc),
        Metric(f"augrc{suffix}", f"AUGRC{words}", augrc),
        Metric(f"coverage_at_5{suffix}", f"coverage at 5 % risk{words}", coverage),
    ]


def _margin(rows: Rows) -> Metric:
    with np.errstate(over="ignore", invalid="ignore"):  # +inf and -inf, where logits are -inf, have no mean
        return Metric("margin", "margin of the label's logit", float(rows.margin.mean()))


def _separation(features: Any, labels: np.ndarray) -> Metric:
    return Metric("class_separation", "class separation R²", class_separation(features, labels))


def _per_class(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> tuple[ClassMetrics, ...]:
    of_hits = labels[predicted == labels]
    hits, support, claims = (np.bincount(ids, minlength=len(names)) for ids in (of_hits, labels, predicted))
    precision, recall, f1 = _ratio(hits, claims), _ratio(hits, support), _ratio(2.0 * hits, support + claims)
    return tuple(
        ClassMetrics(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]))
        for k, name in enumerate(names)
    )


def _titled(metric: Metric) -> str:
    return metric.label if metric.bins is None else f"{metric.label}, {counted(metric.bins, 'bin')}"


def _note(metric: Metric) -> str:
    if metric.interval is not None:
        return f"{metric.interval[0]:.4f} to {metric.interval[1]:.4f}"
    return _expected(metric)


def _expected(metric: Metric) -> str:
    return "" if metric.expected is None else f"{metric.expected:.4f} if perfectly calibrated"


def _by_key(metrics: tuple[Metric, ...]) -> dict[str, dict[str, Any]]:
    return {
        metric.key: {
            "value": metric.value,
            "low": None if metric.interval is None else metric.interval[0],
            "high": None if metric.interval is None else metric.interval[1],
            "expected": metric.expected,
            "bins": metric.bins,
        }
        for metric in metrics
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
