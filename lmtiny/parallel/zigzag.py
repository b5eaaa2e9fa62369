"""Which time steps of a row a device holds under context parallelism: a piece from the front and one from the back.

A causal query late in the row has many keys, an early one few.  A row is cut into 2C pieces for C devices, and device i
holds pieces i and 2C-1-i, so that all have the same work (striped and zig-zag orders: arXiv 2311.09431).
"""

import jax
import jax.numpy as jnp

from lmtiny.parallel import collectives


def own_pieces() -> tuple[jax.Array | int, jax.Array | int]:
    """Returns the numbers of the two pieces of 2C that this device holds."""
    return collectives.part("time"), 2 * collectives.parts("time") - 1 - collectives.part("time")


def piece(x: jax.Array, number: jax.Array | int, dimension: int = 1) -> jax.Array:
    """Returns one of the 2C pieces, along `dimension`, of an x that is whole here."""
    size = x.shape[dimension] // (2 * collectives.parts("time"))
    return jax.lax.dynamic_slice_in_dim(x, number * size, size, dimension)


def own_time(x: jax.Array, dimension: int = 1) -> jax.Array:
    """Returns this device's time steps, along `dimension`, of an x that all hold whole; nothing is sent."""
    if collectives.parts("time") == 1:
        return x
    return jnp.concatenate([piece(x, number, dimension) for number in own_pieces()], axis=dimension)
