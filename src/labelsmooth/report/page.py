"""The report: one HTML file without scripts, that asks nothing of any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.report import comparison, run
from labelsmooth.report.arms import signed
from labelsmooth.report.content import Content
from labelsmooth.report.panels import save, together
from labelsmooth.report.svg import inline
from labelsmooth.report.theme import THEME

REPORT = "report.html"
_SHARES = ("accuracy", "top5", "coverage_at_5", "coverage_at_5_normalised")


def finish(folder: Path) -> Path:
    """Draw all pictures of a run or a comparison into its `plots`, and write its report.

    Args:
        folder: the run's or the comparison's; finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: it is neither a run's nor a comparison's folder.
    """
    content = _gather(folder)
    (folder / "plots").mkdir(exist_ok=True)
    for name, panels in content.panels.items():
        if panels:
            save(together(panels), folder / "plots" / f"{name}.png")
    return _write(content)


def run_page(folder: Path) -> Path:
    """Write the report of a run from the files in its folder, and return its path."""
    return _write(run.gather(folder))


def comparison_page(folder: Path) -> Path:
    """Write the report of a comparison from the files in its folder, and return its path."""
    return _write(comparison.gather(folder))


def _gather(folder: Path) -> Content:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}" if not folder.exists() else f"{folder} is a file; give a folder")
    if any((folder / name).is_file() for name in ("manifest.json", "stats.json")):
        return comparison.gather(folder)
    if any((folder / name).is_file() for name in ("config.yaml", "predictions/test.npz")):
        return run.gather(folder)
    raise DataError(
        f"{folder} is neither a run's folder (it has no config.yaml) nor a comparison's (it has no manifest.json)"
    )


def _write(content: Content) -> Path:
    figures, number = {}, 0
    for name, panels in content.panels.items():
        figures[name] = []
        for panel in panels:
            number += 1
            figures[name].append({"panel": panel, "svg": inline(panel, f"f{number}")})
    text = _environment().get_template(content.template).render(
        **content.variables, figures=figures, mistakes=content.mistakes, left_out=content.source.left_out, theme=THEME
    )  # fmt: skip
    path = content.source.path / REPORT
    _files.write_text(path, text)
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "figure": _figure,
        "difference": _difference,
        "plain": _plain,
    }
    return environment


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _figure(value: float, key: str) -> str:
    """A metric's value: shares in percent, all others as they are."""
    return _percent(value) if key in _SHARES else _number(value)


def _difference(value: float, unit: str) -> str:
    return signed(100 * value, 2) if unit == "points" else signed(value, 4)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
