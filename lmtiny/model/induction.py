"""What came after the same words before: the feature that induction heads compute, made by sorting instead of being learned.

"In-context Learning and Induction Heads" (transformer-circuits.pub, 2022) finds that models come to look up where the
last tokens stood before and what followed; Akyurek et al., arXiv 2401.12973, section 5, build such n-gram heads in.

B batch, T time.
"""

import jax
import jax.numpy as jnp

from lmtiny.model.tables import mixed
from lmtiny.parallel import mesh


def followers(tokens_BT: jax.Array, segments_BT: jax.Array | None, num_lengths: int, num_places: int = 1) -> list[jax.Array]:
    """Returns for each n = 1..num_lengths the tokens that followed the last `num_places` earlier occurrences of the n tokens that end here.

    They come latest first, [B, T] each, and are -1 where the n tokens have not occurred so often in the same document.  An n-gram is
    known by a 32-bit hash: of T = 1,024 about one row in 8,000 has two that are taken for one.

    Args:
      segments_BT: number of the document each token belongs to; None: one document.
    """
    num_tokens = tokens_BT.shape[1]
    places_BT = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens_BT.shape)
    segments_BT = jnp.zeros_like(tokens_BT) if segments_BT is None else segments_BT
    found = []
    for hashes_BT in ngram_hashes(tokens_BT, segments_BT, num_lengths + 1)[1:]:
        # Sorted by hash, and by place within a hash: earlier occurrences stand to the left.  T log T, not T^2.
        sorted_BT, order_BT = jax.lax.sort((hashes_BT, places_BT), dimension=1, num_keys=2)
        for place in range(1, num_places + 1):
            same_BT = sorted_BT[:, place:] == sorted_BT[:, :-place]
            before_BT = jnp.where(same_BT, order_BT[:, :-place], -1)
            before_BT = jnp.pad(before_BT, ((0, 0), (place, 0)), constant_values=-1)[:, :num_tokens]
            before_BT = in_order(order_BT, before_BT)
            next_BT = jnp.take_along_axis(tokens_BT, jnp.minimum(before_BT + 1, num_tokens - 1), axis=1)
            found.append(jnp.where(before_BT >= 0, next_BT, -1))
    return found


def ngram_hashes(tokens_BT: jax.Array, segments_BT: jax.Array, num_lengths: int) -> list[jax.Array]:
    """Returns for each n = 0..num_lengths - 1 a hash of the n tokens that end at each and of their document, uint32 [B, T]."""
    hashes = [mixed(segments_BT.astype(jnp.uint32))]
    for back in range(num_lengths - 1):
        token_BT, segment_BT = (
            jnp.pad(of_BT, ((0, 0), (back, 0)), constant_values=-1)[:, : tokens_BT.shape[1]] for of_BT in (tokens_BT, segments_BT)
        )
        token_BT = jnp.where(segment_BT == segments_BT, token_BT, -1)  # before a document's first token there is none
        hashes.append(mixed(hashes[-1] ^ token_BT.astype(jnp.uint32)))
    return hashes


def in_order(order_BT: jax.Array, x_BT: jax.Array) -> jax.Array:
    """Returns x with each value at the place that `order`, a permutation of each row, gives it."""
    if mesh.platform() != "cpu":  # by a sort: a TPU scatters one number after the other
        _, x_BT = jax.lax.sort((order_BT, x_BT), dimension=1, num_keys=1)
        return x_BT
    # A CPU sorts on one core alone, and takes twice as long with a second sort.
    rows_B1 = jnp.arange(x_BT.shape[0])[:, None]
    return jnp.zeros_like(x_BT).at[rows_B1, order_BT].set(x_BT, unique_indices=True, mode="promise_in_bounds")
