"""Progress bars and lines beside them: widgets in notebooks, and no bar where the output is piped."""

import sys

from tqdm.auto import tqdm


def progress_bar(*arguments, disable: bool = False, **options) -> tqdm:
    """A bar of tqdm, whose arguments it takes; it draws on a terminal and in notebooks alone."""
    # By its name, since tqdm.notebook imports IPython.
    is_widget = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
    is_seen = is_widget or sys.stderr.isatty()
    return tqdm(*arguments, disable=disable or not is_seen, dynamic_ncols=True, **options)


def print_line(text: str) -> None:
    """Prints text at once, above the bars that are drawn."""
    tqdm.write(text)
    sys.stdout.flush()
