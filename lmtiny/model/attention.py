"""Causal self-attention with grouped heads, windows, packed documents and a cache.

B batch, T queries, S keys, D width, H query heads, K key/value heads, G = H/K, N head size, L layers.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmtiny import config as config_lib
from lmtiny.model.layers import Dense, rms_norm, rotate
from lmtiny.parallel import collectives
from lmtiny.parallel.ring_attention import ring_attention

Cache = dict[str, jax.Array]  # {"key", "value"}: [B, S, K, N] of one layer, [L, B, S, K, N] of all


class Rows(NamedTuple):
    """What goes with the activations of a batch's rows, the same for all layers.

    positions_BT: in the document; angles: of the rotary embedding, or None; both of the time steps that are here.
    segments_BS: the document each token of the whole row belongs to, or None.
    """

    positions_BT: jax.Array
    angles: tuple[jax.Array, jax.Array] | None
    segments_BS: jax.Array | None


def attend(q_BTHN: jax.Array, k_BSKN: jax.Array, v_BSKN: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(N)) v, [B, T, H, N], where mask_BTS is true; the softmax is in float32.

    Query head h reads key/value head h // G (GQA, arXiv 2305.13245).
    """
    batch, num_queries, num_heads, head_dim = q_BTHN.shape
    num_kv_heads = k_BSKN.shape[2]
    q_BTKGN = q_BTHN.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores_BKGTS = jnp.einsum("BTKGN,BSKN->BKGTS", q_BTKGN, k_BSKN, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS / math.sqrt(head_dim), -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKN.dtype)
    return jnp.einsum("BKGTS,BSKN->BTKGN", weights_BKGTS, v_BSKN).reshape(q_BTHN.shape)


def causal_mask(query_BT: jax.Array, key_BS: jax.Array, window: jax.Array | int) -> jax.Array:
    """Returns mask[B, T, S]: a query sees keys at its own position and before it, `window` of them, itself included."""
    distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
    return (distance_BTS >= 0) & (distance_BTS < window)


class Attention(nnx.Module):
    def __init__(self, config: ml_collections.ConfigDict, rngs: nnx.Rngs, out_scale: float):
        head_dim = config_lib.head_dim(config)
        width = {"embed": config.width}
        heads = {"heads": config.num_heads, "head_dim": head_dim}
        kv_heads = {"kv_heads": config_lib.num_kv_heads(config), "head_dim": head_dim}
        dense = functools.partial(Dense, rngs, init=config.init, matmul_dtype=config.matmul_dtype)
        bias = config.bias in ("qkv", "all")
        self.query, self.key, self.value = (dense(width, outputs, bias=bias) for outputs in (heads, kv_heads, kv_heads))
        self.out = dense(heads, width, scale=out_scale, bias=config.bias == "all")
        self.qk_norm, self.epsilon = config.qk_norm, config.norm_epsilon

    def __call__(self, x_BTD: jax.Array, rows: Rows, window: jax.Array | int, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """Returns (y_BTD, the cache with this call's keys and values written at their positions).

        With a cache the keys are those of the cache, slot = position, and segments are not looked at: one document a row.
        """
        x_BTD = collectives.gather(x_BTD, "sequence", 1)
        q_BTHN, k_BTKN, v_BTKN = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.qk_norm:
            q_BTHN, k_BTKN = rms_norm(q_BTHN, self.epsilon), rms_norm(k_BTKN, self.epsilon)
        if rows.angles is not None:
            q_BTHN, k_BTKN = rotate(q_BTHN, rows.angles), rotate(k_BTKN, rows.angles)
        q_BTHN, k_BTKN, v_BTKN = (
            checkpoint_name(one, name) for one, name in ((q_BTHN, "query"), (k_BTKN, "key"), (v_BTKN, "value"))
        )
        if cache is not None:
            write = jax.vmap(lambda slots, new, start: jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, 0))
            cache = {
                "key": write(cache["key"], k_BTKN, rows.positions_BT[:, 0]),
                "value": write(cache["value"], v_BTKN, rows.positions_BT[:, 0]),
            }
            k_BSKN, v_BSKN = cache["key"].astype(x_BTD.dtype), cache["value"].astype(x_BTD.dtype)
            out_BTHN = attend(q_BTHN, k_BSKN, v_BSKN, causal_mask(rows.positions_BT, jnp.arange(k_BSKN.shape[1])[None], window))
        elif collectives.parts("time") > 1:
            out_BTHN = ring_attention(q_BTHN, k_BTKN, v_BTKN, rows.segments_BS, window, 0.0)
        else:
            # Along the row, not by position: positions start again with each document.
            index_1T = jnp.arange(x_BTD.shape[1])[None]
            mask_BTS = causal_mask(index_1T, index_1T, window)
            if rows.segments_BS is not None:
                mask_BTS = mask_BTS & (rows.segments_BS[:, :, None] == rows.segments_BS[:, None, :])
            out_BTHN = attend(q_BTHN, k_BTKN, v_BTKN, mask_BTS)
        return self.out(checkpoint_name(out_BTHN, "attended")), cache
