"""Training of a table of which a step reads few rows: gradients of what was looked up, and Adagrad over just those rows.

A microbatches of b rows, T time, K n-grams that end at a token; M looked-up rows of a step, over all devices; R rows of the table,
D width.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmtiny.parallel import collectives
from lmtiny.training.state import chosen


class RowAdagradState(NamedTuple):
    """squares: tree like the parameters, of each row of a table the sum of its mean squared gradients [R]."""

    squares: Any


def without_ngrams(tree: Any) -> tuple[Any, Any]:
    """Returns (a tree like the parameters without the table of n-grams, what it has there, or None)."""
    return {name: leaf for name, leaf in tree.items() if name != "ngrams"}, tree["ngrams"]["table"] if "ngrams" in tree else None


def with_ngrams(tree: Any, table: Any) -> Any:
    """Returns the opposite of `without_ngrams`."""
    return tree if table is None else {**tree, "ngrams": {"table": table}}


def of_all_tokens(looked_up: tuple[jax.Array, jax.Array], num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns `summed_by_row` of the rows and gradients of all devices' tokens, the same on each device.

    Args:
      looked_up: rows_AbTK of the n-grams that end at this device's tokens; and grads_AbTD, this device's share of the gradients
        of their vectors' sum, of its time steps between the matrices.
    """
    rows_AbTK, grads_AbTD = looked_up
    grads_AbTD = collectives.total(collectives.gather(grads_AbTD, "sequence", 2), "layer")
    rows_AbTK, grads_AbTD = (collectives.gather(collectives.gather(x, "time", 2), "batch", 1) for x in (rows_AbTK, grads_AbTD))
    grads_ND = grads_AbTD.reshape(-1, grads_AbTD.shape[-1]).astype(jnp.float32)
    grads_MD = jnp.repeat(grads_ND, rows_AbTK.shape[-1], axis=0)
    return summed_by_row(rows_AbTK.reshape(-1), grads_MD, num_rows)


def summed_by_row(rows_M: jax.Array, grads_MD: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns (rows [M], their gradients [M, D]): each row once, with the sum of what it was given; then none (rows from R on, zeros)."""
    count = rows_M.shape[0]
    sorted_M, order_M = jax.lax.sort((rows_M, jnp.arange(count, dtype=jnp.int32)), num_keys=1)
    new_M = jnp.concatenate([jnp.zeros(1, jnp.int32), (sorted_M[1:] != sorted_M[:-1]).astype(jnp.int32)])
    place_M = jnp.cumsum(new_M)
    summed_MD = jax.ops.segment_sum(grads_MD[order_M], place_M, num_segments=count, indices_are_sorted=True)
    none_M = num_rows + jnp.arange(count, dtype=jnp.int32)  # each another, so that the rows are unique
    return none_M.at[place_M].set(sorted_M), summed_MD


def scale_by_row_adagrad(prior: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """Returns Adagrad (Duchi et al. 2011, JMLR 12) with one number for each row of a table, as FBGEMM's row-wise Adagrad.

    Its update takes gradients [M, D] of the rows given as `rows` [M], each of them once, and returns directions of these; unless
    `take`, the state stays as it was.  A row's
    first direction has a mean square of 1 where its gradient is as large as others of the step; later ones are smaller, by the root
    of the sum over all its gradients so far.

    Args:
      prior: how many gradients, as large as the mean square of those of the step, each row's sum has from the start.  Without any, what
        is seen once moves as far as what is seen often.
    """

    def init(params: Any) -> RowAdagradState:
        return RowAdagradState(jax.tree.map(lambda table: jnp.zeros(table.shape[0]), params))

    def update(
        grads: Any, state: RowAdagradState, params: Any = None, *, rows: Any = None, take: Any = True, **_: Any
    ) -> tuple[Any, RowAdagradState]:
        del params
        old = jax.tree.map(lambda squares_R: jnp.take(squares_R, rows, mode="fill", fill_value=0.0), state.squares)
        new = jax.tree.map(lambda old_M, grad_MD: old_M + jnp.mean(jnp.square(grad_MD), axis=1), old, grads)

        def direction(grad_MD: jax.Array, squares_M: jax.Array) -> jax.Array:
            own_M = jnp.mean(jnp.square(grad_MD), axis=1)
            usual = jnp.sum(own_M) / jnp.maximum(jnp.sum(own_M > 0), 1)
            return grad_MD * (math.sqrt(1 + prior) * jax.lax.rsqrt(jnp.maximum(squares_M + prior * usual, 1e-37)))[:, None]

        def kept(squares_R: jax.Array, of_M: jax.Array) -> jax.Array:
            return squares_R.at[rows].set(of_M, mode="drop", unique_indices=True)

        return jax.tree.map(direction, grads, new), RowAdagradState(jax.tree.map(kept, state.squares, chosen(take, new, old)))

    return optax.GradientTransformationExtraArgs(init, update)


def added_to_rows(table_RD: jax.Array, rows_M: jax.Array, updates_MD: jax.Array) -> jax.Array:
    """Returns the table with the updates added to these rows, each of them given once; rows from R on are none."""
    return table_RD.at[rows_M].add(updates_MD, mode="drop", unique_indices=True)
