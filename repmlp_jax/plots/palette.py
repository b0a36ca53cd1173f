"""Colours for colour-blind readers: the palette of Okabe and Ito, and colour maps of uniform lightness."""

from matplotlib.colors import LinearSegmentedColormap

BLUE, ORANGE, *OTHERS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
SIGNED = LinearSegmentedColormap.from_list("signed", (BLUE, "white", ORANGE))
MAGNITUDES = "viridis"
NUMBERS = "cividis"
ZERO = "0.85"
"""Light grey, for weights that are exactly zero."""
