"""The core of attention written out: all scores at once, under any mask. What every other core must agree with.

B batch, T queries, S keys, H query heads, K key/value heads, G = H/K, N head size.
"""

import math

import jax
import jax.numpy as jnp

from lmtiny.parallel.soft_cap import soft_capped


def attend_with_mask(q_BTHN: jax.Array, k_BSKN: jax.Array, v_BSKN: jax.Array, mask_BTS: jax.Array, soft_cap: float = 0.0) -> jax.Array:
    """Returns softmax(q k / sqrt(N)) v, [B, T, H, N], where mask_BTS is true; scores and softmax are in float32.

    Query head h reads key/value head h // G (GQA, arXiv 2305.13245).  With a soft cap above 0 a score is
    cap * tanh(score / cap) (Gemma 2, arXiv 2408.00118, section 2).
    """
    batch, num_queries, num_heads, head_dim = q_BTHN.shape
    num_kv_heads = k_BSKN.shape[2]
    q_BTKGN = q_BTHN.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores_BKGTS = jnp.einsum("BTKGN,BSKN->BKGTS", q_BTKGN, k_BSKN, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], soft_capped(scores_BKGTS, soft_cap), -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKN.dtype)
    return jnp.einsum("BKGTS,BSKN->BTKGN", weights_BKGTS, v_BSKN).reshape(q_BTHN.shape)


def causal_mask(query_BT: jax.Array, key_BS: jax.Array, window: jax.Array | int) -> jax.Array:
    """Returns mask[B, T, S]: a query sees keys at its own index and before it, `window` of them, itself included."""
    distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
    return (distance_BTS >= 0) & (distance_BTS < window)


def attend_reference(
    q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, *, window: int, soft_cap: float
) -> jax.Array:
    """Returns what `attend` does, by way of all T x T scores."""
    # Along the row, not by position: positions start again with each document.
    index_1T = jnp.arange(q_BTHN.shape[1])[None]
    mask_BTT = causal_mask(index_1T, index_1T, window)
    if segments_BT is not None:
        mask_BTT = mask_BTT & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return attend_with_mask(q_BTHN, k_BTKN, v_BTKN, mask_BTT, soft_cap)
