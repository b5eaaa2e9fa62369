"""Scores and logits that cannot grow past a cap (Gemma 2, arXiv 2408.00118, section 2)."""

import jax
import jax.numpy as jnp


def soft_capped(x: jax.Array, cap: float) -> jax.Array:
    """Returns cap * tanh(x / cap), or x for a cap of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def slope(capped: jax.Array, cap: float) -> jax.Array | float:
    """Returns the derivative of `soft_capped` by x, from its result."""
    return 1 - jnp.square(capped / cap) if cap else 1.0
