"""Choosing the next token from its logits."""

import jax
import jax.numpy as jnp


def sample(logits_V: jax.Array, key: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns a token id drawn from softmax(logits / temperature), cut to the likeliest.

    Args:
      logits_V: float32, one token's.
      temperature: 0 takes the likeliest token.
      top_k: only the k likeliest (Fan et al. 2018, arXiv 1805.04833); 0: all.
      top_p: only the likeliest that together reach the probability p (nucleus, arXiv 1904.09751); 1: all.
        The likeliest token is always among them.
    """
    scaled_V = logits_V / jnp.where(temperature > 0, temperature, 1.0)
    order_V = jnp.argsort(-scaled_V)
    sorted_V = scaled_V[order_V]
    before_V = jnp.cumsum(jax.nn.softmax(sorted_V)) - jax.nn.softmax(sorted_V)  # probability of all likelier ones
    rank_V = jnp.arange(logits_V.shape[0])
    kept_V = ((rank_V < top_k) | (top_k == 0)) & (before_V < top_p) | (rank_V == 0)
    drawn = jax.random.categorical(key, jnp.where(kept_V, sorted_V, -jnp.inf))
    return order_V[jnp.where(temperature > 0, drawn, 0)]
