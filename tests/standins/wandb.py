"""Stands in for Weights & Biases, as far as the pages use it."""

import contextlib


class _Run:
    def __init__(self):
        self.rows = []

    def log(self, data, step=None, commit=None):
        assert type(data) is dict
        assert all(isinstance(value, int | float) for value in data.values())
        assert not self.rows or step > self.rows[-1]
        self.rows.append(step)


@contextlib.contextmanager
def init(*, project=None, id=None, config=None, resume=None):
    """Begins a run, which has to get rows."""
    assert resume in (None, "allow", "must", "never", "auto")
    assert type(config) is dict
    run = _Run()
    yield run
    assert run.rows
