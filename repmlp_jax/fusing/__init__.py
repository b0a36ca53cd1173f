"""Fusing: the algebra, the transformation of a model, and its report. This room does not know the blocks."""
