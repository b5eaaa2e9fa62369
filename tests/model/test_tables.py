"""Rows that are looked up, and those of n-grams."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmtiny.model.tables import Table, ngram_rows


def test_rows_of_several_numbers_are_summed_and_a_number_below_0_has_none():
    table = Table(nnx.Rngs(0), 5, 3, "table")
    rows = np.array(table.table[...])
    found = table.summed([jnp.array([[0, -1, 4]]), jnp.array([[2, -1, -3]])], jnp.float32)
    np.testing.assert_allclose(found, [[rows[0] + rows[2], np.zeros(3), rows[4]]], rtol=1e-6)
    np.testing.assert_array_equal(table(jnp.array([[3, 1]]), jnp.float32), rows[[[3, 1]]])


def test_a_pair_is_a_token_and_the_one_before_it_in_its_document():
    tokens = jnp.array([[5, 6, 7, 9, 6, 7], [8, 8, 7, 3, 6, 7]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])
    rows = np.array(ngram_rows(tokens, positions, None, 2, 1 << 20))[..., 0]
    assert rows[0, 2] == rows[0, 5] == rows[1, 5]  # (6, 7) wherever it stands
    assert rows[1, 2] != rows[0, 2]  # (8, 7)
    other = np.array(ngram_rows(tokens.at[0, 2].set(4), positions, None, 2, 1 << 20))[..., 0]
    assert other[0, 3] == rows[0, 3] and other[0, 2] != rows[0, 2]  # what another document ends with is not seen


def test_a_triple_is_three_tokens_in_their_order_and_no_pair():
    tokens = jnp.array([[5, 6, 7, 5, 6, 7, 6, 5, 7], [4, 6, 7, 7, 6, 5, 0, 6, 7]])
    rows = np.array(ngram_rows(tokens, jnp.tile(jnp.arange(9), (2, 1)), None, 3, 1 << 20))
    assert rows.shape == (2, 9, 2)
    assert rows[0, 2, 1] == rows[0, 5, 1]  # 5 6 7
    assert len({rows[0, 2, 1], rows[0, 8, 1], rows[1, 2, 1], rows[1, 5, 1], rows[1, 8, 1]}) == 5  # 6 5 7, 4 6 7, 7 6 5, 0 6 7
    assert rows[0, 2, 0] == rows[1, 2, 0] != rows[1, 8, 1]  # 6 7, where 0 6 7 is another


def test_what_was_read_before_counts():
    tokens = jnp.array([[5, 6, 7, 9, 6, 7]])
    whole = np.array(ngram_rows(tokens, jnp.arange(6)[None], None, 4, 4096))
    later = np.array(ngram_rows(tokens[:, 4:], jnp.array([[4, 5]]), tokens, 4, 4096))
    np.testing.assert_array_equal(later, whole[:, 4:])


def test_pairs_spread_evenly_over_the_rows():
    first, second = jnp.meshgrid(jnp.arange(256), jnp.arange(256))
    pairs = jnp.stack([first.ravel(), second.ravel()], axis=1)
    rows = np.array(ngram_rows(pairs, jnp.tile(jnp.arange(2), (len(pairs), 1)), None, 2, 1024))[:, 1, 0]
    counts = np.bincount(rows, minlength=1024)  # 64 each, were they dealt; by chance 64 +- 8
    assert counts.std() < 12 and counts.max() < 64 + 60 and counts.min() > 20
