"""Fusing: the algebra, the transformation of a model, and what it does to the model. It knows no block."""
