"""``labelsmooth predict``"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelsmooth.cli.output import Json, WholeNumber, print_json


def predict(
    run: Path,
    /,
    *files: Annotated[str, Parameter(allow_leading_hyphen=True)],
    top: WholeNumber = 3,
    device: str = "auto",
    json: Json = False,
) -> int:
    """Class probabilities of image files, by a trained run, at the preprocessing that it was trained with.

    A file that cannot be read is reported, the others are still predicted, and the exit code is 3. --json prints JSON
    Lines: an object for every file, with `error` in that of one that cannot be read.

    Args:
        run: the run's folder.
        files: image files, folders (searched at any depth), or - for a list of them on stdin, one per line.
        top: how many classes to show, and to list under `top` in JSON.
        device: auto, cpu, cuda or cuda:N.
    """
    import numpy as np

    from labelsmooth import _checks
    from labelsmooth._text import printable
    from labelsmooth.training import Predictor

    count = _checks.class_count(top, "top")
    unknown = [name for name in files if name.startswith("-") and name != "-"]
    if unknown:
        raise ValueError(f"Unknown option: {unknown[0]}; a file of that name is ./{unknown[0]}")
    if not files:
        raise _checks.error("files", "name at least one image or folder, or be - for a list on stdin", "none")

    predictor = Predictor(run, device)
    failed = 0
    for file, probabilities in predictor.probabilities(_expanded(files)):
        name = printable(str(file))
        if not isinstance(probabilities, np.ndarray):
            failed += 1
            text = f"{name} holds no image that can be opened" if os.path.isdir(file) else str(probabilities)
            print(f"labelsmooth: {text}", file=sys.stderr)
            if json:
                print_json({"file": file, "error": text})
            continue
        best = np.argsort(-probabilities, kind="stable")[:count]
        pairs = [(predictor.classes[k], float(probabilities[k])) for k in best]
        if json:
            print_json({
                "file": file,
                "label": pairs[0][0],
                "probability": pairs[0][1],
                "top": [{"label": label, "probability": p} for label, p in pairs],
                "probabilities": dict(zip(predictor.classes, map(float, probabilities), strict=True)),
            })  # fmt: skip
        else:
            print(f"{name}: " + ", ".join(f"{label} {p:.4f}" for label, p in pairs))
    return 3 if failed else 0


def _expanded(names: tuple[str, ...]) -> Iterator[str]:
    """Files as they are named, those in folders, and those on stdin."""
    from labelsmooth.training import folders

    for name in names:
        if name == "-":
            lines = map(os.fsdecode, sys.stdin.buffer.read().split(b"\n"))
            listed = tuple(line.removesuffix("\r") for line in lines if line.strip() not in ("", "-"))
            if not listed:
                print("labelsmooth: the list on stdin names no file", file=sys.stderr)
            yield from _expanded(listed)
        elif Path(name).is_dir():
            found = folders.search(name)
            for line in found.lines():
                print(f"labelsmooth: passed over in {name}: {line}", file=sys.stderr)
            yield from found.files or [name]  # a folder without images is told of as a file that is none
        else:
            yield name
