"""``labelsmooth predict``"""

from __future__ import annotations

import sys
from pathlib import Path

from labelsmooth.cli.output import Json, WholeNumber, print_json


def predict(run: Path, /, *files: Path, top: WholeNumber = 3, device: str = "auto", json: Json = False) -> int:
    """Class probabilities of image files, by a trained run.

    A file that cannot be read is reported, the others are still predicted, and the exit code is 3. --json prints JSON
    Lines: an object for every file, with `error` in that of one that cannot be read.

    Args:
        run: the run's folder.
        files: image files.
        top: how many classes to show.
        device: auto, cpu, cuda or cuda:N.
    """
    import numpy as np

    from labelsmooth import _checks
    from labelsmooth.training import Predictor

    count = _checks.class_count(top, "top")
    if not files:
        raise _checks.error("files", "name at least one image", "none")

    predictor = Predictor(run, device)
    failed = 0
    for file, probabilities in predictor.probabilities(files):
        if not isinstance(probabilities, np.ndarray):
            failed += 1
            print(f"labelsmooth: {probabilities}", file=sys.stderr)
            if json:
                print_json({"file": str(file), "error": str(probabilities)})
            continue
        best = np.argsort(-probabilities, kind="stable")[:count]
        pairs = [(predictor.classes[k], float(probabilities[k])) for k in best]
        if json:
            everything = dict(zip(predictor.classes, map(float, probabilities), strict=True))
            print_json(
                {"file": str(file), "label": pairs[0][0], "probability": pairs[0][1], "probabilities": everything}
            )
        else:
            print(f"{file}: " + ", ".join(f"{name} {p:.4f}" for name, p in pairs))
    return 3 if failed else 0
