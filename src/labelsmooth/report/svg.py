"""A panel as inline SVG: the page's own colours and fonts, and names that no other figure of the page has."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from markupsafe import Markup, escape

from labelsmooth.report.panels import Panel, alone, as_written, own_look
from labelsmooth.report.theme import THEME

_TAG = re.compile(r"<[^<>]*>")  # matplotlib writes < and > of texts as entities
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font: (?:(bold|\d+) )?([\d.]+px)[^;\"]*")


@own_look()
def inline(panel: Panel, prefix: str) -> Markup:
    """The panel as an ``<svg>`` element.

    Args:
        panel: to draw.
        prefix: what its ids begin with; another for each figure of a page.
    """
    figure, buffer = alone(panel), io.StringIO()
    figure.patch.set_visible(False)
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "labelsmooth"}  # text stays text; the same ids every time
    with matplotlib.rc_context(settings), as_written(figure):
        figure.savefig(buffer, format="svg", dpi=144, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = {name for tag in _TAG.findall(text) for name in _REFERENCE.findall(tag)}

    def adapted(match: re.Match[str]) -> str:
        tag = match[0]
        if tag.startswith("<svg"):
            box = re.search(r'viewBox="[^"]*"', tag)
            assert box is not None
            return f'<svg {box[0]} role="img" aria-label="{escape(panel.alt)}" focusable="false">'
        tag = _ID.sub(lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", tag)
        tag = _REFERENCE.sub(lambda found: found[0].replace("#", f"#{prefix}-"), tag).replace("xlink:href", "href")
        tag = _COLOUR.sub(lambda found: f"var(--{THEME[found[0]][0]})" if found[0] in THEME else found[0], tag)
        return _FONT.sub(
            lambda found: f"font-size: {found[2]}" + (f"; font-weight: {found[1]}" if found[1] else ""), tag
        )

    text = _TAG.sub(adapted, text)
    return Markup(re.sub(r"\s*\n\s*", "\n", text))
