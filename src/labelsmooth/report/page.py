"""The report: one HTML file without scripts, that asks nothing of any network."""

from __future__ import annotations

from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth._text import counted
from labelsmooth.report import comparison, run
from labelsmooth.report.arms import signed
from labelsmooth.report.content import Content
from labelsmooth.report.panels import save, together
from labelsmooth.report.sources import Source
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
    drawn = _drawn(content)
    (folder / "plots").mkdir(exist_ok=True)
    for name, panels in content.panels.items():
        if panels:
            save(together(panels), folder / "plots" / f"{name}.png")
    return _write(content, drawn)


def _gather(folder: Path) -> Content:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}" if not folder.exists() else f"{folder} is a file; give a folder")
    if _holds(folder, "manifest.json", "format", "trials") or _holds(folder, "stats.json", "answer", "effects"):
        return comparison.gather(folder)
    config = folder / "config.yaml"
    beside = (folder / "predictions").is_dir() or (folder / "metrics.csv").is_file()
    if (folder / "predictions" / "test.npz").is_file() or (
        config.is_file() and (beside or _holds(folder, "config.yaml", "recipe"))
    ):
        return run.gather(folder)
    raise DataError(
        f"{folder} is neither a run's folder (it has no config.yaml of labelsmooth) nor a comparison's (it has no "
        "manifest.json of labelsmooth)"
    )


def _holds(folder: Path, name: str, *keys: str) -> bool:
    """Whether a file there is one of ours, and not another program's of the same name."""
    source = Source(folder)
    return source.has(name) and set(keys) <= source.mapping(name, "").keys()


def _drawn(content: Content) -> dict[str, list[dict[str, Any]]]:
    """The panels as SVG; one that cannot be drawn is left out, and that is told."""
    figures: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for name, panels in content.panels.items():
        figures[name] = []
        for panel in panels:
            number += 1
            svg = content.source.attempt(f"the picture {panel.title}", partial(inline, panel, f"f{number}"), None)
            if svg is not None:
                figures[name].append({"panel": panel, "svg": svg})
        content.panels[name] = [each["panel"] for each in figures[name]]
    return figures


def _write(content: Content, figures: dict[str, list[dict[str, Any]]]) -> Path:
    text = _environment().get_template(content.template).render(
        **content.variables, figures=figures, mistakes=content.mistakes, left_out=content.source.left_out, theme=THEME
    )  # fmt: skip
    path = content.source.path / REPORT
    _files.write_text(path, text.replace("ε = ", "ε\u00a0=\u00a0"))  # never broken at the end of a line
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=ChainableUndefined,
    )  # fmt: skip
    environment.filters |= {
        "counted": _counted,
        "form": _form,
        "percent": _percent,
        "number": _number,
        "figure": _figure,
        "difference": _difference,
        "plain": _plain,
    }
    return environment


def _counted(value: Any, one: str) -> str:
    return counted(value, one) if isinstance(value, (int, float)) else f"– {one}s"


def _form(value: Any, spec: str, factor: int = 1) -> str:
    """A number times `factor` as `spec` says; a dash stands for one that is not known."""
    if not isinstance(value, Real):
        return "–"
    return format(value if factor == 1 else factor * float(value), spec)


def _percent(value: Any) -> str:
    return _form(value, ".2f", 100) + (" %" if isinstance(value, Real) else "")


def _number(value: Any) -> str:
    return _form(value, ".4f")


def _figure(value: Any, key: str) -> str:
    """A metric's value: shares in percent, all others as they are."""
    return _percent(value) if key in _SHARES else _number(value)


def _difference(value: Any, unit: str) -> str:
    if not isinstance(value, Real):
        return "–"
    return signed(100 * float(value), 2) if unit == "points" else signed(float(value), 4)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
