"""Causal attention by chunks of queries: plain JAX for any device, memory that grows with T and not with T squared.

Forward and backward pass are those of FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2), a chunk of queries against all
the keys it sees: only outputs and the logarithms of the softmax's sums are kept, scores are computed again.

B batch, T time, C queries of a chunk, M chunks in a group, S keys that a chunk reads, H query heads, K key/value heads,
G = H/K, N head size, Z = B K (matrices of keys), R = G C (rows of queries).
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmtiny.model.attend_reference import causal_mask
from lmtiny.parallel.apart import apart
from lmtiny.parallel.matmul import product, product_over_rows, product_with_rows
from lmtiny.parallel.soft_cap import slope, soft_capped

MAX_GROUPS = 8  # written out one after the other, so that the program does not grow with T
NOTHING = -1e30  # a score that leaves no weight


class Request(NamedTuple):
    """What stays the same for all chunks. chunk: queries in each; the row is a whole number of chunks."""

    window: int
    soft_cap: float
    chunk: int


def attend_chunked(
    q_BTHN: jax.Array,
    k_BTKN: jax.Array,
    v_BTKN: jax.Array,
    segments_BT: jax.Array | None,
    *,
    window: int,
    soft_cap: float,
    chunk: int,
) -> jax.Array:
    """Returns what `attend` does; scores exist for one chunk of queries at a time, and again in the backward pass.

    The row is cut into at most MAX_GROUPS groups of chunks.  A group reads the keys before its end only, so causality
    saves up to 7/16 of the work; of those, a chunk reads the ones that its window reaches, to the chunk.

    Args:
      chunk: queries in a chunk at most; the row is cut evenly.
    """
    batch, num_queries, num_kv_heads, head_dim = k_BTKN.shape
    num_chunks = math.ceil(num_queries / chunk)
    size = math.ceil(num_queries / num_chunks)
    # Added keys come after all real queries, which therefore do not see them; added queries are cut off below.
    pad = functools.partial(padded, size=size * num_chunks)
    q_BTKGN = pad(q_BTHN).reshape(batch, -1, num_kv_heads, q_BTHN.shape[2] // num_kv_heads, head_dim)
    q_ZGTN = apart(_heads_before_time, q_BTKGN).reshape(batch * num_kv_heads, -1, size * num_chunks, head_dim)
    k_ZTN, v_ZTN = (apart(_heads_before_time, pad(one)).reshape(batch * num_kv_heads, -1, head_dim) for one in (k_BTKN, v_BTKN))
    segments_BT = None if segments_BT is None else pad(segments_BT)
    out_ZGTN = _attend(q_ZGTN, k_ZTN, v_ZTN, segments_BT, Request(window, soft_cap, size))
    out_BHTN = out_ZGTN.reshape(batch, -1, *out_ZGTN.shape[2:])
    return apart(_time_before_heads, out_BHTN)[:, :num_queries]


def _heads_before_time(x_BTHN: jax.Array) -> jax.Array:
    """Returns [B, ..., T, N] of [B, T, ..., N]."""
    return jnp.moveaxis(x_BTHN, 1, -2)


def _time_before_heads(x_BHTN: jax.Array) -> jax.Array:
    return x_BHTN.swapaxes(1, 2)


def padded(x_BT: jax.Array, size: int) -> jax.Array:
    """Returns x, [B, T, ...], with zeros behind it up to T = size."""
    return jnp.pad(x_BT, ((0, 0), (0, size - x_BT.shape[1]), *((0, 0) for _ in x_BT.shape[2:])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_ZGTN: jax.Array, k_ZTN: jax.Array, v_ZTN: jax.Array, segments_BT: jax.Array | None, request: Request) -> jax.Array:
    return _attend_forward(q_ZGTN, k_ZTN, v_ZTN, segments_BT, request)[0]


def _attend_forward(
    q_ZGTN: jax.Array, k_ZTN: jax.Array, v_ZTN: jax.Array, segments_BT: jax.Array | None, request: Request
) -> tuple[jax.Array, Any]:
    results = []
    for group in _groups(q_ZGTN.shape[2], request):

        def of_chunk(_: None, item: tuple[jax.Array, jax.Array], group: "_Group" = group) -> tuple[None, Any]:
            index, q_ZGCN = item
            keys = group.keys(index, k_ZTN), group.keys(index, v_ZTN)
            return None, chunk_forward(q_ZGCN, *keys, group.mask(index, segments_BT), request.soft_cap)

        _, parts = group.run(of_chunk, None, (q_ZGTN,))
        results.append(parts)
    out_ZGTN, log_sum_ZGT1 = (jnp.concatenate(parts, axis=2) for parts in zip(*results, strict=True))
    return out_ZGTN, (q_ZGTN, k_ZTN, v_ZTN, segments_BT, out_ZGTN, log_sum_ZGT1)


def _attend_backward(request: Request, saved: Any, grad_ZGTN: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_ZGTN, k_ZTN, v_ZTN, segments_BT, out_ZGTN, log_sum_ZGT1 = saved
    delta_ZGT1 = row_sums(grad_ZGTN, out_ZGTN)
    # Summed over chunks in float32.
    dk_ZTN, dv_ZTN = jnp.zeros(k_ZTN.shape, jnp.float32), jnp.zeros(v_ZTN.shape, jnp.float32)
    dq_parts = []
    for group in _groups(q_ZGTN.shape[2], request):

        def of_chunk(sums: tuple[jax.Array, jax.Array], item: Any, group: "_Group" = group) -> tuple[tuple[jax.Array, jax.Array], Any]:
            index, queries = item[0], item[1:]
            keys = group.keys(index, k_ZTN), group.keys(index, v_ZTN)
            dq_ZGCN, *more = chunk_backward(queries, *keys, group.mask(index, segments_BT), request.soft_cap)
            dk_ZSN, dv_ZSN = (group.with_keys_added(index, total, part) for total, part in zip(sums, more, strict=True))
            return (dk_ZSN, dv_ZSN), (dq_ZGCN,)

        keys = slice(group.first_key, group.end)
        sums = dk_ZTN[:, keys], dv_ZTN[:, keys]
        (dk_ZSN, dv_ZSN), (dq_part,) = group.run(of_chunk, sums, (q_ZGTN, grad_ZGTN, log_sum_ZGT1, delta_ZGT1))
        dk_ZTN, dv_ZTN = dk_ZTN.at[:, keys].set(dk_ZSN), dv_ZTN.at[:, keys].set(dv_ZSN)
        dq_parts.append(dq_part)
    dq_ZGTN = jnp.concatenate(dq_parts, axis=2)
    return dq_ZGTN, dk_ZTN.astype(k_ZTN.dtype), dv_ZTN.astype(v_ZTN.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


class _Group(NamedTuple):
    """Chunks first .. last - 1 of the row.  They run one after the other, and each reads `num_read` keys that end where it does."""

    first: int
    last: int
    request: Request

    @property
    def end(self) -> int:
        return self.last * self.request.chunk

    @property
    def first_key(self) -> int:
        return self._first_key(self.first)

    @property
    def num_read(self) -> int:
        return self.end - self._first_key(self.last - 1)  # of the last chunk, so enough for all

    def _first_key(self, chunk_number: int) -> int:
        """Returns where the keys begin that the first query of a chunk sees, down to a whole chunk."""
        size = self.request.chunk
        return max(0, (chunk_number * size - self.request.window + 1) // size * size)

    def _start(self, index: jax.Array | int) -> jax.Array:
        """Returns the first key that chunk `index` of the group reads."""
        return jnp.maximum(self.first_key, (self.first + index + 1) * self.request.chunk - self.num_read)

    def keys(self, index: jax.Array | int, x_ZTN: jax.Array) -> jax.Array:
        """Returns the keys (or values, segments) that chunk `index` reads, along axis 1."""
        return jax.lax.dynamic_slice_in_dim(x_ZTN, self._start(index), self.num_read, 1)

    def with_keys_added(self, index: jax.Array | int, sums_ZSN: jax.Array, more_ZRN: jax.Array) -> jax.Array:
        """Returns the group's sums over keys with those of chunk `index` added."""
        start = self._start(index) - self.first_key
        old = jax.lax.dynamic_slice_in_dim(sums_ZSN, start, self.num_read, 1)
        return jax.lax.dynamic_update_slice_in_dim(sums_ZSN, old + more_ZRN, start, 1)

    def mask(self, index: jax.Array | int, segments_BT: jax.Array | None) -> jax.Array:
        """Returns mask[B or 1, C, S] of chunk `index`."""
        size = self.request.chunk
        query_C, key_S = (self.first + index) * size + jnp.arange(size), self._start(index) + jnp.arange(self.num_read)
        mask_BCS = causal_mask(query_C[None], key_S[None], self.request.window)
        if segments_BT is None:
            return mask_BCS
        of_queries_BC = jax.lax.dynamic_slice_in_dim(segments_BT, (self.first + index) * size, size, 1)
        return mask_BCS & (of_queries_BC[:, :, None] == self.keys(index, segments_BT)[:, None, :])

    def run(self, of_chunk: Any, carry: Any, queries: tuple[jax.Array, ...]) -> tuple[Any, tuple[jax.Array, ...]]:
        """Returns (the last carry, results joined along time) of of_chunk(carry, (index, *queries of the chunk))."""
        count, size = self.last - self.first, self.request.chunk
        here = [jax.lax.slice_in_dim(one, self.first * size, self.end, axis=2) for one in queries]
        if count == 1:
            return of_chunk(carry, (0, *here))
        chunks = [jnp.moveaxis(one.reshape(*one.shape[:2], count, size, one.shape[-1]), 2, 0) for one in here]
        # A mask depends on the chunk's number alone: without the barrier all masks would be made once for all layers, and kept.
        together = jax.lax.optimization_barrier
        carry, results = jax.lax.scan(lambda carry, item: of_chunk(carry, together(item)), carry, (jnp.arange(count), *chunks))
        return carry, tuple(jnp.moveaxis(one, 0, 2).reshape(*one.shape[1:3], count * size, -1) for one in results)


