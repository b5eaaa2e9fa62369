"""Being told to stop: once to finish the step, twice to leave, and never unheard."""

import signal

import pytest

from lmtiny import ctrl_c
from lmtiny.training.interrupt import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_answered_at_the_next_step(number, capfd):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.asked(1)
        signal.raise_signal(number)
        assert interruption.asked(2)
    assert "stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_whose_exception_got_lost_during_the_start_still_counts(monkeypatch):
    monkeypatch.setattr(ctrl_c, "heard", True)
    with pytest.raises(KeyboardInterrupt), Interruption():
        pass
