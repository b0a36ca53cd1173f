import signal

import pytest

from repmlp_jax.training.command_line import report_errors
from repmlp_jax.training.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number, capfd):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested()
        signal.raise_signal(number)
        assert interruption.requested()
        assert interruption.signal == number
    assert signal.getsignal(number) == before
    assert ("Ctrl-C again stops without saving" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_stops_at_once():
    with Interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_outside_of_the_loop_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, report_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "stopped: the same command resumes from the last checkpoint, if there is one\n"
