"""Stands in for MLflow, as far as the pages use it."""

import contextlib

_logged: list = []


@contextlib.contextmanager
def start_run(*, run_name=None):
    """Begins a run, which has to get parameters and metrics."""
    _logged.clear()
    yield
    assert [kind for kind, _ in _logged[:2]] == ["params", "metrics"]


def log_params(params):
    """Takes the values as text."""
    _logged.append(("params", {name: str(value) for name, value in params.items()}))


def log_metrics(metrics, step=None):
    """Takes numbers alone."""
    assert isinstance(step, int)
    _logged.append(("metrics", {name: float(value) for name, value in metrics.items()}))
