"""``labelsmooth evaluate``"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from labelsmooth.cli.output import Json, WholeNumber, console, print_json


def evaluate(
    source: Path,
    *,
    split: Literal["test", "val"] = "test",
    validation: Path | None = None,
    bins: WholeNumber = 15,
    json: Json = False,
) -> None:
    """The classification report, calibration and selective prediction of a run or of predictions, on hard labels.

    Args:
        source: a run's folder; an .npz file with the arrays logits [N, K] and labels [N]; or a folder of logits.npy and
            labels.npy, which may be larger than memory.
        split: which predictions of a folder.
        validation: the predictions that the temperature is fitted on; where a folder has a val split, it need not be
            named.
        bins: of the calibration errors.
    """
    from labelsmooth import _checks
    from labelsmooth._errors import DataError
    from labelsmooth.evaluation import check_disjoint, load_predictions
    from labelsmooth.evaluation import evaluate as measure

    _checks.class_count(bins, "bins")
    path, beside = _find(source, split)
    predictions, held_out = load_predictions(path, split), None
    if validation is not None:
        held_out = load_predictions(validation)
    elif beside is not None:
        held_out = load_predictions(beside, "val")
    if held_out is not None:
        check_disjoint(predictions, held_out)
    try:
        result = measure(
            predictions.logits,
            predictions.labels,
            predictions.classes,
            validation=None if held_out is None else (held_out.logits, held_out.labels),
            features=predictions.features,
            bins=bins,
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if json:
        print_json({"predictions": str(path), **result.as_dict()})
    else:
        console(False).print(f"{result.report()}\n\n{path}\n{result.table()}", markup=False)


def _find(source: Path, split: Literal["test", "val"]) -> tuple[Path, Path | None]:
    """Where the predictions lie, and for those of the test split where the validation's lie, if anywhere."""
    from labelsmooth._errors import DataError

    if not source.is_dir():
        if split == "val":
            raise DataError(f"{source} is no folder, so it has no split val; leave out --split")
        return source, None
    prefix = "val_" if split == "val" else ""
    if (source / f"{prefix}logits.npy").is_file():
        beside = source if (source / "val_logits.npy").is_file() else None
        return source, beside if split == "test" else None
    path, beside = source / "predictions" / f"{split}.npz", source / "predictions" / "val.npz"
    if not path.is_file():
        raise DataError(f"{source} has no predictions for {split}; is it a run folder, and finished?")
    return path, beside if split == "test" and beside.is_file() else None
