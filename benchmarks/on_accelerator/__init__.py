"""The parts of `accelerator.py`, one a file."""
