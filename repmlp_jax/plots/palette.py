"""Colours that the colour-blind can tell apart: Okabe and Ito's, and maps whose lightness grows evenly."""

BLUE, ORANGE, *OTHERS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
MAGNITUDES = "viridis"
NUMBERS = "cividis"
ZERO = "0.85"
"""Light grey, for what is exactly zero."""
