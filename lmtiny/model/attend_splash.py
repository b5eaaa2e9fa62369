"""Causal attention by the Pallas kernel "splash attention": TPU, no T x T array, blocks that the mask closes are not computed.

B batch, T time, H query heads, K key/value heads, N head size.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

# jax's kernel is imported inside the functions: every program imports this file, and most never run it (0.08 s).

LANES = 128  # T must be a multiple of this: the kernel lays keys along the lanes of a vector register
LARGEST_BLOCK = 512  # rows and columns of scores in one step of the kernel
# Forward, dk and dv, dq.  The fused backward kernel is left out: it keeps a dq for each block of keys, so T squared.
_BLOCKS = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")


def attend_splash(
    q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, *, window: int, soft_cap: float
) -> jax.Array:
    """Returns what `attend` does; memory grows with T, forward and backward.

    The program holds the kernel for a TPU and the interpreted kernel (slow) for a CPU; the one that is not lowered for
    costs nothing but its tracing.  So the same function runs in tests, and compiles for a TPU in a process that has none.

    Raises:
      ValueError: T is no multiple of 128.
    """
    if q_BTHN.shape[1] % LANES:
        raise ValueError(f"splash attention needs T in multiples of {LANES}, got {q_BTHN.shape[1]}")
    run = functools.partial(_run, window=window, soft_cap=soft_cap)
    arrays = (q_BTHN, k_BTKN, v_BTKN, segments_BT)
    return jax.lax.platform_dependent(*arrays, cpu=functools.partial(run, interpret=True), default=functools.partial(run, interpret=False))


def _run(
    q_BTHN: jax.Array, k_BTKN: jax.Array, v_BTKN: jax.Array, segments_BT: jax.Array | None, *, window: int, soft_cap: float, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib

    num_queries, num_heads, head_dim = q_BTHN.shape[1:]
    *masks, mask_function = _block_masks(num_queries, num_heads, window)
    blocks: dict[str, Any] = dict.fromkeys(_BLOCKS, _block_size(num_queries))
    kernel: Any = kernel_lib.SplashAttentionKernel(
        *masks,
        block_sizes=kernel_lib.BlockSizes(**blocks),
        is_mqa=False,
        save_residuals=False,
        mask_value=kernel_lib.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=soft_cap or None,
        residual_checkpoint_name=None,
        mask_function=mask_function,
        interpret=interpret,
    )
    # The kernel does not scale its scores.
    q_BTHN = (q_BTHN.astype(jnp.float32) / math.sqrt(head_dim)).astype(q_BTHN.dtype)
    q_BHTN, k_BKTN, v_BKTN = (x.swapaxes(1, 2) for x in (q_BTHN, k_BTKN, v_BTKN))
    segments = None if segments_BT is None else kernel_lib.SegmentIds(segments_BT, segments_BT)
    out_BHTN: Any = jax.vmap(kernel)(q_BHTN, k_BKTN, v_BKTN, segments)
    return out_BHTN.swapaxes(1, 2)


@functools.lru_cache(maxsize=32)
def _block_masks(num_queries: int, num_heads: int, window: int) -> tuple[Any, ...]:
    """Returns which blocks each of the three kernels visits, as NumPy arrays, and the mask inside them.

    jax's `make_splash_mha` does the same each time that it is called: seconds for 32,768 tokens, for every layer.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info_lib

    shape, block = (num_queries, num_queries), _block_size(num_queries)
    one_head = mask_lib.CausalMask(shape) if window >= num_queries else mask_lib.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    mask = mask_lib.MultiHeadMask([one_head] * num_heads)
    forward, mask_function = mask_info_lib.process_mask(mask, (block, block))
    backward_kv, _ = mask_info_lib.process_mask_dkv(mask, (block, block))
    return forward, forward, backward_kv, mask_function  # the kernel for dq visits the blocks of the forward one


def _block_size(num_queries: int) -> int:
    """Returns the side of the blocks of all three kernels: the largest that divides the row."""
    return max(block for block in range(LANES, LARGEST_BLOCK + 1, LANES) if num_queries % block == 0)
