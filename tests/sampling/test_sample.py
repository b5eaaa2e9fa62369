"""The next token: its distribution, and what temperature, top-k and top-p cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny.sampling.sample import sample

LOGITS = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))
DRAWS = 20_000


@jax.jit
def draws(temperature, top_k, top_p, logits=LOGITS):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.vmap(lambda key: sample(logits, key, temperature, top_k, top_p))(keys)


def shares(temperature=1.0, top_k=0, top_p=1.0):
    return np.bincount(draws(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)), minlength=5) / DRAWS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.05, 0.4, 0.1, 0.3, 0.15]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, np.array([0.05, 0.4, 0.1, 0.3, 0.15]) ** 2 / 0.285),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 50}, [0.05, 0.4, 0.1, 0.3, 0.15]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),  # the smallest set that reaches p
        ({"top_p": 0.84}, [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        ({"top_k": 2, "top_p": 0.3}, [0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_shares(settings, expected):
    found = shares(**settings)
    assert (found[np.array(expected) == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / DRAWS**0.5)


@pytest.mark.parametrize(
    ("probabilities", "top_p", "nucleus"),
    [
        ((0.5, 0.3, 0.1, 0.1), 0.8, {0, 1}),  # they sum to exactly p, which float32 does not
        ((0.5, 0.3, 0.1, 0.1), 0.5, {0}),
        ((0.5, 0.3, 0.1, 0.1), 0.9, {0, 1, 2}),
        ((0.5, 0.3, 0.1, 0.1), 0.8001, {0, 1, 2}),
        ((0.1, 0.2, 0.7), 0.9, {1, 2}),
        ((0.25, 0.25, 0.25, 0.25), 0.75, {0, 1, 2}),
        ((0.1,) * 10, 0.7, set(range(7))),
        ((0.5, 0.4999999, 1e-7), 1.0, {0, 1, 2}),  # all, however little the last ones add
    ],
)
def test_a_nucleus_is_the_fewest_tokens_that_reach_p(probabilities, top_p, nucleus):
    logits = jnp.log(jnp.array(probabilities))
    drawn = set(np.array(draws(jnp.float32(1), jnp.int32(0), jnp.float32(top_p), logits)).tolist())
    assert drawn == {token for token in nucleus if probabilities[token] > 1e-6}


def test_a_tiny_temperature_takes_the_likeliest():
    for temperature in (1e-37, 1e-30, 1e-6):
        assert (shares(temperature=temperature) == [0, 1, 0, 0, 0]).all()
