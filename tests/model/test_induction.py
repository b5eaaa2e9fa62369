"""What followed where the last tokens stood before."""

import jax
import jax.numpy as jnp
import numpy as np

from lmtiny.model.induction import followers


def looked_for(tokens, segments, length, place=1):
    """The same by looking: the last but (place - 1) earlier place of the n-gram in the same document, and the token after it."""
    found = np.full(tokens.shape, -1)
    for row, (ids, documents) in enumerate(zip(tokens, segments, strict=True)):
        for here in range(length - 1, len(ids)):
            after = []
            for there in range(length - 1, here):
                grams = ids[there - length + 1 : there + 1], ids[here - length + 1 : here + 1]
                if documents[there - length + 1] == documents[here] and np.array_equal(*grams):
                    after.append(ids[there + 1])
            if len(after) >= place:
                found[row, here] = after[-place]
    return found


def test_it_is_the_token_after_the_last_occurrence():
    tokens = jnp.array([[1, 2, 3, 1, 2, 4, 1, 2, 9]])
    one, two = followers(tokens, None, 2)
    np.testing.assert_array_equal(one[0], [-1, -1, -1, 2, 3, -1, 2, 4, -1])
    np.testing.assert_array_equal(two[0], [-1, -1, -1, -1, 3, -1, -1, 4, -1])


def test_it_is_what_looking_finds():
    tokens = np.array(jax.random.randint(jax.random.key(0), (3, 40), 0, 5))
    segments = np.zeros_like(tokens)
    segments[1, 17:], segments[2, 10:], segments[2, 30:] = 1, 1, 2
    for length, found in enumerate(followers(jnp.array(tokens), jnp.array(segments), 3), 1):
        np.testing.assert_array_equal(found, looked_for(tokens, segments, length))


def test_earlier_places_are_what_looking_finds():
    tokens = np.array(jax.random.randint(jax.random.key(0), (2, 40), 0, 4))
    segments = np.zeros_like(tokens)
    segments[1, 17:] = 1
    found = followers(jnp.array(tokens), jnp.array(segments), 2, 3)
    for one, (length, place) in zip(found, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)], strict=True):
        np.testing.assert_array_equal(one, looked_for(tokens, segments, length, place))
        assert (np.array(one) >= 0).any()


def test_what_comes_later_changes_nothing():
    tokens = jax.random.randint(jax.random.key(1), (2, 30), 0, 4)
    for whole, part in zip(followers(tokens, None, 3, 2), followers(tokens.at[:, 20:].set(0), None, 3, 2), strict=True):
        np.testing.assert_array_equal(whole[:, :20], part[:, :20])


def test_a_row_may_be_shorter_than_the_n_grams():
    assert [found.tolist() for found in followers(jnp.array([[4]]), None, 3)] == [[[-1]]] * 3
    assert [found.tolist() for found in followers(jnp.array([[4, 4]]), None, 1, 3)] == [[[-1, 4]], [[-1, -1]], [[-1, -1]]]
