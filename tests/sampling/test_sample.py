"""The next token: its distribution, and what temperature, top-k and top-p cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtiny.sampling.sample import sample

LOGITS = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))
DRAWS = 20_000


@jax.jit
def draws(temperature, top_k, top_p):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.vmap(lambda key: sample(LOGITS, key, temperature, top_k, top_p))(keys)


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
