"""Weights from and to the official PyTorch code: its names, its layouts, its files."""
