"""Where progress bars are drawn."""

import io
import sys

import pytest
from tqdm.notebook import tqdm_notebook

from repmlp_jax import progress
from repmlp_jax.progress import print_line, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "is_drawn"), [(io.StringIO, False), (Terminal, True)])
def test_a_bar_is_drawn_on_terminals_alone(monkeypatch, stream, is_drawn):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress_bar(range(3), "counting")) == [0, 1, 2]
    assert ("\r" in sys.stderr.getvalue()) == is_drawn
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert not sys.stderr.getvalue()


@pytest.mark.usefixtures("unchecked_types")  # that of tqdm.auto is picked at the import
def test_a_notebook_gets_a_bar_though_it_is_no_terminal(monkeypatch):
    class Widget(tqdm_notebook):
        def __init__(self, *_, disable, **__):
            self.disable = disable

        def __del__(self):
            """There is nothing to close."""

    monkeypatch.setattr(progress, "tqdm", Widget)
    assert not progress_bar(range(3)).disable


def test_a_line_is_printed_at_once(capsys):
    print_line("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"
