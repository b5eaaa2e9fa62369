"""The parts of a block, each by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from lmtiny.model.layers import rope_angles, rotate


def test_rotary_angles_by_hand():
    cos, sin = rope_angles(jnp.array([[0, 3]]), 4, 100.0)
    np.testing.assert_allclose(cos[0, :, 0], [[1, 1], [np.cos(3), np.cos(0.3)]], rtol=1e-6)
    np.testing.assert_allclose(sin[0, :, 0], [[0, 0], [np.sin(3), np.sin(0.3)]], rtol=1e-6)


def test_a_cpu_makes_cosines_once():
    def loss(x_BTHN, weights_LNM, positions_BT):
        angles = rope_angles(positions_BT, 64, 10_000.0)
        for weights_NM in weights_LNM:
            x_BTHN = jnp.tanh(rotate(x_BTHN, angles) @ weights_NM)
        return jnp.sum(x_BTHN)

    inputs = jnp.ones((2, 128, 4, 64)), jnp.ones((3, 64, 64)), jnp.ones((2, 128), jnp.int32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs).compile().as_text()
    assert len(re.findall(r" cosine\(", compiled)) == 1
