"""``labelsmooth explain``"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from labelsmooth.cli.output import Json, WholeNumber, print_json


def explain(
    *,
    smoothing: Annotated[float, Parameter(name=["--smoothing", "-s"])] = 0.1,
    classes: WholeNumber = 10,
    json: Json = False,
) -> None:
    """What a smoothing means: the target, the loss' floor, the best logit gap, and the equal value elsewhere.

    Args:
        smoothing: ε, from 0 up to but not including 1.
        classes: the number of classes.
    """
    from labelsmooth.targets import explanation

    result = explanation(smoothing, classes)
    if json:
        print_json(asdict(result))
    else:
        print(result)
