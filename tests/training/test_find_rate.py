"""The finder's arithmetic on a curve whose lowest point is known."""

import numpy as np
import pytest

from lmtiny.errors import UserError
from lmtiny.training import find_rate


def test_the_sweep_grows_by_the_same_factor():
    shares = find_rate.sweep(101)
    assert shares[0] == pytest.approx(1e-3) and shares[-1] == pytest.approx(1e3)
    np.testing.assert_allclose(shares[1:] / shares[:-1], 10 ** (6 / 100))


def test_it_suggests_a_tenth_of_the_rate_of_the_lowest_loss():
    rates = np.logspace(-5, 1, 200)
    losses = 5 + np.log10(rates / 0.1) ** 2 + 0.05 * np.sin(np.arange(200))
    assert 0.01 < find_rate.suggest(rates, losses) < 0.025  # the average lags a few steps behind


def curve(*losses):
    return np.logspace(-5, -2, len(losses)), np.array(losses, np.float64)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_no_finite_number_do_not_count(bad, tmp_path):
    rates, losses = curve(*np.linspace(5, 1, 40), *[bad] * 5, 0.1)
    suggestion = find_rate.suggest(rates, losses)
    assert suggestion == find_rate.suggest(rates[:40], losses[:40]) == pytest.approx(rates[39] / 10)
    find_rate.plot(tmp_path / "new" / "plot.png", rates, losses, suggestion)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plot.png"]


def test_a_plot_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "plot.png").mkdir()
    find_rate.plot(tmp_path / "plot.png", *curve(*np.linspace(5, 1, 40)), 1e-3)
    said = capsys.readouterr().err
    assert said == f"lmtiny: warning: {tmp_path / 'plot.png'} cannot be written: Is a directory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_what_was_never_tried_is_not_suggested():
    rates, losses = curve(5.0, 4.0, *np.linspace(5, 9, 40))
    assert find_rate.suggest(rates, losses) == rates[0]
    with pytest.raises(UserError, match="the loss only rises, from 1e-05 on; try a lower optimizer.learning_rate"):
        find_rate.suggest(*curve(*np.linspace(5, 9, 40)))


@pytest.mark.parametrize("losses", [[], [5.0] * 9, [np.nan] * 40, [5.0, np.inf, *[4.0] * 40]], ids=len)
def test_too_few_losses_are_a_line(losses):
    with pytest.raises(UserError, match="for [0-9] steps, 10 or more are needed; try a lower"):
        find_rate.suggest(*curve(*losses))


def test_smoothing_starts_at_the_first_loss_and_divergence_is_seen():
    assert find_rate.smoothed(np.array([8.0, 8.0, 8.0])) == pytest.approx([8, 8, 8])
    assert not find_rate.diverged(np.full(50, 5.0))
    assert find_rate.diverged(np.concatenate([np.full(50, 5.0), np.full(30, 12.0)]))
