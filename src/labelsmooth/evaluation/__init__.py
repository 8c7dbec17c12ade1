"""Evaluation: logits and labels as NumPy arrays in, numbers out."""

from labelsmooth.evaluation.metrics import Evaluation, evaluate
from labelsmooth.evaluation.predictions import Predictions, load_predictions

__all__ = ["Evaluation", "Predictions", "evaluate", "load_predictions"]
