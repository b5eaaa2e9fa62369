"""What is looked up: the vectors of tokens, of n-grams and of positions; and the head, which is the way back.

B batch, T time, S cache slots, D width, V vocabulary (padded), K n-grams that end at a token.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmtiny.parallel import collectives


class Table(nnx.Module):
    """Rows looked up by number: of tokens (axis "table": rows split over devices), of positions (None)."""

    def __init__(self, rngs: nnx.Rngs, rows: int, width: int, axis: str | None, std: float = 0.02):
        self.axes, self.shape = (axis, "residual" if axis else "embed"), (rows, width)
        self.table = nnx.Param(std * jax.random.normal(rngs.params(), self.shape), axes=self.axes)

    def rows(self, dtype: Any) -> jax.Array:
        """Returns the rows that are here, those of "vocab" for token embeddings, in `dtype`."""
        return collectives.gather_weight(self.table[...], self.axes, self.shape, dtype)

    def __call__(self, indices_BT: jax.Array, dtype: Any) -> jax.Array:
        """Returns x_BTD: the rows of these numbers."""
        return self.summed([indices_BT], dtype)

    def summed(self, indices: Sequence[jax.Array], dtype: Any) -> jax.Array:
        """Returns x_BTD: of several indices_BT, the sum of their rows; a number below 0 has none."""
        # Looked up in float32, so that the gradients of a frequent token add up in float32.
        rows_vD = self.rows(dtype).astype(jnp.float32)
        if self.axes[0] is None:
            return _sum_of(_rows(rows_vD, one_BT) for one_BT in indices).astype(dtype)
        first = collectives.part("vocab") * rows_vD.shape[0]
        return _of_all_parts(_sum_of(_rows(rows_vD, one_BT - first) for one_BT in indices).astype(dtype))


class Ngrams(nnx.Module):
    """Vectors of the last 2, 3, ... tokens, in one table of hashed rows, from zero.

    A step sees few of the rows, so none but those are read or written: training takes the gradients of what was looked up, not of the
    table (`training.row_adagrad`).  Every device of "batch" has all rows of its part.
    """

    def __init__(self, rows: int, width: int, longest: int):
        self.longest = longest
        self.table = nnx.Param(jnp.zeros((rows, width)), axes=("vocab", "residual"))

    def rows(self, tokens_BT: jax.Array, positions_BT: jax.Array, read_BS: jax.Array | None) -> jax.Array:
        """Returns `ngram_rows` of this table."""
        return ngram_rows(tokens_BT, positions_BT, read_BS, self.longest, self.table.shape[0] * collectives.parts("vocab"))

    def __call__(self, rows_BTK: jax.Array, dtype: Any) -> jax.Array:
        """Returns x_BTD: the sum of the vectors of a token's rows."""
        rows_vD = self.table[...]
        own_BTK = rows_BTK - collectives.part("vocab") * rows_vD.shape[0]
        return _of_all_parts(_sum_of(_rows(rows_vD, own_BTK[..., k]) for k in range(own_BTK.shape[-1])).astype(dtype))


def _sum_of(each: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum of all."""
    # One after the other: XLA's CPU backend takes 20 times as long to gather the rows of all and sum them then.
    return functools.reduce(operator.add, each)


def _rows(rows_vD: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns the rows of these numbers, zeros for those that are not there."""
    # The number behind the last stands for none: jax.take counts numbers below 0 from the end.
    return jnp.take(rows_vD, jnp.where(indices >= 0, indices, rows_vD.shape[0]), axis=0, mode="fill", fill_value=0)


def _of_all_parts(x_BTD: jax.Array) -> jax.Array:
    """Returns the sum over the devices of "vocab", of this device's time steps between the matrices."""
    return collectives.scatter_total(collectives.total(x_BTD, "layer"), "sequence", 1)


class Head(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int, rows: int):
        self.axes, self.shape = ("embed", "vocab"), (width, rows)
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), self.shape), axes=self.axes)

    def columns(self, dtype: Any) -> jax.Array:
        """Returns the columns that are here, in `dtype`."""
        return collectives.gather_weight(self.kernel[...], self.axes, self.shape, dtype)


def ngram_rows(tokens_BT: jax.Array, positions_BT: jax.Array, read_BS: jax.Array | None, longest: int, num_rows: int) -> jax.Array:
    """Returns rows_BTK of a table of `num_rows` for the last 2, 3, .., `longest` tokens up to each, by a hash of them.

    As in arXiv 2501.16975 (n-grams of the input) and arXiv 1709.03933 (hashed rows).

    `read_BS`: the tokens of all positions where `tokens_BT` begins in the middle; at the start of a document 0 comes before.
    """
    hash_BT, found = tokens_BT.astype(jnp.uint32), []
    for back in range(1, longest):
        if read_BS is None:
            before_BT = jnp.pad(tokens_BT, ((0, 0), (back, 0)))[:, : tokens_BT.shape[1]]
        else:
            before_BT = jnp.take_along_axis(read_BS, jnp.maximum(positions_BT - back, 0), axis=1)
        before_BT = jnp.where(positions_BT >= back, before_BT, 0)
        # Knuth's multiplier (The Art of Computer Programming 3, section 6.4) makes one number of the two.
        hash_BT = mixed(hash_BT * jnp.uint32(0x9E3779B1) + before_BT.astype(jnp.uint32))
        found.append((hash_BT % jnp.uint32(num_rows)).astype(jnp.int32))
    return jnp.stack(found, axis=-1)


def mixed(x: jax.Array) -> jax.Array:
    """Returns a permutation of the uint32 numbers in which near ones are far apart: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
