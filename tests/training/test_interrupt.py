"""Being told to stop: once to finish the step, twice to leave, and never unheard."""

import errno
import os
import signal

import pytest

from lmtiny import ctrl_c
from lmtiny.training.interrupt import Interruption


@pytest.fixture(autouse=True)
def nothing_heard(monkeypatch):
    monkeypatch.setattr(ctrl_c, "stopping", False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_answered_at_the_next_step(number, capfd):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.asked(1)
        signal.raise_signal(number)
        assert interruption.asked(2)
    assert "stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_parent_ignores_stays_ignored(number):
    """As in a script's background, or under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(number)
            assert not interruption.asked(1)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_terminal_that_is_gone_is_no_reason_not_to_stop(monkeypatch):
    def gone(descriptor, line):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGHUP)
        assert interruption.asked(1)


def test_a_second_ctrl_c_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_whose_exception_got_lost_during_the_start_still_counts(monkeypatch):
    monkeypatch.setattr(ctrl_c, "heard", True)
    with pytest.raises(KeyboardInterrupt), Interruption():
        pass
