"""Evaluation: logits and labels as NumPy arrays in, numbers out."""

from labelsmooth.evaluation.calibration import (
    Cells,
    Reliability,
    adaptive_ece,
    classwise_ece,
    ece,
    expected_adaptive_ece,
    expected_classwise_ece,
    expected_ece,
    gap,
    mce,
    reliability,
)
from labelsmooth.evaluation.intervals import bootstrap_mean, wilson
from labelsmooth.evaluation.metrics import ClassMetrics, Evaluation, Metric, evaluate
from labelsmooth.evaluation.predictions import Predictions, check_disjoint, load_predictions
from labelsmooth.evaluation.representation import class_separation, project
from labelsmooth.evaluation.rows import Rows
from labelsmooth.evaluation.selective import augrc, aurc, coverage_at_risk, risk_coverage
from labelsmooth.evaluation.temperature import fit_temperature

__all__ = [
    "Cells", "ClassMetrics", "Evaluation", "Metric", "Predictions", "Reliability", "Rows", "adaptive_ece", "augrc",
    "aurc", "bootstrap_mean", "check_disjoint", "class_separation", "classwise_ece", "coverage_at_risk", "ece",
    "evaluate", "expected_adaptive_ece", "expected_classwise_ece", "expected_ece", "fit_temperature", "gap",
    "load_predictions", "mce", "project", "reliability", "risk_coverage", "wilson",
]  # fmt: skip
