"""The colours of pictures and pages, each with the one that takes its place on a dark screen."""

from __future__ import annotations

INK, MUTED, GRID, PAPER = "#1b2631", "#5a6773", "#dde3e9", "#ffffff"
# Okabe and Ito's, told apart by colour-blind readers too.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
ARMS = (INK, BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)  # the baseline's first

# Colour: the name of its CSS variable, and its value on a dark screen.
THEME = {
    INK: ("ink", "#e6ebf0"),
    MUTED: ("muted", "#9aa7b4"),
    GRID: ("grid", "#323c47"),
    PAPER: ("paper", "#12181f"),
    BLUE: ("blue", "#479fdd"),
    VERMILLION: ("vermillion", "#e67a33"),
    GREEN: ("green", "#2dbd95"),
    ORANGE: ("orange", "#e9b03a"),
    PURPLE: ("purple", "#d892ba"),
    SKY: ("sky", "#a4d8f7"),
}
