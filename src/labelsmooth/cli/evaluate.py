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
        validation: the predictions that the temperature is fitted on: an .npz file, or the val split of a folder (of a
            run, or of val_logits.npy and val_labels.npy). That of the source itself need not be named.
        bins: of the calibration errors, at most 1000.
    """
    from labelsmooth import _checks
    from labelsmooth._errors import DataError
    from labelsmooth.evaluation import check_disjoint, load_predictions
    from labelsmooth.evaluation import evaluate as measure
    from labelsmooth.evaluation.calibration import bin_count

    bins = bin_count(bins)
    if split == "val" and not source.is_dir():
        raise DataError(f"{source} is no folder, so it has no split val; leave out --split")
    path, beside = _find(source, split), None
    if validation is not None:
        beside = _find(validation, "val")
        if path.resolve() == beside.resolve() and (split == "val" or not path.is_dir()):
            rule = "be other predictions than those that are tested"
            raise DataError(str(_checks.error("--validation", rule, beside)))
    elif split == "test" and _has(source, "val"):
        beside = _find(source, "val")
    held_out = None if beside is None else load_predictions(beside, "val")
    predictions = load_predictions(path, split)
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
        raise DataError(f"{beside if str(error).startswith('validation ') else path}: {error}") from None
    if json:
        print_json({"predictions": str(path), **result.as_dict()})
    else:
        console(False).print(f"{result.report()}\n\n{path}\n{result.table()}", markup=False)


def _find(source: Path, split: Literal["test", "val"]) -> Path:
    """Where the predictions lie: a file, or a folder of arrays."""
    from labelsmooth._errors import DataError

    if not source.is_dir() or _arrays(source, split).is_file():
        return source
    path = _file(source, split)
    if path.is_file():
        return path
    if _arrays(source, "test").is_file():
        raise DataError(f"{source} has no {_arrays(source, split).name}, and so no predictions for {split}")
    if (source / "manifest.json").is_file():
        raise DataError(f"{source} is a comparison; give one of its runs, such as {source / 'runs'}/smoothing-0-0")
    raise DataError(f"{source} has no predictions for {split}; is it a run folder, and finished?")


def _has(source: Path, split: Literal["test", "val"]) -> bool:
    return source.is_dir() and (_arrays(source, split).is_file() or _file(source, split).is_file())


def _arrays(folder: Path, split: Literal["test", "val"]) -> Path:
    return folder / ("val_logits.npy" if split == "val" else "logits.npy")


def _file(run: Path, split: Literal["test", "val"]) -> Path:
    return run / "predictions" / f"{split}.npz"
