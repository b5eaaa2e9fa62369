"""What came after the same words before: the feature that induction heads compute, made by sorting instead of being learned.

"In-context Learning and Induction Heads" (transformer-circuits.pub, 2022) finds that models come to look up where the
last tokens stood before and what followed; Akyurek et al., arXiv 2401.12973, section 5, build such n-gram heads in.

B batch, T time.
"""

import jax
import jax.numpy as jnp

from lmtiny.model.tables import mixed


def followers(tokens_BT: jax.Array, segments_BT: jax.Array | None, num_lengths: int) -> list[jax.Array]:
    """Returns for each n = 1..num_lengths the token that followed the last earlier occurrence of the n tokens that end here.

    It is -1 where they have not occurred in the same document.  An n-gram is known by a 32-bit hash: of T = 1,024 about one row
    in 8,000 has two that are taken for one.

    Args:
      segments_BT: number of the document each token belongs to; None: one document.
    """
    num_tokens = tokens_BT.shape[1]
    places_BT = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens_BT.shape)
    segments_BT = jnp.zeros_like(tokens_BT) if segments_BT is None else segments_BT
    hashes_BT = mixed(segments_BT.astype(jnp.uint32))
    found = []
    for back in range(num_lengths):
        token_BT, segment_BT = (
            jnp.pad(of_BT, ((0, 0), (back, 0)), constant_values=-1)[:, :num_tokens] for of_BT in (tokens_BT, segments_BT)
        )
        token_BT = jnp.where(segment_BT == segments_BT, token_BT, -1)  # before a document's first token there is none
        hashes_BT = mixed(hashes_BT ^ token_BT.astype(jnp.uint32))
        # Sorted by hash, and by place within a hash: the earlier occurrence stands one place to the left.  T log T, not T^2.
        sorted_BT, order_BT = jax.lax.sort((hashes_BT, places_BT), dimension=1, num_keys=2)
        same_BT = sorted_BT[:, 1:] == sorted_BT[:, :-1]
        before_BT = jnp.pad(jnp.where(same_BT, order_BT[:, :-1], -1), ((0, 0), (1, 0)), constant_values=-1)
        _, before_BT = jax.lax.sort((order_BT, before_BT), dimension=1, num_keys=1)
        next_BT = jnp.take_along_axis(tokens_BT, jnp.minimum(before_BT + 1, num_tokens - 1), axis=1)
        found.append(jnp.where(before_BT >= 0, next_BT, -1))
    return found
