"""What is looked up: the vectors of tokens, of pairs of tokens and of positions; and the head, which is the way back.

B batch, T time, S cache slots, D width, V vocabulary (padded).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmtiny.parallel import collectives


class Table(nnx.Module):
    """Rows looked up by number: of tokens or pairs of them (axis "table": rows split over devices), of positions (None)."""

    def __init__(self, rngs: nnx.Rngs, rows: int, width: int, axis: str | None, std: float = 0.02):
        self.axes, self.shape = (axis, "residual" if axis else "embed"), (rows, width)
        self.table = nnx.Param(std * jax.random.normal(rngs.params(), self.shape), axes=self.axes)

    def rows(self, dtype: Any) -> jax.Array:
        """Returns the rows that are here, those of "vocab" for token embeddings, in `dtype`."""
        return collectives.gather_weight(self.table[...], self.axes, self.shape, dtype)

    def __call__(self, indices_BT: jax.Array, dtype: Any) -> jax.Array:
        # Looked up in float32, so that the gradients of a frequent token add up in float32.
        rows_vD = self.rows(dtype).astype(jnp.float32)
        if self.axes[0] is None or collectives.parts("vocab") == 1:
            return jnp.take(rows_vD, indices_BT, axis=0, mode="clip").astype(dtype)
        local_BT = indices_BT - collectives.part("vocab") * rows_vD.shape[0]
        here_BT1 = ((local_BT >= 0) & (local_BT < rows_vD.shape[0]))[..., None]
        x_BTD = jnp.where(here_BT1, jnp.take(rows_vD, local_BT, axis=0, mode="clip"), 0).astype(dtype)
        return collectives.scatter_total(collectives.total(x_BTD, "layer"), "sequence", 1)


class Head(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int, rows: int):
        self.axes, self.shape = ("embed", "vocab"), (width, rows)
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), self.shape), axes=self.axes)

    def columns(self, dtype: Any) -> jax.Array:
        """Returns the columns that are here, in `dtype`."""
        return collectives.gather_weight(self.kernel[...], self.axes, self.shape, dtype)


def pair_rows(tokens_BT: jax.Array, positions_BT: jax.Array, read_BS: jax.Array | None, num_rows: int) -> jax.Array:
    """Returns the row in a table of `num_rows` for each token and the one before it in its document, by a hash of both.

    As in arXiv 2501.16975 (n-grams of the input) and arXiv 1709.03933 (hashed rows).

    `read_BS`: the tokens of all positions where `tokens_BT` begins in the middle; at the start of a document 0 comes before.
    """
    if read_BS is None:
        before_BT = jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)))
    else:
        before_BT = jnp.take_along_axis(read_BS, jnp.maximum(positions_BT - 1, 0), axis=1)
    before_BT = jnp.where(positions_BT > 0, before_BT, 0)
    # Knuth's multiplier (The Art of Computer Programming 3, section 6.4) makes one number of the two.
    pair_BT = before_BT.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + tokens_BT.astype(jnp.uint32)
    return (mixed(pair_BT) % jnp.uint32(num_rows)).astype(jnp.int32)


def mixed(x: jax.Array) -> jax.Array:
    """Returns a permutation of the uint32 numbers in which near ones are far apart: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
