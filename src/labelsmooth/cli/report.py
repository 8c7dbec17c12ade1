"""``labelsmooth report``"""

from __future__ import annotations

from pathlib import Path

from labelsmooth.cli.output import Json, console, print_json


def report(folder: Path, *, json: Json = False) -> None:
    """Write the report and the pictures of a run or of a comparison anew, finished or not.

    Args:
        folder: the run's or the comparison's.
    """
    from labelsmooth.report.page import finish

    path = finish(folder)
    if json:
        print_json({"report": str(path)})
    else:
        console(False).print(f"report  {path}", markup=False)
