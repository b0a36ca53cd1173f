"""The parts of `compile_for.py`, one a file."""
