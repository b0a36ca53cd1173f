"""Colours for colour-blind readers: the palette of Okabe and Ito, and colour maps of uniform lightness."""

BLUE, ORANGE, *OTHERS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
MAGNITUDES = "viridis"
NUMBERS = "cividis"
ZERO = "0.85"
"""Light grey, for weights that are exactly zero."""
