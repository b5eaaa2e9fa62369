"""The finder's arithmetic on a curve whose lowest point is known."""

import numpy as np
import pytest

from lmtiny.training import find_rate


def test_the_sweep_grows_by_the_same_factor():
    shares = find_rate.sweep(101)
    assert shares[0] == pytest.approx(1e-3) and shares[-1] == pytest.approx(1e3)
    np.testing.assert_allclose(shares[1:] / shares[:-1], 10 ** (6 / 100))


def test_it_suggests_a_tenth_of_the_rate_of_the_lowest_loss():
    rates = np.logspace(-5, 1, 200)
    losses = 5 + np.log10(rates / 0.1) ** 2 + 0.05 * np.sin(np.arange(200))
    assert 0.01 < find_rate.suggest(rates, losses) < 0.025  # the average lags a few steps behind


def test_smoothing_starts_at_the_first_loss_and_divergence_is_seen():
    assert find_rate.smoothed(np.array([8.0, 8.0, 8.0])) == pytest.approx([8, 8, 8])
    assert not find_rate.diverged(np.full(50, 5.0))
    assert find_rate.diverged(np.concatenate([np.full(50, 5.0), np.full(30, 12.0)]))
