"""Choosing the next token from its logits."""

import jax
import jax.numpy as jnp

SHORT_OF_P = 1e-5  # of p, that a nucleus may lack: sums of float32 are that far off


def sample(logits_V: jax.Array, key: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns a token id drawn from softmax(logits / temperature), cut to the likeliest.

    Args:
      logits_V: float32, one token's.
      temperature: 0 takes the likeliest token.
      top_k: only the k likeliest (Fan et al. 2018, arXiv 1805.04833); 0, or more than there are: all.
      top_p: the fewest of the likeliest that together reach the probability p (nucleus, arXiv 1904.09751); 1: all.
        The likeliest token is always among them.
    """
    # The highest is 0 before it is divided: a tiny temperature makes -inf of the others, and nothing of it.
    scaled_V = (logits_V - jnp.max(logits_V)) / jnp.where(temperature > 0, temperature, 1.0)
    order_V = jnp.argsort(-scaled_V)
    sorted_V = scaled_V[order_V]
    reached_V = jnp.cumsum(jax.nn.softmax(sorted_V))
    before_V = jnp.pad(reached_V[:-1], (1, 0))  # probability of all likelier ones
    rank_V = jnp.arange(logits_V.shape[0])
    # A token is left out where those before it reach p, as llama.cpp has it. Of .5, .3, .1, .1 at p = .8 that are two; but the
    # sum in float32 may be a little less than .8, so a little less is enough.
    in_nucleus_V = (before_V < top_p * (1 - SHORT_OF_P)) | (top_p >= 1)
    kept_V = ((rank_V < top_k) | (top_k == 0)) & in_nucleus_V | (rank_V == 0)
    drawn = jax.random.categorical(key, jnp.where(kept_V, sorted_V, -jnp.inf))
    return order_V[jnp.where(temperature > 0, drawn, 0)]
