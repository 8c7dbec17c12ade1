"""Training image classifiers with label smoothing: recipes, data, the loop, and the run folder that it writes."""

from labelsmooth.training.data import ImageData, load
from labelsmooth.training.loop import Reporter, Result, resume, train
from labelsmooth.training.predict import Predictor
from labelsmooth.training.recipes import CLASSIC, DIGITS, Recipe

__all__ = ["CLASSIC", "DIGITS", "ImageData", "Predictor", "Recipe", "Reporter", "Result", "load", "resume", "train"]
