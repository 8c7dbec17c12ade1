"""Metrics of a classifier on hard labels; nothing here is ever smoothed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from labelsmooth import _checks


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of a class (0 where undefined), and its support, the number of its examples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on hard labels.

    Attributes:
        examples: N.
        accuracy: the share of examples whose largest logit is the label's; of equal ones the first counts.
        nll: the mean of -log p of the label, in nats.
        classes: a `ClassMetrics` for each class.
        confusion: int64 ``[K, K]``, rows are true classes, columns predictions.
    """

    examples: int
    accuracy: float
    nll: float
    classes: tuple[ClassMetrics, ...]
    confusion: np.ndarray

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
        rows = [replace(row, name=_printable(row.name)) for row in (*self.classes, *self.averages())]
        width = max(len(row.name) for row in rows)
        lines = [f"{'':>{width}}  precision    recall  f1-score   support", ""]
        for row in rows:
            if row.name == "macro avg":
                lines += ["", f"{'accuracy':>{width}}  {'':>9} {'':>9} {self.accuracy:>9.4f} {self.examples:>9}"]
            lines.append(
                f"{row.name:>{width}}  {row.precision:>9.4f} {row.recall:>9.4f} {row.f1:>9.4f} {row.support:>9}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """JSON's view of it."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "nll": self.nll,
            "classes": [asdict(row) for row in self.classes],
            "averages": [asdict(row) for row in self.averages()],
            "confusion": self.confusion.tolist(),
        }


def evaluate(logits: Any, labels: Any, class_names: Any = None) -> Evaluation:
    """Accuracy, NLL, the classification report and the confusion matrix.

    Args:
        logits: real array ``[N, K]``; -inf is a probability of 0.
        labels: class ids ``[N]`` in ``0..K-1``.
        class_names: K names; the ids if None.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: shapes that do not match, no example, nan or +inf in the logits, labels out of range.

    Example:
        >>> from labelsmooth.evaluation import evaluate
        >>> result = evaluate([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1])
        >>> round(result.accuracy, 4), round(result.nll, 4)
        (0.6667, 1.1629)
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype.kind not in "fiu":
        raise _checks.error(
            "logits", "be real numbers of shape [N, K] with N and K above 0", f"{logits.dtype} {logits.shape}"
        )
    n, count = logits.shape
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise _checks.error("labels", f"be class ids of shape {(n,)}", f"{labels.dtype} {labels.shape}")
    _checks.label_range(labels, count)
    names = [str(k) for k in range(count)] if class_names is None else [str(name) for name in class_names]
    if len(names) != count:
        raise _checks.error("class_names", f"have {count} names, one per class of the logits", len(names))
    bad = ~(logits < np.inf)
    if bad.any():
        raise _checks.error("logits", "be finite or -inf", f"{logits[bad][0]} in row {np.argwhere(bad)[0][0]}")

    empty = np.isneginf(logits.max(axis=1))
    if empty.any():
        raise _checks.error("logits", "have a finite value in every row", f"-inf in all of row {np.argmax(empty)}")

    predicted = logits.argmax(axis=1)
    confusion = np.bincount(labels.astype(np.int64) * count + predicted, minlength=count * count).reshape(count, count)
    hits, support, claims = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(hits, claims), _ratio(hits, support)
    f1 = _ratio(2.0 * hits, support + claims)
    classes = tuple(
        ClassMetrics(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]))
        for k, name in enumerate(names)
    )
    return Evaluation(n, float(hits.sum() / n), float(nll(logits, labels).mean()), classes, confusion)


def nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of the label for each row, float64 ``[N]``; p = softmax(logits), no row all -inf."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
