"""The order of rows is grain's, and each epoch of it holds every row once."""

import grain
import numpy as np
import pytest

from lmtiny.data import shuffle

COUNTS = [1, 2, 3, 100, 30_514, 2**16, 2**16 + 2, 100_000, 2**18 - 1, 2**18, 10**7, 2**33 + 1000]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_order_is_grains(count: int, seed: int) -> None:
    of_grain = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    some = np.concatenate([np.arange(min(count, 20)), np.random.default_rng(0).integers(0, count, 20)])
    places = np.concatenate([some + epoch * count for epoch in (0, 1, 7, 2**28)])
    assert shuffle.rows_at(places, count, seed).tolist() == [of_grain[place] for place in places.tolist()]


@pytest.mark.parametrize("count", [1, 7, 2**16 - 1, 2**16, 2**16 + 1, 2**17, 2**18 + 1])
def test_an_epoch_holds_every_row_once(count: int) -> None:
    whole = shuffle.rows_at(np.arange(2 * count), count, 5)
    for epoch in (whole[:count], whole[count:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_a_place_has_its_row_whatever_is_asked_with_it() -> None:
    places = np.array([[250_000, 3], [99_999, 100_000]])
    together = shuffle.rows_at(places, 100_000, 2)
    assert together.shape == places.shape
    for place, row in zip(places.flat, together.flat, strict=True):
        assert shuffle.rows_at(np.array([place]), 100_000, 2) == row
