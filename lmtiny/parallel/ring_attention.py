"""Causal attention over a row whose time is split over devices: keys and values travel round a ring.

Ring attention (arXiv 2310.01889) in zig-zag order: each device holds a piece `low` and a piece `high` of 2C
(`parallel.zigzag`).  Beside its own keys (three pairs of pieces), in each of C - 1 further steps it has two pairs with
work: `high` with the sender's low piece, and either `low` with that (a sender before it) or `high` with the sender's high
piece (a sender after it).  So every device does the same work, and no masked half is computed.

B batch, t time steps here (2s), s steps of a piece, c queries of a chunk, K key/value heads, G query heads for each, N head
size, S the whole row.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lmtiny.parallel import zigzag
from lmtiny.parallel.axes import CONTEXT_AXIS
from lmtiny.parallel.soft_cap import slope, soft_capped

CHUNK = 256  # queries whose scores exist at one time
NOTHING = -1e30  # a logarithm of no weight at all

Piece = jax.Array | int


def ring_attention(
    q_BtHN: jax.Array, k_BtKN: jax.Array, v_BtKN: jax.Array, segments_BS: jax.Array | None, window: jax.Array | int, soft_cap: float
) -> jax.Array:
    """Returns the attention of this device's queries over the whole row, [B, t, H, N].

    Args:
      segments_BS: of the whole row in its natural order; tokens see their own segment. None: all are one.
      window: how many keys back a query sees, itself included.
      soft_cap: scores = cap * tanh(scores / cap); 0: none.
    """
    q_BtKGN = q_BtHN.reshape(*k_BtKN.shape[:3], -1, q_BtHN.shape[-1])
    out_BtKGN = _ring(q_BtKGN, jnp.stack([k_BtKN, v_BtKN]), segments_BS, jnp.asarray(window), soft_cap)
    return out_BtKGN.reshape(q_BtHN.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(q: jax.Array, kv: jax.Array, segments_BS: Any, window: jax.Array, soft_cap: float) -> jax.Array:
    return _ring_forward(q, kv, segments_BS, window, soft_cap)[0]


def _ring_forward(q: jax.Array, kv: jax.Array, segments_BS: Any, window: jax.Array, soft_cap: float) -> tuple[jax.Array, Any]:
    low, high = zigzag.own_pieces()
    q_low, q_high = jnp.split(q, 2, axis=1)
    pair = functools.partial(_attend_piece, segments_BS=segments_BS, window=window, soft_cap=soft_cap)
    num_devices = jax.lax.axis_size(CONTEXT_AXIS)

    arrived = _pass_on(kv)
    kv_low, kv_high = jnp.split(kv, 2, axis=2)
    of_low = pair(q_low, kv_low, low, low)
    of_high = _merged(pair(q_high, kv_high, high, high), pair(q_high, kv_low, high, low))

    def step(carry: Any, distance: jax.Array, send: bool = True) -> tuple[Any, None]:
        arrived, of_low, of_high = carry
        onward = _pass_on(arrived) if send else arrived  # on its way while this device computes
        kv_low, kv_high = jnp.split(arrived, 2, axis=2)
        sender, sender_high = _sender(low, distance)
        of_high = _merged(of_high, pair(q_high, kv_low, high, sender))
        before = sender < low
        either = pair(_pick(before, q_low, q_high), _pick(before, kv_low, kv_high),
                      _pick(before, low, high), _pick(before, sender, sender_high))  # fmt: skip
        merged = _merged(_pick(before, of_low, of_high), either)
        return (onward, _pick(before, merged, of_low), _pick(before, of_high, merged)), None

    carry, _ = jax.lax.scan(step, (arrived, of_low, of_high), jnp.arange(1, num_devices - 1))
    (_, of_low, of_high), _ = step(carry, jnp.int32(num_devices - 1), send=False)
    out, log_sum = (jnp.concatenate(parts, axis=1) for parts in zip(of_low, of_high, strict=True))
    out = out.astype(q.dtype)
    return out, (q, kv, segments_BS, window, out, log_sum)


def _ring_backward(soft_cap: float, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    q, kv, segments_BS, window, out, log_sum = saved
    low, high = zigzag.own_pieces()
    delta = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    of_queries = [jnp.split(one, 2, axis=1) for one in (q, grad, log_sum, delta)]
    q_low, q_high = (tuple(parts[i] for parts in of_queries) for i in (0, 1))
    pair = functools.partial(_attend_piece_backward, segments_BS=segments_BS, window=window, soft_cap=soft_cap)
    num_devices = jax.lax.axis_size(CONTEXT_AXIS)

    arrived = _pass_on(kv)
    kv_low, kv_high = jnp.split(kv, 2, axis=2)
    dq_low, dkv_low = pair(q_low, kv_low, low, low)
    dq_high, dkv_high = pair(q_high, kv_high, high, high)
    dq, dkv = pair(q_high, kv_low, high, low)
    dq_high, dkv_low = dq_high + dq, dkv_low + dkv

    def step(carry: Any, distance: jax.Array, send: bool = True) -> tuple[Any, None]:
        arrived, dkv, dq_low, dq_high = carry
        onward = _pass_on(arrived) if send else arrived
        dkv_low, dkv_high = jnp.split(_pass_on(dkv), 2, axis=2)  # the gradients travel with the keys they belong to
        kv_low, kv_high = jnp.split(arrived, 2, axis=2)
        sender, sender_high = _sender(low, distance)
        dq, more = pair(q_high, kv_low, high, sender)
        dq_high, dkv_low = dq_high + dq, dkv_low + more
        before = sender < low
        dq, more = pair(_pick(before, q_low, q_high), _pick(before, kv_low, kv_high),
                        _pick(before, low, high), _pick(before, sender, sender_high))  # fmt: skip
        dq_low, dq_high = dq_low + jnp.where(before, dq, 0), dq_high + jnp.where(before, 0, dq)
        dkv_low, dkv_high = dkv_low + jnp.where(before, more, 0), dkv_high + jnp.where(before, 0, more)
        return (onward, jnp.concatenate([dkv_low, dkv_high], axis=2), dq_low, dq_high), None

    carry = (arrived, jnp.concatenate([dkv_low, dkv_high], axis=2), dq_low, dq_high)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(1, num_devices - 1))
    (_, dkv, dq_low, dq_high), _ = step(carry, jnp.int32(num_devices - 1), send=False)
    dq = jnp.concatenate([dq_low, dq_high], axis=1)
    return dq.astype(q.dtype), _pass_on(dkv).astype(kv.dtype), None, None  # one more hop, and they are home


_ring.defvjp(_ring_forward, _ring_backward)


def _pass_on(x: jax.Array) -> jax.Array:
    num_devices = jax.lax.axis_size(CONTEXT_AXIS)
    return jax.lax.ppermute(x, CONTEXT_AXIS, [(i, (i + 1) % num_devices) for i in range(num_devices)])


def _sender(low: Piece, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers of the two pieces that came from `distance` devices before this one."""
    num_devices = jax.lax.axis_size(CONTEXT_AXIS)
    sender = (low - distance) % num_devices
    return sender, 2 * num_devices - 1 - sender


