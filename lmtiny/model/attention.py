"""Causal self-attention with grouped heads, windows, packed documents and a cache.

B batch, T queries, S keys, D width, H query heads, K key/value heads, G = H/K, N head size, L layers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmtiny import config as config_lib
from lmtiny.model.attend import attend, attend_with_mask, causal_mask, choose
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


class Window(NamedTuple):
    """How many keys back a layer sees, itself included: `sizes[kind]`; the kind is an array where one program runs several layers."""

    sizes: tuple[int, ...]
    kind: jax.Array | int

    def size(self) -> jax.Array | int:
        return self.sizes[self.kind] if isinstance(self.kind, int) else jnp.array(self.sizes)[self.kind]


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
        self.implementation, self.chunk, self.soft_cap = config.attention, config.attention_chunk, config.attention_soft_cap

    def __call__(self, x_BTD: jax.Array, rows: Rows, window: Window, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
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
            new = {"key": k_BTKN, "value": v_BTKN}
            cache = {name: written(slots, new[name], rows.positions_BT) for name, slots in cache.items()}
            k_BSKN, v_BSKN = cache["key"].astype(x_BTD.dtype), cache["value"].astype(x_BTD.dtype)
            mask_BTS = causal_mask(rows.positions_BT, jnp.arange(k_BSKN.shape[1])[None], window.size())
            out_BTHN = attend_with_mask(q_BTHN, k_BSKN, v_BSKN, mask_BTS, self.soft_cap)
        elif collectives.parts("time") > 1:
            out_BTHN = ring_attention(q_BTHN, k_BTKN, v_BTKN, rows.segments_BS, window.size(), self.soft_cap)
        else:
            out_BTHN = self._attend(q_BTHN, k_BTKN, v_BTKN, rows.segments_BS, window)
        return self.out(checkpoint_name(out_BTHN, "attended")), cache

    def _attend(
        self, q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, window: Window
    ) -> jax.Array:
        """Returns the attention of whole rows, by the core of model.attention."""
        core = self.implementation
        if core == "auto":  # not chosen by `attend.resolved`, as where the model runs without a trainer
            devices = jax.local_devices()[0]
            core, _ = choose(
                core, backend=devices.platform, device_kind=devices.device_kind, num_queries=q_BTHN.shape[1], head_dim=q_BTHN.shape[3],
                dtype=q_BTHN.dtype, segments=segments_BT is not None, window=min(window.sizes), soft_cap=self.soft_cap,
            )  # fmt: skip
        cores = [
            functools.partial(attend, window=size, soft_cap=self.soft_cap, implementation=core, chunk=self.chunk) for size in window.sizes
        ]
        if isinstance(window.kind, int):
            return cores[window.kind](q_BTHN, k_BTKN, v_BTKN, segments_BT)
        out_BTHN: jax.Array = jax.lax.switch(window.kind, cores, q_BTHN, k_BTKN, v_BTKN, segments_BT)
        return out_BTHN


def written(slots_BS: jax.Array, new_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Returns the cache's slots, [B, S, ...], with `new` from each row's first position on."""
    write = jax.vmap(lambda slots, new, start: jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, 0))
    return write(slots_BS, new_BT, positions_BT[:, 0])
