"""Causal attention with a short window: chunks of queries as in `attend_chunked`, but all of a row at once.

Where queries see few keys, a chunk's work is less than what a loop over chunks costs.  Each chunk gets a copy of the keys that it
reads, its own and those of the chunks before, and the products of all chunks run as one.

B batch, T time, C queries of a chunk, M chunks, P chunks that a chunk reads, S = P C keys, H query heads, K key/value heads,
G = H/K, N head size, Z = B M K (matrices of keys), L = B M (masks).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lmtiny.model.attend_chunked import Request, chunk_backward, chunk_forward, padded, row_sums
from lmtiny.model.attend_reference import causal_mask

# A row's scores may exist at one time where a chunk reads this many keys at most.  In bfloat16 that takes 0.5 to 0.7 of the time of a
# loop, in float32 as much; with 192 to 384 keys 0.8 to 1.1 (docs/attention.md).
MAX_KEYS = 128


def chunks_read(window: int, chunk: int) -> int:
    """Returns how many chunks of keys a chunk of queries reads where the row is long enough."""
    return 1 + math.ceil((window - 1) / chunk)


def is_local(num_queries: int, window: int, chunk: int) -> bool:
    """Returns whether windows are so short that a row's scores may all exist at one time."""
    return chunks_read(window, chunk) * chunk <= min(MAX_KEYS, num_queries - 1)


def attend_local(
    q_BTHN: jax.Array,
    k_BTKN: jax.Array,
    v_BTKN: jax.Array,
    segments_BT: jax.Array | None,
    *,
    window: int,
    soft_cap: float,
    chunk: int,
) -> jax.Array:
    """Returns what `attend` does; scores exist for T x (window + 2 chunk) pairs at most, and again in the backward pass.

    Args:
      chunk: queries in a chunk.
    """
    num_queries = q_BTHN.shape[1]
    pad = functools.partial(padded, size=math.ceil(num_queries / chunk) * chunk)
    segments_BT = None if segments_BT is None else pad(segments_BT)
    # Added keys come after all real queries, which therefore do not see them; added queries are cut off.
    return _attend(pad(q_BTHN), pad(k_BTKN), pad(v_BTKN), segments_BT, Request(window, soft_cap, chunk))[:, :num_queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, request: Request) -> jax.Array:
    return _forward(q_BTHN, k_BTKN, v_BTKN, segments_BT, request)[0]


def _forward(
    q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, request: Request
) -> tuple[jax.Array, Any]:
    num_kv_heads = k_BTKN.shape[2]
    q_ZGCN, k_ZSN, v_ZSN = _queries(q_BTHN, num_kv_heads, request), _keys(k_BTKN, request), _keys(v_BTKN, request)
    out_ZGCN, log_sum_ZGC1 = chunk_forward(q_ZGCN, k_ZSN, v_ZSN, _mask(q_BTHN.shape[:2], segments_BT, request), request.soft_cap)
    out_BTHN = _in_time(out_ZGCN, q_BTHN.shape)
    return out_BTHN, (q_BTHN, k_BTKN, v_BTKN, segments_BT, out_BTHN, log_sum_ZGC1)