def _pick(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _merged(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the attention over two sets of keys from (out, log of the sum of exponentials) over each."""
    log_sum = jnp.logaddexp(one[1], other[1])
    out = sum(out * jnp.exp(log - log_sum)[..., None] for out, log in (one, other))
    return jnp.asarray(out), log_sum


def _together(item: Any) -> Any:
    """Returns a chunk's queries and their place in the row, the place looking as if it depended on the queries.

    A mask depends on nothing that a layer computes: jax would make all masks once, before the first layer, and keep them,
    T^2 numbers.
    """
    return jax.lax.optimization_barrier(item)


def _mask(
    segments_BS: Any, window: jax.Array, q_start: jax.Array | int, k_start: jax.Array | int, num_queries: int, num_keys: int
) -> jax.Array:
    """Returns mask[B or 1, 1, 1, c, s] of queries and keys that stand in the row from q_start and k_start on."""
    distance_cs = (q_start + jnp.arange(num_queries))[:, None] - (k_start + jnp.arange(num_keys))[None]
    mask_Bcs = ((distance_cs >= 0) & (distance_cs < window))[None]
    if segments_BS is not None:
        q_Bc = jax.lax.dynamic_slice_in_dim(segments_BS, q_start, num_queries, 1)
        k_Bs = jax.lax.dynamic_slice_in_dim(segments_BS, k_start, num_keys, 1)
        mask_Bcs = mask_Bcs & (q_Bc[:, :, None] == k_Bs[:, None, :])
    return mask_Bcs[:, None, None]


def _scores(q_BcKGN: jax.Array, k_BsKN: jax.Array, soft_cap: float) -> tuple[jax.Array, jax.Array | float]:
    """Returns the scores [B, K, G, c, s] in float32 and their derivative by q k."""
    scale = 1 / math.sqrt(q_BcKGN.shape[-1])
    scores = jnp.einsum("BcKGN,BsKN->BKGcs", q_BcKGN, k_BsKN, preferred_element_type=jnp.float32) * scale
    scores = soft_capped(scores, soft_cap)
    return scores, slope(scores, soft_cap) * scale


def _chunks(x: jax.Array) -> jax.Array:
    """Returns [chunks, B, c, ...] of [B, s, ...]."""
    size = next(size for size in range(min(CHUNK, x.shape[1]), 0, -1) if x.shape[1] % size == 0)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


def _whole(chunks: jax.Array) -> jax.Array:
    """Undoes `_chunks`."""
    return chunks.swapaxes(0, 1).reshape(chunks.shape[1], -1, *chunks.shape[3:])


def _attend_piece(
    q_BsKGN: jax.Array, kv: jax.Array, q_piece: Piece, k_piece: Piece, *, segments_BS: Any, window: jax.Array, soft_cap: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (out [B, s, K, G, N], log of the sum of exponentials [B, s, K, G]) over one piece of keys, float32."""
    k_BsKN, v_BsKN = kv
    num_keys = k_BsKN.shape[1]

    def of_chunk(item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q_BcKGN, start = _together(item)
        mask = _mask(segments_BS, window, start, k_piece * num_keys, q_BcKGN.shape[1], num_keys)
        scores = jnp.where(mask, _scores(q_BcKGN, k_BsKN, soft_cap)[0], NOTHING)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.where(mask, jnp.exp(scores - highest), 0.0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("BKGcs,BsKN->BcKGN", weights.astype(v_BsKN.dtype), v_BsKN, preferred_element_type=jnp.float32)
        some = jnp.where(total > 0, total, 1.0)  # a query may see nothing of this piece
        log_sum = jnp.where(total > 0, highest + jnp.log(some), NOTHING)
        return out / _queries_first(some)[..., None], _queries_first(log_sum)

    q_chunks = _chunks(q_BsKGN)
    starts = q_piece * q_BsKGN.shape[1] + jnp.arange(q_chunks.shape[0]) * q_chunks.shape[2]
    out, log_sum = jax.lax.map(of_chunk, (q_chunks, starts))
    return _whole(out), _whole(log_sum)


def _queries_first(x_BKGc1: jax.Array) -> jax.Array:
    return x_BKGc1[..., 0].transpose(0, 3, 1, 2)


def _keys_last(x_BcKG: jax.Array) -> jax.Array:
    """Undoes `_queries_first`."""
    return x_BcKG.transpose(0, 2, 3, 1)[..., None]


def _attend_piece_backward(
    queries: Any, kv: jax.Array, q_piece: Piece, k_piece: Piece, *, segments_BS: Any, window: jax.Array, soft_cap: float
) -> tuple[jax.Array, jax.Array]:
    """Returns (dq [B, s, K, G, N], dkv [2, B, s, K, N]), float32, of one pair of pieces (FlashAttention-2, arXiv 2307.08691, algorithm 2).

    `queries`: (q, gradient of the output, log of the sum of exponentials over the whole row, row sums of output x gradient).
    """
    k_BsKN, v_BsKN = kv
    num_keys = k_BsKN.shape[1]

    def of_chunk(dkv: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        (q_BcKGN, grad_BcKGN, log_sum_BcKG, delta_BcKG), start = _together(item)
        mask = _mask(segments_BS, window, start, k_piece * num_keys, q_BcKGN.shape[1], num_keys)
        scores, by_product = _scores(q_BcKGN, k_BsKN, soft_cap)
        weights = jnp.where(mask, jnp.exp(scores - _keys_last(log_sum_BcKG)), 0.0)
        dweights = jnp.einsum("BcKGN,BsKN->BKGcs", grad_BcKGN, v_BsKN, preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - _keys_last(delta_BcKG)) * by_product).astype(k_BsKN.dtype)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        dk = einsum("BKGcs,BcKGN->BsKN", dscores, q_BcKGN)
        dv = einsum("BKGcs,BcKGN->BsKN", weights.astype(v_BsKN.dtype), grad_BcKGN)
        return dkv + jnp.stack([dk, dv]), einsum("BKGcs,BsKN->BcKGN", dscores, k_BsKN)

    chunks = tuple(_chunks(one) for one in queries)
    starts = q_piece * queries[0].shape[1] + jnp.arange(chunks[0].shape[0]) * chunks[0].shape[2]
    dkv, dq = jax.lax.scan(of_chunk, jnp.zeros(kv.shape, jnp.float32), (chunks, starts))
    return _whole(dq), dkv
