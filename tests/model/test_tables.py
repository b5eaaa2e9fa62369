"""Rows of the table of token pairs."""

import jax.numpy as jnp
import numpy as np

from lmtiny.model.tables import pair_rows


def test_a_pair_is_a_token_and_the_one_before_it_in_its_document():
    tokens = jnp.array([[5, 6, 7, 9, 6, 7], [8, 8, 7, 3, 6, 7]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])
    rows = np.array(pair_rows(tokens, positions, None, 1 << 20))
    assert rows[0, 2] == rows[0, 5] == rows[1, 5]  # (6, 7) wherever it stands
    assert rows[1, 2] != rows[0, 2]  # (8, 7)
    other = np.array(pair_rows(tokens.at[0, 2].set(4), positions, None, 1 << 20))
    assert other[0, 3] == rows[0, 3] and other[0, 2] != rows[0, 2]  # what another document ends with is not seen


def test_what_was_read_before_counts():
    tokens = jnp.array([[5, 6, 7, 9, 6, 7]])
    whole = np.array(pair_rows(tokens, jnp.arange(6)[None], None, 4096))
    later = np.array(pair_rows(tokens[:, 4:], jnp.array([[4, 5]]), tokens, 4096))
    np.testing.assert_array_equal(later, whole[:, 4:])


def test_pairs_spread_evenly_over_the_rows():
    first, second = jnp.meshgrid(jnp.arange(256), jnp.arange(256))
    pairs = jnp.stack([first.ravel(), second.ravel()], axis=1)
    rows = np.array(pair_rows(pairs, jnp.tile(jnp.arange(2), (len(pairs), 1)), None, 1024))[:, 1]
    counts = np.bincount(rows, minlength=1024)  # 64 each, were they dealt; by chance 64 +- 8
    assert counts.std() < 12 and counts.max() < 64 + 60 and counts.min() > 20
