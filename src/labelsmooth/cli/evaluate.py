"""``labelsmooth evaluate``"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from labelsmooth.cli.output import Json, console, print_json


def evaluate(source: Path, *, split: Literal["test", "val"] = "test", json: Json = False) -> None:
    """Accuracy, NLL and the classification report of a run or of a predictions file, on hard labels.

    Args:
        source: a run's folder, or an .npz file with the arrays logits [N, K] and labels [N].
        split: which of a run's predictions.
    """
    from labelsmooth._errors import DataError
    from labelsmooth.evaluation import evaluate as measure
    from labelsmooth.evaluation import load_predictions

    path = source
    if source.is_dir():
        path = source / "predictions" / f"{split}.npz"
        if not path.is_file():
            raise DataError(f"{source} has no predictions for {split}; is it a run folder, and finished?")
    predictions = load_predictions(path)
    try:
        result = measure(predictions.logits, predictions.labels, predictions.classes)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if json:
        print_json({"predictions": str(path), **result.as_dict()})
    else:
        figures = f"accuracy {result.accuracy:.4f}, NLL {result.nll:.4f} on {result.examples} examples"
        console(False).print(f"{result.report()}\n\n{path}: {figures}", markup=False)
