"""Causal attention by chunks of queries: plain JAX for any device, memory that grows with T and not with T squared.

B batch, T time, C queries of a chunk, M chunks in a group, R keys that a chunk reads, H query heads, K key/value heads,
N head size.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from lmtiny.model.attend_reference import attend_with_mask, causal_mask

MAX_GROUPS = 8  # written out one after the other, so that the program does not grow with T


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
    num_queries = q_BTHN.shape[1]
    num_chunks = math.ceil(num_queries / chunk)
    size = math.ceil(num_queries / num_chunks)
    # Added keys come after all real queries, which therefore do not see them; added queries are cut off below.
    pad = functools.partial(_pad, size=size * num_chunks)
    q_BTHN, k_BTKN, v_BTKN = pad(q_BTHN), pad(k_BTKN), pad(v_BTKN)
    segments_BT = None if segments_BT is None else pad(segments_BT)
    # In float32 outside of the chunks, so that the gradients of keys and values are summed over chunks in float32.
    k32_BTKN, v32_BTKN = k_BTKN.astype(jnp.float32), v_BTKN.astype(jnp.float32)
    outputs = []
    for first, last in _groups(num_chunks):
        queries, keys = slice(first * size, last * size), slice(_first_key(first, size, window), last * size)
        attend_group = functools.partial(_attend_group, first_query=queries.start, first_key=keys.start, chunk=size, window=window)
        outputs.append(
            attend_group(
                q_BTHN[:, queries], k32_BTKN[:, keys], v32_BTKN[:, keys],
                None if segments_BT is None else (segments_BT[:, queries], segments_BT[:, keys]), soft_cap=soft_cap,
            )
        )  # fmt: skip
    return jnp.concatenate(outputs, axis=1)[:, :num_queries]


def _pad(x_BT: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x_BT, ((0, 0), (0, size - x_BT.shape[1]), *((0, 0) for _ in x_BT.shape[2:])))


def _groups(num_chunks: int) -> list[tuple[int, int]]:
    """Returns (first chunk, the one after the last) of each group, as even as may be."""
    # Two chunks at least: a loop holds one chunk's scores at a time, while XLA may run groups side by side.
    count = max(1, min(MAX_GROUPS, num_chunks // 2))
    edges = [round(group * num_chunks / count) for group in range(count + 1)]
    return list(itertools.pairwise(edges))


def _first_key(first_chunk: int, chunk: int, window: int) -> int:
    """Returns where the keys begin that the first query of a chunk sees, down to a whole chunk."""
    return max(0, (first_chunk * chunk - window + 1) // chunk * chunk)


def _attend_group(
    q_BTHN: jax.Array,
    k_BSKN: jax.Array,
    v_BSKN: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None,
    *,
    first_query: int,
    first_key: int,
    chunk: int,
    window: int,
    soft_cap: float,
) -> jax.Array:
    """Returns the outputs of some consecutive chunks of queries, which start at `first_query` of the row; keys at `first_key`."""
    num_keys, dtype = k_BSKN.shape[1], q_BTHN.dtype
    num_chunks = q_BTHN.shape[1] // chunk
    # Of the last chunk, so of every one: each chunk's keys end where the chunk does.
    num_read = num_keys - (_first_key(first_query // chunk + num_chunks - 1, chunk, window) - first_key)

    def attend_chunk(piece: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        index, q_BCHN, segments_BC = piece
        end = (index + 1) * chunk + first_query - first_key
        read = functools.partial(_read, start=jnp.maximum(end - num_read, 0), size=num_read)
        query_1C = (index * chunk + first_query + jnp.arange(chunk))[None]
        key_1R = (jnp.maximum(end - num_read, 0) + first_key + jnp.arange(num_read))[None]
        mask = causal_mask(query_1C, key_1R, window)
        if segments is not None and segments_BC is not None:
            mask = mask & (segments_BC[:, :, None] == read(segments[1])[:, None, :])
        return attend_with_mask(q_BCHN, read(k_BSKN).astype(dtype), read(v_BSKN).astype(dtype), mask, soft_cap)

    in_chunks = functools.partial(_in_chunks, chunk=chunk)
    pieces = (jnp.arange(num_chunks), in_chunks(q_BTHN), None if segments is None else in_chunks(segments[0]))
    out_MBCHN = jax.lax.map(jax.checkpoint(attend_chunk), pieces)
    return out_MBCHN.swapaxes(0, 1).reshape(q_BTHN.shape)


def _read(x_BS: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return x_BS if size == x_BS.shape[1] else jax.lax.dynamic_slice_in_dim(x_BS, start, size, axis=1)


def _in_chunks(x_BT: jax.Array, chunk: int) -> jax.Array:
    """Returns [M, B, C, ...]."""
    return x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]).swapaxes(0, 1)
