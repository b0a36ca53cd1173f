"""Fused models in 8-bit integers."""