def _backward(request: Request, saved: Any, grad_BTHN: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BTHN, k_BTKN, v_BTKN, segments_BT, out_BTHN, log_sum_ZGC1 = saved
    delta_BTH1 = row_sums(grad_BTHN, out_BTHN)
    q_ZGCN, grad_ZGCN, delta_ZGC1 = (_queries(one, k_BTKN.shape[2], request) for one in (q_BTHN, grad_BTHN, delta_BTH1))
    mask_LCS = _mask(q_BTHN.shape[:2], segments_BT, request)
    queries = q_ZGCN, grad_ZGCN, log_sum_ZGC1, delta_ZGC1
    dq_ZGCN, dk_ZSN, dv_ZSN = chunk_backward(queries, _keys(k_BTKN, request), _keys(v_BTKN, request), mask_LCS, request.soft_cap)
    dk_BTKN, dv_BTKN = (_summed(one, k_BTKN, request) for one in (dk_ZSN, dv_ZSN))
    return _in_time(dq_ZGCN, q_BTHN.shape), dk_BTKN, dv_BTKN, None


_attend.defvjp(_forward, _backward)


def _queries(x_BTHN: jax.Array, num_kv_heads: int, request: Request) -> jax.Array:
    """Returns x_ZGCN: the heads of a key/value head, by chunk."""
    batch, _, num_heads, size = x_BTHN.shape
    x_BMCKGN = x_BTHN.reshape(batch, -1, request.chunk, num_kv_heads, num_heads // num_kv_heads, size)
    return x_BMCKGN.transpose(0, 1, 3, 4, 2, 5).reshape(-1, num_heads // num_kv_heads, request.chunk, size)


def _in_time(x_ZGCN: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns x_BTHN of that shape: the opposite of `_queries`."""
    batch, _, num_heads, size = shape
    group, chunk = x_ZGCN.shape[1:3]
    x_BMKGCN = x_ZGCN.reshape(batch, -1, num_heads // group, group, chunk, size)
    return x_BMKGCN.transpose(0, 1, 4, 2, 3, 5).reshape(shape)


def _with_those_before(x_BT: jax.Array, request: Request) -> jax.Array:
    """Returns [B, M, S, ...]: each chunk behind those before it that it reads, zeros where there are none."""
    batch, chunk, before = x_BT.shape[0], request.chunk, chunks_read(request.window, request.chunk) - 1
    x_BMC = x_BT.reshape(batch, -1, chunk, *x_BT.shape[2:])
    num_chunks = x_BMC.shape[1]
    longer = jnp.pad(x_BMC, [(0, 0), (before, 0)] + [(0, 0)] * (x_BMC.ndim - 2))
    return jnp.concatenate([longer[:, first : first + num_chunks] for first in range(before + 1)], axis=2)


def _keys(x_BTKN: jax.Array, request: Request) -> jax.Array:
    """Returns x_ZSN: the keys (or values) that each chunk reads."""
    x_BMSKN = _with_those_before(x_BTKN, request)
    return x_BMSKN.swapaxes(2, 3).reshape(-1, x_BMSKN.shape[2], x_BMSKN.shape[4])


def _summed(x_ZSN: jax.Array, like_BTKN: jax.Array, request: Request) -> jax.Array:
    """Returns for each key the sum over the chunks that read it, in the shape and type of the keys."""
    batch, num_tokens, num_kv_heads, size = like_BTKN.shape
    read, num_chunks = chunks_read(request.window, request.chunk), num_tokens // request.chunk
    x_BMKPCN = x_ZSN.reshape(batch, num_chunks, num_kv_heads, read, request.chunk, size)
    total_BMKCN = x_BMKPCN[:, :, :, read - 1]
    for back in range(1, min(read, num_chunks)):
        later = x_BMKPCN[:, back:, :, read - 1 - back]
        total_BMKCN += jnp.pad(later, [(0, 0), (0, back)] + [(0, 0)] * 3)
    return total_BMKCN.swapaxes(2, 3).reshape(like_BTKN.shape).astype(like_BTKN.dtype)


def _mask(shape: tuple[int, ...], segments_BT: jax.Array | None, request: Request) -> jax.Array:
    """Returns mask_LCS: which keys each query sees."""
    chunk, num_keys = request.chunk, chunks_read(request.window, request.chunk) * request.chunk
    query_MC = jnp.arange(shape[1]).reshape(-1, chunk)
    key_MS = query_MC[:, -1:] - jnp.arange(num_keys)[::-1][None]
    mask_BMCS = (causal_mask(query_MC, key_MS, request.window) & (key_MS >= 0)[:, None, :])[None]
    if segments_BT is not None:
        segments_BMC, segments_BMS = segments_BT.reshape(shape[0], -1, chunk), _with_those_before(segments_BT, request)
        mask_BMCS &= segments_BMC[:, :, :, None] == segments_BMS[:, :, None, :]
    return jnp.broadcast_to(mask_BMCS, (shape[0], *mask_BMCS.shape[1:])).reshape(-1, chunk, num_keys)