def _groups(num_queries: int, request: Request) -> list[_Group]:
    """Returns the groups of a row, as even as may be."""
    num_chunks = num_queries // request.chunk
    # Of many chunks, two at least: a loop holds one chunk's scores at a time, while XLA may run groups side by side.
    count = num_chunks if num_chunks <= MAX_GROUPS // 2 else min(MAX_GROUPS, num_chunks // 2)
    edges = [round(group * num_chunks / count) for group in range(count + 1)]
    return [_Group(first, last, request) for first, last in itertools.pairwise(edges)]


def _scores(q_ZRN: jax.Array, k_ZSN: jax.Array, soft_cap: float) -> tuple[jax.Array, jax.Array | float]:
    """Returns (scores [Z, R, S] in float32, their derivative by q k)."""
    scale = 1 / math.sqrt(q_ZRN.shape[-1])
    scores_ZRS = soft_capped(product_with_rows(q_ZRN, k_ZSN) * scale, soft_cap)
    return scores_ZRS, slope(scores_ZRS, soft_cap) * scale


def _masked(x_ZRS: jax.Array, mask_BCS: jax.Array, otherwise: float) -> jax.Array:
    """Returns x where a query sees a key, `otherwise` elsewhere."""
    batch, queries, keys = mask_BCS.shape
    x_BXCS = x_ZRS.reshape(batch, -1, queries, keys)
    return jnp.where(mask_BCS[:, None], x_BXCS, otherwise).reshape(x_ZRS.shape)


