"""Printing where the output cannot hold every character."""

import sys


def print_any_character():
    """Makes stdout print characters that its encoding lacks as escapes, which stderr does by default.

    Otherwise `print` raises an error there, also for names of files that are not UTF-8.
    """
    if hasattr(sys.stdout, "reconfigure"):  # pytest and notebooks replace stdout.
        sys.stdout.reconfigure(errors="backslashreplace")