def chunk_forward(
    q_ZGCN: jax.Array, k_ZSN: jax.Array, v_ZSN: jax.Array, mask_BCS: jax.Array, soft_cap: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (out [Z, G, C, N], logarithm of the sum of exponentials [Z, G, C, 1], float32)."""
    scores_ZRS, _ = _scores(_rows(q_ZGCN), k_ZSN, soft_cap)
    scores_ZRS = _masked(scores_ZRS, mask_BCS, NOTHING)
    highest_ZR1 = jnp.max(scores_ZRS, axis=-1, keepdims=True)
    weights_ZRS = jnp.exp(scores_ZRS - highest_ZR1)
    total_ZR1 = jnp.sum(weights_ZRS, axis=-1, keepdims=True)  # at least 1: a query sees itself
    out_ZRN = product(weights_ZRS.astype(v_ZSN.dtype), v_ZSN) / total_ZR1
    log_sum_ZR1 = highest_ZR1 + jnp.log(total_ZR1)
    return out_ZRN.astype(q_ZGCN.dtype).reshape(q_ZGCN.shape), log_sum_ZR1.reshape(*q_ZGCN.shape[:3], 1)


def chunk_backward(
    queries: tuple[jax.Array, ...], k_ZSN: jax.Array, v_ZSN: jax.Array, mask_BCS: jax.Array, soft_cap: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (dq [Z, G, C, N] in the type of q, dk, dv [Z, S, N] in float32).

    `queries`: (q, gradient of the output, logarithms of the sums, row sums of output x gradient).
    """
    q_ZRN, grad_ZRN, log_sum_ZR1, delta_ZR1 = (_rows(one) for one in queries)
    scores_ZRS, by_product = _scores(q_ZRN, k_ZSN, soft_cap)
    weights_ZRS = _masked(jnp.exp(scores_ZRS - log_sum_ZR1), mask_BCS, 0.0)
    dscores_ZRS = (weights_ZRS * (product_with_rows(grad_ZRN, v_ZSN) - delta_ZR1) * by_product).astype(k_ZSN.dtype)
    dq_ZRN = product(dscores_ZRS, k_ZSN, q_ZRN.dtype)
    dv_ZSN = product_over_rows(weights_ZRS.astype(v_ZSN.dtype), grad_ZRN)
    return dq_ZRN.reshape(queries[0].shape), product_over_rows(dscores_ZRS, q_ZRN), dv_ZSN


def row_sums(grad_N: jax.Array, out_N: jax.Array) -> jax.Array:
    """Returns the sum of gradient x output over the last axis, which stays, in float32."""
    return jnp.sum(apart(_multiplied, grad_N, out_N), axis=-1).reshape(*out_N.shape[:-1], 1)


def _multiplied(grad_N: jax.Array, out_N: jax.Array) -> jax.Array:
    """Returns the products as rows [n, N]: XLA's library for CPUs takes ten times as long to multiply and add over more dimensions."""
    return (grad_N.astype(jnp.float32) * out_N.astype(jnp.float32)).reshape(-1, out_N.shape[-1])


def _rows(x_ZGCN: jax.Array) -> jax.Array:
    return x_ZGCN.reshape(x_ZGCN.shape[0], -1, x_ZGCN.shape[-1])
